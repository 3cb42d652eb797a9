/*
 * Memory as one core sees it: an L1 data cache and an L2, both LRU and write-allocate, and a
 * detector of streams, whose next lines the core would have prefetched.
 *
 * Pages are numbered in the order of their first use and the caches are indexed by that number,
 * as a fresh process gets its page frames: where the guest's allocator happens to put an array
 * changes nothing, so a run gives the same misses in another process on another day.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "model.h"

#include <stdlib.h>
#include <string.h>

#define PAGE_SHIFT 12
#define NEAR_PAGES 1024 /* a direct-mapped cache of page numbers */
#define LARGEST_REGION 65536 /* pages; larger ones are reservations, hardly used */
#define STREAMS 16
#define STREAM_REACH 4   /* lines between two misses of one stream */
#define STREAM_TRAINED 2 /* steps in one direction before the prefetcher follows */
#define NOTHING UINT64_MAX

struct cache {
    uint64_t sets, ways; /* sets: a power of two */
    uint64_t *lines; /* [sets][ways], the last used first */
};

struct stream {
    uint64_t last, used, region;
    int direction, steps;
};

struct page {
    uint64_t virtual, frame;
    uint64_t region; /* which mapping of the guest's: no stream goes on from one to another */
};

struct memory {
    struct recent *recent;
    struct cache l1, l2;
    uint64_t *l1_last; /* address of the last used line of each set */
    struct memory_counts counts;
    struct stream streams[STREAMS];
    uint64_t now;
    struct page near[NEAR_PAGES];
    struct page *pages; /* open addressing; a power of two of slots */
    uint64_t page_slots, page_count, frames, regions;
};

static void *zeroed(uint64_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL) {
        die("out of memory");
    }
    return memory;
}

static struct cache cache_new(unsigned kib, unsigned ways)
{
    uint64_t sets = (uint64_t)kib * 1024 / settings.line_bytes / ways;
    return (struct cache){sets, ways, zeroed(sets * ways, sizeof(uint64_t))};
}

static void clear_pages(struct page *pages, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        pages[i].virtual = NOTHING;
    }
}

static void forget_recent(struct recent *recent)
{
    for (size_t i = 0; i < RECENT; i++) {
        recent->lines[i] = NOTHING;
    }
}

struct memory *memory_new(struct recent *recent)
{
    struct memory *memory = zeroed(1, sizeof *memory);
    recent->line_shift = (unsigned)__builtin_ctz(settings.line_bytes);
    memory->recent = recent;
    memory->l1 = cache_new(settings.l1_kib, settings.l1_ways);
    memory->l2 = cache_new(settings.l2_kib, settings.l2_ways);
    memory->l1_last = zeroed(memory->l1.sets, sizeof *memory->l1_last);
    memory->page_slots = 4096;
    memory->pages = zeroed(memory->page_slots, sizeof *memory->pages);
    memory_reset(memory);
    return memory;
}

static void cache_clear(struct cache *cache)
{
    memset(cache->lines, 0xff, cache->sets * cache->ways * sizeof(uint64_t));
}

void memory_reset(struct memory *memory)
{
    forget_recent(memory->recent);
    memory->now = memory->page_count = memory->frames = memory->regions = 0;
    memory->counts = (struct memory_counts){0};
    for (size_t i = 0; i < STREAMS; i++) {
        memory->streams[i] = (struct stream){.last = NOTHING};
    }
    cache_clear(&memory->l1);
    cache_clear(&memory->l2);
    clear_pages(memory->near, NEAR_PAGES);
    clear_pages(memory->pages, memory->page_slots);
}

static struct page *page_slot(struct memory *memory, uint64_t virtual)
{
    uint64_t mask = memory->page_slots - 1;
    uint64_t slot = virtual * 0x9e3779b97f4a7c15u >> 32 & mask;
    while (memory->pages[slot].virtual != virtual && memory->pages[slot].virtual != NOTHING) {
        slot = (slot + 1) & mask;
    }
    return &memory->pages[slot];
}

static void grow_pages(struct memory *memory)
{
    struct page *old = memory->pages;
    uint64_t count = memory->page_slots;
    memory->page_slots = count * 2;
    memory->pages = zeroed(memory->page_slots, sizeof *memory->pages);
    clear_pages(memory->pages, memory->page_slots);
    for (uint64_t i = 0; i < count; i++) {
        if (old[i].virtual != NOTHING) {
            *page_slot(memory, old[i].virtual) = old[i];
        }
    }
    free(old);
}

static void set_page(struct memory *memory, struct page page)
{
    struct page *slot = page_slot(memory, page.virtual);
    bool new = slot->virtual == NOTHING;
    *slot = page;
    if (new && ++memory->page_count * 2 > memory->page_slots) {
        grow_pages(memory);
    }
}

