/* numbers.c - the packed matrix and its product, elementary functions, random numbers (SPEC 1).
 *
 * What a function computes, and in which order, is said in tsar.h. */
#include "../tsar.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* -------------------------------------------------------------------------------------------------- random numbers */

/* The splitmix64 finaliser (SPEC 7). */
uint64_t tsar_mix(uint64_t z)
{
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

/* h = seed; h = mix(h + G (v + 1)) for each coordinate v; u = (h >> 11) 2^-53 (SPEC 1.5, ours). */
double tsar_uniform(uint64_t seed, uint64_t image, uint64_t row, uint64_t column, uint64_t slot, uint64_t purpose, uint64_t attempt)
{
    const uint64_t place[6] = { image, row, column, slot, purpose, attempt };
    uint64_t h = seed;
    for (size_t i = 0; i < 6; i++) h = tsar_mix(h + UINT64_C(0x9E3779B97F4A7C15) * (place[i] + 1));
    return (double)(h >> 11) * 0x1p-53;
}

/* ------------------------------------------------------------------------------------------------------- the norm */

/* RMSNorm (LlamaGen): y = x / sqrt(mean(x^2) + eps) * g; g NULL: without the gain. */
void tsar_rmsnorm(double *y, const double *x, const double *g, size_t d, double eps)
{
    double sum = 0;
    for (size_t i = 0; i < d; i++) sum += x[i] * x[i];
    const double root = sqrt(sum / (double)d + eps);
    for (size_t i = 0; i < d && g == NULL; i++) y[i] = x[i] / root;
    for (size_t i = 0; i < d && g != NULL; i++) y[i] = x[i] / root * g[i];
}

/* ----------------------------------------------------------------------------------------------------- the matrix */

/* y = W x + b for T vectors x, to the bit what this computes:
 *
 *     for (t = 0; t < T; t++)
 *         for (r = 0; r < rows; r++) {
 *             y[t][r] = bias[r];
 *             for (k = 0; k < cols; k++) y[t][r] += w[r][k] * x[t][k];
 *         }
 *
 * Each y[t][r] is one such sum, from k = 0 on; only which sums run side by side is chosen for speed. Threads share the panels of rows, so
 * that each weight is read once; where there are few panels and many vectors, the vectors. */
void tsar_matmul(double *y, const double *x, const tsar_matrix *w, const double *bias, size_t T, size_t threads, double *scratch)
{
    const size_t rows = w->rows, cols = w->cols, panels = tsar_panels(rows), share = tsar_scratch(T, 1);
    const size_t workers = (double)rows * (double)cols * (double)T < 1e5 || threads == 0 ? 1 : threads;
    const int by_panel = panels >= 8 * workers || T < 8 * workers;
    TSAR_PARALLEL_FOR(workers)
    for (size_t i = 0; i < workers; i++) {
        const size_t p0 = by_panel ? panels * i / workers : 0, p1 = by_panel ? panels * (i + 1) / workers : panels;
        const size_t t0 = by_panel ? 0 : T * i / workers, t1 = by_panel ? T : T * (i + 1) / workers;
        tsar_accumulate(y + t0 * rows, rows, x + t0 * cols, cols, w, bias, 0, cols, t1 - t0, p0, p1, scratch ? scratch + i * share : NULL);
    }
}

/* Sizes of the kernel below; tests/SPEED.md has the measurements. A panel is TSAR_PANEL rows: long enough that compilers turn a
 * loop over it into vectors instead of taking it apart. Up to TILE vectors share each pass over the weights; AHEAD
 * bytes in front of the multiplication, memory is asked for weights. More vectors, up to GROUP, share weights that are widened to double
 * once, CHUNK columns of a panel (16 kB) at a time, and are multiplied MANY at once: MANY x TSAR_PANEL accumulators are 20 of the 32
 * registers of AVX-512; other targets have too few for more than one vector. */
enum { PANEL = TSAR_PANEL, TILE = 4, AHEAD = 4096, CHUNK = 64, MOST = 5, GROUP = 64 };
#if defined(__AVX512F__)
enum { MANY = MOST };
#else
enum { MANY = 1 };
#endif

static float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Bytes of n columns of a panel. F16 and BF16 are kept as 32-bit words that hold a row's weights of two neighbouring
 * columns, the even one in the low half: a mask and a shift take them apart, where single halves need an unpacking. */
TSAR_INLINE size_t columns_size(tsar_dtype dtype, size_t n)
{
    return dtype == TSAR_F64 ? n * PANEL * 8 : dtype == TSAR_F32 ? n * PANEL * 4 : (n + 1) / 2 * PANEL * 4;
}

tsar_status tsar_matrix_open(tsar_matrix *w, size_t rows, size_t cols, tsar_dtype dtype, const char *name, tsar_error *err)
{
    const size_t panels = tsar_panels(rows);
    memset(w, 0, sizeof *w);
    if (cols > SIZE_MAX / (PANEL * 8) - 1) return tsar_fail(err, TSAR_ROOM, "out of memory for %s (%.0f columns)", name, (double)cols);
    w->panels = tsar_alloc(panels, columns_size(dtype, cols), name, err);
    if (w->panels == NULL) return TSAR_ROOM;
    w->rows = rows;
    w->cols = cols;
    w->dtype = dtype;
    return TSAR_OK;
}

void tsar_matrix_close(tsar_matrix *w)
{
    tsar_free(w->panels);
    memset(w, 0, sizeof *w);
}

/* Rows r0 ... r1-1 of a panel from values [r1-r0][cols], a few columns of all rows at a time, so that both stay in cache. */
#define PACK(name, element)                                                                                                                          \
    static void name(element *panel, const element *values, size_t cols, size_t r0, size_t r1)                                                       \
    {                                                                                                                                                \
        for (size_t k0 = 0; k0 < cols; k0 += 16)                                                                                                     \
            for (size_t k = k0; k < cols && k < k0 + 16; k++)                                                                                        \
                for (size_t r = r0; r < r1; r++) panel[k * PANEL + r] = values[(r - r0) * cols + k];                                                 \
    }
PACK(pack_f64, double)
PACK(pack_f32, float)

static void pack_words(uint32_t *panel, const uint16_t *values, size_t cols, size_t r0, size_t r1)
{
    for (size_t k0 = 0; k0 < cols; k0 += 16)
        for (size_t k = k0; k < cols && k < k0 + 16; k += 2)
            for (size_t r = r0; r < r1; r++) {
                const uint16_t *pair = values + (r - r0) * cols + k;
                panel[k / 2 * PANEL + r] = pair[0] | (k + 1 < cols ? (uint32_t)pair[1] << 16 : 0);
            }
}

void tsar_matrix_set_rows(tsar_matrix *w, size_t first, size_t count, const void *values)
{
    const size_t cols = w->cols, row_size = cols * tsar_dtype_size(w->dtype), panel_size = columns_size(w->dtype, cols);
    for (size_t i = 0, rows; i < count; i += rows) {
        const size_t p = (first + i) / PANEL, r0 = (first + i) % PANEL;
        rows = count - i < PANEL - r0 ? count - i : PANEL - r0;
        void *panel = (char *)w->panels + p * panel_size;
        const void *from = (const char *)values + i * row_size;
        if (w->dtype == TSAR_F64)
            pack_f64(panel, from, cols, r0, r0 + rows);
        else if (w->dtype == TSAR_F32)
            pack_f32(panel, from, cols, r0, r0 + rows);
        else
            pack_words(panel, from, cols, r0, r0 + rows);
    }
}

/* A finite F16 number from the bits of its exponent and fraction, moved to where F32 has them, and its sign. Read as F32 with 112 added to the
 * exponent it is x, right but for subnormal ones, 2^-15 (1 + f) instead of 2^-14 f: these are x + (x - 2^-14), and all are
 * x + min(x - 2^-14, 0). No step meets a subnormal number, for which some processors take a hundred times as long. */
TSAR_INLINE double double_of_f16(uint32_t size, uint32_t sign)
{
    const float x = float_of_bits(size + 0x38000000u), beyond = x - 0x1p-14f, result = x + (beyond < 0 ? beyond : 0);
    uint32_t bits;
    memcpy(&bits, &result, sizeof bits);
    return float_of_bits(bits | sign);
}

/* Weight r of a column that starts at `column`, widened; for words of two columns, of the even or the odd one. Weights are finite. */
TSAR_INLINE double weight(tsar_dtype dtype, const void *column, int odd, size_t r)
{
    if (dtype == TSAR_F64) return ((const double *)column)[r];
    if (dtype == TSAR_F32) return ((const float *)column)[r];
    const uint32_t word = ((const uint32_t *)column)[r];
    if (dtype == TSAR_BF16) return float_of_bits(odd ? word & 0xffff0000u : word << 16);
    return odd ? double_of_f16((word & 0x7fff0000u) >> 3, word & 0x80000000u) : double_of_f16((word & 0x7fffu) << 13, (word & 0x8000u) << 16);
}

/* Columns k0 ... k0+kn-1 of rows r ... r+n-1 of one panel; dtype is a constant wherever it is inlined. */
TSAR_INLINE void panel_part(tsar_dtype dtype, double *out, size_t ld, const char *panel, size_t r, size_t n, size_t k0, size_t kn)
{
    const size_t step = dtype == TSAR_F64 || dtype == TSAR_F32 ? 1 : 2;
    for (size_t k = k0; k < k0 + kn; k++, out += ld) {
        const char *column = panel + columns_size(dtype, k / step * step);
        for (size_t i = 0; i < n; i++) out[i] = weight(dtype, column, k % 2 == 1, r + i);
    }
}

void tsar_matrix_part(double *out, size_t ld, const tsar_matrix *w, size_t r0, size_t rows, size_t k0, size_t kn)
{
    for (size_t r = r0, n; r < r0 + rows; r += n, out += n) { /* n rows of one panel */
        const char *panel = (const char *)w->panels + r / PANEL * columns_size(w->dtype, w->cols);
        n = r0 + rows - r < PANEL - r % PANEL ? r0 + rows - r : PANEL - r % PANEL;
        if (w->dtype == TSAR_F64) panel_part(TSAR_F64, out, ld, panel, r % PANEL, n, k0, kn);
        if (w->dtype == TSAR_F32) panel_part(TSAR_F32, out, ld, panel, r % PANEL, n, k0, kn);
        if (w->dtype == TSAR_F16) panel_part(TSAR_F16, out, ld, panel, r % PANEL, n, k0, kn);
        if (w->dtype == TSAR_BF16) panel_part(TSAR_BF16, out, ld, panel, r % PANEL, n, k0, kn);
    }
}

/* Columns that have been widened and are in the cache: F64, but for what is asked of memory meanwhile. */
enum { WIDENED = 4 };

/* The inner kernel: y[b][r] += w[r][k] * x[b][k], k ascending, for the PANEL rows of one panel and B vectors; dtype and B
 * are constants wherever it is inlined. w is the panel's first column of kn (an even number for words of two columns).
 * All accumulators live in registers (with AVX2 gcc keeps those of one vector there only if they are an array of their own: 12 GMAC/s in place
 * of 6); each weight is widened once and used B times. With each column memory is asked for the columns AHEAD,
 * or, where they are WIDENED, for a line of `next`. */
TSAR_INLINE void tile(int dtype, size_t B, double *y, size_t ldy, const double *x, size_t ldx, const char *w, size_t kn, const char *next)
{
    const tsar_dtype stored = dtype == WIDENED ? TSAR_F64 : (tsar_dtype)dtype;
    const size_t step = stored == TSAR_F64 || stored == TSAR_F32 ? 1 : 2, step_size = columns_size(stored, step);
    double one[1][PANEL], several[MOST][PANEL], (*acc)[PANEL] = dtype == WIDENED && B == 1 ? one : several;
    for (size_t b = 0; b < B; b++)
        for (size_t r = 0; r < PANEL; r++) acc[b][r] = y[b * ldy + r];
    for (size_t k = 0; k < kn; k += step, w += step_size) {
        if (dtype == WIDENED) TSAR_PREFETCH_L2((const void *)((uintptr_t)next + 64 * k));
        for (size_t line = 0; line < step_size && dtype != WIDENED; line += 64) TSAR_PREFETCH((const void *)((uintptr_t)w + AHEAD + line));
        for (size_t b = 0; b < B; b++) {
            for (size_t j = 0; j < step; j++) {
                const double x_bk = x[b * ldx + k + j];
                for (size_t r = 0; r < PANEL; r++) acc[b][r] += weight(stored, w, j == 1, r) * x_bk;
            }
        }
    }
    for (size_t b = 0; b < B; b++)
        for (size_t r = 0; r < PANEL; r++) y[b * ldy + r] = acc[b][r];
}

typedef void (*kernel)(double *y, size_t ldy, const double *x, size_t ldx, const char *w, size_t kn, const char *next);
#define KERNEL(dtype, B)                                                                                                                             \
    static void kernel_##dtype##_##B(double *y, size_t ldy, const double *x, size_t ldx, const char *w, size_t kn, const char *next)                 \
    {                                                                                                                                                \
        tile(dtype, B, y, ldy, x, ldx, w, kn, next);                                                                                                 \
    }
#define KERNELS(dtype) KERNEL(dtype, 1) KERNEL(dtype, 2) KERNEL(dtype, 3) KERNEL(dtype, 4)
KERNELS(TSAR_F64)
KERNELS(TSAR_F32)
KERNELS(TSAR_F16)
KERNELS(TSAR_BF16)
KERNELS(WIDENED)
KERNEL(WIDENED, 5)
#define NAMES(dtype)                                                                                                                                 \
    {                                                                                                                                                \
        kernel_##dtype##_1, kernel_##dtype##_2, kernel_##dtype##_3, kernel_##dtype##_4                                                               \
    }
static const kernel kernels[4][TILE] = { NAMES(TSAR_F64), NAMES(TSAR_F32), NAMES(TSAR_F16), NAMES(TSAR_BF16) }; /* by tsar_dtype and B - 1 */
static const kernel widened_kernels[MOST] = { kernel_WIDENED_1, kernel_WIDENED_2, kernel_WIDENED_3, kernel_WIDENED_4, kernel_WIDENED_5 };

/* tile for T <= TILE vectors, and for the last panel's rows < PANEL, which are computed aside. */
static void tile_few(tsar_dtype dtype, double *y, size_t ldy, const double *x, size_t ldx, const char *w, size_t kn, size_t T, size_t rows)
{
    double whole[TILE][PANEL] = { { 0 } };
    if (rows == PANEL) {
        kernels[dtype][T - 1](y, ldy, x, ldx, w, kn, NULL);
        return;
    }
    for (size_t b = 0; b < T; b++) memcpy(whole[b], y + b * ldy, rows * sizeof(double));
    kernels[dtype][T - 1](whole[0], PANEL, x, ldx, w, kn, NULL);
    for (size_t b = 0; b < T; b++) memcpy(y + b * ldy, whole[b], rows * sizeof(double));
}

/* wide [n][PANEL] = columns k ... k+n-1 of a panel as doubles: widen does it for any dtype but F64. */
static void widen_f32(double *restrict wide, const float *restrict panel, size_t k, size_t n)
{
    for (size_t i = 0; i < n * PANEL; i++) wide[i] = panel[k * PANEL + i];
}

TSAR_INLINE void widen_words(tsar_dtype dtype, double *restrict wide, const uint32_t *restrict panel, size_t k, size_t n)
{
    for (size_t i = k, count; i < k + n; i += count, wide += count * PANEL) {
        const uint32_t *column = panel + i / 2 * PANEL;
        count = i % 2 == 0 && i + 1 < k + n ? 2 : 1;
        for (size_t r = 0; r < PANEL && count == 2; r++) {
            wide[r] = weight(dtype, column, 0, r);
            wide[PANEL + r] = weight(dtype, column, 1, r);
        }
        for (size_t r = 0; r < PANEL && count == 1; r++) wide[r] = i % 2 == 1 ? weight(dtype, column, 1, r) : weight(dtype, column, 0, r);
    }
}

static void widen(const tsar_matrix *w, double *wide, const void *panel, size_t k, size_t n)
{
    if (w->dtype == TSAR_F32)
        widen_f32(wide, panel, k, n);
    else if (w->dtype == TSAR_F16)
        widen_words(TSAR_F16, wide, panel, k, n);
    else
        widen_words(TSAR_BF16, wide, panel, k, n);
}

static size_t rows_of_panel(const tsar_matrix *w, size_t p) { return w->rows - p * PANEL < PANEL ? w->rows - p * PANEL : PANEL; }

/* Doubles of scratch for T vectors: accumulate_many's, up to GROUP of them at a time; whole lines of the cache, with room to begin at one. */
static size_t scratch_of(size_t T) { return (CHUNK + (T < GROUP ? T : GROUP)) * PANEL + 8; }

size_t tsar_scratch(size_t T, size_t threads) { return T <= TILE ? 0 : tsar_product(scratch_of(T), threads); }

/* sums [T] of one panel, rows ld apart: CHUNK columns at a time are widened once for all vectors, and the next ones asked for meanwhile. The
 * accumulators pass through sums from chunk to chunk, which changes no bit. */
static void panel_many(double *sums, size_t ld, const double *x, size_t ldx, const tsar_matrix *w, const char *panel, size_t k0, size_t kn, size_t T,
                       double *wide)
{
    for (size_t k = 0, n; k < kn; k += n) {
        n = kn - k < CHUNK ? kn - k : CHUNK;
        const char *columns = w->dtype == TSAR_F64 ? panel + columns_size(TSAR_F64, k0 + k) : (const char *)wide;
        const size_t next = columns_size(w->dtype, k0 + k + n), next_size = columns_size(w->dtype, n);
        if (w->dtype != TSAR_F64) widen(w, wide, panel, k0 + k, n);
        for (size_t t = 0, B; t < T; t += B) {
            B = T - t < MANY ? T - t : MANY;
            const size_t from = t / MANY * 64 * n; /* of the next columns, of which each tile asks for n lines */
            const char *ask = from < next_size ? (const char *)((uintptr_t)panel + next + from) : columns;
            widened_kernels[B - 1](sums + t * ld, ld, x + t * ldx + k, ldx, columns, n, ask);
        }
    }
}

/* n <= PANEL doubles; that a whole panel has a size known to the compiler makes it a few registers' moves. */
TSAR_INLINE void copy_rows(double *to, const double *from, size_t n)
{
    if (n == PANEL)
        memcpy(to, from, PANEL * sizeof *to);
    else
        for (size_t r = 0; r < n; r++) to[r] = from[r];
}

/* What the sums of panel p begin with: y from column k0 > 0 on, before it the bias or 0.   sums [T][rows], ld apart; y and bias of row 0 */
static void begin_sums(double *sums, size_t ld, const double *y, size_t ldy, const double *bias, size_t k0, size_t T, size_t p, size_t rows)
{
    static const double zero[PANEL];
    const double *start = bias != NULL ? bias + p * PANEL : zero;
    if (k0 > 0 && sums == y + p * PANEL) return;
    for (size_t t = 0; t < T; t++) copy_rows(sums + t * ld, k0 > 0 ? y + t * ldy + p * PANEL : start, rows);
}

/* Up to GROUP vectors, panel by panel. The sums of a panel that takes several chunks are kept together meanwhile: in y they lie far apart,
 * often in the same few places of the cache; so are those of a panel that is not whole. */
static void accumulate_many(double *y, size_t ldy, const double *x, size_t ldx, const tsar_matrix *w, const double *bias, size_t k0, size_t kn, size_t T,
                            size_t p0, size_t p1, double *scratch)
{
    double *wide = scratch + (64 - (uintptr_t)scratch % 64) % 64 / sizeof(double), *together = wide + PANEL * CHUNK; /* from a line's beginning */
    for (size_t p = p0; p < p1; p++) {
        const size_t rows = rows_of_panel(w, p);
        const int in_y = rows == PANEL && kn <= CHUNK;
        double *sums = in_y ? y + p * PANEL : together;
        const size_t ld = in_y ? ldy : PANEL;
        if (rows < PANEL) memset(sums, 0, T * PANEL * sizeof *sums);
        begin_sums(sums, ld, y, ldy, bias, k0, T, p, rows);
        panel_many(sums, ld, x, ldx, w, (const char *)w->panels + p * columns_size(w->dtype, w->cols), k0, kn, T, wide);
        for (size_t t = 0; t < T && !in_y; t++) copy_rows(y + t * ldy + p * PANEL, sums + t * PANEL, rows);
    }
}

/* Up to TILE vectors: weights go from memory to the registers, and are widened there. A lone column of a word of two is
 * widened before. */
static void accumulate_few(double *y, size_t ldy, const double *x, size_t ldx, const tsar_matrix *w, const double *bias, size_t k0, size_t kn, size_t T,
                           size_t p0, size_t p1)
{
    const int words = w->dtype == TSAR_F16 || w->dtype == TSAR_BF16;
    double wide[PANEL];
    for (size_t p = p0; p < p1; p++) {
        const char *panel = (const char *)w->panels + p * columns_size(w->dtype, w->cols);
        begin_sums(y + p * PANEL, ldy, y, ldy, bias, k0, T, p, rows_of_panel(w, p));
        for (size_t k = 0, n; k < kn; k += n) {
            const int lone = words && ((k0 + k) % 2 == 1 || kn - k == 1);
            const char *columns = lone ? (const char *)wide : panel + columns_size(w->dtype, k0 + k);
            n = lone ? 1 : words ? (kn - k) / 2 * 2 : kn - k;
            if (lone) widen(w, wide, panel, k0 + k, 1);
            tile_few(lone ? TSAR_F64 : w->dtype, y + p * PANEL, ldy, x + k, ldx, columns, n, T, rows_of_panel(w, p));
        }
    }
}

void tsar_accumulate(double *y, size_t ldy, const double *x, size_t ldx, const tsar_matrix *w, const double *bias, size_t k0, size_t kn, size_t T, size_t p0,
                     size_t p1, double *scratch)
{
    const size_t most = scratch != NULL ? GROUP : TILE;
    for (size_t t = 0, count; t < T; t += count) {
        const size_t groups = (T - t + most - 1) / most;
        count = (T - t + groups - 1) / groups;
        if (count <= TILE)
            accumulate_few(y + t * ldy, ldy, x + t * ldx, ldx, w, bias, k0, kn, count, p0, p1);
        else
            accumulate_many(y + t * ldy, ldy, x + t * ldx, ldx, w, bias, k0, kn, count, p0, p1, scratch);
    }
}

/* ------------------------------------------------------------------------------------------------------ bits of a double */

#define SIGN_BIT 0x8000000000000000u
#define INFINITY_BITS 0x7FF0000000000000u
#define ROUNDER 0x1.8p52 /* t + ROUNDER, |t| < 2^51: the nearest integer to t, in two's complement in the low bits */

typedef union {
    double value;
    uint64_t bits;
} double_bits;

TSAR_INLINE uint64_t bits_of_double(double x)
{
    double_bits u;
    u.value = x;
    return u.bits;
}

TSAR_INLINE double double_of_bits(uint64_t bits)
{
    double_bits u;
    u.bits = bits;
    return u.value;
}

/* All ones where a > b, else 0, for a, b < 2^63: a mask, because compilers do not vectorise a choice of integers as well. */
TSAR_INLINE uint64_t mask_above(uint64_t a, uint64_t b) { return (uint64_t)0 - ((b - a) >> 63); }

/* x[0 ... n-1] to the nearest number of `precision`, ties to even, in one rounding: with `digits` bits and exponents from `least` on, the
 * numbers around x = 1.f 2^e are the multiples of q = 2^(max(e, least) + 1 - digits), and x + 1.5 2^52 q, itself a multiple of q, rounds to
 * them. Beyond the largest number: infinity, as IEEE 754 has it. */
void tsar_round_to(const tsar_model *model, double *x, size_t n)
{
    static const struct {
        int digits, least, most; /* of the significand; exponents of normal numbers */
    } formats[] = { { 53, -1022, 1023 }, { 24, -126, 127 }, { 11, -14, 15 }, { 8, -126, 127 } }; /* F64, F32, F16, BF16 */
    if (model->precision == TSAR_F64) return;
    const int digits = formats[model->precision].digits, least = formats[model->precision].least, most = formats[model->precision].most;
    for (size_t i = 0; i < n; i++) {
        const uint64_t bits = bits_of_double(x[i]);
        int e = (int)(bits >> 52 & 2047) - 1023;
        if (e > most) { /* NaN stays */
            if (e < 1024 || (bits & 0x000FFFFFFFFFFFFFu) == 0) x[i] = double_of_bits((bits & SIGN_BIT) | INFINITY_BITS);
            continue;
        }
        e = e < least ? least : e;
        const double rounder = double_of_bits(((uint64_t)(e + 1 - digits + 52 + 1023) << 52) | 0x0008000000000000u);
        const double size = (double_of_bits(bits & ~SIGN_BIT) + rounder) - rounder;
        const uint64_t over = size >= double_of_bits((uint64_t)(most + 1 + 1023) << 52) ? INFINITY_BITS : bits_of_double(size);
        x[i] = double_of_bits(over | (bits & SIGN_BIT));
    }
}

/* F[n] = 1/n!, nearest doubles: the Taylor coefficients of e^r, sin r and cos r. */
static const double F[18] = {
    1.0,
    1.0,
    0x1p-1,
    0x1.5555555555555p-3,
    0x1.5555555555555p-5,
    0x1.1111111111111p-7,
    0x1.6c16c16c16c17p-10,
    0x1.a01a01a01a01ap-13,
    0x1.a01a01a01a01ap-16,
    0x1.71de3a556c734p-19,
    0x1.27e4fb7789f5cp-22,
    0x1.ae64567f544e4p-26,
    0x1.1eed8eff8d898p-29,
    0x1.6124613a86d09p-33,
    0x1.93974a8c07c9dp-37,
    0x1.ae7f3e733b81fp-41,
    0x1.ae7f3e733b81fp-45,
    0x1.952c77030ad4ap-49,
};

/* ln 2 = LN2_HI + LN2_LO to 2^-98: LN2_HI has 42 bits, so that k LN2_HI is exact for every exponent |k| < 2^11. */
#define LN2_HI 0x1.62e42fefa3800p-1
#define LN2_LO 0x1.ef35793c76730p-45

/* --------------------------------------------------------------------------------------------------------- exp and its kin */

/* e^(x + tail), |tail| <= 2^-40.   e^x = 2^k e^r,  k = round(x / ln 2),  |r| <= ln 2 / 2 (Cody and Waite).
 *
 * r is known as r + c, c its rounding error. e^r = (1 + r) + r^2 (1/2! + ... + r^11/13!): 1 + r is kept as the exact sum
 * s + e; even and odd powers make two chains that run side by side; the first term left out is below 2^-57. 2^k is applied in
 * two factors, of which only the second can leave the normal range: a subnormal result is rounded a second time. Measured
 * against MPFR: at most 0.68 ULP, 0.77 where the result is subnormal (bound: 0.5 + 0.68 / 2).
 * |x| > 746 counts as 746, where 2^k overflows to infinity or underflows to 0 by itself; NaN passes through. */
TSAR_INLINE double exp_of_sum(double x, double tail)
{
    const uint64_t limit = 0x4087500000000000u; /* 746 */
    uint64_t bits = bits_of_double(x), size = bits & ~SIGN_BIT;
    uint64_t far = mask_above(size, limit) & ~mask_above(size, INFINITY_BITS);
    x = double_of_bits((bits & ~far) | (((bits & SIGN_BIT) | limit) & far));

    double t = x * 0x1.71547652b82fep+0 + ROUNDER; /* 1 / ln 2 */
    double k = t - ROUNDER;
    double hi = x - k * LN2_HI, lo = k * LN2_LO - tail; /* hi is exact */
    double r = hi - lo, c = (hi - r) - lo;

    double r2 = r * r;
    double even = F[2] + r2 * (F[4] + r2 * (F[6] + r2 * (F[8] + r2 * (F[10] + r2 * F[12]))));
    double odd = F[3] + r2 * (F[5] + r2 * (F[7] + r2 * (F[9] + r2 * (F[11] + r2 * F[13]))));
    double s = 1.0 + r, e = (1.0 - s) + r;
    double y = s + (e + (c * s + r2 * (even + r * odd)));

    uint64_t k_biased = bits_of_double(t) - bits_of_double(ROUNDER) + 2 * 1023; /* k = (first - 1023) + (second - 1023) */
    uint64_t first = k_biased >> 1, second = k_biased - first;
    return y * double_of_bits(first << 52) * double_of_bits(second << 52);
}

double tsar_exp(double x) { return exp_of_sum(x, 0.0); }

void tsar_exp_n(double *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = exp_of_sum(x[i], 0.0);
}

/* max x[0 ... n-1] in LANES lanes: which of several equal numbers it is, and of 0 and -0, changes no difference's exponential. */
static double largest(const double *x, size_t n)
{
    enum { LANES = 16 };
    double m[LANES];
    for (size_t l = 0; l < LANES; l++) m[l] = x[0];
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++) m[l] = x[i + l] > m[l] ? x[i + l] : m[l];
    for (; i < n; i++) m[0] = x[i] > m[0] ? x[i] : m[0];
    for (size_t l = 1; l < LANES; l++) m[0] = m[l] > m[0] ? m[l] : m[0];
    return m[0];
}

