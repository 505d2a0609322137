/* test_judge.c - the rule of tests/VERDICTS.md on numbers made by hand: a row that one number makes up, a column that is noisier than the rest. */
#include "test.h"
#include "verify.h"

#include <math.h>

enum { R = 16, C = 64, N = R * C };

/* The verdict on y + d, where the noise run gave y + n, in BF16. */
static tsar_comparison judge(const double *y, const double *n, const double *d, const char *name)
{
    double x[N], noisy[N], share[C];
    for (size_t i = 0; i < N; i++) x[i] = y[i] + d[i], noisy[i] = y[i] + n[i];
    tsar_stage s = { .rows = R, .columns = C, .y = y, .noisy = noisy, .noisy_type = TSAR_F64, .p = TSAR_BF16, .K = C, .rtol = -1 };
    tsar_comparison r = { .our_dtype = TSAR_F64, .our_rank = 2 };
    (void)snprintf(r.name, sizeof r.name, "%s", name);
    r.our_shape[0] = R, r.our_shape[1] = C;
    tsar_column_shares(&s, share);
    s.share = share, s.x = x;
    tsar_judge(&s, &r);
    if (r.verdict == TSAR_DIFFERS) tsar_suggest(&s, &r);
    return r;
}

/* Numbers of size 1 whose noise is half a unit of BF16, as rounding leaves it. */
static void fill(double *y, double *n, double *d)
{
    for (size_t i = 0; i < N; i++) {
        y[i] = (double)(tsar_synth_word(1, i) >> 40) * ldexp(1, -23) - 1;
        n[i] = ((double)(tsar_synth_word(2, i) >> 40) * ldexp(1, -23) - 1) * ldexp(1, -9);
        d[i] = ((double)(tsar_synth_word(3, i) >> 40) * ldexp(1, -23) - 1) * ldexp(1, -9);
    }
}

/* A row that one number of size 300 makes up, which the noise run happened to round to itself: an error of its rounding is none, one of ten times that is. */
static void test_one_number(void)
{
    double y[N], n[N], d[N];
    const size_t at = 3 * C + 5;
    fill(y, n, d);
    y[at] = 300, n[at] = 0, d[at] = 300 * ldexp(1, -8);
    tsar_comparison r = judge(y, n, d, "gpt.block.0");
    CHECK(r.verdict == TSAR_SAME, "the rounding of the number that makes up a row: %g times its limit, by %d", r.excess, (int)r.by);
    d[at] = 300 * ldexp(10, -8);
    r = judge(y, n, d, "gpt.block.0");
    CHECK(r.verdict == TSAR_DIFFERS, "ten times as much: verdict %d", (int)r.verdict);
}

/* A column of four times the noise, as where a head attends sharply: what is none there is an error in any other column. */
static void test_noisy_column(void)
{
    enum { NOISY = 9, QUIET = 10 };
    const double size = 20 * ldexp(1, -9);
    double y[N], n[N], d[N];
    fill(y, n, d);
    for (size_t r = 0; r < R; r++)
        n[r * C + NOISY] *= r == 4 ? 0 : 6, y[r * C + NOISY] = y[r * C + QUIET] = 0.01;
    d[4 * C + NOISY] = size;
    tsar_comparison r = judge(y, n, d, "gpt.block.0");
    CHECK(r.verdict == TSAR_SAME, "in a noisy column: %g times its limit", r.excess);
    d[4 * C + NOISY] = 0, d[4 * C + QUIET] = size;
    r = judge(y, n, d, "gpt.block.0");
    CHECK(r.verdict == TSAR_DIFFERS && r.place == 4 * C + QUIET && strstr(r.words, "one element"), "in a quiet one: verdict %d, %g times its limit, '%s'",
          (int)r.verdict, r.excess, r.words);
}

int main(void)
{
    test_one_number();
    test_noisy_column();
    return test_end();
}
