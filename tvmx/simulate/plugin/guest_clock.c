/*
 * The guest's clocks. Under QEMU 7.2 a guest has no vDSO: every look at a clock is a syscall.
 *
 * When the kernel has answered one, the answer is overwritten in the guest's memory with the time
 * at which the clock was made simulated plus the simulated time since. The guest needs no library
 * for it, and a process that forks or is linked statically shows simulated time as well.
 *
 * Waiting stays real: a deadline the guest computed from its simulated clock is moved to the
 * host's clock for the duration of the syscall, and the simulated clock stands still meanwhile.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include "model.h"

#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CLOCKS 12 /* CLOCK_REALTIME ... CLOCK_TAI */
#define BILLION 1000000000

/* The guest's own calls to the plugin; QEMU answers ENOSYS to them. */
#define CALL_NUMBER 0x74766d78
enum { CALL_REPORT, CALL_SIMULATED, CALL_HOST };
#define REPORT_FIELDS 12

static bool simulated;
static uint64_t base_offset; /* host address - guest address */
static int64_t began[CLOCKS]; /* ns of the host's clocks when the simulated one was started */

void clock_found_base(uint64_t offset) { base_offset = offset; }

static int64_t host_now(uint64_t clock)
{
    struct timespec now = {0};
    clock_gettime((clockid_t)clock, &now);
    return (int64_t)now.tv_sec * BILLION + now.tv_nsec;
}

static void start_simulated(void)
{
    if (!simulated) {
        for (uint64_t clock = 0; clock < CLOCKS; clock++) {
            began[clock] = host_now(clock);
        }
    }
    simulated = true;
}

bool clock_is_simulated(void) { return simulated; }

void clock_init(bool start)
{
    if (start) {
        start_simulated();
    }
}

/* Guest memory may be unmapped: through the kernel, which says so instead of a signal. */
static bool guest_copy(bool writing, uint64_t guest, void *data, size_t bytes)
{
    struct iovec here = {data, bytes}, there = {(void *)(guest + base_offset), bytes};
    ssize_t done = writing ? process_vm_writev(getpid(), &here, 1, &there, 1, 0)
                           : process_vm_readv(getpid(), &here, 1, &there, 1, 0);
    if (done < 0 && errno != EFAULT) {
        die("cannot reach the guest's memory: %s", strerror(errno));
    }
    return done == (ssize_t)bytes;
}

static int64_t simulated_now(const struct core *core, uint64_t clock)
{
    return (clock < CLOCKS ? began[clock] : 0) + (int64_t)core->elapsed_ns;
}

/* Time in the guest's memory, as seconds and `per_second`ths. */
static void show(struct core *core, uint64_t clock, uint64_t address, int64_t per_second)
{
    core_close_interval(core);
    int64_t now = simulated_now(core, clock);
    int64_t shown[2] = {now / BILLION, now % BILLION / (BILLION / per_second)};
    if (address != 0 && !guest_copy(true, address, shown, sizeof shown)) {
        die("cannot write the time to the guest's memory");
    }
}

static void report(const struct core *core, uint64_t address, uint64_t index)
{
    if (index >= HISTORY || index >= core->reads) {
        return;
    }
    const struct interval *found = &core->history[(core->reads - 1 - index) % HISTORY];
    double fields[REPORT_FIELDS] = {
        1.0, (double)found->nanoseconds,
        (double)found->core / 1000, (double)found->memory / 1000,
        (double)found->instructions, (double)found->lines.l1_misses,
        (double)found->lines.l2_hits, (double)found->lines.prefetched,
        (double)found->lines.l2_misses, (double)found->blocks,
        (double)found->unhot, (double)core->reads,
    };
    guest_copy(true, address, fields, sizeof fields);
}

static void call(struct core *core, const uint64_t *args)
{
    switch (args[0]) {
    case CALL_REPORT:
        report(core, args[1], args[2]);
        break;
    case CALL_SIMULATED:
        core_reset(core);
        start_simulated();
        break;
    case CALL_HOST:
        simulated = false;
        break;
    default:
        break;
    }
}

static bool absolute_deadline(const struct pending *pending, int64_t number, uint64_t *clock,
                              uint64_t *address)
{
    const uint64_t *args = pending->args;
    if (number == syscalls.clock_nanosleep && (args[1] & TIMER_ABSTIME) != 0) {
        *clock = args[0], *address = args[2];
        return true;
    }
    if (number == syscalls.futex) {
        bool realtime = (args[1] & FUTEX_CLOCK_REALTIME) != 0;
        uint64_t command = args[1] & (uint64_t)FUTEX_CMD_MASK;
        *clock = realtime || command == FUTEX_LOCK_PI ? CLOCK_REALTIME : CLOCK_MONOTONIC;
        *address = args[3];
        return args[3] != 0 &&
               (command == FUTEX_WAIT_BITSET || command == FUTEX_LOCK_PI ||
                command == FUTEX_LOCK_PI2 || command == FUTEX_WAIT_REQUEUE_PI);
    }
    return false;
}

void clock_before(struct core *core, struct pending *pending, int64_t number)
{
    uint64_t clock;
    pending->moved = false;
    if (!simulated || !absolute_deadline(pending, number, &clock, &pending->address) ||
        !guest_copy(false, pending->address, pending->original, sizeof pending->original)) {
        return;
    }
    int64_t ahead = host_now(clock) - simulated_now(core, clock);
    int64_t deadline = pending->original[0] * BILLION + pending->original[1] + ahead;
    int64_t moved[2] = {deadline / BILLION, deadline % BILLION};
    pending->moved = guest_copy(true, pending->address, moved, sizeof moved);
}

void clock_after(struct core *core, struct pending *pending, int64_t number, int64_t result)
{
    if (pending->moved) {
        pending->moved = false;
        guest_copy(true, pending->address, pending->original, sizeof pending->original);
    }
    if (number == CALL_NUMBER) {
        call(core, pending->args);
    } else if (simulated && result == 0) {
        if (number == syscalls.clock_gettime) {
            show(core, pending->args[0], pending->args[1], BILLION);
        } else if (number == syscalls.gettimeofday) {
            show(core, CLOCK_REALTIME, pending->args[0], 1000000);
        }
    }
}