/* softmax(x)_i = e^(x_i - m) / sum_j e^(x_j - m), m = max x. e^(-infinity) is 0. A sum waits for each of its additions: those of
 * CHAINS rows run side by side. */
void tsar_softmax_rows(double *x, size_t ld, size_t n, size_t rows)
{
    enum { CHAINS = 8 };
    for (size_t r = 0; r < rows; r++) {
        const double m = largest(x + r * ld, n);
        for (size_t i = 0; i < n; i++) x[r * ld + i] -= m; /* not within the exponential: clang makes no vectors of that */
        tsar_exp_n(x + r * ld, n);
    }
    for (size_t first = 0, count; first < rows; first += count) {
        double total[CHAINS] = { 0 }, *row = x + first * ld;
        count = rows - first < CHAINS ? 1 : CHAINS;
        for (size_t i = 0; i < n && count == CHAINS; i++)
            for (size_t r = 0; r < CHAINS; r++) total[r] += row[r * ld + i];
        for (size_t i = 0; i < n && count == 1; i++) total[0] += row[i];
        for (size_t r = 0; r < count; r++)
            for (size_t i = 0; i < n; i++) row[r * ld + i] /= total[r];
    }
}

void tsar_softmax(double *x, size_t n) { tsar_softmax_rows(x, n, n, 1); }

