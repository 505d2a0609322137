/* The rule of SPEC 10: is a tensor of another implementation what its own predecessors make of it, as far as its precision can tell? All
 * constants of the rule stand in this file; tests/VERDICTS.md says how they were chosen and what they do on files with known faults. */
#include "verify.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    double tensor, row, element; /* how many times the noise an error may be: of the whole tensor (RMS), of a row (RMS), of an element */
    double least;                /* the noise is at least this part of u RMS(y): a tensor that is only stored rounds, too */
    double f64;                  /* F64: |d_i| in units of RMS(y) */
    double code;                 /* squared distances of codewords, in units of u (|z|^2 + |e|^2) */
} RULE = { 3, 6, 12, 0.3, 1e-10, 32 };

double tsar_unit_roundoff(tsar_dtype p)
{
    return p == TSAR_BF16 ? ldexp(1, -8) : p == TSAR_F16 ? ldexp(1, -11) : p == TSAR_F32 ? ldexp(1, -24) : ldexp(1, -53);
}

/* k: what a sum of K terms adds to the noise. BF16 and F16 products are added up in F32, which n cannot see; F32 rounds inside its sums. */
static double sum_factor(tsar_dtype p, size_t K) { return p == TSAR_F32 ? 1 + sqrt((double)K) / 2 : 1; }

/* ----------------------------------------------------------------------------------------------------------- precision */

int tsar_holds(tsar_dtype p, double x)
{
    const float f = (float)x;
    uint32_t bits;
    if (!(fabs(x) < INFINITY) || p == TSAR_F64) return 1;
    if ((double)f != x) return 0;
    memcpy(&bits, &f, sizeof bits);
    return p == TSAR_F32 || (p == TSAR_BF16 ? (bits & 0xffff) == 0 : tsar_widen_f16(tsar_round_f16(f)) == x);
}

/* ------------------------------------------------------------------------------------------------------------- errors */

enum { OF_Y, OF_N, OF_D }; /* y, n = rounded - y, d = x - y */

static double term(const tsar_stage *s, int which, size_t i)
{
    if (which == OF_Y) return s->y[i];
    return (which == OF_D ? s->x[i] : tsar_noisy_at(s->noisy, s->noisy_type, i)) - s->y[i];
}

double tsar_noisy_at(const void *noisy, tsar_dtype type, size_t i)
{
    if (type == TSAR_F64) return ((const double *)noisy)[i];
    if (type == TSAR_F32) return (double)((const float *)noisy)[i];
    const uint16_t bits = ((const uint16_t *)noisy)[i];
    return type == TSAR_BF16 ? tsar_widen_bf16(bits) : tsar_widen_f16(bits);
}

/* sqrt(mean(x^2)) of terms first ... first+n-1, scaled by the largest so that no square overflows. Infinite if a term is not finite. */
static double rms_of(const tsar_stage *s, int which, size_t first, size_t n)
{
    double largest = 0, sum = 0;
    for (size_t i = first; i < first + n; i++) {
        const double x = fabs(term(s, which, i));
        if (!(x < INFINITY)) return INFINITY;
        if (x > largest) largest = x;
    }
    if (largest == 0) return 0;
    for (size_t i = first; i < first + n; i++) {
        const double x = term(s, which, i) / largest;
        sum += x * x;
    }
    return largest * sqrt(sum / (double)n);
}

double tsar_rms(const double *x, size_t n)
{
    const tsar_stage s = { .rows = 1, .columns = n, .y = x };
    return rms_of(&s, OF_Y, 0, n);
}

/* An error in units of its limit; infinite where there is one and nothing may be. */
static double over(double error, double limit) { return error == 0 ? 0 : error < INFINITY && limit > 0 && limit < INFINITY ? error / limit : INFINITY; }

/* Noise N of terms first ... first+n-1 with the rounding of the largest of them beside it (ours):   sqrt(N^2 + (u max|y|)^2 / n)
 *
 * N is one sample of what rounding does. Over many terms of like size it is certain, and the second part small (0.2 u RMS(y) in a row of 384); where one
 * term makes up the whole, as at a token that draws all attention, the sample is one number, and may be 0 by luck. */
