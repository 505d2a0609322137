/* test_kernel.c - the matrix kernel against the textbook loop, bit for bit: random shapes with odd sizes, every dtype,
 * pieces of k, ranges of panels, strides, threads; and the conversions between dtypes, exhaustively. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../tsar.h"
#include "test.h"

static uint64_t state = 1;

/* A number below n. */
static size_t below(size_t n)
{
    state += UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(tsar_mix(state) >> 33) % n;
}

static double number(void) { return (double)below(1u << 30) / (double)(1u << 29) - 1.0; }

/* A random finite weight of the dtype into `out`; its value. Some F16 and BF16 weights are subnormal, zero or huge. */
static double random_weight(tsar_dtype dtype, void *out)
{
    const double x = number() * (below(8) == 0 ? 1e-5 : 1.0);
    const float f = (float)x;
    uint16_t bits = (uint16_t)below(65536);
    switch (dtype) {
    case TSAR_F64:
        memcpy(out, &x, sizeof x);
        return x;
    case TSAR_F32:
        memcpy(out, &f, sizeof f);
        return f;
    case TSAR_F16:
        if ((bits & 0x7c00u) == 0x7c00u) bits = (uint16_t)(bits & 0x83ffu);
        memcpy(out, &bits, sizeof bits);
        return tsar_widen_f16(bits);
    default:
        if ((bits & 0x7f80u) == 0x7f80u) bits = (uint16_t)(bits & 0x807fu);
        memcpy(out, &bits, sizeof bits);
        return tsar_widen_bf16(bits);
    }
}

static int same(const double *a, const double *b, size_t n) { return memcmp(a, b, n * sizeof *a) == 0; }

/* One random matrix: tsar_matmul, and tsar_accumulate over random pieces of k and panels with gaps between the rows of x and y. */
static void test_matrix(tsar_dtype dtype, size_t rows, size_t cols, size_t T, size_t threads)
{
    const size_t size = tsar_dtype_size(dtype), panels = (rows + TSAR_PANEL - 1) / TSAR_PANEL;
    const size_t ldx = cols + below(3), ldy = rows + below(5);
    unsigned char *values = tsar_alloc(rows * cols, size, "values", NULL);
    double *wide = tsar_alloc(rows * cols, sizeof(double), "wide", NULL), *bias = tsar_alloc(rows, sizeof(double), "bias", NULL);
    double *x = tsar_alloc(T * ldx, sizeof(double), "x", NULL), *dense = tsar_alloc(T * cols, sizeof(double), "dense", NULL);
    double *naive = tsar_alloc(T * ldy, sizeof(double), "naive", NULL), *y = tsar_alloc(T * ldy, sizeof(double), "y", NULL);
    double *packed = tsar_alloc(T * rows, sizeof(double), "packed", NULL), *expected = tsar_alloc(T * rows, sizeof(double), "expected", NULL);
    double *scratch = tsar_alloc(tsar_scratch(T, threads), sizeof(double), "scratch", NULL);
    tsar_matrix w;
    if (!CHECK(scratch && values && wide && bias && x && dense && naive && y && packed && expected, "memory") ||
        !CHECK(tsar_matrix_open(&w, rows, cols, dtype, "w", NULL) == TSAR_OK, "matrix"))
        return;
    for (size_t i = 0; i < rows * cols; i++) wide[i] = random_weight(dtype, values + i * size);
    for (size_t r = 0, n; r < rows; r += n) {
        n = 1 + below(rows - r);
        tsar_matrix_set_rows(&w, r, n, values + r * cols * size);
    }
    for (size_t r = 0; r < rows; r++) bias[r] = number();
    for (size_t t = 0; t < T; t++) {
        for (size_t k = 0; k < cols; k++) dense[t * cols + k] = x[t * ldx + k] = number();
        for (size_t i = 0; i < ldy; i++) {
            naive[t * ldy + i] = i < rows ? bias[i] : 7.0;
            y[t * ldy + i] = 7.0;
        }
        for (size_t r = 0; r < rows; r++) {
            double sum = 0.0;
            for (size_t k = 0; k < cols; k++) {
                naive[t * ldy + r] += wide[r * cols + k] * x[t * ldx + k];
                sum += wide[r * cols + k] * x[t * ldx + k];
            }
            expected[t * rows + r] = sum;
        }
    }
    const char *name = tsar_dtype_name(dtype);
    tsar_matmul(packed, dense, &w, NULL, T, threads, scratch);
    CHECK(same(packed, expected, T * rows), "matmul %s [%d][%d], %d vectors", name, (int)rows, (int)cols, (int)T);
    for (size_t k = 0, n; k < cols; k += n) {
        n = 1 + below(cols - k);
        for (size_t p = 0, m; p < panels; p += m) {
            m = 1 + below(panels - p);
            tsar_accumulate(y, ldy, x + k, ldx, &w, bias, k, n, T, p, p + m, below(2) ? scratch : NULL);
        }
    }
    CHECK(same(y, naive, T * ldy), "pieces of %s [%d][%d], %d vectors", name, (int)rows, (int)cols, (int)T);
    for (size_t t = 0; t < T; t++) memcpy(expected + t * rows, naive + t * ldy, rows * sizeof(double));
    tsar_matmul(packed, dense, &w, bias, T, threads, NULL);
    CHECK(same(packed, expected, T * rows), "matmul with bias %s [%d][%d], %d vectors", name, (int)rows, (int)cols, (int)T);
    tsar_matrix_close(&w);
    void *all[] = { scratch, values, wide, bias, x, dense, naive, y, packed, expected };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) tsar_free(all[i]);
}