/* silu(x) = x / (1 + exp(-x)). exp(-x) = +inf far below 0 gives -0; -inf gives NaN. */
void tsar_silu_n(double *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = x[i] / (1.0 + exp_of_sum(-x[i], 0.0));
}

/* gelu(x) = x / (1 + exp(-2 z)),  z = G (x + ((0.044715 x) x) x),  G = sqrt(2 / pi). -2 z is exact, so that it does not matter
 * when the 2 is multiplied. G and 0.044715 are the doubles nearest to them. */
void tsar_gelu_n(double *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double z = 0x1.9884533d43651p-1 * (x[i] + 0x1.6e4e26d4801f7p-5 * x[i] * x[i] * x[i]);
        x[i] = x[i] / (1.0 + exp_of_sum(-2.0 * z, 0.0));
    }
}

/* At c = 1/2, 5/8, ... 6: erf(c) = hi + lo, and its slope there, 2 / sqrt(pi) e^(-c^2). */
static const struct {
    double hi, lo, slope;
} erf_at[45] = {
    { 0x1.0a7ef5c18edd2p-1, 0x1.5e809f1a31a28p-56, 0x1.c1efca49a5011p-1 },
    { 0x1.3f196dcd0f135p-1, -0x1.f25f4f6fdf70bp-56, 0x1.86e9694134b9ep-1 },
    { 0x1.6c1c9759d0e5fp-1, 0x1.b1432f2cbc455p-55, 0x1.492e42d78d2c5p-1 },
    { 0x1.91724951b8fc6p-1, -0x1.27912dd352f8bp-55, 0x1.0cab61f084b93p-1 },
    { 0x1.af767a741088bp-1, -0x1.c97f778122797p-56, 0x1.a911f096fbc26p-2 },
    { 0x1.c6dad2829ec62p-1, -0x1.ab76d4cba3d05p-57, 0x1.45e99bcbb7915p-2 },
    { 0x1.d8865d98abe01p-1, -0x1.fcec4afb974d9p-55, 0x1.e4652fadcb6b2p-3 },
    { 0x1.e5768c3b4a3fcp-1, 0x1.8b62674f8989p-57, 0x1.5ce595c455b0ap-3 },
    { 0x1.eea5557137aep-1, -0x1.385e445f2c96dp-55, 0x1.e723726b824a9p-4 },
    { 0x1.f4f693b67bd77p-1, -0x1.3a1ee1406c356p-56, 0x1.499d478bca735p-4 },
    { 0x1.f92d077f8d56dp-1, 0x1.8b55ef493fce7p-56, 0x1.b055303221015p-5 },
    { 0x1.fbe61eef4cf6ap-1, 0x1.15ded88667618p-55, 0x1.12ceb37ff9bc3p-5 },
    { 0x1.fd9ae142795e3p-1, 0x1.972801904b9a3p-56, 0x1.529b9e8cf9a1ep-6 },
    { 0x1.fea4218d6594ap-1, -0x1.e3333d8f7d98cp-58, 0x1.94624e78e0fafp-7 },
    { 0x1.ff404760319b4p-1, 0x1.f142071432025p-56, 0x1.d4143a9dfe965p-8 },
    { 0x1.ff9960f3eb327p-1, -0x1.08b1ca6e97f8p-56, 0x1.06918b6355624p-8 },
    { 0x1.ffcaa8f4c9beap-1, 0x1.b0cee160116f9p-55, 0x1.1d83170fbf6fbp-9 },
    { 0x1.ffe514bbdc197p-1, -0x1.cd963345b5c6dp-58, 0x1.2ce898809244ep-10 },
    { 0x1.fff2cfb0453d9p-1, 0x1.9a913686042a3p-55, 0x1.3360ccd23db3ap-11 },
    { 0x1.fff9ba420e834p-1, 0x1.1379ec5aa630ep-56, 0x1.30538fbb77ecdp-12 },
    { 0x1.fffd1ac4135f9p-1, 0x1.eeafa1ecd6cefp-55, 0x1.2408e9ba3327fp-13 },
    { 0x1.fffeb3ebb267bp-1, 0x1.e47f697047cbap-57, 0x1.0f9e1b4dd36dfp-14 },
    { 0x1.ffff6f9f67e55p-1, 0x1.e1e4483ba034bp-55, 0x1.e9b5e8d00ce77p-16 },
    { 0x1.ffffc316d9edp-1, -0x1.8b32f44f46b3bp-55, 0x1.abe09e9144b5ep-17 },
    { 0x1.ffffe710d565ep-1, 0x1.c9ea52d76dc04p-55, 0x1.6a597219a93dap-18 },
    { 0x1.fffff618c3da6p-1, -0x1.19309ce23aa3ep-58, 0x1.296a70f414053p-19 },
    { 0x1.fffffc2f171e3p-1, 0x1.85edd0395f475p-55, 0x1.d9371e2ff7c35p-21 },
    { 0x1.fffffe92ced93p-1, -0x1.d2db2ecfe14aep-55, 0x1.6ce1aa3fd7bddp-22 },
    { 0x1.ffffff7b91176p-1, 0x1.0b2865615db4p-56, 0x1.10b1488aeb235p-23 },
    { 0x1.ffffffd169d0cp-1, 0x1.70a2bfb068e6fp-55, 0x1.8b0cfce0579ep-25 },
    { 0x1.fffffff01a8b6p-1, 0x1.23370eca5ca6ap-60, 0x1.155a09065d4f7p-26 },
    { 0x1.fffffffabd229p-1, -0x1.4dbe49bec3ef2p-57, 0x1.7974e743dea3dp-28 },
    { 0x1.fffffffe4fa3p-1, 0x1.d166bcb681c7bp-57, 0x1.f1e3523b41d7dp-30 },
    { 0x1.ffffffff79626p-1, 0x1.5fbc52d650a89p-55, 0x1.3e44e45301b92p-31 },
    { 0x1.ffffffffd759dp-1, 0x1.f7bee7eb2342p-55, 0x1.8a61745ec7d1dp-33 },
    { 0x1.fffffffff4188p-1, 0x1.7a2cb3d056eacp-55, 0x1.d9a880f306bd8p-35 },
    { 0x1.fffffffffc9e8p-1, -0x1.a759f7738935fp-56, 0x1.13af4f04f9998p-36 },
    { 0x1.ffffffffff11ap-1, -0x1.3eafccbc6e8b7p-56, 0x1.370ab8327af5ep-38 },
    { 0x1.ffffffffffc05p-1, 0x1.07ba96a6b2e1ap-55, 0x1.5422ef5d8949dp-40 },
    { 0x1.ffffffffffef8p-1, 0x1.14be6226402c7p-56, 0x1.68823e52970bep-42 },
    { 0x1.fffffffffffbep-1, -0x1.182b326b228dcp-55, 0x1.7258610b3b233p-44 },
    { 0x1.ffffffffffffp-1, -0x1.20ef3618f2d54p-56, 0x1.70beaf9c7ffb6p-46 },
    { 0x1.ffffffffffffcp-1, 0x1.8115fd1b12786p-56, 0x1.63daf8b4b1e0cp-48 },
    { 0x1.fffffffffffffp-1, 0x1.0439397b5f70ap-56, 0x1.4cd9c04158cd7p-50 },
    { 0x1p+0, -0x1.8cf81557d20b6p-56, 0x1.2dc119095729fp-52 },
};