static double beside_largest(const tsar_stage *s, double N, size_t first, size_t n)
{
    double largest = 0;
    for (size_t i = first; i < first + n; i++) largest = fmax(largest, fabs(s->y[i]));
    const double own = n ? tsar_unit_roundoff(s->p) * largest / sqrt((double)n) : 0;
    return N < INFINITY && own < INFINITY ? sqrt(N * N + own * own) : INFINITY;
}

/* The least noise, 0.3 u RMS(y), and N_r of a row: at least that; of a picture's channel the quadratic mean with the noise n_all of the whole tensor. */
static double least_noise(const tsar_stage *s) { return RULE.least * tsar_unit_roundoff(s->p) * rms_of(s, OF_Y, 0, s->rows * s->columns); }
static double row_noise(const tsar_stage *s, size_t row, double n_all, double least)
{
    const double N_r = fmax(rms_of(s, OF_N, row * s->columns, s->columns), least);
    return beside_largest(s, s->channels ? sqrt((N_r * N_r + n_all * n_all) / 2) : N_r, row * s->columns, s->columns);
}

/* N of the whole tensor, whose noise is n_all. */
static double whole_noise(const tsar_stage *s, double n_all, double least) { return beside_largest(s, fmax(n_all, least), 0, s->rows * s->columns); }

/* share_c = max(1, RMS of the noise of column c / RMS of all noise): where a head attends sharply, or a channel's weights are large, a column's noise is larger
 * in every row, and a row's own sample of it, N_r, does not say in which (ours). */
void tsar_column_shares(const tsar_stage *s, double *share)
{
    const double all = rms_of(s, OF_N, 0, s->rows * s->columns);
    for (size_t c = 0; c < s->columns; c++) share[c] = 0;
    for (size_t i = 0; all > 0 && all < INFINITY && i < s->rows * s->columns; i++) {
        const double n = term(s, OF_N, i) / all;
        share[i % s->columns] += n * n;
    }
    for (size_t c = 0; c < s->columns; c++) share[c] = fmax(1, sqrt(share[c] / (double)s->rows));
}

void tsar_noise_figures(const tsar_stage *s, double *figures)
{
    const double n_all = rms_of(s, OF_N, 0, s->rows * s->columns), least = least_noise(s);
    figures[0] = sum_factor(s->p, s->K), figures[1] = whole_noise(s, n_all, least);
    for (size_t row = 0; row < s->rows; row++) figures[2 + row] = row_noise(s, row, n_all, least);
}

static void exceed(tsar_comparison *r, double excess, tsar_measure by, size_t row, size_t place)
{
    if (!(excess > r->excess)) return;
    r->excess = excess, r->by = by, r->row = row;
    if (by == TSAR_BY_ELEMENT) r->place = place;
}

/* Elements of a row, each with a limit of its own: `fixed` share + `relative` |y_i|. Counts those beyond it and keeps the largest error of the tensor. */
static void judge_elements(const tsar_stage *s, tsar_comparison *r, size_t row, double fixed, double relative, const double *share, double *largest)
{
    const size_t columns = s->columns;
    for (size_t i = row * columns; i < (row + 1) * columns; i++) {
        const double d = s->x[i] - s->y[i], size = s->x[i] == s->y[i] ? 0 : fabs(d) < INFINITY ? fabs(d) : INFINITY;
        const double excess = over(size, fixed * (share ? share[i - row * columns] : 1) + relative * fabs(s->y[i]));
        if (excess > 1 && r->bad++ == 0) r->first_bad = i;
        exceed(r, excess, TSAR_BY_ELEMENT, row, i);
        if (size > *largest) *largest = size, r->largest_at = i;
    }
}

