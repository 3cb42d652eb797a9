/* What test_simulate_core.py runs in the emulator: no C library, so every instruction is here.
 * The first argument chooses the test; figures are printed as "name value value ...". */
typedef unsigned long u64;
typedef long i64;
typedef unsigned int u32;

#define CALL 0x74766d78
enum { CLOCK_GETTIME = 113, GETTIMEOFDAY = 169, NANOSLEEP = 101, CLOCK_NANOSLEEP = 115, CLONE = 220,
       WAIT4 = 260, MMAP = 222, MUNMAP = 215, WRITE = 64, EXIT = 93, EXIT_GROUP = 94, YIELD = 124 };

static i64 call(i64 number, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f)
{
    register i64 x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b,
                 x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e,
                 x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

static u64 now(i64 clock)
{
    i64 time[2];
    call(CLOCK_GETTIME, clock, (i64)time, 0, 0, 0, 0);
    return (u64)time[0] * 1000000000 + (u64)time[1];
}

static void print(const char *name, int count, const u64 *values)
{
    char line[400], *end = line;
    while (*name) *end++ = *name++;
    for (int i = 0; i < count; i++) {
        char digits[24];
        int used = 0;
        u64 value = values[i];
        do digits[used++] = (char)('0' + value % 10); while (value /= 10);
        *end++ = ' ';
        while (used) *end++ = digits[--used];
    }
    *end++ = '\n';
    call(WRITE, 1, (i64)line, end - line, 0, 0, 0);
}

/* ns, core and memory in thousandths, instructions, L1 misses, L2 hits, prefetched, L2 misses */
static void report(const char *name)
{
    double fields[12] = {0};
    u64 values[8];
    call(CALL, 0, (i64)fields, 0, 0, 0, 0);
    for (int i = 0; i < 8; i++) {
        values[i] = (u64)(fields[i + 1] * (i == 1 || i == 2 ? 1000 : 1) + 0.5);
    }
    print(name, fields[0] == 1.0 ? 8 : 0, values);
}

__attribute__((noinline)) static void count(u64 n)
{
    __asm__ volatile("1: subs %0, %0, #1\n b.ne 1b" : "+r"(n) : : "cc");
}

__attribute__((noinline)) static void walk(char *from, u64 bytes, u64 step)
{
    for (u64 i = 0; i < bytes; i += step) *(volatile char *)(from + i);
}

__attribute__((noinline)) static void **chase(void **p, u64 n)
{
    while (n--) p = (void **)*p;
    return p;
}

static char *map(char *where, u64 bytes, int executable)
{
    return (char *)call(MMAP, (i64)where, (i64)bytes, executable ? 7 : 3, where ? 0x32 : 0x22, -1, 0);
}

static void test_count(void)
{
    for (u64 n = 1000; n <= 1000000; n *= 10) {
        now(1);
        count(n);
        now(1);
        report("count");
    }
}

/* Random order, so that no prefetcher follows; the second round is reported. */
static void test_chase(u64 kib)
{
    u64 lines = kib * 1024 / 64, seed = 12345;
    char *memory = map(0, kib * 1024, 0);
    u32 *order = (u32 *)map(0, lines * 4, 0);
    for (u64 i = 0; i < lines; i++) order[i] = (u32)i;
    for (u64 i = lines - 1; i > 0; i--) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        u64 j = (seed >> 33) % (i + 1);
        u32 swapped = order[i];
        order[i] = order[j], order[j] = swapped;
    }
    for (u64 i = 0; i < lines; i++) {
        *(void **)(memory + order[i] * 64ul) = memory + order[(i + 1) % lines] * 64ul;
    }
    void **p = chase((void **)memory, lines);
    now(1);
    p = chase(p, lines);
    now(1);
    report(p ? "chase" : "lost");
}

static void test_stream(u64 kib)
{
    char *memory = map(0, kib * 1024, 0);
    now(1);
    walk(memory, kib * 1024, 16);
    now(1);
    report("stream");
}

static void test_clocks(void)
{
    i64 half[2] = {0, 300000000}, time[2];
    u64 before = now(1), real = now(0);
    call(NANOSLEEP, (i64)half, 0, 0, 0, 0, 0);
    u64 after = now(1);
    report("sleep");
    print("elapsed", 1, (u64[]){after - before});
    count(10000000);
    call(GETTIMEOFDAY, (i64)time, 0, 0, 0, 0, 0);
    print("gettimeofday", 2, (u64[]){real, (u64)time[0] * 1000000000 + (u64)time[1] * 1000});
    u64 first = now(4);
    count(1000000);
    u64 second = now(4);
    report("shown");
    print("difference", 1, (u64[]){second - first});
}

