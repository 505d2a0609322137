/* The elementary functions and the self-check (SPEC 1.3, 1.4).
 *
 *     test_math [N]      N random arguments for each function against MPFR (default 1000000), if built with -DHAVE_MPFR
 *
 * Bits are the same on every machine, and so a table of them is checked everywhere. That they are right, within 1 ULP of the
 * true value, is checked where MPFR is installed, on the table and on random arguments. */
#include "../tsar.h"
#include "test.h"

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <xmmintrin.h>
#endif
#ifdef HAVE_MPFR
#include <mpfr.h>
#endif

/* ------------------------------------------------------------------------------------------------------------- known bits */

enum { EXP, LOG, SIN, COS, ERF, SILU, GELU, GELU_ERF, FUNCTIONS };
static const char *const function_name[FUNCTIONS] = { "exp", "log", "sin", "cos", "erf", "silu", "gelu", "gelu_erf" };

/* Signed zeros, infinity, NaN, subnormals in and out, the last arguments before overflow and underflow, neighbours of 1 and of
 * sqrt(1/2), multiples of pi/2, the end of the range of sin and cos. */
static const struct {
    int function;
    double x, expected;
} known[] = {
    { EXP, 0.0, 1.0 },
    { EXP, -0.0, 1.0 },
    { EXP, 1.0, 0x1.5bf0a8b145769p+1 },
    { EXP, -1.0, 0x1.78b56362cef38p-2 },
    { EXP, 0x1p-1, 0x1.a61298e1e069cp+0 },
    { EXP, -0x1p-54, 1.0 },
    { EXP, 0x1p-53, 1.0 },
    { EXP, 0x1.56e1fc2f8f359p-997, 1.0 },
    { EXP, 0x0.0000000000001p-1022, 1.0 },
    { EXP, 0x1.62e42fefa39efp-2, 0x1.6a09e667f3bccp+0 },
    { EXP, 0x1.48p+3, 0x1.b9ea2aed2a0f1p+14 },
    { EXP, -0x1.2cp+5, 0x1.dd5c566301ec8p-55 },
    { EXP, 0x1.5e1p+9, 0x1.0c24ed83b8e53p+1010 },
    { EXP, 0x1.62e42fefa39efp+9, 0x1.fffffffffff2ap+1023 },
    { EXP, 0x1.62e42fefa39fp+9, INFINITY },
    { EXP, -0x1.622p+9, 0x1.285dc1b5961f1p-1022 },
    { EXP, -0x1.624p+9, 0x0.e6cf6d08897acp-1022 },
    { EXP, -0x1.6dp+9, 0x0.00000001c7ea3p-1022 },
    { EXP, -0x1.744p+9, 0x0.0000000000001p-1022 },
    { EXP, -0x1.74910d52d3051p+9, 0x0.0000000000001p-1022 },
    { EXP, -0x1.74910d52d3052p+9, 0.0 },
    { EXP, 0x1.1ccf385ebc8ap+1023, INFINITY },
    { EXP, -0x1.1ccf385ebc8ap+1023, 0.0 },
    { EXP, INFINITY, INFINITY },
    { EXP, NAN, NAN },
    { LOG, -1.0, NAN },
    { LOG, 1.0, 0.0 },
    { LOG, 0x1.0000000000001p+0, 0x1.fffffffffffffp-53 },
    { LOG, 0x1.fffffffffffffp-1, -0x1p-53 },
    { LOG, 0x1p-1, -0x1.62e42fefa39efp-1 },
    { LOG, 0x1p+1, 0x1.62e42fefa39efp-1 },
    { LOG, 0x1.8p+1, 0x1.193ea7aad030bp+0 },
    { LOG, 0x1.4p+3, 0x1.26bb1bbb55516p+1 },
    { LOG, 0x1.6a09e667f3bccp-1, -0x1.62e42fefa39f1p-2 },
    { LOG, 0x1.6a09e667f3bcdp-1, -0x1.62e42fefa39eep-2 },
    { LOG, 0x1.6a09e667f3bccp+0, 0x1.62e42fefa39eep-2 },
    { LOG, 0x1.6a09e667f3bcdp+0, 0x1.62e42fefa39fp-2 },
    { LOG, 0x1.388p+13, 0x1.26bb1bbb55516p+3 },
    { LOG, 0x0.0000000000001p-1022, -0x1.74385446d71c3p+9 },
    { LOG, 0x0.0000000006p-1022, -0x1.6f2a4f5736e06p+9 },
    { LOG, 0x1p-1022, -0x1.6232bdd7abcd2p+9 },
    { LOG, 0x1.fffffffffffffp+1023, 0x1.62e42fefa39efp+9 },
    { LOG, INFINITY, INFINITY },
    { LOG, NAN, NAN },
    { SIN, 0.0, 0.0 },
    { SIN, -0.0, -0.0 },
    { SIN, 0x0.0000000000001p-1022, 0x0.0000000000001p-1022 },
    { SIN, -0x1.b7cdfd9d7bdbbp-34, -0x1.b7cdfd9d7bdbbp-34 },
    { SIN, 0x1p-1, 0x1.eaee8744b05fp-2 },
    { SIN, 0x1.921fb54442d18p-1, 0x1.6a09e667f3bccp-1 },
    { SIN, 0x1.921fb54442d19p-1, 0x1.6a09e667f3bcdp-1 },
    { SIN, 1.0, 0x1.aed548f090ceep-1 },
    { SIN, 0x1.921fb54442d18p+0, 1.0 },
    { SIN, -0x1p+1, -0x1.d18f6ead1b446p-1 },
    { SIN, 0x1.921fb54442d18p+1, 0x1.1a62633145c07p-53 },
    { SIN, 0x1.2d97c7f3321d2p+2, -1.0 },
    { SIN, 0x1.921fb54442d18p+2, -0x1.1a62633145c07p-52 },
    { SIN, 0x1.fep+7, -0x1.0345c3adeff43p-1 },
    { SIN, -0x1.f44p+9, -0x1.fd948c50a7a0dp-1 },
    { SIN, 0x1.e240cp+16, -0x1.fff56feed772bp-1 },
    { SIN, 0x1.fffff8p+19, 0x1.633156c9d2a04p-4 },
    { SIN, 0x1p+20, 0x1.526ccb2fc8656p-2 },
    { SIN, 0x1.0000000000001p+20, NAN },
    { SIN, INFINITY, NAN },
    { SIN, NAN, NAN },
    { COS, 0.0, 1.0 },
    { COS, -0.0, 1.0 },
    { COS, 0x0.0000000000001p-1022, 1.0 },
    { COS, -0x1.b7cdfd9d7bdbbp-34, 1.0 },
    { COS, 0x1p-1, 0x1.c1528065b7d5p-1 },
    { COS, 0x1.921fb54442d18p-1, 0x1.6a09e667f3bcdp-1 },
    { COS, 0x1.921fb54442d19p-1, 0x1.6a09e667f3bccp-1 },
    { COS, 1.0, 0x1.14a280fb5068cp-1 },
    { COS, 0x1.921fb54442d18p+0, 0x1.1a62633145c07p-54 },
    { COS, -0x1p+1, -0x1.aa22657537205p-2 },
    { COS, 0x1.921fb54442d18p+1, -1.0 },
    { COS, 0x1.2d97c7f3321d2p+2, -0x1.a79394c9e8a0ap-53 },
    { COS, 0x1.921fb54442d18p+2, 1.0 },
    { COS, 0x1.fep+7, -0x1.b97fdbc5b6f12p-1 },
    { COS, -0x1.f44p+9, 0x1.8dbff75eb664fp-4 },
    { COS, 0x1.e240cp+16, 0x1.9fff2c9c4e6e3p-7 },
    { COS, 0x1.fffff8p+19, 0x1.fe12400c920a8p-1 },
    { COS, 0x1p+20, 0x1.e33ada92fe2aep-1 },
    { COS, 0x1.0000000000001p+20, NAN },
    { COS, INFINITY, NAN },
    { COS, NAN, NAN },
    { ERF, 0.0, 0.0 },
    { ERF, -0.0, -0.0 },
    { ERF, 0x0.0000000000001p-1022, 0x0.0000000000001p-1022 },
    { ERF, 0x1p-30, 0x1.20dd750429b6dp-30 },
    { ERF, 0x1.fffffffffffffp-2, 0x1.0a7ef5c18edd2p-1 },
    { ERF, 0x1p-1, 0x1.0a7ef5c18edd2p-1 },
    { ERF, -1.0, -0x1.af767a741088bp-1 },
    { ERF, 0x1.1p+0, 0x1.bbef0fbde6221p-1 },
    { ERF, 0x1.8p+1, 0x1.fffd1ac4135f9p-1 },
    { ERF, -0x1.6p+2, -0x1.fffffffffffbep-1 },
    { ERF, 0x1.7ffffffffffffp+2, 1.0 },
    { ERF, 0x1.8p+2, 1.0 },
    { ERF, -INFINITY, -1.0 },
    { ERF, NAN, NAN },
    { GELU_ERF, 1.0, 0x1.aec4bd120d37ep-1 },
    { GELU_ERF, -0x1.8p+1, -0x1.096697b24488p-8 },
    { SILU, 0.0, 0.0 },
    { SILU, -0.0, -0.0 },
    { SILU, 1.0, 0x1.764d4f5d5a2bdp-1 },
    { SILU, -1.0, -0x1.136561454ba86p-2 },
    { SILU, 0x1.47ae147ae147bp-7, 0x1.495181c483034p-8 },
    { SILU, -0x1.6p+2, -0x1.6ec4ac05c1a8dp-6 },
    { SILU, 0x1.4p+4, 0x1.3ffffff4ef2cp+4 },
    { SILU, -0x1.4p+5, -0x1.87d76dc01e0adp-53 },
    { SILU, -0x1.626p+9, -0x1.f1a9812adc77ap-1014 },
    { SILU, -0x1.f4p+9, -0.0 },
    { SILU, NAN, NAN },
    { GELU, 0.0, 0.0 },
    { GELU, -0.0, -0.0 },
    { GELU, 1.0, 0x1.aeb0b772a3ae2p-1 },
    { GELU, -1.0, -0x1.453d223571479p-3 },
    { GELU, 0x1.47ae147ae147bp-7, 0x1.4a4b6203d0885p-8 },
    { GELU, -0x1.6p+2, -0x1.9758267bcd0aep-28 },
    { GELU, 0x1.4p+4, 0x1.4p+4 },
    { GELU, -0x1.4p+5, -0.0 },
    { GELU, -0x1.626p+9, -0.0 },
    { GELU, -0x1.f4p+9, -0.0 },
    { GELU, NAN, NAN },
};
static const struct {
    double base, y, expected;
} known_power[] = {
    { 0x1.388p+13, -0x1.8p-1, 0x1.0624dd2f1a9fcp-10 },
    { 0x1.388p+13, 0.0, 1.0 },
    { 0x1.388p+13, -1.0, 0x1.a36e2eb1c432dp-14 },
    { 0x1.388p+13, -0x1p-1, 0x1.47ae147ae147bp-7 },
    { 0x1.388p+13, -0x1p-2, 0x1.999999999999ap-4 },
    { 0x1.388p+13, -0x1p-5, 0x1.7ff2224115d9ap-1 },
    { 0x1.388p+13, -0x1.fp-1, 0x1.17a8e301c4436p-13 },
    { 0x1.e848p+18, -0x1.78p-1, 0x1.11d41f32c72e4p-14 },
    { 1.0, 0x1.7e43c8800759cp+996, 1.0 },
    { 1.0, -0x1.e42d130773b76p+1023, 1.0 },
    { 0x1.0000000000001p+0, 0x1.bc16d674ec8p+59, 0x1.44a12826f5073p+320 },
    { 0x1p+1, -0x1.0b8p+10, 0x0.000000000001p-1022 },
    { 0x1p+1, 0x1.ffcp+9, 0x1.6a09e667f3bccp+1023 },
    { 0x1p-1, 0x1.0cap+10, 0x0.0000000000001p-1022 },
    { 0x1.fffffffffffffp-1, 0x1.bc16d674ec8p+59, 0x1.c6ab6c6b3f2f9p-161 },
    { 0x1.388p+13, 0x1.9p+6, INFINITY },
    { 0x1.388p+13, -0x1.9p+6, 0.0 },
    { 0x0.0000000000001p-1022, 0x1p-1, 0x1p-537 },
    { 0x1.4p+3, NAN, NAN },
};

