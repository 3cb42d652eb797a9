/*
 * Runs one kernel library without TVM's runtime, on this machine or in the emulator:
 *
 *     driver LIBRARY SYMBOL ARRAYS OUT native REPEATS MILLISECONDS
 *     driver LIBRARY SYMBOL ARRAYS OUT simulated
 *
 * ARRAYS has the kernel's arguments, the output last: int64 count, then for each one int64 type
 * code, bits, dimensions, shape and bytes, then its data. OUT gets the output.
 *
 * native prints one line for each repeat: calls, nanoseconds of wall time and of CPU time for all
 * of them, and nanoseconds of one cycle of the core just then.
 * simulated prints what the emulator's plugin counted in one call with warm caches: core cycles,
 * memory cycles, instructions, L1 misses, L2 hits, prefetched lines, L2 misses.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <tvm/ffi/c_api.h>

#define MOST_ARRAYS 16
#define MOST_DIMENSIONS 8
#define WARM_NS 20e6
#define CHAIN 30000       /* rounds of ten multiplications */
#define MULTIPLY_CYCLES 3 /* latency of imul on Intel's cores since 2008 and on AMD's since 2017 */

/* The emulator's plugin hears this syscall; see tvmx/simulate/plugin/README.md. */
#define CALL_NUMBER 0x74766d78
enum { CALL_REPORT, CALL_SIMULATED };

typedef int (*kernel)(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result);

/* As in tvm/runtime/c_backend_api.h, which is C++. */
struct group {
    void *sync_handle;
    int32_t num_task;
};
typedef int (*parallel_task)(int task, struct group *group, void *data);

struct call {
    kernel run;
    TVMFFIAny args[MOST_ARRAYS];
    DLTensor tensors[MOST_ARRAYS];
    int64_t shapes[MOST_ARRAYS][MOST_DIMENSIONS];
    int64_t bytes[MOST_ARRAYS];
    int32_t count;
};

static _Noreturn void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

/* What a kernel needs of TVM's runtime, for one thread. */

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count)
{
    fprintf(stderr, "%s: ", kind);
    for (int32_t i = 0; i < count; i++) {
        fputs(parts[i], stderr);
    }
    fputc('\n', stderr);
}

static int launch(parallel_task task, void *data, int tasks)
{
    (void)tasks;
    struct group group = {.sync_handle = NULL, .num_task = 1};
    return task(0, &group, data);
}

/* The runtime gives a kernel the same memory again on every call, and so does this. */
#define MOST_FREE 16
static struct {
    void *memory;
    uint64_t bytes;
    int used;
} workspaces[MOST_FREE];

static void *allocate(int device, int number, uint64_t bytes, int code, int bits)
{
    (void)device, (void)number, (void)code, (void)bits;
    for (int i = 0; i < MOST_FREE; i++) {
        if (workspaces[i].memory != NULL && !workspaces[i].used && workspaces[i].bytes == bytes) {
            workspaces[i].used = 1;
            return workspaces[i].memory;
        }
    }
    for (int i = 0; i < MOST_FREE; i++) {
        if (workspaces[i].memory == NULL) {
            if (posix_memalign(&workspaces[i].memory, 64, bytes) != 0) {
                die("out of memory");
            }
            workspaces[i].bytes = bytes;
            workspaces[i].used = 1;
            return workspaces[i].memory;
        }
    }
    die("more than %d workspaces", MOST_FREE);
}

static int release(int device, int number, void *memory)
{
    (void)device, (void)number;
    for (int i = 0; i < MOST_FREE; i++) {
        if (workspaces[i].memory == memory) {
            workspaces[i].used = 0;
        }
    }
    return 0;
}

static void give(void *library, const char *name, void *function)
{
    void **slot = dlsym(library, name);
    if (slot != NULL) {
        *slot = function;
    }
}

static void load_library(struct call *call, const char *path, const char *symbol)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        die("%s", dlerror());
    }
    give(library, "__TVMBackendParallelLaunch", (void *)launch);
    give(library, "__TVMBackendAllocWorkspace", (void *)allocate);
    give(library, "__TVMBackendFreeWorkspace", (void *)release);
    call->run = (kernel)dlsym(library, symbol);
    if (call->run == NULL) {
        die("%s exports no %s", path, symbol);
    }
}

static void read_from(FILE *file, void *data, size_t bytes)
{
    if (fread(data, 1, bytes, file) != bytes) {
        die("the file of arrays is too short");
    }
}

static int64_t read_number(FILE *file)
{
    int64_t number;
    read_from(file, &number, sizeof number);
    return number;
}