/* erf(x) = 2 / sqrt(pi) * (integral of e^(-t^2) from 0 to x), an odd function.
 *
 * |x| < 1/2:  x + x r,  r = (2/sqrt(pi) - 1) - 2/sqrt(pi) (x^2/3 - x^4/(2! 5) + x^6/(3! 7) - ...), to x^26: |r| <= 0.13, and so its errors
 * count an eighth.
 * Else, with c the multiple of 1/8 next to |x| and h = |x| - c:  erf(c) + slope * (integral of e^(-2 c t - t^2) from 0 to h). That
 * function y has y' = -2 (c + t) y, and so the coefficients (k + 1) a_(k+1) = -2 (c a_k + a_(k-1)), a_0 = 1; to h^14. The second term is at
 * most a ninth of the first. From 6 on erf is 1. Measured against MPFR: at most 0.80 ULP. */
double tsar_erf(double x)
{
    static const double tail[13] = { -0x1.812746b0379e7p-2,  0x1.ce2f21a042be2p-4,   -0x1.b82ce31288b51p-6,  0x1.565bcd0e6a53fp-8,
                                     -0x1.c02db40040b86p-11, 0x1.f9a326f9b89b7p-14,  -0x1.f4d25c3e0c2ebp-17, 0x1.b9e6c9dc651a3p-20,
                                     -0x1.5f742ec43e71ap-23, 0x1.fcc5720624c1cp-27,  -0x1.51d7181c5d36dp-30, 0x1.9e6ad5e55a73p-34,
                                     -0x1.d8453cb0c46eap-38 };
    const double size = fabs(x), z = x * x;
    if (size < 0.5) {
        double r = 0;
        for (size_t k = 13; k-- > 0;) r = (r + tail[k]) * z;
        return x + x * (0x1.06eba8214db69p-3 + r);
    }
    if (!(size < 6.0)) return x > 0 ? 1.0 : x < 0 ? -1.0 : x; /* NaN stays */
    const double t = size * 8.0 + ROUNDER, c = (t - ROUNDER) / 8.0, h = size - c;
    double before = 0, a = 1, power = 1, integral = 1; /* a_(k-1), a_k, h^k, and the integral over h */
    for (double k = 1; k <= 13; k++) {
        const double next = -2.0 * (c * a + before) / k;
        before = a;
        a = next;
        power *= h;
        integral += a * power / (k + 1.0);
    }
    const size_t row = (size_t)(c * 8.0) - 4;
    const double y = erf_at[row].hi + (erf_at[row].lo + erf_at[row].slope * (h * integral));
    return x > 0 ? y : -y;
}