static double evaluate(int function, double x)
{
    switch (function) {
    case EXP: return tsar_exp(x);
    case LOG: return tsar_log(x);
    case SIN: return tsar_sin(x);
    case COS: return tsar_cos(x);
    case ERF: return tsar_erf(x);
    case GELU_ERF: tsar_gelu_erf_n(&x, 1); return x;
    case SILU: tsar_silu_n(&x, 1); return x;
    default: tsar_gelu_n(&x, 1); return x;
    }
}

/* The same bits, any NaN for any NaN. */
static int same(double a, double b) { return isnan(a) ? isnan(b) : memcmp(&a, &b, sizeof a) == 0; }

static void test_known_bits(void)
{
    CHECK(same(tsar_exp(-INFINITY), 0.0), "exp(-inf) is %a", tsar_exp(-INFINITY));
    CHECK(tsar_log(0.0) == -INFINITY && tsar_log(-0.0) == -INFINITY, "log(0) is %a, log(-0) %a", tsar_log(0.0), tsar_log(-0.0));
    CHECK(isnan(tsar_log(-INFINITY)), "log(-inf) is %a", tsar_log(-INFINITY));
    CHECK(isnan(tsar_sin(-INFINITY)) && isnan(tsar_cos(-INFINITY)), "sin(-inf) is %a, cos %a", tsar_sin(-INFINITY), tsar_cos(-INFINITY));
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        double got = evaluate(known[i].function, known[i].x);
        CHECK(same(got, known[i].expected), "%s(%a) is %a, should be %a", function_name[known[i].function], known[i].x, got, known[i].expected);
    }
    for (size_t i = 0; i < sizeof known_power / sizeof known_power[0]; i++) {
        double got = tsar_pow(known_power[i].base, known_power[i].y);
        CHECK(same(got, known_power[i].expected), "pow(%a, %a) is %a, should be %a", known_power[i].base, known_power[i].y, got, known_power[i].expected);
    }
}

