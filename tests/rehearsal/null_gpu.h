/* What the stand-ins for CUDA's runtime and driver share: a log of what a program asks of the GPU. */
#include <stddef.h>

enum kind { KERNEL, TO_DEVICE, TO_HOST, ON_DEVICE, SET, WAIT, ALLOCATE, REPLAY };

struct entry {
    const char *name;  /* of a kernel, a copy or a call */
    long bytes;
    int kind;
    int captured;  /* into a CUDA graph, instead of being done */
};

/* Appends to the log. A name must outlive the program. */
void null_gpu_note(int kind, const char *name, size_t bytes);
