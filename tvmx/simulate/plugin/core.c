/*
 * One guest thread's core: what it executed since the last look at the clock, and the cycles of it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include "model.h"

#include <stdlib.h>
#include <string.h>

/* The blocks that together make up this share of an interval's instructions are costed one by
 * one, whether their costs are known already or not: the sum never depends on what ran before. */
#define HOT_PER_MILLE 999
#define MOST_HOT 4096 /* a program that starts runs ten times as many, each hardly ever */

struct core *core_new(void)
{
    struct core *core = calloc(1, sizeof *core);
    if (core == NULL) {
        die("out of memory");
    }
    core->counts = reserve(MOST_BLOCKS * sizeof *core->counts);
    core->touched = reserve(MOST_BLOCKS * sizeof *core->touched);
    core->weights = reserve(MOST_BLOCKS * sizeof *core->weights);
    core->unknown = reserve(MOST_BLOCKS * sizeof *core->unknown);
    core->memory = memory_new(&core->recent);
    return core;
}

static void forget_counts(struct core *core)
{
    for (size_t i = 0; i < core->touched_count; i++) {
        core->counts[core->touched[i]] = 0;
    }
    core->touched_count = 0;
}

void core_reset(struct core *core)
{
    forget_counts(core);
    memory_reset(core->memory);
    core->reads = 0;
    memset(core->history, 0, sizeof core->history);
}

static int heaviest_first(const void *left, const void *right)
{
    const struct weight *a = left, *b = right;
    if (a->instructions != b->instructions) {
        return a->instructions < b->instructions ? 1 : -1;
    }
    return block_compare(block_at(a->id), block_at(b->id));
}

/* Instructions by block, the most first; their sum. */
static uint64_t weigh(struct core *core)
{
    uint64_t total = 0;
    for (size_t i = 0; i < core->touched_count; i++) {
        uint32_t id = core->touched[i];
        core->weights[i] = (struct weight){core->counts[id] * block_at(id)->instructions, id};
        total += core->weights[i].instructions;
    }
    qsort(core->weights, core->touched_count, sizeof *core->weights, heaviest_first);
    return total;
}

static size_t count_hot(const struct core *core, uint64_t total)
{
    uint64_t sum = 0;
    size_t hot = 0;
    while (hot < core->touched_count && hot < MOST_HOT && sum * 1000 < total * HOT_PER_MILLE) {
        sum += core->weights[hot++].instructions;
    }
    return hot;
}

static void learn(struct core *core, size_t hot)
{
    size_t count = 0;
    for (size_t i = 0; i < hot; i++) {
        if (block_at(core->weights[i].id)->cost == COST_UNKNOWN) {
            core->unknown[count++] = core->weights[i].id;
        }
    }
    if (count > 0) {
        costs_fetch(core->unknown, count);
    }
}

/* Cycles of the core and of its memory since the last call, into the history and the clock. */
void core_close_interval(struct core *core)
{
    struct interval new = {.blocks = core->touched_count};
    new.instructions = weigh(core);
    size_t hot = count_hot(core, new.instructions);
    learn(core, hot);
    for (size_t i = 0; i < core->touched_count; i++) {
        uint32_t id = core->weights[i].id;
        if (i < hot) {
            new.core += (millicycles)core->counts[id] * block_at(id)->cost;
        } else {
            new.unhot += core->weights[i].instructions;
        }
    }
    forget_counts(core);
    new.core += (millicycles)new.unhot * settings.default_cpi;
    new.lines = memory_take(core->memory);
    new.memory = (millicycles)new.lines.l2_hits * settings.l2_hit +
                 (millicycles)new.lines.prefetched * settings.prefetched +
                 (millicycles)new.lines.l2_misses * settings.l2_miss;
    /* Thousandths of a cycle by MHz are nanoseconds. Whole ones for each interval by itself:
     * what was shown before cannot change the difference of two looks at the clock. */
    uint64_t shown = (uint64_t)(new.core + (settings.memory_in_clock ? new.memory : 0));
    new.nanoseconds = (shown + settings.clock_mhz / 2) / settings.clock_mhz;
    core->elapsed_ns += new.nanoseconds;
    core->history[core->reads++ % HISTORY] = new;
}