/* -------------------------------------------------------------------------------------------------- arrays against scalars */

static uint64_t random_state = 1;

static double uniform(double low, double high)
{
    double u = (double)(tsar_mix(random_state += 0x9E3779B97F4A7C15u) >> 11) * 0x1p-53;
    return low + (high - low) * u;
}

/* The expressions that tsar.h states. */
static double silu(double x) { return x / (1.0 + tsar_exp(-x)); }

static double gelu(double x)
{
    volatile double x1 = 0x1.6e4e26d4801f7p-5 * x, x2 = x1 * x, x3 = x2 * x, sum = x + x3; /* 0.044715 */
    volatile double z = 0x1.9884533d43651p-1 * sum;                                        /* sqrt(2/pi) */
    return x / (1.0 + tsar_exp(-2.0 * z));
}

/* Every length from 0 to 40 at every alignment: the vectorised loop, its remainder, nothing beyond the end. */
static void test_arrays(void)
{
    static void (*const array_function[3])(double *, size_t) = { tsar_exp_n, tsar_silu_n, tsar_gelu_n };
    static double (*const scalar_function[3])(double) = { tsar_exp, silu, gelu };
    static const char *const name[3] = { "tsar_exp_n", "tsar_silu_n", "tsar_gelu_n" };
    const double special[] = { 0.0, -0.0, NAN, INFINITY, -INFINITY, -745.13, -720.0, 709.79, 1e300, -1e300, 0x1p-1060 };
    for (size_t f = 0; f < 3; f++)
        for (size_t n = 0; n <= 40; n++) {
            double in[64], out[64];
            size_t start = n % 8, wrong = 64;
            for (size_t i = 0; i < 64; i++) {
                in[i] = i % 5 == 2 ? special[(i + n) % (sizeof special / sizeof special[0])] : uniform(-30.0, 30.0);
                out[i] = in[i];
            }
            array_function[f](out + start, n);
            for (size_t i = 0; i < 64; i++)
                if (!same(out[i], i >= start && i < start + n ? scalar_function[f](in[i]) : in[i])) wrong = i;
            CHECK(wrong == 64, "%s of %d elements, element %d: %a gives %a", name[f], (int)n, (int)wrong - (int)start, in[wrong % 64], out[wrong % 64]);
        }
}