/* gelu(x) = x (1 + erf(x / sqrt 2)) / 2, with the double nearest to sqrt(1/2). */
void tsar_gelu_erf_n(double *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = x[i] * (1.0 + tsar_erf(x[i] * 0x1.6a09e667f3bcdp-1)) / 2.0;
}

/* ------------------------------------------------------------------------------------------------------------ log and pow */

/* x = 2^k m, sqrt(1/2) <= m < sqrt(2), for x > 0 finite. */
static double split_binary(double x, double *m)
{
    const uint64_t one = 0x3FF0000000000000u, sqrt_half = 0x3FE6A09E667F3BCDu;
    double scale = x < DBL_MIN ? 0x1p54 : 1.0; /* subnormals are made normal */
    uint64_t bits = bits_of_double(x * scale);
    int k = (int)((bits + (one - sqrt_half)) >> 52) - 1023;
    *m = double_of_bits(bits - ((uint64_t)(int64_t)k << 52));
    return k - (x < DBL_MIN ? 54 : 0);
}

/* a + b = hi + lo exactly, hi the rounded sum (Knuth). */
typedef struct {
    double hi, lo;
} double_pair;

TSAR_INLINE double_pair sum_exactly(double a, double b)
{
    double hi = a + b, b_part = hi - a;
    double_pair p = { hi, (a - (hi - b_part)) + (b - b_part) };
    return p;
}

