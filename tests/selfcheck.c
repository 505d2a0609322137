/* selfcheck.c - the start-up self-check (SPEC 1.4): proves that this build, in this process, computes as tsar.h says. */
#include "../tsar.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* What the arithmetic below relies on: an expression of doubles is evaluated in double. Where the unit is an x87 or a 68881
 * its precision can be set (fix_precision); any other unit of that kind has no cure. */
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "tsar: built with -ffinite-math-only, which breaks NaN and infinity; remove it"
#endif
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 1 && FLT_EVAL_METHOD != 16
#if defined(__GNUC__) && (defined(__i386__) || defined(__x86_64__))
#define TSAR_X87
#elif defined(__GNUC__) && defined(__m68k__)
#define TSAR_68881
#else
#error "tsar: doubles are not evaluated as doubles here (FLT_EVAL_METHOD); choose another unit, e.g. -msse2 -mfpmath=sse"
#endif
#endif

/* The control word of an x87 or 68881 to 53 bits, so that it rounds as IEEE doubles do (subnormals aside). It belongs to the
 * thread; threads that are started later inherit it. */
static void fix_precision(void)
{
#if defined(TSAR_X87)
    unsigned short control;
    __asm__ __volatile__("fnstcw %0" : "=m"(control));
    control = (unsigned short)((control & ~0x300u) | 0x200u);
    __asm__ __volatile__("fldcw %0" : : "m"(control));
#elif defined(TSAR_68881)
    unsigned long control;
    __asm__ __volatile__("fmove%.l %%fpcr, %0" : "=d"(control));
    control = (control & ~0xC0ul) | 0x80ul;
    __asm__ __volatile__("fmove%.l %0, %%fpcr" : : "d"(control));
#endif
}

/* Each of the two returns what is broken, and the remedy, or NULL. Operands are volatile, so that the processor and not the
 * compiler does the arithmetic. What comes first is what would also upset the later checks. */
static const char *broken_process(void)
{
    volatile double one = 1.0, half_ulp = 0x1p-53, more_than_half = 0x1.8p-53, odd = 0x1.0000000000001p+0;
    volatile double even = one + half_ulp, negative = -one - half_ulp, nearer = one + more_than_half, carried = odd + half_ulp;
    if (even != 1.0 || negative != -1.0 || nearer != 0x1.0000000000001p+0 || carried != 0x1.0000000000002p+0)
        return "this process does not round to nearest even: call fesetround(FE_TONEAREST) before tsar";

    volatile double normal = 0x1p-1022, subnormal = 0x1p-1074, half = 0.5, large = 0x1p1000;
    volatile double halved = normal * half, enlarged = subnormal * large;
    if (halved != 0x1p-1023 || enlarged != 0x1p-74)
        return "this process flushes subnormal numbers to zero: build and link without -ffast-math, -Ofast and "
               "-funsafe-math-optimizations, or switch the processor's FTZ and DAZ off before tsar";
    return NULL;
}

static const char *broken_build(void)
{
    /* 2^100 swallows what is added to it, until it is taken away: the order of the terms decides how many are left. */
    volatile double unit = 1.0, huge = 0x1p100;
    double terms[64], total = 0.0, one = unit, big = huge;
    for (size_t i = 0; i < 64; i++) terms[i] = i == 0 ? huge : i == 16 ? -huge : unit;
    for (size_t i = 0; i < 64; i++) total += terms[i];
    volatile double sum = total, left = (big + one) - big;
    if (sum != 47.0 || left != 0.0) return "this build reorders sums: remove -fassociative-math, -funsafe-math-optimizations and -ffast-math";

    volatile double minute = 0x1p-60, above_tie = 0x1.0000008p-53; /* below and a little above half an ULP of 1 */
    double tiny = minute;
    volatile double excess = (one + tiny) - one, rounded_once = one + above_tie;
    if (excess != 0.0 || rounded_once != 0x1.0000000000001p+0)
        return "this process computes in more than double precision and rounds twice: choose a unit with plain doubles, e.g. by "
               "-msse2 -mfpmath=sse";

    volatile double factor = 0x1.0000002p+0, rounded_square = 0x1.0000004p+0; /* 1 + 2^-27, whose square is 2^-54 more */
    double a = factor, b = rounded_square;
    volatile double fused = a * a - b;
    if (fused != 0.0) return "this build fuses multiply and add: add -ffp-contract=off";

    volatile double forty_nine = 49.0; /* 49 (1 / 49) is not 1; the reciprocal is made only where several quotients share it */
    double n = forty_nine, n1 = forty_nine, n3 = 3.0 * forty_nine, n5 = 5.0 * forty_nine, n6 = 6.0 * forty_nine;
    volatile double q1 = n1 / n, q3 = n3 / n, q5 = n5 / n, q6 = n6 / n;
    if (q1 != 1.0 || q3 != 3.0 || q5 != 5.0 || q6 != 6.0)
        return "this build multiplies by a reciprocal instead of dividing: remove -freciprocal-math, -mrecip and -ffast-math";
    return NULL;
}

#define TSAR_REBUILD ": build with -std=c99 -ffp-contract=off and without -ffast-math or a part of it"