/* A deadline by the simulated clock, waited for in real time. */
static void test_deadline(void)
{
    count(20000000);
    u64 deadline = now(1) + 300000000;
    i64 time[2] = {(i64)(deadline / 1000000000), (i64)(deadline % 1000000000)};
    call(CLOCK_NANOSLEEP, 1, 1, (i64)time, 0, 0, 0);
    print("kept", 1, (u64[]){(u64)time[0] * 1000000000 + (u64)time[1] == deadline});
}

static void test_switch(void)
{
    i64 tenth[2] = {0, 100000000};
    u64 before = now(1);
    call(NANOSLEEP, (i64)tenth, 0, 0, 0, 0, 0);
    print("host", 1, (u64[]){now(1) - before});
    report("none");
    call(CALL, 1, 0, 0, 0, 0, 0);
    before = now(1);
    call(NANOSLEEP, (i64)tenth, 0, 0, 0, 0, 0);
    count(1000000);
    print("simulated", 1, (u64[]){now(1) - before});
    report("counted");
}

static void test_fork(void)
{
    for (int i = 0; i < 2; i++) {
        i64 child = call(CLONE, 17, 0, 0, 0, 0, 0);
        if (child == 0) {
            now(1);
            count(1000000);
            now(1);
            report("child");
            call(EXIT_GROUP, 0, 0, 0, 0, 0, 0);
        }
        call(WAIT4, child, 0, 0, 0, 0, 0);
    }
    now(1);
    count(1000000);
    now(1);
    report("parent");
}

static volatile int stop, spinning;

static void spin(void)
{
    spinning = 1;
    while (!stop) count(1000);
    call(EXIT, 0, 0, 0, 0, 0, 0);
}

static void start_thread(void (*function)(void))
{
    char *stack = map(0, 65536, 0) + 65536 - 16;
    *(void (**)(void))stack = function;
    register i64 x8 __asm__("x8") = CLONE, x0 __asm__("x0") = 0x50f00, x1 __asm__("x1") = (i64)stack,
                 x2 __asm__("x2") = 0, x3 __asm__("x3") = 0, x4 __asm__("x4") = 0;
    __asm__ volatile("svc #0\n cbnz x0, 1f\n ldr x9, [sp]\n blr x9\n1:"
                     : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                     : "memory", "x9", "x30");
}

static void test_threads(u64 others)
{
    if (others) {
        start_thread(spin);
        while (!spinning) call(YIELD, 0, 0, 0, 0, 0, 0);
    }
    char *memory = map(0, 1 << 20, 0);
    now(1);
    count(3000000);
    walk(memory, 1 << 20, 64);
    now(1);
    report("measured");
    stop = 1;
}

/* As when a library is unloaded and the next one loaded in its place. */
static void test_remap(void)
{
    const u32 codes[2][4] = {
        {0x91000400, 0xf1000421, 0x54ffffc1, 0xd65f03c0}, /* add x0, x0, #1; subs; b.ne; ret */
        {0x9bc17c00, 0xf1000421, 0x54ffffc1, 0xd65f03c0}, /* umulh x0, x0, x1; ... */
    };
    for (int i = 0; i < 4; i++) {
        u32 *code = (u32 *)map((char *)0x7000000000, 4096, 1);
        for (int j = 0; j < 4; j++) code[j] = codes[i % 2][j];
        __asm__ volatile("dc cvau, %0\n dsb ish\n ic ivau, %0\n dsb ish\n isb" ::"r"(code) : "memory");
        now(1);
        ((u64(*)(u64, u64))code)(1, 100000);
        now(1);
        report("remap");
        call(MUNMAP, (i64)code, 4096, 0, 0, 0, 0);
    }
}

static void test_dotprod(void)
{
    __asm__ volatile(".inst 0x4e829420" ::: "v0"); /* sdot v0.4s, v1.16b, v2.16b */
    print("dotprod", 0, 0);
}

static u64 number(const char *text)
{
    u64 value = 0;
    while (*text) value = value * 10 + (u64)(*text++ - '0');
    return value;
}

void run(u64 *stack)
{
    char **argv = (char **)(stack + 1);
    u64 value = stack[0] > 2 ? number(argv[2]) : 0;
    switch (argv[1][0] << 8 | argv[1][1]) {
    case 'c' << 8 | 'o': test_count(); break;
    case 'c' << 8 | 'h': test_chase(value); break;
    case 's' << 8 | 't': test_stream(value); break;
    case 'c' << 8 | 'l': test_clocks(); break;
    case 'd' << 8 | 'e': test_deadline(); break;
    case 's' << 8 | 'w': test_switch(); break;
    case 'f' << 8 | 'o': test_fork(); break;
    case 't' << 8 | 'h': test_threads(value); break;
    case 'r' << 8 | 'e': test_remap(); break;
    case 'd' << 8 | 'o': test_dotprod(); break;
    }
    call(EXIT_GROUP, 0, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov x0, sp\n bl run\n");