/* ------------------------------------------------------------------------------------------------------ rounding to a precision */

static double rounded(tsar_dtype precision, double x)
{
    static tsar_model model; /* of which only the precision counts */
    model.precision = precision;
    tsar_round_to(&model, &x, 1);
    return x;
}

/* tsar_round_to against the roundings of float and of its halves, on floats, where these round once; then what rounding twice gets wrong. */
static void test_rounding(void)
{
    const double special[] = { 0.0,     -0.0,    INFINITY,    -INFINITY,       NAN,         0x1p-1074, -0x1p-149, 0x1.8p-150,
                               65519.0, 65520.0, 0x1.fep+127, 0x1.ff7fffp+127, 0x1.ffp+127, 1e300,     -1e300 };
    int wrong = 0;
    for (size_t i = 0; i < 20000; i++) {
        const double x = i < sizeof special / sizeof *special ? special[i] : ldexp(uniform(-2.0, 2.0), (int)(i % 310) - 160);
        const float narrow = (float)x;
        wrong += !same(rounded(TSAR_F64, x), x) + !same(rounded(TSAR_F32, x), narrow);
        wrong += !same(rounded(TSAR_F16, narrow), tsar_widen_f16(tsar_round_f16(narrow))) +
                 !same(rounded(TSAR_BF16, narrow), tsar_widen_bf16(tsar_round_bf16(narrow)));
    }
    CHECK(wrong == 0, "%d of 80000 roundings are wrong", wrong);
    CHECK(rounded(TSAR_BF16, 0x1.0100000000001p+0) == 0x1.02p+0 && rounded(TSAR_F16, 0x1.0020000000001p+0) == 0x1.004p+0, "a tie that is none");
}