/* ln x = k ln 2 + ln(1 + f),  f = m - 1 exact.  With s = f / (2 + f):  ln(1 + f) = 2 (s + s^3/3 + s^5/5 + ...)
 *      = f - (h - s (h + R)),  h = f^2 / 2,  R = 2/3 s^2 + 2/5 s^4 + ... + 2/23 s^22,
 * so that f, the largest term, is exact. |s| <= 0.1716: the first term left out is below 2^-66. Measured: at most 0.87 ULP, near
 * sqrt(1/2), where k ln 2 and f cancel to a half. */
double tsar_log(double x)
{
    if (!(x > 0.0)) return x == 0.0 ? -INFINITY : NAN;
    if (x > DBL_MAX) return x;
    double m, k = split_binary(x, &m);
    double f = m - 1.0, s = f / (2.0 + f), z = s * s, h = 0.5 * f * f;
    double R = z * (0x1.5555555555555p-1 +
                    z * (0x1.999999999999ap-2 +
                         z * (0x1.2492492492492p-2 +
                              z * (0x1.c71c71c71c71cp-3 +
                                   z * (0x1.745d1745d1746p-3 +
                                        z * (0x1.3b13b13b13b14p-3 +
                                             z * (0x1.1111111111111p-3 +
                                                  z * (0x1.e1e1e1e1e1e1ep-4 +
                                                       z * (0x1.af286bca1af28p-4 +
                                                            z * (0x1.8618618618618p-4 + z * 0x1.642c8590b2164p-4)))))))))); /* 2/3, 2/5, ... 2/23 */
    double_pair sum = sum_exactly(k * LN2_HI, f);
    return sum.hi + (sum.lo + (k * LN2_LO - (h - s * (h + R))));
}