/* Returns the name of an elementary function or of the generator whose bits are wrong, or NULL. */
static const char *wrong_function(void)
{
    volatile double x = 0x1.6666666666666p-1, far = -708.25, large = 123456.75, base = 10000.0;
    volatile uint64_t seed = 42;
    struct {
        const char *name;
        double got, expected;
    } known[] = {
        { "tsar_exp", tsar_exp(x), 0x1.01c2a61268987p+1 },
        { "tsar_exp", tsar_exp(far), 0x1.285dc1b5961f1p-1022 },
        { "tsar_log", tsar_log(x), -0x1.6d3c324e13f5p-2 },
        { "tsar_sin", tsar_sin(large), -0x1.fff56feed772bp-1 },
        { "tsar_cos", tsar_cos(large), 0x1.9fff2c9c4e6e3p-7 },
        { "tsar_pow", tsar_pow(base, -x), 0x1.9f7861b7937a3p-10 },
        { "sqrt", sqrt(x), 0x1.ac5eb3f7ab2f8p-1 },
        { "tsar_uniform", tsar_uniform(seed, 0, 0, 0, 0, 0, 0), 0x1.3d423d4fba4bbp-1 }, /* SPEC 1.5 */
        { "tsar_uniform", tsar_uniform(seed, 1, 2, 3, 1, 0, 0), 0x1.ab171e9ea399cp-1 },
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].got != known[i].expected) return known[i].name;
    double array[19]; /* odd, so that the remainder of a vectorised loop is taken too */
    for (size_t i = 0; i < 19; i++) array[i] = x * (double)i - 5.0;
    tsar_exp_n(array, 19);
    for (size_t i = 0; i < 19; i++) {
        volatile double alone = tsar_exp(x * (double)i - 5.0);
        if (array[i] != alone) return "tsar_exp_n";
    }
    return NULL;
}

/* A product of odd sizes, y [5][51] = x [5][37] w^T, digested: as a whole, row by row, and in two pieces of k. The kernel
 * takes its path for many vectors, its path for few, a full panel and one that is not, and its continuation; the expected digest is that of the naive triple
 * loop. */
static tsar_status check_kernel(tsar_error *err)
{
    enum { T = 5, CHECK_ROWS = 51, CHECK_COLS = 37, SPLIT = 20 };
    const size_t panels = (CHECK_ROWS + TSAR_PANEL - 1) / TSAR_PANEL;
    volatile uint64_t seed = 1;
    float weights[CHECK_ROWS * CHECK_COLS];
    double x[T * CHECK_COLS], y[3][T * CHECK_ROWS];
    for (size_t i = 0; i < CHECK_ROWS * CHECK_COLS; i++) weights[i] = (float)((double)(tsar_mix(seed + i) >> 40) * 0x1p-23 - 1.0);
    for (size_t i = 0; i < T * CHECK_COLS; i++) x[i] = (double)(tsar_mix(seed + CHECK_ROWS * CHECK_COLS + i) >> 11) * 0x1p-52 - 1.0;
    tsar_matrix w;
    double *scratch = tsar_alloc(tsar_scratch(T, 1), sizeof *scratch, "the self-check", err);
    tsar_status status = scratch ? tsar_matrix_open(&w, CHECK_ROWS, CHECK_COLS, TSAR_F32, "the self-check", err) : TSAR_ROOM;
    if (status != TSAR_OK) {
        tsar_free(scratch);
        return status;
    }
    tsar_matrix_set_rows(&w, 0, CHECK_ROWS, weights);
    tsar_matmul(y[0], x, &w, NULL, T, 1, scratch);
    for (size_t t = 0; t < T; t++) tsar_matmul(y[1] + t * CHECK_ROWS, x + t * CHECK_COLS, &w, NULL, 1, 1, scratch);
    tsar_accumulate(y[2], CHECK_ROWS, x, CHECK_COLS, &w, NULL, 0, SPLIT, T, 0, panels, NULL);
    tsar_accumulate(y[2], CHECK_ROWS, x + SPLIT, CHECK_COLS, &w, NULL, SPLIT, CHECK_COLS - SPLIT, T, 0, panels, scratch);
    tsar_matrix_close(&w);
    tsar_free(scratch);
    for (size_t way = 0; way < 3; way++) {
        uint64_t digest = 0;
        for (size_t i = 0; i < T * CHECK_ROWS; i++) {
            uint64_t bits;
            memcpy(&bits, &y[way][i], sizeof bits);
            digest = tsar_mix(digest ^ bits);
        }
        if (digest != 0x92BE62ED8B53C2E7u) {
            static const char *const ways[3] = { "as a whole", "row by row", "in two pieces" };
            return tsar_fail(err, TSAR_INPUT, "self-check: a matrix product, taken %s, does not have its known bits" TSAR_REBUILD, ways[way]);
        }
    }
    return TSAR_OK;
}

tsar_status tsar_self_check(tsar_error *err)
{
    fix_precision();
    const char *broken = broken_process();
    if (broken == NULL) broken = broken_build();
    if (broken != NULL) return tsar_fail(err, TSAR_INPUT, "self-check: %s", broken);
    const char *wrong = wrong_function();
    if (wrong != NULL) return tsar_fail(err, TSAR_INPUT, "self-check: %s does not have its known bits" TSAR_REBUILD, wrong);
    return check_kernel(err);
}
