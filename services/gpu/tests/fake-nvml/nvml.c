/* Stands in for NVIDIA's management library in tests, so that the real loading and calling code
 * runs on a machine without a GPU. At each call it reads the file STATE: the number of GPUs, of
 * processes on each, and of bytes in use on each. */
#include <stdio.h>
#include <string.h>

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu, compute; } process;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

static unsigned gpus, processes;
static unsigned long long used;

static void look(void) {
    FILE *f = fopen(STATE, "r");
    gpus = processes = 0;
    used = 0;
    if (f == NULL) return;
    if (fscanf(f, "%u %u %llu", &gpus, &processes, &used) != 3) gpus = 0;
    fclose(f);
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *out, unsigned len) {
    snprintf(out, len, "550.54.15");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    look();
    *count = gpus;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    look();
    if (index >= gpus) return GPU_IS_LOST;
    *device = (void *)(unsigned long)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *out, unsigned len) {
    snprintf(out, len, "Fake GPU %lu", (unsigned long)device - 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *out, unsigned len) {
    snprintf(out, len, "GPU-00000000-fake-%lu", (unsigned long)device - 1);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
    (void)device;
    look();
    memory->total = 1ULL << 34;
    memory->reserved = 0;
    memory->used = used;
    memory->free = memory->total - used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *out) {
    unsigned room = *count;
    (void)device;
    look();
    *count = processes;
    if (processes == 0) return SUCCESS;
    if (room < processes) return INSUFFICIENT_SIZE;
    memset(out, 0, processes * sizeof *out);
    return SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, process *out) {
    (void)device; (void)count; (void)out;
    return NOT_SUPPORTED;
}
