/* A CUDA runtime, preloaded, of one H100 that computes nothing.
 *
 * Memory is reserved and hardly touched, so that 80 GiB cost none. Kernels are noted by name and not run, so whatever is
 * copied to the host is zeros: what lies on the device may be left from anything. A stream that is captured into a graph
 * refuses what a real one refuses. What is missing here goes on to the real runtime, which fails for want of a driver. */
#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "null_gpu.h"

#define EXPORT __attribute__((visibility("default")))
#define DONE return cudaSuccess
#define GIB (1ul << 30)
#define MEMORY (80 * GIB)
#define LOG 1000000

/* The log, which Python reads. */

EXPORT struct entry null_gpu_log[LOG];
EXPORT atomic_long null_gpu_length;

static cudaStream_t capturing;
static atomic_long captured;
static _Thread_local enum cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;

EXPORT void null_gpu_note(int kind, const char *name, size_t bytes) {
    long i = null_gpu_length++;
    if (i < LOG) null_gpu_log[i] = (struct entry){name, bytes, kind, capturing != NULL};
    captured += capturing != NULL;
}

/* During a capture the host must not wait, nor allocate, unless it has said that it knows (relaxed). */
static int refused(void) { return capturing && mode != cudaStreamCaptureModeRelaxed; }

static cudaError_t waited(const char *name) {
    null_gpu_note(WAIT, name, 0);
    return refused() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

/* The device. */

cudaError_t cudaGetDeviceCount(int *n) { *n = 1; DONE; }
cudaError_t cudaGetDevice(int *device) { *device = 0; DONE; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; DONE; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; DONE; }
cudaError_t cudaGetLastError(void) { DONE; }
cudaError_t cudaPeekAtLastError(void) { DONE; }

/* NVIDIA, «H100 Tensor Core GPU Architecture», and the CUDA programming guide's table of compute capability 9.0. */
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    *p = (struct cudaDeviceProp){
        .name = "H100 that computes nothing", .major = 9, .minor = 0, .totalGlobalMem = MEMORY,
        .multiProcessorCount = 132, .warpSize = 32, .maxThreadsPerBlock = 1024, .maxThreadsPerMultiProcessor = 2048,
        .maxBlocksPerMultiProcessor = 32, .maxThreadsDim = {1024, 1024, 64}, .maxGridSize = {2147483647, 65535, 65535},
        .regsPerBlock = 65536, .regsPerMultiprocessor = 65536, .sharedMemPerBlock = 49152,
        .sharedMemPerBlockOptin = 232448, .sharedMemPerMultiprocessor = 233472, .l2CacheSize = 50 << 20,
        .memoryBusWidth = 5120, .textureAlignment = 512, .unifiedAddressing = 1,
    };
    DONE;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, device);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    default: *value = 0;
    }
    DONE;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) { strncpy(text, "0000:00:00.0", length); DONE; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; DONE; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; DONE; }

/* Every entry point of the driver is one that succeeds, but for the context, which must be said to exist. */
static int succeed(void) { return 0; }
static int context_state(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }

cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result) {
    *function = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)succeed : (void *)context_state;
    if (result) *result = cudaDriverEntryPointSuccess;
    DONE;
}

/* Memory: addresses are never used twice, so a range tells the device's memory from the pinned memory of the host. */

struct range { char *start; size_t used; };
static struct range device, pinned;
static atomic_size_t in_use;
static size_t *sizes;  /* by 512-byte block of the device's range */
#define RANGE (1ul << 42)