static void test_matrices(void)
{
    static const tsar_dtype dtypes[4] = { TSAR_F64, TSAR_F32, TSAR_F16, TSAR_BF16 };
    for (size_t i = 0; i < 120; i++) {
        const size_t large = i % 10 == 9 ? 5 : 1;
        test_matrix(dtypes[i % 4], 1 + below(90 * large), 1 + below(140 * large), below(14), 1 + below(3));
    }
    test_matrix(TSAR_F32, 257, 1151, 66, 2);
    test_matrix(TSAR_BF16, 641, 385, 33, 3);
    test_matrix(TSAR_F64, 3, 9, 1, 1);
}

/* Every F16 and BF16 survives widening and rounding; halfway cases go to even; limits. */
static void test_rounding(void)
{
    size_t wrong = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        const float half = (float)tsar_widen_f16((uint16_t)h), brain = (float)tsar_widen_bf16((uint16_t)h);
        wrong += half == half && tsar_round_f16(half) != h;
        wrong += brain == brain && tsar_round_bf16(brain) != h;
        const float next = (float)tsar_widen_f16((uint16_t)(h + 1));
        if (h % 0x8000u < 0x7bffu) {
            const float middle = half + (next - half) / 2;
            wrong += tsar_round_f16(middle) != h + h % 2;
        }
        const float brain_next = (float)tsar_widen_bf16((uint16_t)(h + 1));
        if (h % 0x8000u < 0x7f7fu) {
            const float middle = brain + (brain_next - brain) / 2;
            wrong += tsar_round_bf16(middle) != h + h % 2;
        }
    }
    CHECK(wrong == 0, "%d of 65536 F16 and BF16 numbers round wrongly", (int)wrong);
    CHECK(tsar_round_f16(65519.0f) == 0x7bff && tsar_round_f16(65520.0f) == 0x7c00 && tsar_round_f16(-1e9f) == 0xfc00, "F16 overflow");
    CHECK(tsar_round_f16(0x1p-25f) == 0 && tsar_round_f16(0x1.000002p-25f) == 1, "least F16");
    CHECK(tsar_round_bf16(0x1.fffffep127f) == 0x7f80, "BF16 overflow");
    CHECK(isnan(tsar_widen_f16(tsar_round_f16(NAN))) && isnan(tsar_widen_bf16(tsar_round_bf16(NAN))), "NaN");
}

/* The two numbers of SPEC 1.5. */
static void test_uniform(void)
{
    CHECK(fabs(tsar_uniform(42, 0, 0, 0, 0, 0, 0) - 0.619645992262256) < 1e-15, "U(42; 0,0,0,0,0,0)");
    CHECK(fabs(tsar_uniform(42, 1, 2, 3, 1, 0, 0) - 0.8341607636119082) < 1e-15, "U(42; 1,2,3,1,0,0)");
}

static void test_memory(void)
{
    tsar_error err = { "" };
    tsar_matrix w;
    unsigned char *bytes = tsar_alloc(3, 5, "bytes", &err), *none = tsar_alloc(0, 8, "nothing", &err);
    CHECK(bytes != NULL && none != NULL && (uintptr_t)bytes % 64 == 0 && (uintptr_t)none % 64 == 0, "alignment");
    CHECK(bytes != NULL && bytes[0] == 0 && bytes[14] == 0, "zeroed");
    tsar_free(bytes);
    tsar_free(none);
    tsar_free(NULL);
    CHECK(tsar_alloc(SIZE_MAX / 2, 3, "the moon", &err) == NULL && strstr(err.text, "the moon") != NULL, "overflow: %s", err.text);
    CHECK(tsar_matrix_open(&w, SIZE_MAX / 4, SIZE_MAX / 4, TSAR_F32, "w", &err) == TSAR_ROOM && w.panels == NULL, "matrix overflow");
    CHECK(tsar_matrix_open(&w, SIZE_MAX, 1, TSAR_BF16, "w", &err) == TSAR_ROOM && w.panels == NULL, "matrix of SIZE_MAX rows");
}

/* Rows of scores, some of them masked, against the formula of tsar.h, row by row; nothing behind a row may change. */
static void test_softmax(void)
{
    enum { KERNEL_ROWS = 19, KERNEL_COLS = 70, LD = KERNEL_COLS + 3 };
    for (size_t trial = 0; trial < 200; trial++) {
        const size_t rows = 1 + below(KERNEL_ROWS), n = 1 + below(KERNEL_COLS), ld = n + below(4);
        double x[KERNEL_ROWS * LD], want[KERNEL_ROWS * LD];
        for (size_t i = 0; i < KERNEL_ROWS * LD; i++) x[i] = want[i] = below(4) == 0 ? -INFINITY : 20 * number();
        for (size_t r = 0; r < rows; r++) {
            double *w = want + r * ld, m = w[0] = x[r * ld] = number(), total = 0;
            for (size_t i = 0; i < n; i++) m = w[i] > m ? w[i] : m;
            for (size_t i = 0; i < n; i++) total += w[i] = tsar_exp(w[i] - m);
            for (size_t i = 0; i < n; i++) w[i] /= total;
        }
        tsar_softmax_rows(x, ld, n, rows);
        CHECK(same(x, want, KERNEL_ROWS * LD), "softmax of %zu rows of %zu numbers", rows, n);
    }
}

int main(void)
{
    test_matrices();
    test_softmax();
    test_rounding();
    test_uniform();
    test_memory();
    return test_end();
}
