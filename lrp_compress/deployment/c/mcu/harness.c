/* A bare-metal program for any Cortex-M board of QEMU: reads observations from QEMU's standard input, writes decisions
 * to its standard output (semihosting), and says what each cost. It ends at the end of its input.
 *
 *   at the start   uint32 ticks of CALIBRATION_LOOPS * 2 instructions
 *   per decision   uint32 ticks, uint32 action, float outputs[POLICY_ACTIONS]
 *   at the end     uint32 bytes of stack used by the decisions
 *
 * All little-endian. Ticks are SysTick's; under -icount its clock advances by a fixed time per instruction.
 */
#include "policy.h"
#include <stddef.h>

#define CALIBRATION_LOOPS 1000000u
#define PAINT 0xA5A5A5A5u
#define SYST_CSR (*(volatile uint32_t *)0xE000E010)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018)
#define CPACR (*(volatile uint32_t *)0xE000ED88)
#define SYST_TOP 0xFFFFFFu

enum { SYS_OPEN = 0x01, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT_EXTENDED = 0x20 };
enum { MODE_RB = 1, MODE_WB = 5, STOPPED = 0x20026 };

extern uint32_t _estack, _sidata, _sdata, _edata, _sbss, _ebss;

static volatile uint32_t wraps;
static policy_observations observation;
static struct {
    uint32_t ticks, action;
    float outputs[1][POLICY_ACTIONS];
} decision;

static int semihosting(int operation, const void *arguments) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void stop(uint32_t code) {
    const uint32_t arguments[2] = {STOPPED, code};
    for (;;) semihosting(SYS_EXIT_EXTENDED, arguments);
}

static void fault(void) {
    semihosting(SYS_WRITE0, "the processor took a fault\n");
    stop(1);
}

static int open_file(const char *name, uint32_t length, uint32_t mode) {
    const uint32_t arguments[3] = {(uint32_t)name, mode, length};
    return semihosting(SYS_OPEN, arguments);
}

/* A pipe gives what it has: read until everything is there; 0 at the end of the input. */
static int read_all(int file, void *to, uint32_t length) {
    for (uint32_t left = length; left;) {
        const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)to + length - left, left};
        const uint32_t still = (uint32_t)semihosting(SYS_READ, arguments);
        if (still >= left) return 0;
        left = still;
    }
    return 1;
}

static void write_all(int file, const void *from, uint32_t length) {
    for (uint32_t left = length; left;) {
        const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)from + length - left, left};
        const uint32_t still = (uint32_t)semihosting(SYS_WRITE, arguments);
        if (still >= left) stop(2);
        left = still;
    }
}

static void tick_handler(void) { wraps++; }

static void clock_start(void) {
    SYST_RVR = SYST_TOP;
    SYST_CVR = 0;
    SYST_CSR = 7; /* the processor's clock, with an interrupt at every wrap, running */
    while (SYST_CVR == 0) {}
}

static uint32_t clock_now(void) {
    uint32_t wrapped, value;
    do {
        wrapped = wraps;
        value = SYST_CVR;
    } while (wrapped != wraps);
    return (wrapped << 24) + (SYST_TOP - value);
}

/* Two instructions a loop. */
__attribute__((noinline)) static void spin(uint32_t loops) {
    __asm__ volatile("1: subs %0, #1\n bne 1b" : "+r"(loops)::"cc");
}

static uint32_t best(const float *outputs) {
    uint32_t action = 0;
    for (uint32_t i = 1; i < POLICY_ACTIONS; i++)
        if (outputs[i] > outputs[action]) action = i;
    return action;
}

int main(void) {
    const int in = open_file("/dev/stdin", 10, MODE_RB), out = open_file("/dev/stdout", 11, MODE_WB);
    clock_start();
    uint32_t start = clock_now();
    spin(CALIBRATION_LOOPS);
    uint32_t ticks = clock_now() - start;
    write_all(out, &ticks, sizeof ticks);

    uint32_t *top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (volatile uint32_t *word = &_ebss; word < top - 64; word++) *word = PAINT;
    while (read_all(in, observation, sizeof observation)) {
        start = clock_now();
        policy(observation, decision.outputs);
        decision.ticks = clock_now() - start;
        decision.action = best(decision.outputs[0]);
        write_all(out, &decision, sizeof decision);
    }
    const volatile uint32_t *lowest = &_ebss;
    while (lowest < top && *lowest == PAINT) lowest++;
    const uint32_t stack = (uint32_t)&_estack - (uint32_t)lowest;
    write_all(out, &stack, sizeof stack);
    return 0;
}

void reset_handler(void) {
    CPACR |= 0xFu << 20; /* the floating-point unit; without effect where there is none */
    __asm__ volatile("dsb; isb");
    for (uint32_t *from = &_sidata, *to = &_sdata; to < &_edata;) *to++ = *from++;
    for (uint32_t *to = &_sbss; to < &_ebss;) *to++ = 0;
    stop((uint32_t)main());
}

__attribute__((section(".isr_vector"), used)) static const void *const vectors[16] = {
    &_estack, reset_handler, fault, fault, fault, fault, fault, NULL,
    NULL,     NULL,          NULL,  fault, fault, NULL,  fault, tick_handler,
};