void tsar_judge(const tsar_stage *s, tsar_comparison *r)
{
    const size_t n = s->rows * s->columns;
    const double y = rms_of(s, OF_Y, 0, n), unit = y > 0 ? y : 1, d = rms_of(s, OF_D, 0, n), u = tsar_unit_roundoff(s->p);
    const double k = sum_factor(s->p, s->K), least = RULE.least * u * y;
    double largest = 0;
    r->excess = 0, r->bad = 0, r->by = TSAR_BY_ELEMENT;
    if (s->p == TSAR_F64 || s->rtol >= 0) {
        r->limit = s->rtol >= 0 ? s->rtol : RULE.f64;
        for (size_t row = 0; row < s->rows; row++) judge_elements(s, r, row, r->limit * unit, 0, NULL, &largest);
    } else {
        const double n_all = rms_of(s, OF_N, 0, n), N = whole_noise(s, n_all, least);
        r->limit = RULE.tensor * k * N / unit;
        exceed(r, over(d, RULE.tensor * k * N), TSAR_BY_TENSOR, 0, 0);
        for (size_t row = 0; row < s->rows; row++) {
            const double N_r = row_noise(s, row, n_all, least), excess = over(rms_of(s, OF_D, row * s->columns, s->columns), RULE.row * k * N_r);
            exceed(r, excess, TSAR_BY_ROW, row, 0);
            r->bad_rows += excess > 1;
            judge_elements(s, r, row, RULE.element * k * N_r, RULE.element * k * u, s->share, &largest);
        }
    }
    r->rms = d / unit, r->max = largest / unit;
    if (!(y < INFINITY)) r->excess = largest > 0 ? INFINITY : 0, r->rms = r->max = r->excess;
    if (r->by != TSAR_BY_ELEMENT) r->place = r->largest_at;
    r->ours = n ? s->y[r->place] : 0, r->theirs = n ? s->x[r->place] : 0;
    r->verdict = r->excess > 1 ? TSAR_DIFFERS : memcmp(s->x, s->y, n * sizeof *s->x) == 0 ? TSAR_IDENTICAL : TSAR_SAME;
}

double tsar_error_of(const tsar_stage *s)
{
    const double y = rms_of(s, OF_Y, 0, s->rows * s->columns);
    return rms_of(s, OF_D, 0, s->rows * s->columns) / (y > 0 ? y : 1);
}

double tsar_slack_of(const tsar_stage *s)
{
    const size_t n = s->rows * s->columns;
    const double y = rms_of(s, OF_Y, 0, n), least = RULE.least * tsar_unit_roundoff(s->p) * y;
    if (s->rtol >= 0 || s->p == TSAR_F64) return (s->rtol >= 0 ? s->rtol : RULE.f64) * y;
    return RULE.tensor * sum_factor(s->p, s->K) * whole_noise(s, rms_of(s, OF_N, 0, n), least);
}

double tsar_code_slack(tsar_dtype p, double zz, double ee) { return RULE.code * tsar_unit_roundoff(p) * (zz + ee); }

void tsar_limits(const tsar_stage *s, double *limit)
{
    const size_t n = s->rows * s->columns;
    const double y = rms_of(s, OF_Y, 0, n), u = tsar_unit_roundoff(s->p), k = sum_factor(s->p, s->K);
    const int fixed = s->rtol >= 0 || s->p == TSAR_F64;
    const double N = fixed ? 0 : fmax(rms_of(s, OF_N, 0, n), RULE.least * u * y);
    for (size_t i = 0; i < n; i++) limit[i] = fixed ? (s->rtol >= 0 ? s->rtol : RULE.f64) * y : RULE.element * k * (N + u * fabs(s->y[i]));
}

/* --------------------------------------------------------------------------------------------- what a pattern suggests */

/* The pattern of a wrong stage, and what it suggests; the first row that fits counts, and where none does nothing is said. tests/VERDICTS.md counts
 * hits and misses. */
