/* tsar.c - arithmetic, transformer, token-shuffle (SPEC 1, 3, 6).
 *
 * What a function computes, and in which order, is said in tsar.h.
 * The file is longer than the others because it is the whole of the model: from the product of two numbers up to logits. */
#include "tsar.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- errors and memory */

tsar_status tsar_fail(tsar_error *err, tsar_status status, const char *format, ...)
{
    if (err != NULL) {
        va_list arguments;
        va_start(arguments, format);
        (void)vsnprintf(err->text, sizeof err->text, format, arguments);
        va_end(arguments);
        for (char *c = err->text; *c; c++)
            if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?'; /* a hostile name must not break the one line */
    }
    return status;
}

/* The block of calloc stays untouched but for the pointer to its start, which stands in front of the aligned bytes:
 * pages that nobody writes to cost nothing. */
void *tsar_alloc(size_t count, size_t size, const char *what, tsar_error *err)
{
    const size_t extra = 64 + sizeof(void *);
    char *block = NULL;
    if (size == 0 || count <= (SIZE_MAX - extra) / size) block = calloc(1, count * size + extra);
    if (block == NULL) {
        (void)tsar_fail(err, TSAR_ROOM, "out of memory for %s (%.0f MB)", what, (double)count * (double)size / 1e6);
        return NULL;
    }
    char *memory = block + sizeof(void *);
    memory += (64 - (uintptr_t)memory % 64) % 64;
    memcpy(memory - sizeof(void *), &block, sizeof(void *));
    return memory;
}

void tsar_free(void *memory)
{
    if (memory != NULL) {
        void *block;
        memcpy(&block, (char *)memory - sizeof(void *), sizeof(void *));
        free(block);
    }
}

tsar_status tsar_emit(const tsar_sink *sink, tsar_error *err, tsar_dtype dtype, const void *data, size_t rank, const size_t *shape,
                      const char *format, ...)
{
    if (sink == NULL) return TSAR_OK;
    char name[128];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    return sink->put(sink->context, name, dtype, rank, shape, data, err);
}

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

/* ------------------------------------------------------------------------------------------------ norm and softmax */

/* RMSNorm (LlamaGen): y = x / sqrt(mean(x^2) + eps) * g. */
void tsar_rmsnorm(double *y, const double *x, const double *g, size_t d, double eps)
{
    double sum = 0;
    for (size_t i = 0; i < d; i++) sum += x[i] * x[i];
    const double root = sqrt(sum / (double)d + eps);
    for (size_t i = 0; i < d; i++) y[i] = x[i] / root * g[i];
}

/* softmax(x)_i = e^(x_i - m) / sum_j e^(x_j - m), m = max x. e^(-infinity) is 0. */
void tsar_softmax(double *x, size_t n)
{
    double m = x[0], total = 0;
    for (size_t i = 1; i < n; i++) m = x[i] > m ? x[i] : m;
    for (size_t i = 0; i < n; i++) x[i] -= m;
    tsar_exp_n(x, n);
    for (size_t i = 0; i < n; i++) total += x[i];
    for (size_t i = 0; i < n; i++) x[i] /= total;
}

/* ----------------------------------------------------------------------------------------------------- the matrix */

/* Sizes of the kernel; tests/SPEED.md has the measurements. A panel is TSAR_PANEL rows: long enough that compilers turn a
 * loop over it into vectors instead of taking it apart. Up to TILE vectors share each pass over the weights; AHEAD
 * bytes in front of the multiplication, memory is asked for weights. More vectors share weights that are widened to double once,
 * CHUNK columns at a time, and are multiplied MANY at once, GROUP of them for each widening. MANY x TSAR_PANEL accumulators
 * are 20 of the 32 registers of AVX-512; there x is kept LANES times over, because loading a whole register is cheaper than
 * filling it with one number. */
#if defined(__AVX512F__)
enum { PANEL = TSAR_PANEL, TILE = 4, AHEAD = 4096, CHUNK = 64, MANY = 5, LANES = 8, GROUP = 13 * MANY };
#else
enum { PANEL = TSAR_PANEL, TILE = 4, AHEAD = 4096, CHUNK = 128, MANY = 1, LANES = 1, GROUP = 64 };
#endif

static float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Panels of `rows` rows. */
static size_t panels_of(size_t rows) { return rows / PANEL + (rows % PANEL != 0); }

/* Bytes of n columns of a panel. F16 and BF16 are kept as 32-bit words that hold a row's weights of two neighbouring
 * columns, the even one in the low half: a mask and a shift take them apart, where single halves need an unpacking. */
TSAR_INLINE size_t columns_size(tsar_dtype dtype, size_t n)
{
    return dtype == TSAR_F64 ? n * PANEL * 8 : dtype == TSAR_F32 ? n * PANEL * 4 : (n + 1) / 2 * PANEL * 4;
}

