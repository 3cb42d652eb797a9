/*
 * What the parts of the plugin share: translated blocks, the memory model, one core per guest
 * thread, and the client of the cost server.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef TVMX_MODEL_H
#define TVMX_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Costs are whole thousandths of a cycle: sums of integers do not depend on their order. */
typedef int64_t millicycles;
#define COST_UNKNOWN ((millicycles)-1)

struct settings {
    unsigned clock_mhz;
    unsigned line_bytes, l1_kib, l1_ways, l2_kib, l2_ways;
    millicycles l2_hit, prefetched, l2_miss; /* each line, the model's factor applied */
    millicycles default_cpi;                 /* an instruction outside the hot blocks */
    bool memory_in_clock;
    char socket[108];
};
extern struct settings settings;

struct syscalls {
    int64_t clock_gettime, gettimeofday, clock_nanosleep, futex, mmap, mremap;
};
extern struct syscalls syscalls; /* their numbers in the guest */

_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Address space that costs memory once it is used. Taken when a thread begins and never later:
 * the guest's mappings lie between the host's, and must not depend on what the plugin had to do. */
void *reserve(size_t bytes);

/* blocks.c: translated code by content, so that other code at the same address is another block. */
#define MOST_BLOCKS ((size_t)1 << 22)
struct block {
    uint32_t instructions;
    uint32_t bytes;
    millicycles cost;
    uint8_t *sizes; /* of the instructions; the code follows */
};
void blocks_init(void);
size_t block_id(const uint8_t *sizes, uint32_t instructions, const uint8_t *code, uint32_t bytes);
struct block *block_at(size_t id);
const uint8_t *block_code(const struct block *block);
int block_compare(const struct block *a, const struct block *b);

/* memory.c: L1 data cache, L2 and a stream prefetcher, for one thread. */
struct memory_counts {
    uint64_t l1_misses, l2_hits, prefetched, l2_misses;
};
#define RECENT 1024
/* Lines that were the last used of their L1 set: using one again changes nothing. By address,
 * not by frame, and so found at once; most accesses end here. */
struct recent {
    unsigned line_shift;
    uint64_t lines[RECENT];
};
struct memory;
struct memory *memory_new(struct recent *recent);
void memory_reset(struct memory *memory);
void memory_access(struct memory *memory, uint64_t line);
void memory_mapped(struct memory *memory, uint64_t address, uint64_t bytes);
void memory_moved(struct memory *memory, uint64_t from, uint64_t to, uint64_t bytes);
struct memory_counts memory_take(struct memory *memory);

/* costs.c */
void costs_fetch(const uint32_t *ids, size_t count);

/* core.c: what one guest thread has executed since its last look at the clock. */
struct interval {
    uint64_t nanoseconds, instructions, unhot, blocks;
    millicycles core, memory;
    struct memory_counts lines;
};
#define HISTORY 64
struct weight {
    uint64_t instructions;
    uint32_t id;
};
struct core {
    uint64_t *counts;  /* executions by block, since the interval began */
    uint32_t *touched; /* the blocks whose count is not 0 */
    size_t touched_count;
    struct weight *weights; /* the touched ones sorted, while an interval is closed */
    uint32_t *unknown;
    struct memory *memory;
    struct recent recent;
    uint64_t elapsed_ns;
    uint64_t reads;
    struct interval history[HISTORY];
};
struct core *core_new(void);
void core_reset(struct core *core);
void core_close_interval(struct core *core);

static inline void core_access(struct core *core, uint64_t address)
{
    uint64_t line = address >> core->recent.line_shift;
    if (core->recent.lines[line % RECENT] != line) {
        memory_access(core->memory, line);
    }
}

static inline void core_execute(struct core *core, size_t id)
{
    if (core->counts[id]++ == 0) {
        core->touched[core->touched_count++] = (uint32_t)id;
    }
}

/* guest_clock.c: the syscalls that read or wait for time. */
struct pending {
    uint64_t args[4];
    bool moved; /* a deadline was rewritten and has to be put back */
    uint64_t address;
    int64_t original[2];
};
void clock_init(bool simulated);
void clock_found_base(uint64_t offset);
bool clock_is_simulated(void);
void clock_before(struct core *core, struct pending *pending, int64_t number);
void clock_after(struct core *core, struct pending *pending, int64_t number, int64_t result);

#endif