enum {
    ONE_ELEMENT,
    ONE_ROW,
    BORDER,
    ONE_HEAD,
    ONE_HEAD_FIRST_ROW_RIGHT,
    ONE_HEAD_FIRST_ROW_TOO,
    FIRST_ROW_RIGHT_GROWING,
    FIRST_ROW_RIGHT,
    SLIGHT,
    EVERY_ROW,
    NO_PATTERN
};
static const char *const suggestions[] = {
    "one element alone: a write at a wrong place, not an equation",
    "one row alone: a wrong index, or a slot of the cache that was overwritten",
    "the border alone: padding",
    "one head alone: its rows of wq, wk or wv, its norm, its columns of wo",
    "one head alone, and row 0, which attends to itself alone, is right: that head's rows of wq or wk, its norm, its RoPE, its cache",
    "one head alone, in row 0, too: that head's rows of wv or columns of wo, or the key head that it takes",
    "row 0, which attends to itself alone, is right, and the error grows with position: RoPE (base, positions) or the cache",
    "row 0, which attends to itself alone, is right: attention (scale, RoPE, mask, weights or norms of q and k, the cache)",
    "slightly wrong in every row: a constant such as eps, or another form of an activation",
    "wrong also in row 0, which attends to itself alone: a weight, a norm, the feed-forward, whose head v is, or a mask that lets row 0 see others; not RoPE",
};

/* RMS of the error of rows first ... first+count-1, in units of RMS of y there. */
static double part_error(const tsar_stage *s, size_t first, size_t count)
{
    const double y = rms_of(s, OF_Y, first * s->columns, count * s->columns);
    return y > 0 ? rms_of(s, OF_D, first * s->columns, count * s->columns) / y : 0;
}

/* Whether a picture [rows][H][W] is right but for a frame of two pixels. */
static int border_alone(const tsar_stage *s, const tsar_comparison *r)
{
    enum { BORDER_WIDTH = 2 };
    const size_t H = r->our_shape[1], W = r->our_shape[2];
    double inner = 0, outer = 0;
    if (!s->channels || r->our_rank != 3 || H < 3 * BORDER_WIDTH || W < 3 * BORDER_WIDTH) return 0;
    for (size_t i = 0; i < s->rows * s->columns; i++) {
        const size_t y = i % s->columns / W, x = i % W;
        const double d = fabs(s->x[i] - s->y[i]);
        if (y >= BORDER_WIDTH && y < H - BORDER_WIDTH && x >= BORDER_WIDTH && x < W - BORDER_WIDTH)
            inner = fmax(inner, d);
        else
            outer = fmax(outer, d);
    }
    return inner < outer / 100;
}

/* Which part of the error's energy the columns of wo of head h can make up: d = wo_h e + what the feed-forward makes of it. The hd columns become an
 * orthonormal basis (Gram and Schmidt, twice over, for the rounding), in place; up to SAMPLE_ROWS rows of d are looked at. */
static double head_share(const tsar_stage *s, size_t hd, size_t h)
{
    enum { SAMPLE_ROWS = 128 };
    const size_t d = s->columns, step = s->rows / SAMPLE_ROWS + 1;
    double *basis = s->wo + h * hd * d, within = 0, all = 0;
    for (size_t i = 0; i < hd; i++) {
        double *b = basis + i * d, length = 0;
        for (size_t j = 0; j < 2 * i; j++) {
            const double *a = basis + j % i * d;
            double product = 0;
            for (size_t k = 0; k < d; k++) product += a[k] * b[k];
            for (size_t k = 0; k < d; k++) b[k] -= product * a[k];
        }
        for (size_t k = 0; k < d; k++) length += b[k] * b[k];
        for (size_t k = 0; k < d; k++) b[k] = length > 0 ? b[k] / sqrt(length) : 0;
    }
    for (size_t r = 0; r < s->rows; r += step) {
        for (size_t k = 0; k < d; k++) all += term(s, OF_D, r * d + k) * term(s, OF_D, r * d + k);
        for (size_t i = 0; i < hd; i++) {
            double product = 0;
            for (size_t k = 0; k < d; k++) product += basis[i * d + k] * term(s, OF_D, r * d + k);
            within += product * product;
        }
    }
    return all > 0 ? within / all : 0;
}