static void __attribute__((constructor)) reserve(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    device.start = mmap(0, RANGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    pinned.start = mmap(0, RANGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    sizes = mmap(0, RANGE / 512 * sizeof *sizes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (device.start == MAP_FAILED || pinned.start == MAP_FAILED || sizes == MAP_FAILED) abort();
}

static void *take(struct range *range, size_t n) {
    return range->start + __atomic_fetch_add(&range->used, (n + 4095) / 4096 * 4096, __ATOMIC_RELAXED);
}

static int is_in(struct range *range, const void *p) {
    return (const char *)p >= range->start && (const char *)p < range->start + RANGE;
}

cudaError_t cudaMalloc(void **p, size_t n) {
    if (refused()) return cudaErrorStreamCaptureUnsupported;
    if (in_use + n > MEMORY) return cudaErrorMemoryAllocation;
    *p = take(&device, n);
    sizes[((char *)*p - device.start) / 512] = n;
    in_use += n;
    null_gpu_note(ALLOCATE, "cudaMalloc", n);
    DONE;
}

cudaError_t cudaFree(void *p) {
    if (!p) DONE;
    size_t n = sizes[((char *)p - device.start) / 512];
    in_use -= n;
    madvise(p, (n + 4095) / 4096 * 4096, MADV_DONTNEED);
    return waited("cudaFree");
}

cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) { *unused = MEMORY - in_use; *total = MEMORY; DONE; }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { *p = take(&pinned, n); DONE; }
cudaError_t cudaFreeHost(void *p) { DONE; }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    enum cudaMemoryType type = is_in(&device, p) ? cudaMemoryTypeDevice
                             : is_in(&pinned, p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    *a = (struct cudaPointerAttributes){.type = type, .devicePointer = (void *)p, .hostPointer = (void *)p};
    DONE;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t stream) {
    int to_device = is_in(&device, to), from_device = is_in(&device, from);
    if (to_device && from_device) null_gpu_note(ON_DEVICE, "copy", n);
    else null_gpu_note(to_device ? TO_DEVICE : TO_HOST, to_device ? "copy to device" : "copy to host", n);
    if (!from_device) memcpy(to, from, n);
    else if (!to_device) memset(to, 0, n);
    DONE;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
    cudaMemcpyAsync(to, from, n, kind, 0);
    return waited("cudaMemcpy");
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream) {
    null_gpu_note(SET, "memset", n);
    if (n <= 4096) memset(p, value, n);
    DONE;
}

/* Kernels. The runtime's tables of them are replaced by one of names. */

static struct { const void *function; const char *name; } *kernels;
static size_t kernels_length, kernels_room;

void **__cudaRegisterFatBinary(void *binary) { static void *handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
char __cudaInitModule(void **handle) { return 1; }
void __cudaRegisterVar(void **h, char *a, char *b, const char *c, int d, size_t e, int f, int g) {}

void __cudaRegisterFunction(
    void **handle, const char *function, char *device_function, const char *name, int limit, uint3 *tid, uint3 *bid,
    dim3 *block, dim3 *grid, int *warp) {
    if (kernels_length == kernels_room)
        kernels = realloc(kernels, (kernels_room = 2 * kernels_room + 4096) * sizeof *kernels);
    kernels[kernels_length].function = function;
    kernels[kernels_length++].name = name;
}

static int by_function(const void *a, const void *b) {
    const char *x = *(const char **)a, *y = *(const char **)b;
    return (x > y) - (x < y);
}

static const char *name_of(const void *function) {
    static size_t sorted;
    if (sorted != kernels_length) qsort(kernels, sorted = kernels_length, sizeof *kernels, by_function);
    void *found = bsearch(&function, kernels, kernels_length, sizeof *kernels, by_function);
    return found ? ((const char **)found)[1] : "?";
}

static cudaError_t launch(const void *function, cudaStream_t stream) {
    if (capturing && stream != capturing) return cudaErrorStreamCaptureImplicit;
    null_gpu_note(KERNEL, name_of(function), 0);
    DONE;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) { *kernel = (cudaKernel_t)function; DONE; }

cudaError_t __cudaLaunchKernel(
    cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
    return launch((const void *)kernel, stream);
}

cudaError_t cudaLaunchKernel(
    const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
    return launch(function, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) {
    return launch(function, config->stream);
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) { DONE; }

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *function) {
    *a = (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024, .numRegs = 32, .binaryVersion = 90, .ptxVersion = 90};
    DONE;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *n, const void *function, int threads, size_t shared, unsigned flags) {
    *n = 2048 / threads;
    DONE;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *function, int threads, size_t shared) {
    *n = 2048 / threads;
    DONE;
}

/* Streams and events: everything is done at once. */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = malloc(1);
    DONE;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { *stream = malloc(1); DONE; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { DONE; }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; DONE; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return refused() ? cudaErrorStreamCaptureUnsupported : cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { DONE; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return waited("cudaStreamSynchronize"); }
cudaError_t cudaDeviceSynchronize(void) { return waited("cudaDeviceSynchronize"); }
cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = malloc(1); DONE; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); DONE; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { DONE; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { DONE; }
cudaError_t cudaEventQuery(cudaEvent_t event) { return refused() ? cudaErrorStreamCaptureUnsupported : cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return waited("cudaEventSynchronize"); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) { *ms = 1; DONE; }

/* Graphs: one may be captured at a time; what it holds is counted and not kept. */

static size_t nodes;

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode wanted) {
    if (!stream || capturing) return cudaErrorStreamCaptureUnsupported;
    mode = wanted;
    captured = 0;
    capturing = stream;
    DONE;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    capturing = NULL;
    mode = cudaStreamCaptureModeGlobal;
    nodes = captured;
    *graph = malloc(1);
    DONE;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *other) {
    enum cudaStreamCaptureMode before = mode;
    mode = *other;
    *other = before;
    DONE;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = capturing && stream == capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    DONE;
}

cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges, size_t *n) {
    if (id) *id = 1;
    if (n) *n = 0;
    return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *into, size_t *n) { *n = nodes; DONE; }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    *exec = malloc(1);
    DONE;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { free(graph); DONE; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { free(exec); DONE; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) { null_gpu_note(REPLAY, "graph", 0); DONE; }