static const struct page *page_of(struct memory *memory, uint64_t virtual)
{
    struct page *near = &memory->near[virtual % NEAR_PAGES];
    if (near->virtual != virtual) {
        struct page page = *page_slot(memory, virtual);
        if (page.virtual == NOTHING) {
            page = (struct page){virtual, NOTHING, 0};
        }
        if (page.frame == NOTHING) {
            page.frame = memory->frames++;
            set_page(memory, page);
        }
        *near = page;
    }
    return near;
}

static uint64_t pages_of(uint64_t bytes)
{
    return (bytes + ((uint64_t)1 << PAGE_SHIFT) - 1) >> PAGE_SHIFT;
}

/* The guest got new memory: its pages have no frames yet, whatever was at that address before. */
void memory_mapped(struct memory *memory, uint64_t address, uint64_t bytes)
{
    uint64_t first = address >> PAGE_SHIFT, count = pages_of(bytes);
    forget_recent(memory->recent);
    clear_pages(memory->near, NEAR_PAGES);
    memory->regions++;
    if (count <= LARGEST_REGION) {
        for (uint64_t i = 0; i < count; i++) {
            set_page(memory, (struct page){first + i, NOTHING, memory->regions});
        }
        return;
    }
    for (uint64_t i = 0; i < memory->page_slots; i++) {
        if (memory->pages[i].virtual - first < count) {
            memory->pages[i].frame = NOTHING;
        }
    }
}

/* The guest's memory is at another address now, in the frames it had. */
void memory_moved(struct memory *memory, uint64_t from, uint64_t to, uint64_t bytes)
{
    uint64_t count = pages_of(bytes);
    for (uint64_t i = 0; i < count; i++) {
        struct page page = *page_slot(memory, (from >> PAGE_SHIFT) + i);
        if (page.virtual != NOTHING) {
            page.virtual = (to >> PAGE_SHIFT) + i;
            page.region = memory->regions;
            set_page(memory, page);
        }
    }
}

/* True when the line was there; it is afterwards, as the last used of its set. */
static inline bool cache_use(struct cache *cache, uint64_t line)
{
    uint64_t *set = cache->lines + (line & (cache->sets - 1)) * cache->ways;
    if (set[0] == line) {
        return true;
    }
    uint64_t way = 1;
    while (way < cache->ways && set[way] != line) {
        way++;
    }
    bool hit = way < cache->ways;
    memmove(set + 1, set, (hit ? way : cache->ways - 1) * sizeof *set);
    set[0] = line;
    return hit;
}

/* True when a stream the prefetcher follows was about to fetch this line. */
static bool stream_use(struct memory *memory, uint64_t line, uint64_t region)
{
    struct stream *oldest = &memory->streams[0];
    memory->now++;
    for (struct stream *s = memory->streams; s < memory->streams + STREAMS; s++) {
        int64_t step = (int64_t)(line - s->last);
        int direction = (step > 0) - (step < 0);
        if (s->last != NOTHING && s->region == region && step != 0 && step <= STREAM_REACH && step >= -STREAM_REACH &&
            (s->direction == 0 || s->direction == direction)) {
            bool followed = s->steps >= STREAM_TRAINED;
            *s = (struct stream){line, memory->now, region, direction, s->steps + !followed};
            return followed;
        }
        if (s->used < oldest->used) {
            oldest = s;
        }
    }
    *oldest = (struct stream){line, memory->now, region, 0, 0};
    return false;
}

static void fetch(struct memory *memory, uint64_t virtual_line, uint64_t region, uint64_t line)
{
    memory->counts.l1_misses++;
    bool followed = stream_use(memory, virtual_line, region);
    if (cache_use(&memory->l2, line)) {
        memory->counts.l2_hits++;
    } else if (followed) {
        memory->counts.prefetched++;
    } else {
        memory->counts.l2_misses++;
    }
}

void memory_access(struct memory *memory, uint64_t virtual_line)
{
    unsigned page_lines = PAGE_SHIFT - memory->recent->line_shift; /* as a power of two */
    uint64_t within = virtual_line & (((uint64_t)1 << page_lines) - 1);
    const struct page *page = page_of(memory, virtual_line >> page_lines);
    uint64_t line = page->frame << page_lines | within;
    uint64_t *last = &memory->l1_last[line & (memory->l1.sets - 1)];
    if (memory->recent->lines[*last % RECENT] == *last) {
        memory->recent->lines[*last % RECENT] = NOTHING;
    }
    *last = memory->recent->lines[virtual_line % RECENT] = virtual_line;
    if (!cache_use(&memory->l1, line)) {
        fetch(memory, virtual_line, page->region, line);
    }
}

struct memory_counts memory_take(struct memory *memory)
{
    struct memory_counts counts = memory->counts;
    memory->counts = (struct memory_counts){0};
    return counts;
}