/* The same of a tensor inside of a block, whose heads stand side by side: [T][heads][hd]. */
static double head_energy(const tsar_stage *s, size_t hd, size_t h)
{
    double within = 0, all = 0;
    for (size_t i = 0; i < s->rows * s->columns; i++) {
        const double d = term(s, OF_D, i);
        all += d * d;
        if (i / hd % s->heads == h) within += d * d;
    }
    return all > 0 ? within / all : 0;
}

/* Whether one head alone is wrong. Of a block: its columns of wo hold a share of the error far above chance, hd / d, and no other head's come near it. */
static int one_head(const tsar_stage *s, const tsar_comparison *r)
{
    const size_t last = r->our_shape[r->our_rank - 1], hd = r->our_rank == 3 ? last : s->heads ? last / s->heads : 0;
    double best = 0, second = 0;
    if (s->heads < 2 || (s->wo && s->heads * hd > s->columns)) return 0;
    for (size_t h = 0; h < s->heads; h++) {
        const double share = s->wo ? head_share(s, hd, h) : head_energy(s, hd, h);
        second = fmax(second, fmin(best, share)), best = fmax(best, share);
    }
    if (!s->wo) return best > 0.9;
    const double chance = (double)hd / (double)s->columns;
    return best > chance + 0.5 * (1 - chance) && second - chance < 0.15 * (best - chance);
}

static int pattern_of(const tsar_stage *s, const tsar_comparison *r)
{
    const int block = strstr(r->name, ".block.") != NULL && tsar_has_prefix(r->name, "gpt.block.") && r->our_rank == 2 && strchr(r->name + 10, '.') == NULL;
    const double d = s->x[r->largest_at] - s->y[r->largest_at], all = r->rms * r->rms;
    if (!(all < INFINITY) || s->rows < 2) return NO_PATTERN;
    const double unit = r->max > 0 ? fabs(d) / r->max : 1, one = d * d / (unit * unit) / (double)(s->rows * s->columns);
    if (one > 0.9 * all || (r->by == TSAR_BY_ELEMENT && r->bad == 1 && r->bad_rows <= 1)) return ONE_ELEMENT;
    const size_t worst = r->largest_at / s->columns;
    const double row = rms_of(s, OF_D, worst * s->columns, s->columns) / unit;
    if (row * row / (double)s->rows > 0.9 * all && r->bad_rows <= 1) return ONE_ROW;
    if (border_alone(s, r)) return BORDER;
    if (s->channels || s->p == TSAR_F64 || s->rtol >= 0) return NO_PATTERN;
    const double k = sum_factor(s->p, s->K), least = RULE.least * tsar_unit_roundoff(s->p) * rms_of(s, OF_Y, 0, s->rows * s->columns);
    const double first = rms_of(s, OF_D, 0, s->columns) / (RULE.row * k * row_noise(s, 0, 0, least));
    const size_t quarter = s->rows / 4;
    if (one_head(s, r)) return !block ? ONE_HEAD : first <= 1 ? ONE_HEAD_FIRST_ROW_RIGHT : ONE_HEAD_FIRST_ROW_TOO;
    if (block && first <= 1 && s->rows >= 8)
        return part_error(s, s->rows - quarter, quarter) > 3 * part_error(s, 1, quarter) ? FIRST_ROW_RIGHT_GROWING : FIRST_ROW_RIGHT;
    if (s->p == TSAR_F32 && r->rms < 1e-3) return SLIGHT;
    return block && first > 1 ? EVERY_ROW : NO_PATTERN;
}

void tsar_suggest(const tsar_stage *s, tsar_comparison *r)
{
    const int pattern = pattern_of(s, r);
    if (pattern != NO_PATTERN) (void)snprintf(r->words, sizeof r->words, "%s", suggestions[pattern]);
}
