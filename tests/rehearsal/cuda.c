/* A CUDA driver, libcuda.so.1, for Triton and Inductor: it loads any code, and notes the kernels that it does not run. */
#include <cuda.h>
#include <string.h>
#include "null_gpu.h"

#define DONE return CUDA_SUCCESS

CUresult cuInit(unsigned flags) { DONE; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; DONE; }
CUresult cuGetErrorString(CUresult error, const char **text) { *text = "an error of the stand-in"; DONE; }
CUresult cuGetErrorName(CUresult error, const char **text) { *text = "NULL_GPU"; DONE; }
CUresult cuDeviceGetCount(int *n) { *n = 1; DONE; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = 0; DONE; }
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; DONE; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)1; DONE; }
CUresult cuCtxSetCurrent(CUcontext context) { DONE; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = (CUcontext)1; DONE; }
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) { *flags = 0; *active = 1; DONE; }

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 49152; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
    default: *value = 0;
    }
    DONE;
}

/* A kernel's handle is its name. */
CUresult cuModuleLoadData(CUmodule *module, const void *image) { *module = (CUmodule)1; DONE; }
CUresult cuModuleLoad(CUmodule *module, const char *file) { *module = (CUmodule)1; DONE; }
CUresult cuModuleUnload(CUmodule module) { DONE; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    *function = (CUfunction)strdup(name);
    DONE;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { DONE; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { DONE; }
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    DONE;
}
CUresult cuLaunchKernel(
    CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
    CUstream stream, void **arguments, void **extra) {
    null_gpu_note(KERNEL, (const char *)function, 0);
    DONE;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
    null_gpu_note(KERNEL, (const char *)function, 0);
    DONE;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr p) {
    *(CUdeviceptr *)value = p;
    DONE;
}

/* Named by Triton's driver, and not called here. */
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; DONE; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { DONE; }
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction function, const CUlaunchConfig *config) { *n = 1; DONE; }