/* --------------------------------------------------------------------------------------------------------- the self-check */

static void test_self_check(void)
{
    tsar_error err = { "" };
    CHECK(tsar_self_check(&err) == TSAR_OK, "the self-check fails: %s", err.text);
#if defined(FE_UPWARD) && defined(FE_DOWNWARD) && defined(FE_TOWARDZERO)
    const int modes[3] = { FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO };
    for (int i = 0; i < 3; i++) {
        if (fesetround(modes[i]) != 0) continue;
        tsar_status status = tsar_self_check(&err);
        fesetround(FE_TONEAREST);
        CHECK(status == TSAR_INPUT && strstr(err.text, "nearest") != NULL, "rounding mode %d is not seen: %d %s", i, (int)status, err.text);
    }
#endif
#if defined(__SSE2__) && FLT_EVAL_METHOD == 0
    for (unsigned bit = 0; bit < 2; bit++) { /* denormals are zero, flush to zero */
        unsigned control = _mm_getcsr();
        _mm_setcsr(control | (bit ? 0x8000u : 0x40u));
        tsar_status status = tsar_self_check(&err);
        _mm_setcsr(control);
        CHECK(status == TSAR_INPUT && strstr(err.text, "subnormal") != NULL, "flushing %u is not seen: %d %s", bit, (int)status, err.text);
    }
#endif
    CHECK(tsar_self_check(&err) == TSAR_OK, "the self-check fails the second time: %s", err.text);
}

/* ------------------------------------------------------------------------------------------------------------------- MPFR */

#ifdef HAVE_MPFR

static mpfr_t argument, truth, difference, scratch;

/* |got - truth| in units in the last place of truth; 0 where both overflow to the same infinity. */
static double ulps(double got)
{
    double nearest = mpfr_get_d(truth, MPFR_RNDN);
    if (isnan(got) || isnan(nearest)) return isnan(got) && isnan(nearest) ? 0.0 : HUGE_VAL;
    if (isinf(got) || isinf(nearest)) return got == nearest ? 0.0 : HUGE_VAL;
    long exponent = mpfr_zero_p(truth) ? -1074 : (long)mpfr_get_exp(truth) - 53;
    mpfr_sub_d(difference, truth, got, MPFR_RNDN);
    mpfr_mul_2si(difference, difference, exponent < -1074 ? 1074 : -exponent, MPFR_RNDN);
    return fabs(mpfr_get_d(difference, MPFR_RNDN));
}