/* Pairs hi + lo, |lo| <= ULP(hi) / 2, carry about 104 bits (Dekker 1971): tsar_pow needs a logarithm longer than a double. */
static double_pair product_exactly(double a, double b)
{
    double a_big = a * 134217729.0, b_big = b * 134217729.0; /* 2^27 + 1 splits 53 bits into 26 and 26 */
    double a_hi = a_big - (a_big - a), a_lo = a - a_hi;
    double b_hi = b_big - (b_big - b), b_lo = b - b_hi;
    double hi = a * b;
    double_pair p = { hi, ((a_hi * b_hi - hi) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo };
    return p;
}

static double_pair pair_add(double_pair a, double_pair b)
{
    double_pair sum = sum_exactly(a.hi, b.hi);
    return sum_exactly(sum.hi, sum.lo + (a.lo + b.lo));
}

static double_pair pair_multiply(double_pair a, double_pair b)
{
    double_pair p = product_exactly(a.hi, b.hi);
    return sum_exactly(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

static double_pair pair_divide(double_pair a, double_pair b)
{
    double q = a.hi / b.hi;
    double_pair p = product_exactly(q, b.hi);
    return sum_exactly(q, (((a.hi - p.hi) - p.lo) + (a.lo - q * b.lo)) / b.hi);
}

/* ln x = k ln 2 + 2 s (1 + s^2/3 + s^4/5 + ... + s^40/41),  s = (m - 1) / (m + 1), in pairs: to about 2^-100. */
static double_pair log_pair(double x)
{
    const double_pair ln2 = { 0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56 };
    double m, k = split_binary(x, &m);
    double_pair f = { m - 1.0, 0.0 }, k_pair = { k, 0.0 }, series = { 0.0, 0.0 };
    double_pair s = pair_divide(f, sum_exactly(m, 1.0)), z = pair_multiply(s, s);
    for (int n = 41; n >= 1; n -= 2) {
        double_pair one = { 1.0, 0.0 }, odd = { n, 0.0 };
        series = pair_add(pair_divide(one, odd), pair_multiply(z, series));
    }
    double_pair twice = { 2.0 * s.hi, 2.0 * s.lo };
    return pair_add(pair_multiply(k_pair, ln2), pair_multiply(twice, series));
}

double tsar_pow(double base, double y)
{
    double estimate = y * tsar_log(base);
    if (!(fabs(estimate) <= 800.0) || estimate == 0.0) /* overflow, underflow, NaN; base = 1, where y may be too large to split */
        return tsar_exp(estimate);
    double_pair y_pair = { y, 0.0 }, exponent = pair_multiply(y_pair, log_pair(base));
    return exp_of_sum(exponent.hi, exponent.lo);
}

/* ------------------------------------------------------------------------------------------------------------ sin and cos */

/* sin(|x| + quadrant pi/2) for |x| <= 2^20, NaN beyond.   |x| = q pi/2 + r,  |r| <= pi/4.
 *
 * pi/2 = P1 + P2 + P3 + P4 to 2^-157, the first three of 33 bits: q P1, q P2, q P3 are exact for q < 2^20, and so are the
 * differences, kept as a sum r + c. No double below 2^20 but 0 is nearer than 2^-61 to a multiple of pi/2, and so r + c keeps at
 * least 70 correct bits. sin r to r^17 and cos r to r^16: the first terms left out are below 2^-63 and 2^-58. Measured: at most
 * 0.78 ULP. */
static double sin_from(double x, uint64_t quadrant)
{
    double a = double_of_bits(bits_of_double(x) & ~SIGN_BIT);
    uint64_t outside = mask_above(bits_of_double(a), 0x4130000000000000u); /* 2^20 */

    double t = a * 0x1.45f306dc9c883p-1 + ROUNDER, q = t - ROUNDER; /* 2 / pi */
    double_pair first = sum_exactly(a - q * 0x1.921fb544p+0, -(q * 0x1.0b4611a6p-34));
    double_pair second = sum_exactly(first.hi, -(q * 0x1.3198a2ep-69));
    double_pair rest = sum_exactly(second.hi, (first.lo + second.lo) - q * 0x1.b839a252049c1p-104);
    double r = rest.hi, c = rest.lo, z = r * r, h = 0.5 * z;

    double sin_tail = z * (F[5] - z * (F[7] - z * (F[9] - z * (F[11] - z * (F[13] - z * (F[15] - z * F[17]))))));
    double sin_r = r + (c * (1.0 - h) - r * z * (F[3] - sin_tail));
    double w = 1.0 - h;
    double cos_tail = z * (F[4] - z * (F[6] - z * (F[8] - z * (F[10] - z * (F[12] - z * (F[14] - z * F[16]))))));
    double cos_r = w + (((1.0 - w) - h) + (z * cos_tail - r * c));

    quadrant += bits_of_double(t); /* 0: sin r, 1: cos r, 2: -sin r, 3: -cos r */
    uint64_t odd = (uint64_t)0 - (quadrant & 1);
    uint64_t bits = (bits_of_double(sin_r) & ~odd) | (bits_of_double(cos_r) & odd);
    return double_of_bits((bits ^ ((quadrant & 2) << 62)) | (outside & 0x7FF8000000000000u));
}

double tsar_sin(double x) { return double_of_bits(bits_of_double(sin_from(x, 0)) ^ (bits_of_double(x) & SIGN_BIT)); }

double tsar_cos(double x) { return sin_from(x, 1); }