static void load_array(struct call *call, FILE *file)
{
    int32_t i = call->count++;
    DLTensor *tensor = &call->tensors[i];
    tensor->device = (DLDevice){kDLCPU, 0};
    tensor->dtype.code = (uint8_t)read_number(file);
    tensor->dtype.bits = (uint8_t)read_number(file);
    tensor->dtype.lanes = 1;
    tensor->ndim = (int32_t)read_number(file);
    if (tensor->ndim > MOST_DIMENSIONS) {
        die("more than %d dimensions", MOST_DIMENSIONS);
    }
    tensor->shape = call->shapes[i];
    for (int32_t d = 0; d < tensor->ndim; d++) {
        tensor->shape[d] = read_number(file);
    }
    call->bytes[i] = read_number(file);
    if (posix_memalign(&tensor->data, 64, (size_t)call->bytes[i] + 1) != 0) {
        die("out of memory");
    }
    read_from(file, tensor->data, (size_t)call->bytes[i]);
    call->args[i] = (TVMFFIAny){.type_index = kTVMFFIDLTensorPtr};
    call->args[i].v_ptr = tensor;
}

static void load_arrays(struct call *call, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        die("cannot read %s", path);
    }
    int64_t count = read_number(file);
    if (count < 1 || count > MOST_ARRAYS) {
        die("%s: %ld arrays", path, (long)count);
    }
    while (call->count < count) {
        load_array(call, file);
    }
    fclose(file);
}

static void store_output(const struct call *call, const char *path)
{
    FILE *file = fopen(path, "wb");
    size_t bytes = (size_t)call->bytes[call->count - 1];
    if (file == NULL || fwrite(call->tensors[call->count - 1].data, 1, bytes, file) != bytes ||
        fclose(file) != 0) {
        die("cannot write %s", path);
    }
}

static void run(struct call *call)
{
    TVMFFIAny result = {.type_index = kTVMFFINone};
    if (call->run(NULL, call->args, call->count, &result) != 0) {
        die("the kernel refused its arguments");
    }
}

static double now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* From a chain of multiplications, each waiting for the one before. */
static double cycle_ns(void)
{
    long value = 3, rounds = CHAIN;
    double began = now(CLOCK_THREAD_CPUTIME_ID);
    __asm__ volatile("1:\n .rept 10\n imul %0, %0\n .endr\n dec %1\n jnz 1b"
                     : "+r"(value), "+r"(rounds) : : "cc");
    return (now(CLOCK_THREAD_CPUTIME_ID) - began) / (CHAIN * 10.0 * MULTIPLY_CYCLES);
}

static void measure(struct call *call, int repeats, double milliseconds)
{
    double began = now(CLOCK_THREAD_CPUTIME_ID), spent;
    long warm = 0;
    do {
        run(call);
        warm++;
    } while ((spent = now(CLOCK_THREAD_CPUTIME_ID) - began) < WARM_NS);
    long calls = (long)(milliseconds * 1e6 / (spent / (double)warm));
    calls = calls < 1 ? 1 : calls;
    for (int repeat = 0; repeat < repeats; repeat++) {
        double wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID);
        for (long i = 0; i < calls; i++) {
            run(call);
        }
        cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
        wall = now(CLOCK_MONOTONIC) - wall;
        printf("%ld %.0f %.0f %.6f\n", calls, wall, cpu, cycle_ns());
    }
}

static void simulate(struct call *call)
{
    double fields[12] = {0};
    syscall(CALL_NUMBER, CALL_SIMULATED);
    now(CLOCK_MONOTONIC);
    run(call); /* fills the caches; before it only the clock's own code ran simulated */
    now(CLOCK_MONOTONIC);
    run(call);
    now(CLOCK_MONOTONIC);
    syscall(CALL_NUMBER, CALL_REPORT, fields, 0L);
    if (fields[0] != 1.0) {
        die("this is no simulated core");
    }
    for (int i = 2; i < 9; i++) {
        printf("%.3f%c", fields[i], i < 8 ? ' ' : '\n');
    }
}

int main(int argc, char **argv)
{
    static struct call call;
    if (argc != 6 && argc != 8) {
        die("usage: driver LIBRARY SYMBOL ARRAYS OUT native REPEATS MILLISECONDS | simulated");
    }
    load_library(&call, argv[1], argv[2]);
    load_arrays(&call, argv[3]);
    run(&call);
    store_output(&call, argv[4]);
    if (argc == 8) {
        measure(&call, atoi(argv[6]), atof(argv[7]));
    } else {
        simulate(&call);
    }
    return 0;
}