static void true_value(int function, double x)
{
    mpfr_set_d(argument, x, MPFR_RNDN);
    switch (function) {
    case EXP: mpfr_exp(truth, argument, MPFR_RNDN); break;
    case LOG: mpfr_log(truth, argument, MPFR_RNDN); break;
    case SIN: mpfr_sin(truth, argument, MPFR_RNDN); break;
    case COS: mpfr_cos(truth, argument, MPFR_RNDN); break;
    case ERF: mpfr_erf(truth, argument, MPFR_RNDN); break;
    case GELU_ERF: /* x (1 + erf(x / sqrt 2)) / 2 */
        mpfr_sqrt_ui(scratch, 2, MPFR_RNDN);
        mpfr_div(truth, argument, scratch, MPFR_RNDN);
        mpfr_erf(truth, truth, MPFR_RNDN);
        mpfr_add_ui(truth, truth, 1, MPFR_RNDN);
        mpfr_mul(truth, truth, argument, MPFR_RNDN);
        mpfr_div_ui(truth, truth, 2, MPFR_RNDN);
        break;
    case SILU: /* x / (1 + e^-x) */
        mpfr_neg(truth, argument, MPFR_RNDN);
        mpfr_exp(truth, truth, MPFR_RNDN);
        mpfr_add_ui(truth, truth, 1, MPFR_RNDN);
        mpfr_div(truth, argument, truth, MPFR_RNDN);
        break;
    default: /* x (1 + tanh z) / 2, z = sqrt(2/pi) (x + 0.044715 x^3) */
        mpfr_const_pi(scratch, MPFR_RNDN);
        mpfr_ui_div(scratch, 2, scratch, MPFR_RNDN);
        mpfr_sqrt(scratch, scratch, MPFR_RNDN);
        mpfr_pow_ui(truth, argument, 3, MPFR_RNDN);
        mpfr_mul_ui(truth, truth, 44715, MPFR_RNDN);
        mpfr_div_ui(truth, truth, 1000000, MPFR_RNDN);
        mpfr_add(truth, truth, argument, MPFR_RNDN);
        mpfr_mul(truth, truth, scratch, MPFR_RNDN);
        mpfr_tanh(truth, truth, MPFR_RNDN);
        mpfr_add_ui(truth, truth, 1, MPFR_RNDN);
        mpfr_mul(truth, truth, argument, MPFR_RNDN);
        mpfr_div_ui(truth, truth, 2, MPFR_RNDN);
    }
}

static double error_at(int function, double x)
{
    true_value(function, x);
    return ulps(evaluate(function, x));
}

/* The worst of n arguments between low and high, in ULP; geometric: as many in every binade. */
static void sweep(int function, double low, double high, int geometric, size_t n, double bound)
{
    double worst = 0.0, at = low;
    for (size_t i = 0; i < n; i++) {
        double x = geometric ? exp(uniform(log(low), log(high))) : uniform(low, high);
        double error = error_at(function, x);
        if (!(error <= worst)) worst = error, at = x;
    }
    printf("%-5s %10.4g ... %-10.4g %8lu arguments: at most %.4f ULP\n", function_name[function], low, high, (unsigned long)n, worst);
    CHECK(worst <= bound, "%s(%a) is %.4f ULP from the true value", function_name[function], at, worst);
}

/* The doubles nearest to k pi/2 for k up to 2^20 / (pi/2), where sin or cos almost vanishes. */
static void sweep_multiples(void)
{
    double worst = 0.0, at = 0.0;
    for (int k = 1; k <= 667543; k++) {
        double x = k * 0x1.921fb54442d18p+0, error = error_at(k & 1 ? COS : SIN, x);
        if (!(error <= worst)) worst = error, at = x;
    }
    printf("sin or cos at the multiples of pi/2: at most %.4f ULP\n", worst);
    CHECK(worst <= 1.0, "sin or cos of %a is %.4f ULP from the true value", at, worst);
}

