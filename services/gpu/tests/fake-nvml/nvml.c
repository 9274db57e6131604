/* Stands in for NVIDIA's management library in tests, so that the real loading and calling code
 * runs on a machine without a GPU. At each call it reads the file `state` in DIRECTORY: the number
 * of GPUs, of processes on each, of bytes in use on each, and, if they attest themselves, a word:
 *   on, off, devtools   what the driver says of confidential computing; if it is on, GPUs answer
 *   silent              on, and no GPU answers
 *   oversized           on, and reports are said to be longer than there is room for
 *
 * It holds no key. On a request for a report it leaves an empty file `ask-GPU-NONCE` (the nonce in
 * hexadecimal), and hands on what a test puts into `report-GPU-NONCE`; certificates it reads from
 * `chain-GPU`. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu, compute; } process;
typedef struct { unsigned version, environment, feature, devtools, several; } settings_v1;
typedef struct {
    unsigned chain_size, attestation_chain_size;
    unsigned char chain[4096], attestation_chain[5120];
} certificate;
typedef struct {
    unsigned has_cec, size, cec_size;
    unsigned char nonce[32], report[8192], cec[4096];
} attestation;

enum {
    SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15, HOPPER = 9
};
/* How long a test may take to answer, in milliseconds. */
enum { PATIENCE = 20000 };

static unsigned gpus, processes;
static unsigned long long used;
static char mode[16];

static void look(void) {
    FILE *f = fopen(DIRECTORY "/state", "r");
    gpus = processes = 0;
    used = 0;
    mode[0] = 0;
    if (f == NULL) return;
    if (fscanf(f, "%u %u %llu %15s", &gpus, &processes, &used, mode) < 3) gpus = 0;
    fclose(f);
}

static int is(const char *word) { return strcmp(mode, word) == 0; }

static unsigned long index_of(void *device) { return (unsigned long)device - 1; }

static unsigned whole(const char *path, unsigned char *out, unsigned room) {
    FILE *f = fopen(path, "r");
    unsigned size;
    if (f == NULL) return 0;
    size = (unsigned)fread(out, 1, room, f);
    fclose(f);
    return size;
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *out, unsigned len) {
    snprintf(out, len, "550.54.15");
    return SUCCESS;
}

int nvmlSystemGetConfComputeSettings(settings_v1 *settings) {
    look();
    if (mode[0] == 0) return NOT_SUPPORTED;
    settings->feature = !is("off");
    settings->devtools = is("devtools");
    settings->several = 0;
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
    snprintf(out, len, "Fake GPU %lu", index_of(device));
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *out, unsigned len) {
    snprintf(out, len, "GPU-00000000-fake-%lu", index_of(device));
    return SUCCESS;
}

int nvmlDeviceGetArchitecture(void *device, unsigned *architecture) {
    (void)device;
    *architecture = HOPPER;
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

int nvmlDeviceGetConfComputeGpuCertificate(void *device, certificate *to) {
    char path[512];
    look();
    if (mode[0] == 0 || is("off")) return NOT_SUPPORTED;
    snprintf(path, sizeof path, DIRECTORY "/chain-%lu", index_of(device));
    /* The other chain is of a key that signs no reports. */
    to->chain_size = 5;
    memcpy(to->chain, "other", 5);
    to->attestation_chain_size =
        whole(path, to->attestation_chain, sizeof to->attestation_chain);
    return SUCCESS;
}

int nvmlDeviceGetConfComputeGpuAttestationReport(void *device, attestation *to) {
    const struct timespec pause = {0, 2000000};
    char nonce[65], ask[512], report[512];
    FILE *f;
    int i;
    look();
    if (mode[0] == 0 || is("off")) return NOT_SUPPORTED;
    if (is("silent")) return TIMEOUT;
    if (is("oversized")) {
        to->size = sizeof to->report + 1;
        return SUCCESS;
    }
    for (i = 0; i < 32; i++) snprintf(nonce + 2 * i, 3, "%02x", to->nonce[i]);
    snprintf(ask, sizeof ask, DIRECTORY "/ask-%lu-%s", index_of(device), nonce);
    snprintf(report, sizeof report, DIRECTORY "/report-%lu-%s", index_of(device), nonce);
    f = fopen(ask, "w");
    if (f == NULL) return TIMEOUT;
    fclose(f);
    for (i = 0; i < PATIENCE / 2; i++) {
        to->size = whole(report, to->report, sizeof to->report);
        if (to->size > 0) {
            unlink(ask);
            return SUCCESS;
        }
        nanosleep(&pause, NULL);
    }
    return TIMEOUT;
}
