/*
 * A TCG plugin that shows a guest simulated time: what it runs costs the cycles that the core it
 * is meant for would take, and its clock shows those.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "model.h"
#include "qemu_api.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_VCPUS 4096
#define MOST_INSTRUCTIONS 4096 /* of one block; QEMU stops at 512 */
#define LONGEST_INSTRUCTION 16
#define EXIT_FAILED 70

QEMU_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

struct settings settings;
struct syscalls syscalls;
static struct core *cores[MOST_VCPUS];
static struct pending pending[MOST_VCPUS];
static __thread struct core *running; /* of the guest thread that is in a syscall */

void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("tvmx simulator: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    _exit(EXIT_FAILED);
}

static void on_block(unsigned int vcpu, void *id) { core_execute(cores[vcpu], (size_t)id); }

static void on_access(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
    (void)info, (void)data;
    if (clock_is_simulated()) {
        core_access(cores[vcpu], address);
    }
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    static __thread uint8_t sizes[MOST_INSTRUCTIONS];
    static __thread uint8_t code[MOST_INSTRUCTIONS * LONGEST_INSTRUCTION];
    size_t instructions = qemu_plugin_tb_n_insns(tb), bytes = 0;
    if (instructions > MOST_INSTRUCTIONS) {
        die("a block of %zu instructions", instructions);
    }
    for (size_t i = 0; i < instructions; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        size_t size = qemu_plugin_insn_size(insn);
        memcpy(code + bytes, qemu_plugin_insn_data(insn), size);
        sizes[i] = (uint8_t)size;
        bytes += size;
        qemu_plugin_register_vcpu_mem_cb(insn, on_access, QEMU_PLUGIN_CB_NO_REGS,
                                         QEMU_PLUGIN_MEM_RW, NULL);
    }
    struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(tb, 0);
    clock_found_base((uint64_t)(uintptr_t)qemu_plugin_insn_haddr(first) -
                     qemu_plugin_insn_vaddr(first));
    size_t block = block_id(sizes, (uint32_t)instructions, code, (uint32_t)bytes);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, QEMU_PLUGIN_CB_NO_REGS, (void *)block);
}

static void on_vcpu(qemu_plugin_id_t id, unsigned int vcpu)
{
    (void)id;
    if (vcpu >= MOST_VCPUS) {
        die("more than %d threads", MOST_VCPUS);
    }
    if (cores[vcpu] == NULL) {
        cores[vcpu] = core_new();
    }
    core_reset(cores[vcpu]); /* numbers are given anew when a thread has ended */
    /* The clock of a new thread goes on from that of the thread that made it. */
    cores[vcpu]->elapsed_ns = running == NULL ? 0 : running->elapsed_ns;
}

static void on_syscall(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1,
                       uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                       uint64_t a8)
{
    (void)id, (void)a5, (void)a6, (void)a7, (void)a8;
    running = cores[vcpu];
    memcpy(pending[vcpu].args, (uint64_t[]){a1, a2, a3, a4}, sizeof pending[vcpu].args);
    clock_before(cores[vcpu], &pending[vcpu], number);
}

static void follow_mappings(struct memory *memory, const uint64_t *args, int64_t number,
                            int64_t result)
{
    if (result < 0 && result > -4096) {
        return; /* an error */
    }
    uint64_t address = (uint64_t)result;
    if (number == syscalls.mmap) {
        memory_mapped(memory, address, args[1]);
    } else if (number == syscalls.mremap) {
        uint64_t from = args[0], before = args[1], after = args[2];
        if (address != from) {
            memory_mapped(memory, address, after);
            memory_moved(memory, from, address, before < after ? before : after);
        } else if (after > before) {
            memory_mapped(memory, from + before, after - before);
        }
    }
}

static void on_syscall_done(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, int64_t result)
{
    (void)id;
    clock_after(cores[vcpu], &pending[vcpu], number, result);
    follow_mappings(cores[vcpu]->memory, pending[vcpu].args, number, result);
}

static struct syscalls syscalls_of(const char *target)
{
    if (strcmp(target, "aarch64") == 0) {
        return (struct syscalls){.clock_gettime = 113, .gettimeofday = 169, .clock_nanosleep = 115,
                                 .futex = 98, .mmap = 222, .mremap = 216};
    }
    if (strcmp(target, "x86_64") == 0) {
        return (struct syscalls){.clock_gettime = 228, .gettimeofday = 96, .clock_nanosleep = 230,
                                 .futex = 202, .mmap = 9, .mremap = 25};
    }
    die("the syscalls of a %s guest are not known", target);
}

static int64_t number_in(const char *name, const char *value)
{
    char *end;
    int64_t number = strtoll(value, &end, 10);
    if (*value == '\0' || *end != '\0' || number < 0) {
        die("%s=%s is no whole number", name, value);
    }
    return number;
}

/* Each argument is NAME=VALUE; all of them are needed. */
static const char *argument(int argc, char **argv, const char *name)
{
    size_t length = strlen(name);
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], name, length) == 0 && argv[i][length] == '=') {
            return argv[i] + length + 1;
        }
    }
    die("the plugin needs the argument %s", name);
}

static void read_settings(int argc, char **argv)
{
#define NUMBER(name) number_in(name, argument(argc, argv, name))
    settings = (struct settings){
        .clock_mhz = (unsigned)NUMBER("clock_mhz"),
        .line_bytes = (unsigned)NUMBER("line_bytes"),
        .l1_kib = (unsigned)NUMBER("l1_kib"),
        .l1_ways = (unsigned)NUMBER("l1_ways"),
        .l2_kib = (unsigned)NUMBER("l2_kib"),
        .l2_ways = (unsigned)NUMBER("l2_ways"),
        .l2_hit = NUMBER("l2_hit"),
        .prefetched = NUMBER("prefetched"),
        .l2_miss = NUMBER("l2_miss"),
        .default_cpi = NUMBER("default_cpi"),
        .memory_in_clock = NUMBER("memory_in_clock") != 0,
    };
#undef NUMBER
    const char *path = argument(argc, argv, "socket");
    if (strlen(path) >= sizeof settings.socket) {
        die("the path of the socket is too long: %s", path);
    }
    strcpy(settings.socket, path);
}

QEMU_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                    char **argv)
{
    read_settings(argc, argv);
    if (info->system_emulation) {
        die("only user-mode emulation is supported");
    }
    blocks_init();
    syscalls = syscalls_of(info->target_name);
    clock_init(number_in("simulated", argument(argc, argv, "simulated")) != 0);
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_vcpu_syscall_ret_cb(id, on_syscall_done);
    return 0;
}
