/*
 * Translated blocks, told apart by their code alone.
 *
 * QEMU translates anew whenever other code appears at an address (a library unloaded and the
 * next one loaded there, a JIT), and asks for the block's number each time: equal code gets its
 * old number and so its known cost, other code a new one.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include "model.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SLOTS (MOST_BLOCKS * 2)

static struct block *blocks; /* reserved for MOST_BLOCKS: addresses never move */
static size_t block_count;
static uint32_t *slots; /* open addressing; number + 1 */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }

void *reserve(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        die("cannot reserve %zu bytes of address space", bytes);
    }
    return memory;
}

void blocks_init(void)
{
    blocks = reserve(MOST_BLOCKS * sizeof *blocks);
    slots = reserve(SLOTS * sizeof *slots);
    /* The guest's threads may translate while one of them forks. */
    pthread_atfork(before_fork, after_fork, after_fork);
}

static uint64_t hash(const uint8_t *data, size_t bytes)
{
    uint64_t value = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) {
        value = (value ^ data[i]) * 0x100000001b3u;
    }
    return value ^ value >> 29;
}

static bool same(const struct block *block, const uint8_t *sizes, uint32_t instructions,
                 const uint8_t *code, uint32_t bytes)
{
    return block->instructions == instructions && block->bytes == bytes &&
           memcmp(block->sizes, sizes, instructions) == 0 &&
           memcmp(block_code(block), code, bytes) == 0;
}

size_t block_id(const uint8_t *sizes, uint32_t instructions, const uint8_t *code, uint32_t bytes)
{
    pthread_mutex_lock(&lock);
    size_t slot = hash(code, bytes) % SLOTS;
    while (slots[slot] != 0 && !same(&blocks[slots[slot] - 1], sizes, instructions, code, bytes)) {
        slot = (slot + 1) % SLOTS;
    }
    if (slots[slot] == 0) {
        if (block_count == MOST_BLOCKS) {
            die("more than %zu different blocks of code", MOST_BLOCKS);
        }
        uint8_t *copy = malloc(instructions + bytes);
        if (copy == NULL) {
            die("out of memory");
        }
        memcpy(copy, sizes, instructions);
        memcpy(copy + instructions, code, bytes);
        blocks[block_count] = (struct block){instructions, bytes, COST_UNKNOWN, copy};
        slots[slot] = (uint32_t)++block_count;
    }
    size_t id = slots[slot] - 1;
    pthread_mutex_unlock(&lock);
    return id;
}

struct block *block_at(size_t id) { return &blocks[id]; }

const uint8_t *block_code(const struct block *block) { return block->sizes + block->instructions; }

int block_compare(const struct block *a, const struct block *b)
{
    size_t left = a->instructions + (size_t)a->bytes, right = b->instructions + (size_t)b->bytes;
    int order = memcmp(a->sizes, b->sizes, left < right ? left : right);
    return order != 0 ? order : (left > right) - (left < right);
}