/* base^y for y ln base in low ... high. */
static void sweep_power(const char *what, double base_low, double base_high, double low, double high, size_t n)
{
    double worst = 0.0, worst_base = 0.0, worst_y = 0.0;
    for (size_t i = 0; i < n; i++) {
        double base = exp(uniform(log(base_low), log(base_high))), y = uniform(low, high) / log(base);
        mpfr_set_d(argument, base, MPFR_RNDN);
        mpfr_set_d(scratch, y, MPFR_RNDN);
        mpfr_pow(truth, argument, scratch, MPFR_RNDN);
        double error = ulps(tsar_pow(base, y));
        if (!(error <= worst)) worst = error, worst_base = base, worst_y = y;
    }
    printf("pow, %s: %lu arguments, at most %.4f ULP\n", what, (unsigned long)n, worst);
    CHECK(worst <= 1.0, "pow(%a, %a) is %.4f ULP from the true value", worst_base, worst_y, worst);
}

static void test_mpfr(size_t n)
{
    mpfr_inits2(160, argument, truth, difference, scratch, (mpfr_ptr)0);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].function <= ERF && !((known[i].function == SIN || known[i].function == COS) && fabs(known[i].x) > 0x1p20)) {
            double error = error_at(known[i].function, known[i].x);
            CHECK(error <= 1.0, "%s(%a) is %.4f ULP from the true value", function_name[known[i].function], known[i].x, error);
        }
    sweep(EXP, -1.0, 1.0, 0, n / 4, 1.0);
    sweep(EXP, -708.0, 709.8, 0, n / 4, 1.0);
    sweep(EXP, -746.0, -708.0, 0, n / 4, 1.0);
    sweep(EXP, 1e-20, 1.0, 1, n / 4, 1.0);
    sweep(LOG, 0.5, 2.0, 0, n / 4, 1.0);
    sweep(LOG, 1.0 - 0x1p-20, 1.0 + 0x1p-20, 0, n / 4, 1.0);
    sweep(LOG, 0x1p-1022, DBL_MAX, 1, n / 4, 1.0);
    sweep(LOG, 0x1p-1074, 0x1p-1022, 1, n / 4, 1.0);
    for (int function = SIN; function <= COS; function++) {
        sweep(function, -4.0, 4.0, 0, n / 4, 1.0);
        sweep(function, -1000.0, 1000.0, 0, n / 4, 1.0);
        sweep(function, -0x1p20, 0x1p20, 0, n / 4, 1.0);
        sweep(function, 0x1p-1074, 1.0, 1, n / 4, 1.0);
    }
    sweep(ERF, -1.0, 1.0, 0, n / 4, 1.0);
    sweep(ERF, 0.4375, 0.6875, 0, n / 4, 1.0);
    sweep(ERF, -6.5, 6.5, 0, n / 4, 1.0);
    sweep(ERF, 0x1p-1074, 1.0, 1, n / 4, 1.0);
    sweep(GELU_ERF, -1.0, 8.0, 0, n / 10, 6.0); /* 1 + erf is at least 0.32 there: below, the sum cancels, as the formula has it */
    sweep_multiples();
    sweep_power("base 10000, exponents of rotary frequencies", 10000.0, 10000.0, -9.2, 0.0, n / 10);
    sweep_power("any base and exponent", 0x1p-1022, DBL_MAX, -745.0, 709.0, n / 10);
    sweep_power("bases near 1", 1.0 + 0x1p-30, 1.5, -700.0, 700.0, n / 10);
    sweep(SILU, -40.0, 40.0, 0, n / 10, 3.0); /* the errors of exp, of the sum and of the quotient add up */
    sweep(GELU, -3.0, 8.0, 0, n / 10, 45.0);  /* and the seven roundings in z, each below 2^-53 of it, count 2 |z| < 6.8 fold */
    mpfr_clears(argument, truth, difference, scratch, (mpfr_ptr)0);
    mpfr_free_cache();
}

#endif

int main(int argc, char **argv)
{
    test_self_check();
    test_known_bits();
    test_arrays();
    test_rounding();
#ifdef HAVE_MPFR
    test_mpfr(argc > 1 ? (size_t)strtoul(argv[1], NULL, 10) : 1000000);
#else
    (void)argc, (void)argv;
    printf("the comparison with MPFR is skipped: build with -DHAVE_MPFR and -lmpfr -lgmp (Debian: libmpfr-dev)\n");
#endif
    return test_end();
}