tsar_status tsar_matrix_open(tsar_matrix *w, size_t rows, size_t cols, tsar_dtype dtype, const char *name, tsar_error *err)
{
    const size_t panels = panels_of(rows);
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

/* Weight r of a column that starts at `column`, widened; for words of two columns, of the even or the odd one.
 * F16: see tsar_widen_f16; weights are finite. */
TSAR_INLINE double weight(tsar_dtype dtype, const void *column, int odd, size_t r)
{
    if (dtype == TSAR_F64) return ((const double *)column)[r];
    if (dtype == TSAR_F32) return ((const float *)column)[r];
    const uint32_t word = ((const uint32_t *)column)[r];
    if (dtype == TSAR_BF16) return float_of_bits(odd ? word & 0xffff0000u : word << 16);
    return float_of_bits(odd ? (word & 0x80000000u) | (word & 0x7fff0000u) >> 3 : (word & 0x8000u) << 16 | (word & 0x7fffu) << 13) * 0x1p112f;
}

/* The inner kernel: y[b][r] += w[r][k] * x[b][k], k ascending, for the PANEL rows of one panel and B vectors; dtype and B
 * are constants wherever it is inlined. w is the panel's first column of kn (an even number for words of two columns).
 * All accumulators live in registers; each weight is widened once and used B times. */
TSAR_INLINE void block(tsar_dtype dtype, size_t B, double *y, size_t ldy, const double *x, size_t ldx, const char *w, size_t kn)
{
    const size_t step = dtype == TSAR_F64 || dtype == TSAR_F32 ? 1 : 2, step_size = columns_size(dtype, step);
    double acc[TILE][PANEL];
    for (size_t b = 0; b < B; b++)
        for (size_t r = 0; r < PANEL; r++) acc[b][r] = y[b * ldy + r];
    for (size_t k = 0; k < kn; k += step, w += step_size) {
        for (size_t line = 0; line < step_size; line += 64) TSAR_PREFETCH((const void *)((uintptr_t)w + AHEAD + line));
        for (size_t b = 0; b < B; b++) {
            for (size_t j = 0; j < step; j++) {
                const double x_bk = x[b * ldx + k + j];
                for (size_t r = 0; r < PANEL; r++) acc[b][r] += weight(dtype, w, j == 1, r) * x_bk;
            }
        }
    }
    for (size_t b = 0; b < B; b++)
        for (size_t r = 0; r < PANEL; r++) y[b * ldy + r] = acc[b][r];
}

typedef void (*kernel)(double *y, size_t ldy, const double *x, size_t ldx, const char *w, size_t kn);
#define KERNEL(dtype, B)                                                                                                                             \
    static void kernel_##dtype##_##B(double *y, size_t ldy, const double *x, size_t ldx, const char *w, size_t kn)                                   \
    {                                                                                                                                                \
        block(TSAR_##dtype, B, y, ldy, x, ldx, w, kn);                                                                                               \
    }
#define KERNELS(dtype) KERNEL(dtype, 1) KERNEL(dtype, 2) KERNEL(dtype, 3) KERNEL(dtype, 4)
KERNELS(F64)
KERNELS(F32)
KERNELS(F16)
KERNELS(BF16)
#define NAMES(dtype)                                                                                                                                 \
    {                                                                                                                                                \
        kernel_##dtype##_1, kernel_##dtype##_2, kernel_##dtype##_3, kernel_##dtype##_4                                                               \
    }
static const kernel kernels[4][TILE] = { NAMES(F64), NAMES(F32), NAMES(F16), NAMES(BF16) }; /* by tsar_dtype and B - 1 */

/* block for T <= TILE vectors, and for the last panel's rows < PANEL, which are computed aside. */
static void few(tsar_dtype dtype, double *y, size_t ldy, const double *x, size_t ldx, const char *w, size_t kn, size_t T, size_t rows)
{
    double whole[TILE][PANEL] = { { 0 } };
    if (rows == PANEL) {
        kernels[dtype][T - 1](y, ldy, x, ldx, w, kn);
        return;
    }
    for (size_t b = 0; b < T; b++) memcpy(whole[b], y + b * ldy, rows * sizeof(double));
    kernels[dtype][T - 1](whole[0], PANEL, x, ldx, w, kn);
    for (size_t b = 0; b < T; b++) memcpy(y + b * ldy, whole[b], rows * sizeof(double));
}

/* wide [n][PANEL] = columns k ... k+n-1 of a panel as doubles: widen does it for any dtype but F64. */
static void widen_f32(double *restrict wide, const float *restrict panel, size_t k, size_t n)
{
    for (size_t i = 0; i < n * PANEL; i++) wide[i] = panel[k * PANEL + i];
}

TSAR_INLINE void widen_words(tsar_dtype dtype, double *restrict wide, const uint32_t *restrict panel, size_t k, size_t n)
{
    for (size_t i = k; i < k + n; i++, wide += PANEL) {
        const uint32_t *column = panel + i / 2 * PANEL;
        for (size_t r = 0; r < PANEL; r++) wide[r] = i % 2 == 1 ? weight(dtype, column, 1, r) : weight(dtype, column, 0, r);
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

/* The inner kernel for many vectors: y[b][r] += w[k][r] * x[k][b], k ascending, for a panel wide [kn][PANEL] and MANY vectors spread
 * [kn][MANY][LANES]. The order of the two outer loops changes no sum: gcc keeps the accumulators in registers with
 * one order, clang with the other. With every column, memory is asked for one line at `ahead` and one `gap` bytes behind it (the same
 * where gap is 0); not where LANES is 1, because gcc then makes no vectors. */
static void block_many(double *restrict y, size_t ldy, const double *restrict spread, const double *restrict wide, size_t kn, const char *ahead,
                       size_t gap)
{
#if defined(__clang__)
    enum { OUTER = MANY, INNER = PANEL / LANES };
#define VECTOR outer
#define PART inner
#else
    enum { OUTER = PANEL / LANES, INNER = MANY };
#define VECTOR inner
#define PART outer
#endif
    double acc[OUTER][INNER][LANES];
    for (size_t outer = 0; outer < OUTER; outer++)
        for (size_t inner = 0; inner < INNER; inner++)
            for (size_t l = 0; l < LANES; l++) acc[outer][inner][l] = y[VECTOR * ldy + PART * LANES + l];
    for (size_t k = 0; k < kn; k++, spread += MANY * LANES, wide += PANEL) {
        if (LANES > 1) TSAR_PREFETCH_L2((const void *)((uintptr_t)ahead + 64 * k));
        if (LANES > 1) TSAR_PREFETCH_L2((const void *)((uintptr_t)ahead + gap + 64 * k));
        for (size_t outer = 0; outer < OUTER; outer++)
            for (size_t inner = 0; inner < INNER; inner++)
                for (size_t l = 0; l < LANES; l++) acc[outer][inner][l] += wide[PART * LANES + l] * spread[VECTOR * LANES + l];
    }
    for (size_t outer = 0; outer < OUTER; outer++)
        for (size_t inner = 0; inner < INNER; inner++)
            for (size_t l = 0; l < LANES; l++) y[VECTOR * ldy + PART * LANES + l] = acc[outer][inner][l];
#undef VECTOR
#undef PART
}

/* spread [n][MANY][LANES] = x[b][k]. */
static void spread_vectors(double *restrict spread, const double *restrict x, size_t ldx, size_t n)
{
    for (size_t k = 0; k < n; k++)
        for (size_t b = 0; b < MANY; b++, spread += LANES)
            for (size_t l = 0; l < LANES; l++) spread[l] = x[b * ldx + k];
}

/* block_many for the rows that there are: those of a panel that is not whole are computed aside. */
static void tile_many(double *y, size_t ldy, const double *spread, const double *wide, size_t kn, const char *ahead, size_t gap, size_t rows)
{
    double whole[MANY][PANEL] = { { 0 } };
    if (rows == PANEL) {
        block_many(y, ldy, spread, wide, kn, ahead, gap);
        return;
    }
    for (size_t b = 0; b < MANY; b++) memcpy(whole[b], y + b * ldy, rows * sizeof(double));
    block_many(whole[0], PANEL, spread, wide, kn, ahead, gap);
    for (size_t b = 0; b < MANY; b++) memcpy(y + b * ldy, whole[b], rows * sizeof(double));
}

static size_t rows_of_panel(const tsar_matrix *w, size_t p) { return w->rows - p * PANEL < PANEL ? w->rows - p * PANEL : PANEL; }

/* Up to GROUP vectors: they are spread once for all panels, a chunk of a panel is widened once for all of them; fewer than MANY
 * that are left over go through the kernel for a few. The accumulators pass through y from chunk to chunk, which changes no bit. */
static void accumulate_many(double *y, size_t ldy, const double *x, size_t ldx, const tsar_matrix *w, size_t k0, size_t kn, size_t T, size_t p0,
                            size_t p1)
{
    double room[(GROUP * LANES + PANEL) * CHUNK + 8]; /* 283 kB with AVX-512, 98 kB without; its first cache line: */
    double *spread = room + (64 - (uintptr_t)room % 64) % 64 / sizeof(double), *wide = spread + GROUP * LANES * CHUNK;
    const size_t tiles = T / MANY, left = tiles * MANY;
    for (size_t k = 0, n; k < kn; k += n) {
        n = kn - k < CHUNK ? kn - k : CHUNK;
        for (size_t i = 0; i < tiles; i++) spread_vectors(spread + i * MANY * LANES * n, x + i * MANY * ldx + k, ldx, n);
        for (size_t p = p0; p < p1; p++) {
            const char *panel = (const char *)w->panels + p * columns_size(w->dtype, w->cols);
            const double *columns = wide;
            if (w->dtype == TSAR_F64)
                columns = (const double *)(const void *)panel + (k0 + k) * PANEL;
            else
                widen(w, wide, panel, k0 + k, n);
            /* the same columns of the next panel lie far away: they are asked for while the tiles are computed, else before */
            const char *ahead = p + 1 < p1 ? panel + columns_size(w->dtype, w->cols) + columns_size(w->dtype, k0 + k) : panel;
            const size_t ahead_size = p + 1 < p1 ? columns_size(w->dtype, n) : 0;
            for (size_t line = 0; LANES == 1 && line < ahead_size; line += 64) TSAR_PREFETCH(ahead + line);
            for (size_t i = 0; i < tiles; i++) {
                const size_t from = 2 * 64 * n * i, gap = from + 64 * n < ahead_size ? 64 * n : 0;
                tile_many(y + i * MANY * ldy + p * PANEL, ldy, spread + i * MANY * LANES * n, columns, n,
                          from < ahead_size ? ahead + from : (const char *)columns, gap, rows_of_panel(w, p));
            }
            if (left < T)
                few(TSAR_F64, y + left * ldy + p * PANEL, ldy, x + left * ldx + k, ldx, (const char *)columns, n, T - left, rows_of_panel(w, p));
        }
    }
}

/* Up to TILE vectors: weights go from memory to the registers, and are widened there. A lone column of a word of two is
 * widened before. */
static void accumulate_few(double *y, size_t ldy, const double *x, size_t ldx, const tsar_matrix *w, size_t k0, size_t kn, size_t T, size_t p0,
                           size_t p1)
{
    const int words = w->dtype == TSAR_F16 || w->dtype == TSAR_BF16;
    double wide[PANEL];
    for (size_t p = p0; p < p1; p++) {
        const char *panel = (const char *)w->panels + p * columns_size(w->dtype, w->cols);
        for (size_t k = 0, n; k < kn; k += n) {
            const int lone = words && ((k0 + k) % 2 == 1 || kn - k == 1);
            const char *columns = lone ? (const char *)wide : panel + columns_size(w->dtype, k0 + k);
            n = lone ? 1 : words ? (kn - k) / 2 * 2 : kn - k;
            if (lone) widen(w, wide, panel, k0 + k, 1);
            few(lone ? TSAR_F64 : w->dtype, y + p * PANEL, ldy, x + k, ldx, columns, n, T, rows_of_panel(w, p));
        }
    }
}

void tsar_accumulate(double *y, size_t ldy, const double *x, size_t ldx, const tsar_matrix *w, size_t k0, size_t kn, size_t T, size_t p0, size_t p1)
{
    for (size_t t = 0; t < T; t += GROUP) {
        const size_t count = T - t < GROUP ? T - t : GROUP;
        if (count <= TILE)
            accumulate_few(y + t * ldy, ldy, x + t * ldx, ldx, w, k0, kn, count, p0, p1);
        else
            accumulate_many(y + t * ldy, ldy, x + t * ldx, ldx, w, k0, kn, count, p0, p1);
    }
}

/* Threads share the panels, so that each weight is read once; where there are few panels and many vectors, the vectors. */
void tsar_matmul(double *y, const double *x, const tsar_matrix *w, const double *bias, size_t T, size_t threads)
{
    const size_t rows = w->rows, cols = w->cols, panels = panels_of(rows);
    const size_t crew = (double)rows * (double)cols * (double)T < 1e5 || threads == 0 ? 1 : threads;
    const int by_panel = panels >= 8 * crew || T < 8 * crew;
    TSAR_PARALLEL_FOR(crew)
    for (size_t i = 0; i < crew; i++) {
        const size_t p0 = by_panel ? panels * i / crew : 0, p1 = by_panel ? panels * (i + 1) / crew : panels;
        const size_t t0 = by_panel ? 0 : T * i / crew, t1 = by_panel ? T : T * (i + 1) / crew;
        const size_t r1 = p1 * PANEL < rows ? p1 * PANEL : rows;
        for (size_t t = t0; t < t1; t++)
            for (size_t r = p0 * PANEL; r < r1; r++) y[t * rows + r] = bias != NULL ? bias[r] : 0.0;
        tsar_accumulate(y + t0 * rows, rows, x + t0 * cols, cols, w, 0, cols, t1 - t0, p0, p1);
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

/* ------------------------------------------------------------------------------------------------- the transformer */

/* Where one row of a pass stands. */
typedef struct {
    size_t sequence, position;
    int image; /* 1: an image token, of raster index `token`; 0: a position of the prefix */
    size_t token;
    int visible; /* 0: padding, to which nobody else may attend (QUIRKS, GPT 4) */
    int keep;    /* 0: keys and values are forgotten after the pass */
} row_place;

/* Keys and values of one sequence. Keys are laid out so that the scores of TSAR_PANEL positions, values so that
 * TSAR_PANEL dimensions of the mixed vector, are computed side by side by the one matrix kernel. */
typedef struct {
    size_t prefix, positions; /* condition positions; all positions, image tokens included */
    unsigned char *fed;       /* [positions]: 1 where later rows may attend: fed, kept, not padding */
    tsar_matrix *keys;        /* [n_layer][n_kv_head] of [positions][hd] */
    tsar_matrix *values;      /* [n_layer][n_kv_head] of [hd][positions] */
} kv_cache;

struct tsar_state {
    const tsar_model *model;
    const tsar_stack *stack;
    int causal;          /* 0: every row attends to every position (CTF stage two) */
    size_t grid_columns; /* columns of the grid of image tokens, for 2d rotary positions */
    size_t sequences;
    kv_cache *cache;   /* [sequences] */
    double *frequency; /* [hd/2] for 1d, [hd/4] for 2d rotary positions */

    size_t rows;       /* rows that the following have room for */
    row_place *place;  /* [rows] */
    double *x;         /* [rows][d]  the residual stream */
    double *normed;    /* [rows][d] */
    double *qkv;       /* [rows][(n_head + 2 n_kv_head) hd] */
    double *mixed;     /* [rows][d]  attention's output */
    double *delta;     /* [rows][d]  what a branch adds to the stream */
    double *gate, *up; /* [rows][ffn] */
    double *rotation;  /* [rows][hd/2][3]  cos, sin, -sin */
    double *hidden;    /* [rows][shuffle_hidden] */
    double *code;      /* [rows][s*s][d]  one vector for every code */

    size_t logit_rows; /* rows that this one has room for */
    double *logits;    /* [logit_rows][s*s][V] */

    size_t attend_positions; /* positions that this one has room for */
    double *attend;          /* [threads] of q [QUERIES][hd], scores [QUERIES][positions], out [QUERIES][hd] */
};

enum { QUERIES = 8, PREFILL_ROWS = 64 }; /* queries attended together; prompt rows fed together */

/* f[k] = base^(-2k/width) for the width/2 pairs that share one coordinate: width = hd for 1d, hd/2 for 2d. (RoFormer; LlamaGen) */
static tsar_status rope_frequencies(tsar_state *state, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    size_t width = stack->rope_2d ? stack->head_dim / 2 : stack->head_dim;
    state->frequency = tsar_alloc(width / 2 + 1, sizeof(double), "rotary frequencies", err);
    if (!state->frequency) return TSAR_ROOM;
    for (size_t k = 0; k < width / 2; k++) state->frequency[k] = tsar_pow(stack->rope_base, -(double)(2 * k) / (double)width);
    return TSAR_OK;
}

/* cos, sin and -sin of one row's angles, [hd/2][3]. 1d: position * f[k]. 2d: the first half of the pairs takes the token's
 * row, the second its column; positions of the prefix have cos = sin = 0, as in LlamaGen (QUIRKS, GPT 2). */
static void rope_angles(double *rotation, const tsar_state *state, const row_place *place)
{
    const tsar_stack *stack = state->stack;
    size_t pairs = stack->head_dim / 2;
    size_t half = stack->rope_2d ? pairs / 2 : pairs;
    for (size_t p = 0; p < pairs; p++) {
        double *turn = rotation + 3 * p;
        if (stack->rope_2d && !place->image) {
            turn[0] = turn[1] = turn[2] = 0.0;
            continue;
        }
        size_t coordinate = place->position;
        if (stack->rope_2d) coordinate = p < half ? place->token / state->grid_columns : place->token % state->grid_columns;
        double angle = (double)coordinate * state->frequency[p % half];
        turn[0] = tsar_cos(angle);
        turn[1] = tsar_sin(angle);
        turn[2] = -turn[1];
    }
}

/* (a, b) -> (a cos - b sin, b cos + a sin) for the neighbouring pairs of `heads` heads x [heads][hd]. Adding b (-sin) has the
 * bits of subtracting b sin; written as a difference beside a sum, gcc 12.0 to 12.2 would fuse both into one
 * instruction in spite of -ffp-contract=off (tests/digests.txt shows it). */
static void rope_rotate(double *x, const double *rotation, size_t heads, size_t hd)
{
    for (size_t h = 0; h < heads; h++) {
        double *x_h = x + h * hd;
        for (size_t p = 0; p < hd / 2; p++) {
            const double a = x_h[2 * p], b = x_h[2 * p + 1], *turn = rotation + 3 * p;
            x_h[2 * p] = a * turn[0] + b * turn[2];
            x_h[2 * p + 1] = b * turn[0] + a * turn[1];
        }
    }
}

/* Column `position` of values [hd][positions]. */
static void set_value(tsar_matrix *values, size_t position, const double *v)
{
    double *panels = values->panels;
    for (size_t r = 0; r < values->rows; r++) panels[(r / TSAR_PANEL * values->cols + position) * TSAR_PANEL + r % TSAR_PANEL] = v[r];
}

typedef struct {
    size_t row, head;
} query;

/* Attention of up to QUERIES queries over the keys and values of one head:
 * score_j = (q . k_j) * (1 / sqrt(hd)) where allowed(i, j), p = softmax(score), out = sum over j ascending of p_j v_j. */
static void attend_queries(const tsar_state *state, const kv_cache *cache, size_t matrix, const query *queries, size_t count, double *scratch)
{
    const tsar_stack *stack = state->stack;
    const size_t hd = stack->head_dim, width = (stack->n_head + 2 * stack->n_kv_head) * hd;
    const double scale = 1.0 / sqrt((double)hd);
    size_t length = state->causal ? 0 : cache->positions;
    for (size_t c = 0; c < count; c++) {
        size_t position = state->place[queries[c].row].position;
        if (position + 1 > length) length = position + 1;
    }
    double *q = scratch, *scores = q + QUERIES * hd, *out = scores + QUERIES * state->attend_positions;

    /* 1. scores of all positions up to the last query's */
    for (size_t c = 0; c < count; c++) {
        memcpy(q + c * hd, state->qkv + queries[c].row * width + queries[c].head * hd, hd * sizeof *q);
        memset(scores + c * cache->positions, 0, cache->positions * sizeof *scores);
    }
    tsar_accumulate(scores, cache->positions, q, hd, &cache->keys[matrix], 0, hd, count, 0, panels_of(length));

    /* 2. mask and softmax */
    for (size_t c = 0; c < count; c++) {
        double *score = scores + c * cache->positions;
        size_t i = state->place[queries[c].row].position;
        for (size_t j = 0; j < length; j++) {
            int allowed = !state->causal || (j <= i && cache->fed[j]) || i == j;
            score[j] = allowed ? score[j] * scale : -INFINITY;
        }
        tsar_softmax(score, length);
    }

    /* 3. the mixed values */
    memset(out, 0, count * hd * sizeof *out);
    tsar_accumulate(out, hd, scores, cache->positions, &cache->values[matrix], 0, length, count, 0, panels_of(hd));
    for (size_t c = 0; c < count; c++)
        memcpy(state->mixed + queries[c].row * stack->n_head * hd + queries[c].head * hd, out + c * hd, hd * sizeof *out);
}

/* All rows of one sequence against one key head: query head h uses key head h / (n_head / n_kv_head). */
static void attend_head(const tsar_state *state, size_t layer, size_t sequence, size_t kv_head, size_t rows, double *scratch)
{
    const tsar_stack *stack = state->stack;
    const size_t group = stack->n_head / stack->n_kv_head, matrix = layer * stack->n_kv_head + kv_head;
    const kv_cache *cache = &state->cache[sequence];
    query queries[QUERIES];
    size_t count = 0;
    for (size_t r = 0; r < rows; r++) {
        if (state->place[r].sequence != sequence) continue;
        for (size_t g = 0; g < group; g++) {
            queries[count].row = r;
            queries[count++].head = kv_head * group + g;
            if (count == QUERIES) {
                attend_queries(state, cache, matrix, queries, count, scratch);
                count = 0;
            }
        }
    }
    if (count) attend_queries(state, cache, matrix, queries, count, scratch);
}

/* mixed = attention(rope(q), rope(k), v) of one layer: the pass's own keys and values enter the cache first. */
static void attention(tsar_state *state, size_t layer, size_t rows)
{
    const tsar_stack *stack = state->stack;
    const size_t hd = stack->head_dim, n_kv = stack->n_kv_head, width = (stack->n_head + 2 * n_kv) * hd;
    for (size_t r = 0; r < rows; r++) {
        double *q = state->qkv + r * width, *k = q + stack->n_head * hd, *v = k + n_kv * hd;
        const row_place *place = &state->place[r];
        kv_cache *cache = &state->cache[place->sequence];
        rope_rotate(q, state->rotation + r * (hd / 2) * 3, stack->n_head + n_kv, hd);
        for (size_t h = 0; h < n_kv; h++) {
            tsar_matrix_set_rows(&cache->keys[layer * n_kv + h], place->position, 1, k + h * hd);
            set_value(&cache->values[layer * n_kv + h], place->position, v + h * hd);
        }
    }
    const size_t workers = state->model->threads, tasks = state->sequences * n_kv;
    const size_t scratch = QUERIES * (2 * hd + state->attend_positions);
    TSAR_PARALLEL_FOR(workers)
    for (size_t w = 0; w < workers; w++)
        for (size_t task = w; task < tasks; task += workers) attend_head(state, layer, task / n_kv, task % n_kv, rows, state->attend + w * scratch);
}

static void rmsnorm_rows(double *y, const double *x, const double *g, size_t rows, size_t d, double eps, size_t threads)
{
    TSAR_PARALLEL_FOR(rows > 1 ? threads : 1)
    for (size_t r = 0; r < rows; r++) tsar_rmsnorm(y + r * d, x + r * d, g, d, eps);
}

/* x = x + delta, element by element. */
static void add(double *x, const double *delta, size_t count)
{
    for (size_t i = 0; i < count; i++) x[i] = x[i] + delta[i];
}

/* One block (SPEC 3; Llama):  h = x + wo . attention(rope(q), rope(k), v),  q, k, v = wqkv . rmsnorm(x)
 *                             y = h + w2 . (silu(w1 . n) * (w3 . n)),       n = rmsnorm(h) */
static void block_forward(tsar_state *state, size_t layer, size_t rows)
{
    const tsar_stack *stack = state->stack;
    const tsar_layer *w = &stack->layers[layer];
    const size_t d = stack->dim, ffn = stack->ffn_hidden, threads = state->model->threads;

    rmsnorm_rows(state->normed, state->x, w->attention_norm, rows, d, stack->norm_eps, threads);
    tsar_matmul(state->qkv, state->normed, &w->wqkv, NULL, rows, threads);
    attention(state, layer, rows);
    tsar_matmul(state->delta, state->mixed, &w->wo, NULL, rows, threads);
    add(state->x, state->delta, rows * d);

    rmsnorm_rows(state->normed, state->x, w->ffn_norm, rows, d, stack->norm_eps, threads);
    tsar_matmul(state->gate, state->normed, &w->w1, NULL, rows, threads);
    tsar_matmul(state->up, state->normed, &w->w3, NULL, rows, threads);
    TSAR_PARALLEL_FOR(rows > 1 ? threads : 1)
    for (size_t r = 0; r < rows; r++) {
        double *gate = state->gate + r * ffn;
        const double *up = state->up + r * ffn;
        tsar_silu_n(gate, ffn);
        for (size_t i = 0; i < ffn; i++) gate[i] = gate[i] * up[i];
    }
    tsar_matmul(state->delta, state->gate, &w->w2, NULL, rows, threads);
    add(state->x, state->delta, rows * d);
}

/* All blocks over state->x [rows][d], whose places are set; `part` names the tensors ("gpt", "fine"). */
static tsar_status stack_forward(tsar_state *state, size_t rows, const char *part, const tsar_sink *sink, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const size_t shape[2] = { rows, stack->dim };
    tsar_status status = tsar_emit(sink, err, TSAR_F64, state->x, 2, shape, "%s.embed", part);
    for (size_t r = 0; r < rows; r++) {
        const row_place *place = &state->place[r];
        rope_angles(state->rotation + r * (stack->head_dim / 2) * 3, state, place);
        state->cache[place->sequence].fed[place->position] = place->visible != 0;
    }
    for (size_t layer = 0; layer < stack->n_layer && status == TSAR_OK; layer++) {
        block_forward(state, layer, rows);
        status = tsar_emit(sink, err, TSAR_F64, state->x, 2, shape, "%s.block.%zu", part, layer);
    }
    return status;
}

/* After a pass: stand-ins lose their keys and values (zero values, so that a weight of 0 meets no stale number). */
static void forget_stand_ins(tsar_state *state, size_t rows)
{
    const tsar_stack *stack = state->stack;
    memset(state->delta, 0, stack->dim * sizeof *state->delta);
    for (size_t r = 0; r < rows; r++) {
        const row_place *place = &state->place[r];
        if (place->keep) continue;
        kv_cache *cache = &state->cache[place->sequence];
        cache->fed[place->position] = 0;
        for (size_t m = 0; m < stack->n_layer * stack->n_kv_head; m++) set_value(&cache->values[m], place->position, state->delta);
    }
}

/* ------------------------------------------------------------------------------------------------- state: open and close */

static void cache_close(kv_cache *cache, const tsar_stack *stack)
{
    for (size_t m = 0; cache->keys && cache->values && m < stack->n_layer * stack->n_kv_head; m++) {
        tsar_matrix_close(&cache->keys[m]);
        tsar_matrix_close(&cache->values[m]);
    }
    tsar_free(cache->keys);
    tsar_free(cache->values);
    tsar_free(cache->fed);
    memset(cache, 0, sizeof *cache);
}

/* An empty cache for `prefix` condition positions and `tokens` image tokens, and attention scratch for as many positions. */
static tsar_status cache_open(tsar_state *state, size_t sequence, size_t prefix, size_t tokens, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const size_t matrices = stack->n_layer * stack->n_kv_head, hd = stack->head_dim;
    kv_cache *cache = &state->cache[sequence];
    cache_close(cache, stack);
    if (prefix > SIZE_MAX / 2 - tokens)
        return tsar_fail(err, TSAR_ROOM, "a sequence of %zu + %zu positions is too long for this machine", prefix, tokens);
    cache->prefix = prefix;
    cache->positions = prefix + tokens;
    cache->keys = tsar_alloc(matrices, sizeof *cache->keys, "the KV cache", err);
    cache->values = tsar_alloc(matrices, sizeof *cache->values, "the KV cache", err);
    cache->fed = tsar_alloc(cache->positions, 1, "the KV cache", err);
    tsar_status status = cache->keys && cache->values && cache->fed ? TSAR_OK : TSAR_ROOM;
    for (size_t m = 0; m < matrices && status == TSAR_OK; m++) {
        status = tsar_matrix_open(&cache->keys[m], cache->positions, hd, TSAR_F64, "the KV cache", err);
        if (status == TSAR_OK) status = tsar_matrix_open(&cache->values[m], hd, cache->positions, TSAR_F64, "the KV cache", err);
    }
    if (status == TSAR_OK && cache->positions > state->attend_positions) {
        tsar_free(state->attend);
        state->attend_positions = 0;
        state->attend = tsar_alloc(cache->positions + 2 * hd, state->model->threads * QUERIES * sizeof(double), "attention scores", err);
        if (!state->attend)
            status = TSAR_ROOM;
        else
            state->attend_positions = cache->positions;
    }
    if (status != TSAR_OK) cache_close(cache, stack);
    return status;
}

/* Makes room for passes of `rows` rows. */
static tsar_status reserve_rows(tsar_state *state, size_t rows, tsar_error *err)
{
    if (rows <= state->rows) return TSAR_OK;
    const tsar_stack *stack = state->stack;
    const tsar_config *c = &state->model->config;
    const size_t d = stack->dim, hd = stack->head_dim;
    const int shuffled = stack == &state->model->gpt && c->shuffle > 1;
    const struct {
        double **buffer;
        size_t width;
        const char *what;
    } table[] = {
        { &state->x, d, "the residual stream" },
        { &state->normed, d, "normalised rows" },
        { &state->qkv, (stack->n_head + 2 * stack->n_kv_head) * hd, "queries, keys and values" },
        { &state->mixed, d, "attention's output" },
        { &state->delta, d, "a block's branch" },
        { &state->gate, stack->ffn_hidden, "the feed-forward gate" },
        { &state->up, stack->ffn_hidden, "the feed-forward input" },
        { &state->rotation, 3 * hd / 2, "rotary angles" },
        { &state->hidden, shuffled ? c->shuffle_hidden : 1, "shuffle blocks" },
        { &state->code, shuffled ? c->shuffle * c->shuffle * d : d, "code vectors" },
    };
    state->rows = 0;
    tsar_free(state->place);
    state->place = tsar_alloc(rows, sizeof *state->place, "a pass", err);
    if (!state->place) return TSAR_ROOM;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        tsar_free(*table[i].buffer);
        *table[i].buffer = tsar_alloc(rows, table[i].width * sizeof(double), table[i].what, err);
        if (!*table[i].buffer) return TSAR_ROOM;
    }
    state->rows = rows;
    return TSAR_OK;
}

static tsar_status reserve_logits(tsar_state *state, size_t rows, tsar_error *err)
{
    if (rows <= state->logit_rows) return TSAR_OK;
    const size_t slots = state->model->config.shuffle * state->model->config.shuffle;
    state->logit_rows = 0;
    tsar_free(state->logits);
    state->logits = tsar_alloc(rows, slots * state->stack->output.rows * sizeof(double), "logits", err);
    if (!state->logits) return TSAR_ROOM;
    state->logit_rows = rows;
    return TSAR_OK;
}

static tsar_status state_open(tsar_state **out, const tsar_model *model, const tsar_stack *stack, size_t sequences, tsar_error *err)
{
    *out = NULL;
    tsar_state *state = tsar_alloc(1, sizeof *state, "the state of a generation", err);
    if (!state) return TSAR_ROOM;
    state->model = model;
    state->stack = stack;
    state->causal = stack == &model->gpt;
    state->grid_columns = state->causal ? model->config.columns : model->config.grid_w;
    state->sequences = sequences;
    state->cache = tsar_alloc(sequences, sizeof *state->cache, "the KV caches", err);
    tsar_status status = state->cache ? rope_frequencies(state, err) : TSAR_ROOM;
    if (status != TSAR_OK) {
        tsar_state_close(state);
        return status;
    }
    *out = state;
    return TSAR_OK;
}

tsar_status tsar_state_open(tsar_state **out, const tsar_model *model, size_t sequences, tsar_error *err)
{
    *out = NULL;
    if (!model->config.has_gpt) return tsar_fail(err, TSAR_INPUT, "the model has no transformer (no key arch): it can only encode and decode images");
    return state_open(out, model, &model->gpt, sequences, err);
}

void tsar_state_close(tsar_state *state)
{
    if (!state) return;
    for (size_t s = 0; state->cache && s < state->sequences; s++) cache_close(&state->cache[s], state->stack);
    void *owned[] = { state->cache, state->frequency, state->place,    state->x,      state->normed, state->qkv,    state->mixed, state->delta,
                      state->gate,  state->up,        state->rotation, state->hidden, state->code,   state->logits, state->attend };
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) tsar_free(owned[i]);
    tsar_free(state);
}

/* --------------------------------------------------------------------------------------------------------- token-shuffle */

/* x = x + fc2 . gelu(fc1 . rmsnorm(x)): a block of token-shuffle or token-unshuffle, x [rows][d]. (paper, section 3; pre-norm is ours) */
static void mlp_forward(tsar_state *state, double *x, const tsar_mlp *mlp, size_t rows)
{
    const size_t d = state->stack->dim, hidden = mlp->fc1.rows, threads = state->model->threads;
    rmsnorm_rows(state->normed, x, mlp->norm, rows, d, state->stack->norm_eps, threads);
    tsar_matmul(state->hidden, state->normed, &mlp->fc1, NULL, rows, threads);
    TSAR_PARALLEL_FOR(rows > 1 ? threads : 1)
    for (size_t r = 0; r < rows; r++) tsar_gelu_n(state->hidden + r * hidden, hidden);
    tsar_matmul(state->delta, state->hidden, &mlp->fc2, NULL, rows, threads);
    add(x, state->delta, rows * d);
}

/* compressed [n][s*s][d/s^2] window by window -> the trace's raster order of codes [gh*gw][d/s^2] */
static tsar_status emit_compressed(const tsar_state *state, const double *compressed, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t s = c->shuffle, width = c->dim / (s * s), shape[2] = { c->grid_h * c->grid_w, width };
    if (!sink) return TSAR_OK;
    double *raster = tsar_alloc(shape[0], width * sizeof *raster, "gpt.shuffle.compress", err);
    if (!raster) return TSAR_ROOM;
    for (size_t i = 0; i < c->grid_h; i++)
        for (size_t j = 0; j < c->grid_w; j++) {
            size_t token = i / s * c->columns + j / s, slot = i % s * s + j % s;
            memcpy(raster + (i * c->grid_w + j) * width, compressed + (token * s * s + slot) * width, width * sizeof *raster);
        }
    tsar_status status = tsar_emit(sink, err, TSAR_F64, raster, 2, shape, "gpt.shuffle.compress");
    tsar_free(raster);
    return status;
}

/* token-shuffle, the input: z [count][d] of count fused tokens, codes[r] their s*s codes (SPEC 3; paper, section 3):
 *     y_c = compress . e_c,  z = concat(y_0 ... y_{s*s-1}),  then shuffle_blocks times z = z + fc2 . gelu(fc1 . rmsnorm(z)).
 * With s = 1, and in LlamaGen, z is the code's embedding. */
static tsar_status fuse_tokens(tsar_state *state, double *z, const int64_t *const *codes, size_t count, const tsar_sink *sink, tsar_error *err)
{
    const tsar_model *m = state->model;
    const tsar_config *c = &m->config;
    const size_t slots = c->shuffle * c->shuffle, d = c->dim, shape[2] = { count, d };
    double *e = slots == 1 ? z : state->code;
    for (size_t r = 0; r < count; r++)
        for (size_t slot = 0; slot < slots; slot++)
            tsar_table_row(e + (r * slots + slot) * d, &m->tok_embeddings, c->text_vocab + (size_t)codes[r][slot]);
    if (slots == 1) return TSAR_OK;
    tsar_matmul(z, e, &m->compress, NULL, count * slots, m->threads);
    tsar_status status = emit_compressed(state, z, sink, err);
    if (status == TSAR_OK) status = tsar_emit(sink, err, TSAR_F64, z, 2, shape, "gpt.shuffle.merge");
    for (size_t b = 0; b < c->shuffle_blocks && status == TSAR_OK; b++) {
        mlp_forward(state, z, &m->shuffle_mlp[b], count);
        status = tsar_emit(sink, err, TSAR_F64, z, 2, shape, "gpt.shuffle.block.%zu", b);
    }
    return status;
}

/* token-unshuffle and the head: state->logits [count][s*s][V] from the residual stream h [count][d], which it changes:
 *     shuffle_blocks times h = h + fc2 . gelu(fc1 . rmsnorm(h)),  x_c = expand . h_c,  logits_c = output . rmsnorm(x_c).
 * With s = 1, and in LlamaGen, x is h. */
static tsar_status predict(tsar_state *state, double *h, size_t count, const tsar_sink *sink, tsar_error *err)
{
    const tsar_model *m = state->model;
    const tsar_config *c = &m->config;
    const size_t slots = c->shuffle * c->shuffle, d = c->dim, flat[2] = { count, d };
    const size_t codes[3] = { count, slots, d }, logits[3] = { count, slots, c->vocab };
    const size_t flat_logits[2] = { count, c->vocab };
    tsar_status status = reserve_logits(state, count, err);
    double *x = h;
    if (slots > 1 && status == TSAR_OK) {
        for (size_t b = 0; b < c->shuffle_blocks && status == TSAR_OK; b++) {
            mlp_forward(state, h, &m->unshuffle_mlp[b], count);
            status = tsar_emit(sink, err, TSAR_F64, h, 2, flat, "gpt.unshuffle.block.%zu", b);
        }
        x = state->code;
        tsar_matmul(x, h, &m->expand, NULL, count * slots, m->threads);
        if (status == TSAR_OK) status = tsar_emit(sink, err, TSAR_F64, x, 3, codes, "gpt.unshuffle.expand");
    }
    if (status != TSAR_OK) return status;
    const int shuffled = c->arch == TSAR_TOKEN_SHUFFLE; /* LlamaGen's tensors have no axis of slots */
    rmsnorm_rows(x, x, m->gpt.norm, count * slots, d, m->gpt.norm_eps, m->threads);
    status = tsar_emit(sink, err, TSAR_F64, x, shuffled ? 3 : 2, shuffled ? codes : flat, "gpt.norm");
    if (status != TSAR_OK) return status;
    tsar_matmul(state->logits, x, &m->gpt.output, NULL, count * slots, m->threads);
    return tsar_emit(sink, err, TSAR_F64, state->logits, shuffled ? 3 : 2, shuffled ? logits : flat_logits, "gpt.logits");
}

/* ---------------------------------------------------------------------------------------------------- prompts and passes */

size_t tsar_prompt_length(const tsar_model *model, const tsar_prompt *prompt)
{
    if (model->config.arch != TSAR_TOKEN_SHUFFLE) return model->config.cond_tokens;
    return prompt->unconditional ? 2 : prompt->n_text;
}

tsar_status tsar_prompt_check(const tsar_model *model, const tsar_prompt *prompt, tsar_error *err)
{
    const tsar_config *c = &model->config;
    switch (c->arch) {
    case TSAR_NO_GPT: return tsar_fail(err, TSAR_INPUT, "the model has no transformer (no key arch): it takes no prompt");
    case TSAR_TOKEN_SHUFFLE:
        if (!prompt->text || prompt->n_text == 0) return tsar_fail(err, TSAR_INPUT, "the model needs a text prompt (at least <bos> and <soi>)");
        for (size_t i = 0; i < prompt->n_text; i++)
            if (prompt->text[i] < 0 || (uint64_t)prompt->text[i] >= c->text_vocab)
                return tsar_fail(err, TSAR_INPUT, "text id %lld at place %zu of the prompt is outside 0 ... %zu (the model's text_vocab - 1)",
                                 (long long)prompt->text[i], i, c->text_vocab - 1);
        return TSAR_OK;
    case TSAR_LLAMAGEN_C2I:
        if (prompt->class_id > c->num_classes)
            return tsar_fail(err, TSAR_INPUT, "class %zu is outside 0 ... %zu (class %zu is the unconditional one)", prompt->class_id, c->num_classes,
                             c->num_classes);
        return TSAR_OK;
    case TSAR_LLAMAGEN_T2I:
        if (!prompt->caption || !prompt->caption_mask) return tsar_fail(err, TSAR_INPUT, "the model needs caption features and their mask");
        for (size_t i = 0; i < c->cond_tokens * c->caption_dim; i++)
            if (!(fabs(prompt->caption[i]) < INFINITY)) return tsar_fail(err, TSAR_INPUT, "caption feature %zu is not finite", i);
        for (size_t i = 0; i < c->cond_tokens; i++)
            if (prompt->caption_mask[i] != 0.0 && prompt->caption_mask[i] != 1.0)
                return tsar_fail(err, TSAR_INPUT, "caption mask %zu is neither 0 nor 1", i);
    }
    return TSAR_OK;
}

/* t2i: x[T][d] = fc2 . gelu(fc1 . feature), the caption's features times its mask, or the unconditional ones (QUIRKS, GPT 5 and 6). */
static tsar_status embed_caption(tsar_state *state, const tsar_prompt *prompt, size_t first, size_t rows, tsar_error *err)
{
    const tsar_model *m = state->model;
    const size_t width = m->config.caption_dim;
    double *features = tsar_alloc(rows, width * sizeof(double), "caption features", err);
    if (!features) return TSAR_ROOM;
    for (size_t r = 0; r < rows; r++) {
        double *f = features + r * width;
        const size_t position = first + r;
        if (prompt->unconditional)
            tsar_table_row(f, &m->uncond_embedding, position);
        else
            for (size_t i = 0; i < width; i++) f[i] = prompt->caption[position * width + i] * prompt->caption_mask[position];
    }
    tsar_matmul(state->normed, features, &m->cap_fc1, NULL, rows, m->threads);
    tsar_gelu_n(state->normed, rows * m->config.dim);
    tsar_matmul(state->x, state->normed, &m->cap_fc2, NULL, rows, m->threads);
    tsar_free(features);
    return TSAR_OK;
}

/* Rows 0 ... rows-1 of the pass become positions first ... of the prompt. */
static tsar_status embed_prompt(tsar_state *state, size_t sequence, const tsar_prompt *prompt, size_t first, size_t rows, tsar_error *err)
{
    const tsar_model *m = state->model;
    const size_t d = m->config.dim;
    static const int64_t unconditional[2] = { TSAR_BOS, TSAR_SOI };
    const int64_t *text = prompt->unconditional ? unconditional : prompt->text;
    for (size_t r = 0; r < rows; r++) {
        const int padding = m->config.arch == TSAR_LLAMAGEN_T2I && prompt->caption_mask[first + r] == 0.0;
        const row_place place = { sequence, first + r, 0, 0, !padding, 1 };
        state->place[r] = place;
        if (m->config.arch == TSAR_TOKEN_SHUFFLE) tsar_table_row(state->x + r * d, &m->tok_embeddings, (size_t)text[first + r]);
        if (m->config.arch == TSAR_LLAMAGEN_C2I)
            tsar_table_row(state->x + r * d, &m->class_embeddings, prompt->unconditional ? m->config.num_classes : prompt->class_id);
    }
    return m->config.arch == TSAR_LLAMAGEN_T2I ? embed_caption(state, prompt, first, rows, err) : TSAR_OK;
}

tsar_status tsar_prefill(tsar_state *state, size_t sequence, const tsar_prompt *prompt, double *logits, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t length = tsar_prompt_length(state->model, prompt), d = c->dim;
    const size_t room = length < PREFILL_ROWS ? length : PREFILL_ROWS;
    tsar_status status = tsar_prompt_check(state->model, prompt, err);
    if (status == TSAR_OK) status = cache_open(state, sequence, length, c->tokens, err);
    if (status == TSAR_OK) status = reserve_rows(state, room, err);
    size_t rows = 0;
    for (size_t first = 0; first < length && status == TSAR_OK; first += rows) {
        rows = length - first < room ? length - first : room;
        status = embed_prompt(state, sequence, prompt, first, rows, err);
        if (status == TSAR_OK) status = stack_forward(state, rows, "gpt", NULL, err);
    }
    if (status != TSAR_OK || !logits) return status;
    status = predict(state, state->x + (rows - 1) * d, 1, NULL, err);
    if (status == TSAR_OK) memcpy(logits, state->logits, c->shuffle * c->shuffle * c->vocab * sizeof *logits);
    return status;
}

static tsar_status check_codes(const tsar_config *c, const int64_t *codes, size_t count, tsar_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (codes[i] < 0 || (uint64_t)codes[i] >= c->vocab)
            return tsar_fail(err, TSAR_INPUT, "code %lld at place %zu is outside 0 ... %zu", (long long)codes[i], i, c->vocab - 1);
    return TSAR_OK;
}

tsar_status tsar_forward(tsar_state *state, const tsar_feed *feed, size_t rows, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t slots = c->shuffle * c->shuffle, d = c->dim;
    tsar_status status = reserve_rows(state, rows, err);
    if (status != TSAR_OK) return status;
    const int64_t **codes = tsar_alloc(rows, sizeof *codes, "a pass", err);
    if (!codes) return TSAR_ROOM;
    for (size_t r = 0; r < rows && status == TSAR_OK; r++) {
        if (feed[r].sequence >= state->sequences || !state->cache[feed[r].sequence].fed || feed[r].token >= c->tokens)
            status = tsar_fail(err, TSAR_USAGE, "row %zu of a pass feeds token %zu of sequence %zu, which has no prompt or no such token", r,
                               feed[r].token, feed[r].sequence);
        else
            status = check_codes(c, feed[r].codes, slots, err);
        if (status != TSAR_OK) break;
        const row_place place = { feed[r].sequence, state->cache[feed[r].sequence].prefix + feed[r].token, 1, feed[r].token, 1, feed[r].keep };
        state->place[r] = place;
        codes[r] = feed[r].codes;
    }
    if (status == TSAR_OK) status = fuse_tokens(state, state->x, codes, rows, NULL, err);
    tsar_free(codes);
    if (status == TSAR_OK) status = stack_forward(state, rows, "gpt", NULL, err);
    if (status != TSAR_OK) return status;
    forget_stand_ins(state, rows);

    size_t wanted = 0; /* the rows whose prediction is wanted move to the front */
    for (size_t r = 0; r < rows; r++)
        if (feed[r].logits) memmove(state->x + d * wanted++, state->x + d * r, d * sizeof *state->x);
    if (wanted == 0) return TSAR_OK;
    status = predict(state, state->x, wanted, NULL, err);
    if (status != TSAR_OK) return status;
    const double *logits = state->logits;
    for (size_t r = 0; r < rows; r++) {
        if (!feed[r].logits) continue;
        memcpy(feed[r].logits, logits, slots * c->vocab * sizeof *logits);
        logits += slots * c->vocab;
    }
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------- trace; CTF stage two */

/* Prompt and all n fused tokens in one pass: places, and x [T][d]. */
static tsar_status embed_all(tsar_state *state, const tsar_prompt *prompt, const int64_t *codes, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t s = c->shuffle, prefix = state->cache[0].prefix;
    int64_t *window = tsar_alloc(c->tokens, s * s * sizeof *window, "codes", err);
    const int64_t **windows = tsar_alloc(c->tokens, sizeof *windows, "codes", err);
    tsar_status status = window && windows ? embed_prompt(state, 0, prompt, 0, prefix, err) : TSAR_ROOM;
    for (size_t t = 0; t < c->tokens && status == TSAR_OK; t++) {
        const row_place place = { 0, prefix + t, 1, t, 1, 1 };
        state->place[prefix + t] = place;
        windows[t] = window + t * s * s;
        for (size_t slot = 0; slot < s * s; slot++)
            window[t * s * s + slot] = codes[(t / c->columns * s + slot / s) * c->grid_w + t % c->columns * s + slot % s];
    }
    if (status == TSAR_OK) status = fuse_tokens(state, state->x + prefix * c->dim, windows, c->tokens, sink, err);
    tsar_free(window);
    tsar_free(windows);
    return status;
}

tsar_status tsar_gpt_trace(const tsar_model *model, const tsar_prompt *prompt, const int64_t *codes, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    tsar_state *state;
    tsar_status status = tsar_state_open(&state, model, 1, err);
    if (status != TSAR_OK) return status;
    status = tsar_prompt_check(model, prompt, err);
    if (status == TSAR_OK) status = check_codes(c, codes, c->grid_h * c->grid_w, err);
    const size_t prefix = status == TSAR_OK ? tsar_prompt_length(model, prompt) : 0;
    if (status == TSAR_OK) status = cache_open(state, 0, prefix, c->tokens, err);
    if (status == TSAR_OK) status = reserve_rows(state, prefix + c->tokens, err);
    if (status == TSAR_OK) status = embed_all(state, prompt, codes, sink, err);
    if (status == TSAR_OK) status = stack_forward(state, prefix + c->tokens, "gpt", sink, err);
    /* Token-Shuffle: the n outputs from <soi> on; LlamaGen: all T, as the official forward returns (QUIRKS, GPT 1). */
    if (status == TSAR_OK && c->arch == TSAR_TOKEN_SHUFFLE)
        status = predict(state, state->x + (prefix - 1) * c->dim, c->tokens, sink, err);
    else if (status == TSAR_OK)
        status = predict(state, state->x, prefix + c->tokens, sink, err);
    tsar_state_close(state);
    return status;
}

tsar_status tsar_fine_hidden(const tsar_model *model, const int64_t *labels, double *hidden, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    if (!c->has_fine) return tsar_fail(err, TSAR_INPUT, "the model has no fine stage (no key fine_dim): coarse labels cannot become codes");
    const size_t N = c->grid_h * c->grid_w, d = c->fine_dim;
    for (size_t i = 0; i < N; i++)
        if (labels[i] < 0 || (uint64_t)labels[i] >= c->n_coarse)
            return tsar_fail(err, TSAR_INPUT, "coarse label %lld at place %zu is outside 0 ... %zu", (long long)labels[i], i, c->n_coarse - 1);
    tsar_state *state;
    tsar_status status = state_open(&state, model, &model->fine, 1, err);
    if (status != TSAR_OK) return status;
    status = cache_open(state, 0, 0, N, err);
    if (status == TSAR_OK) status = reserve_rows(state, N, err);
    for (size_t t = 0; t < N && status == TSAR_OK; t++) {
        const row_place place = { 0, t, 1, t, 1, 1 };
        state->place[t] = place;
        tsar_table_row(state->x + t * d, &model->coarse_embeddings, (size_t)labels[t]);
    }
    if (status == TSAR_OK) status = stack_forward(state, N, "fine", sink, err);
    if (status == TSAR_OK) {
        const size_t shape[2] = { N, d };
        rmsnorm_rows(hidden, state->x, model->fine.norm, N, d, model->fine.norm_eps, model->threads);
        status = tsar_emit(sink, err, TSAR_F64, hidden, 2, shape, "fine.norm");
    }
    tsar_state_close(state);
    return status;
}

tsar_status tsar_fine_logits(const tsar_model *model, const double *hidden, size_t first, size_t count, double *logits, tsar_error *err)
{
    if (!model->config.has_fine) return tsar_fail(err, TSAR_INPUT, "the model has no fine stage (no key fine_dim)");
    tsar_matmul(logits, hidden + first * model->config.fine_dim, &model->fine.output, NULL, count, model->threads);
    return TSAR_OK;
}
