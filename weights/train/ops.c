/* Operations of the trainer, forward and backward: see train.h for layout and arithmetic.
 *
 * Nearly all the time goes to one inner loop, `tile`: TILE_ROWS x LANES sums in registers, each a chain of its own in
 * ascending order, fed by one broadcast and one vector load per term. Convolutions, linear layers, attention, and the gradients
 * of all three differ only in how their operands are walked:
 *
 *     y[m][n] = start[m][n] + sum over segment s, term j, of a[m*am + s*as + j*aj] * b[s*bs + j*bj + n]
 *
 * A 3 x 3 convolution reads its input where it lies: a segment is a kernel row, 3 C numbers that are neighbours in memory. */
#include "train.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "the trainer needs float arithmetic in float: on i686 add -msse2 -mfpmath=sse, on s390x -fexcess-precision=fast"
#endif

/* -------------------------------------------------------------------------------------------------- vectors of sums */

#define LANES 16
#if defined(__AVX512F__)
#define TILE_ROWS 16 /* sums in registers: TILE_ROWS vectors of LANES; of 32 registers here, of 16 elsewhere */
#else
#define TILE_ROWS 4
#endif

/* LOAD and STORE need no alignment. A plain memcpy may pass a vector through memory in halves, which then stall its load as a whole. */
#if defined(__GNUC__) && !defined(__TINYC__)
typedef real lanes __attribute__((vector_size(LANES * sizeof(real))));
typedef real lanes_anywhere __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real)), may_alias));
#define LOAD(p) (*(const lanes_anywhere *)(p))
#define STORE(p, sum) (*(lanes_anywhere *)(p) = (sum))
#define MULTIPLY_ADD(sum, w, b) ((sum) += (w) * (b))
#else
typedef struct {
    real at[LANES];
} lanes;
#define LOAD(p) (*(const lanes *)(p))
#define STORE(p, sum) (*(lanes *)(p) = (sum))
#define MULTIPLY_ADD(sum, w, b)                                                                                                                      \
    do {                                                                                                                                             \
        for (int l_ = 0; l_ < LANES; l_++) (sum).at[l_] += (w) * (b).at[l_];                                                                         \
    } while (0)
#endif

static size_t round_up(size_t n) { return (n + LANES - 1) / LANES * LANES; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* How the two operands of a tile of sums are walked (equation at the head of the file). */
typedef struct {
    size_t am, as, aj, bs, bj, segments, terms;
} strides;

/* `rows` x LANES sums; rows is a constant at every call, am or aj is 1. */
TSAR_INLINE void tile(size_t rows, real *y, size_t ldy, const real *start, size_t lds, const real *a, const real *b, size_t am, size_t aj,
                      const strides *w)
{
    lanes sum[TILE_ROWS];
    for (size_t m = 0; m < rows; m++) sum[m] = LOAD(start + m * lds);
    for (size_t s = 0; s < w->segments; s++) {
        const real *as = a + s * w->as, *bs = b + s * w->bs;
        for (size_t j = 0; j < w->terms; j++, as += aj, bs += w->bj) {
            const lanes b_j = LOAD(bs);
            for (size_t m = 0; m < rows; m++) MULTIPLY_ADD(sum[m], as[m * am], b_j);
        }
    }
    for (size_t m = 0; m < rows; m++) STORE(y + m * ldy, sum[m]);
}

static void tile_many(real *y, size_t ldy, const real *start, size_t lds, const real *a, const real *b, const strides *w)
{
    if (w->am == 1)
        tile(TILE_ROWS, y, ldy, start, lds, a, b, 1, w->aj, w);
    else
        tile(TILE_ROWS, y, ldy, start, lds, a, b, w->am, 1, w);
}

static void tile_four(real *y, size_t ldy, const real *start, size_t lds, const real *a, const real *b, const strides *w)
{
    tile(4, y, ldy, start, lds, a, b, w->am, w->aj, w);
}

static void tile_one(real *y, size_t ldy, const real *start, size_t lds, const real *a, const real *b, const strides *w)
{
    tile(1, y, ldy, start, lds, a, b, w->am, w->aj, w);
}

static const real zeros[LANES];

/* M x N sums, N <= LANES; start rows lds apart (0: the same for all). Reads LANES numbers of b, writes N. */
static void panel_product(real *y, size_t ldy, const real *start, size_t lds, const real *a, const real *b, size_t M, size_t N, const strides *w)
{
    real room[TILE_ROWS * LANES] = { 0 };
    for (size_t m = 0, rows; m < M; m += rows) {
        rows = M - m >= TILE_ROWS ? TILE_ROWS : M - m >= 4 ? 4 : 1;
        const real *a_m = a + m * w->am, *start_m = start + m * lds;
        real *y_m = y + m * ldy;
        size_t ldr = ldy;
        if (N < LANES) {
            for (size_t i = 0; i < rows; i++) memcpy(room + i * LANES, start_m + i * lds, N * sizeof(real));
            y_m = room;
            ldr = LANES;
            start_m = room;
        }
        size_t ldt = N < LANES ? LANES : lds;
        if (rows == TILE_ROWS)
            tile_many(y_m, ldr, start_m, ldt, a_m, b, w);
        else if (rows == 4)
            tile_four(y_m, ldr, start_m, ldt, a_m, b, w);
        else
            tile_one(y_m, ldr, start_m, ldt, a_m, b, w);
        for (size_t i = 0; N < LANES && i < rows; i++) memcpy(y + (m + i) * ldy, room + i * LANES, N * sizeof(real));
    }
}

/* M x N sums for any N: b holds N/LANES panels `panel` numbers apart. start NULL: from zero. */
static void product(real *y, size_t ldy, const real *start, size_t lds, const real *a, const real *b, size_t panel, size_t M, size_t N, const strides *w)
{
    for (size_t n = 0; n < N; n += LANES) {
        const real *start_n = start ? start + n : zeros;
        panel_product(y + n, ldy, start_n, start ? lds : 0, a, b + n / LANES * panel, M, smaller(LANES, N - n), w);
    }
}

/* Sum of x*y (of x if y is NULL): LANES partial sums of every LANES-th term, added in order. */
static real sum_of(const real *x, const real *y, size_t n)
{
    real part[LANES] = { 0 }, total = 0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++) part[l] += y ? x[i + l] * y[i + l] : x[i + l];
    for (size_t l = 0; i + l < n; l++) part[l] += y ? x[i + l] * y[i + l] : x[i + l];
    for (size_t l = 0; l < LANES; l++) total += part[l];
    return total;
}

static real largest(const real *x, size_t n)
{
    real part[LANES], most;
    size_t i = 0;
    for (size_t l = 0; l < LANES; l++) part[l] = x[0];
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++) part[l] = x[i + l] > part[l] ? x[i + l] : part[l];
    for (; i < n; i++) part[0] = x[i] > part[0] ? x[i] : part[0];
    most = part[0];
    for (size_t l = 1; l < LANES; l++) most = part[l] > most ? part[l] : most;
    return most;
}

/* e^x for float: x = k ln 2 + r, |r| <= 0.35, Taylor to r^7 (remainder below 6e-9 of the result), times 2^k. x is held
 * to -87 ... 88. Adding 1.5 * 2^23 rounds to an integer. */
TSAR_INLINE float exp_float(float x)
{
    union {
        float value;
        uint32_t bits;
    } power;
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float k = x * 1.44269504f + 12582912.0f - 12582912.0f;
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.0f / 720.0f + r * (1.0f / 5040.0f);
    p = 1.0f / 120.0f + r * p;
    p = 1.0f / 24.0f + r * p;
    p = 1.0f / 6.0f + r * p;
    p = 0.5f + r * p;
    p = 1.0f + r * p;
    p = 1.0f + r * p;
    power.bits = (uint32_t)((int32_t)k + 127) << 23;
    return p * power.value;
}

#define EXP(x) (sizeof(real) == sizeof(float) ? (real)exp_float((float)(x)) : (real)tsar_exp((double)(x)))
#define SIGMOID(x) (1 / (1 + EXP(-(x))))
#define SQRT(x) ((real)sqrt((double)(x)))

/* ------------------------------------------------------------------------------------------------------ gradients */

/* Whether the gradient of a value already holds something; it does from now on. */
static int adding(train_tape *tape, size_t value)
{
    train_value *owner = &tape->values[tape->values[value].owner];
    int before = owner->has_g;
    owner->has_g = 1;
    return before;
}

static size_t reals_of(const train_value *t) { return t->B * (t->H + 2 * t->border) * (t->W + 2 * t->border) * t->C; }

/* ---------------------------------------------------------------------------------------- convolution, linear layer */

#define PIXEL_RUN 64 /* pixels that one piece of work covers */

/* SPEC 4: 3 x 3 pad 1; 3 x 3 stride 2 padded right and bottom; 1 x 1. A linear layer is a 1 x 1 convolution of rows. */
static size_t conv_terms(const train_node *node, const train_value *in) { return node->size * node->size * in->C; }
static ptrdiff_t conv_origin(const train_node *node) { return node->size == 3 && node->stride == 1 ? -1 : 0; }

#define AREA 256 /* pixels of one piece of a weight gradient: their dy, as panels, stays in cache */

size_t op_conv_scratch(const train_value *in, const train_value *out, size_t size, size_t stride, size_t threads)
{
    size_t weights = size * size * round_up(in->C) * round_up(out->C);
    return 3 * weights + round_up(out->C) * (1 + out->B) + threads * AREA * round_up(out->C) +
           (stride == 2 ? out->B * (in->H + 2) * (in->W + 2) * out->C : 0) + LANES;
}

/* Panels of LANES outputs: packed[o / LANES][k][o % LANES], k = (kernel row, kernel column, input channel). */
static void pack_forward(real *packed, const real *w, size_t C, size_t O, size_t size, size_t threads)
{
    size_t kernel = size * size, terms = kernel * C;
    ptrdiff_t panels = (ptrdiff_t)(round_up(O) / LANES);
    TSAR_PARALLEL_FOR(threads)
    for (ptrdiff_t panel = 0; panel < panels; panel++)
        for (size_t l = 0, o = (size_t)panel * LANES; l < LANES; l++, o++)
            for (size_t c = 0; c < C; c++)
                for (size_t i = 0; i < kernel; i++) packed[((size_t)panel * terms + i * C + c) * LANES + l] = o < O ? w[(o * C + c) * kernel + i] : 0;
}

/* The transposed kernel, turned by 180 degrees: packed[c / LANES][(row, column, o)][c % LANES]. */
static void pack_backward(real *packed, const real *w, size_t C, size_t O, size_t size, size_t threads)
{
    size_t kernel = size * size, terms = kernel * O;
    ptrdiff_t panels = (ptrdiff_t)(round_up(C) / LANES);
    TSAR_PARALLEL_FOR(threads)
    for (ptrdiff_t panel = 0; panel < panels; panel++)
        for (size_t o = 0, c0 = (size_t)panel * LANES; o < O; o++)
            for (size_t i = 0; i < kernel; i++) {
                real *y = packed + ((size_t)panel * terms + (kernel - 1 - i) * O + o) * LANES;
                if (kernel == 1 && c0 + LANES <= C)
                    STORE(y, LOAD(w + o * C + c0));
                else
                    for (size_t l = 0; l < LANES; l++) y[l] = c0 + l < C ? w[(o * C + c0 + l) * kernel + i] : 0;
            }
}

/* g[o][c][i] += dw[(i, c)][o], i in the kernel: a panel of LANES outputs at a time. */
static void unpack_gradient(real *g, const real *dw, size_t C, size_t O, size_t size, size_t threads)
{
    size_t kernel = size * size;
    ptrdiff_t panels = (ptrdiff_t)(round_up(O) / LANES);
    TSAR_PARALLEL_FOR(threads)
    for (ptrdiff_t panel = 0; panel < panels; panel++)
        for (size_t c = 0, o = (size_t)panel * LANES; c < C; c++)
            for (size_t i = 0; i < kernel; i++)
                for (size_t l = 0; l < LANES && o + l < O; l++) g[((o + l) * C + c) * kernel + i] += dw[(i * C + c) * round_up(O) + o + l];
}

/* One run of PIXEL_RUN pixels of a picture: pieces are numbered (b, y, run of x). */
typedef struct {
    size_t b, y, x, count;
} pixel_run;
static pixel_run run_at(const train_value *t, size_t piece)
{
    size_t runs = (t->W + PIXEL_RUN - 1) / PIXEL_RUN, x = piece % runs * PIXEL_RUN;
    pixel_run r = { piece / runs / t->H, piece / runs % t->H, x, smaller(PIXEL_RUN, t->W - x) };
    return r;
}
static size_t runs_of(const train_value *t) { return t->B * t->H * ((t->W + PIXEL_RUN - 1) / PIXEL_RUN); }

/* y = b + w * x */
void op_conv_forward(train_tape *tape, train_node *node)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    size_t C = in->C, O = out->C, terms = conv_terms(node, in);
    real *packed = node->keep[0], *bias = packed + 3 * node->size * node->size * round_up(C) * round_up(O);
    pack_forward(packed, tape->params[node->param[0]].w + node->first_row * terms, C, O, node->size, tape->threads);
    memset(bias, 0, round_up(O) * sizeof(real));
    if (node->n_param > 1) memcpy(bias, tape->params[node->param[1]].w, O * sizeof(real));
    strides w = { node->stride * C, (in->W + 2 * in->border) * C, 1, node->size * C * LANES, LANES, node->size, node->size * C };
    ptrdiff_t pieces = (ptrdiff_t)runs_of(out);
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t piece = 0; piece < pieces; piece++) {
        pixel_run r = run_at(out, (size_t)piece);
        const real *a =
            in->x + train_at(in, r.b, (ptrdiff_t)(r.y * node->stride) + conv_origin(node), (ptrdiff_t)(r.x * node->stride) + conv_origin(node));
        product(out->x + train_at(out, r.b, (ptrdiff_t)r.y, (ptrdiff_t)r.x), O, bias, 0, a, packed, terms * LANES, r.count, O, &w);
    }
}

/* dx = dy convolved with the turned kernel. With stride 2, dy is first spread out with zeros in between, so that
 * spread[2y + 2][2x + 2] = dy[y][x], the border of two being zero. */
static void conv_backward_input(train_tape *tape, train_node *node, real *packed, real *spread)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    size_t C = in->C, O = out->C, size = node->size, pitch = (out->W + 2 * out->border) * O;
    int add = adding(tape, node->in[0]);
    pack_backward(packed, tape->params[node->param[0]].w + node->first_row * conv_terms(node, in), C, O, size, tape->threads);
    if (node->stride == 2) {
        pitch = (in->W + 2) * O;
        for (size_t b = 0; b < out->B; b++)
            for (size_t y = 0; y < out->H; y++)
                for (size_t x = 0; x < out->W; x++)
                    memcpy(spread + (b * (in->H + 2) + 2 * y + 2) * pitch + (2 * x + 2) * O, out->g + train_at(out, b, (ptrdiff_t)y, (ptrdiff_t)x),
                           O * sizeof(real));
    }
    strides w = { O, pitch, 1, size * O * LANES, LANES, size, size * O };
    ptrdiff_t pieces = (ptrdiff_t)runs_of(in);
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t piece = 0; piece < pieces; piece++) {
        pixel_run r = run_at(in, (size_t)piece);
        const real *a = node->stride == 2 ? spread + (r.b * (in->H + 2) + r.y) * pitch + r.x * O
                                          : out->g + train_at(out, r.b, (ptrdiff_t)r.y + conv_origin(node), (ptrdiff_t)r.x + conv_origin(node));
        real *dx = in->g + train_at(in, r.b, (ptrdiff_t)r.y, (ptrdiff_t)r.x);
        product(dx, C, add ? dx : NULL, C, a, packed, size * size * O * LANES, r.count, C, &w);
    }
}

/* dy over the pixels y0 <= y < y1, x0 <= x < x1 of picture b: panels[o / LANES][pixel][o % LANES]. */
static void pack_gradient(real *panels, const train_value *out, size_t b, const size_t area[4])
{
    for (size_t o = 0; o < out->C; o += LANES)
        for (size_t y = area[0]; y < area[1]; y++) {
            const real *dy = out->g + train_at(out, b, (ptrdiff_t)y, (ptrdiff_t)area[2]) + o;
            for (size_t x = area[2]; x < area[3]; x++, dy += out->C, panels += LANES)
                if (o + LANES <= out->C)
                    STORE(panels, LOAD(dy));
                else
                    for (size_t l = 0; l < LANES; l++) panels[l] = o + l < out->C ? dy[l] : 0;
        }
}

/* dw[k][o] += over those pixels, ascending, of x[k at the pixel] * dy[o], for the strips of TILE_ROWS terms strip0 <= strip < strip1.
 * A strip lies in one kernel row. */
static void conv_weight_strips(const train_tape *tape, const train_node *node, real *dw, const real *panels, size_t b, const size_t area[4],
                               size_t strip0, size_t strip1)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    size_t C = in->C, L = node->size * C, strips = (L + TILE_ROWS - 1) / TILE_ROWS, ldw = round_up(out->C), H = area[1] - area[0], W = area[3] - area[2];
    strides w = { 1, node->stride * (in->W + 2 * in->border) * C, node->stride * C, W * LANES, LANES, H, W };
    ptrdiff_t y = (ptrdiff_t)(area[0] * node->stride) + conv_origin(node), x = (ptrdiff_t)(area[2] * node->stride) + conv_origin(node);
    for (size_t strip = strip0; strip < strip1; strip++) {
        size_t row = strip / strips, j = strip % strips * TILE_ROWS;
        real *dw_k = dw + (row * L + j) * ldw;
        const real *x_k = in->x + train_at(in, b, y + (ptrdiff_t)row, x) + j;
        product(dw_k, ldw, dw_k, ldw, x_k, panels, H * W * LANES, smaller(TILE_ROWS, L - j), ldw, &w);
    }
}

/* dw: each thread takes its own strips of rows of dw and walks all pixels, a few rows at a time. */
static void conv_backward_weight(train_tape *tape, train_node *node, real *dw, real *panels)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    size_t C = in->C, O = out->C, size = node->size, L = size * C, per_row = (L + TILE_ROWS - 1) / TILE_ROWS, strips = size * per_row;
    size_t dx = out->W < AREA ? out->W + !out->W : AREA, dy = AREA / dx;
    ptrdiff_t workers = (ptrdiff_t)tape->threads;
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t worker = 0; worker < workers; worker++) {
        real *mine = panels + (size_t)worker * AREA * round_up(O);
        size_t strip0 = strips * (size_t)worker / tape->threads, strip1 = strips * ((size_t)worker + 1) / tape->threads;
        size_t term0 = strip0 / per_row * L + strip0 % per_row * TILE_ROWS, term1 = strip1 / per_row * L + strip1 % per_row * TILE_ROWS;
        memset(dw + term0 * round_up(O), 0, (term1 - term0) * round_up(O) * sizeof(real));
        for (size_t b = 0; b < out->B; b++)
            for (size_t y = 0; y < out->H; y += dy)
                for (size_t x = 0; x < out->W; x += dx) {
                    const size_t area[4] = { y, smaller(y + dy, out->H), x, smaller(x + dx, out->W) };
                    pack_gradient(mine, out, b, area);
                    conv_weight_strips(tape, node, dw, mine, b, area, strip0, strip1);
                }
    }
    unpack_gradient(tape->params[node->param[0]].g + node->first_row * size * L, dw, C, O, size, tape->threads);
}

/* db[o] = sum of dy[o]: along each row of pixels, then over rows, then over pictures. part [B][O]. */
static void conv_backward_bias(train_tape *tape, train_node *node, real *part)
{
    const train_value *out = &tape->values[node->out];
    size_t O = out->C;
    ptrdiff_t B = (ptrdiff_t)out->B;
    real *g = tape->params[node->param[1]].g;
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t b = 0; b < B; b++)
        for (size_t o = 0; o < O; o += LANES) {
            real total[LANES] = { 0 };
            for (size_t y = 0; y < out->H; y++) {
                real sum[LANES] = { 0 };
                const real *dy = out->g + train_at(out, (size_t)b, (ptrdiff_t)y, 0) + o;
                for (size_t x = 0; x < out->W; x++, dy += O)
                    for (size_t l = 0; l < LANES; l++) sum[l] += dy[l];
                for (size_t l = 0; l < LANES; l++) total[l] += sum[l];
            }
            for (size_t l = 0; l < LANES && o + l < O; l++) part[(size_t)b * O + o + l] = total[l];
        }
    for (size_t b = 0; b < out->B; b++)
        for (size_t o = 0; o < O; o++) g[o] += part[b * O + o];
}

void op_conv_backward(train_tape *tape, train_node *node)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    size_t weights = node->size * node->size * round_up(in->C) * round_up(out->C);
    real *packed = node->keep[0], *dw = packed + weights, *part = packed + 3 * weights + round_up(out->C);
    real *panels = part + out->B * round_up(out->C), *spread = panels + tape->threads * AREA * round_up(out->C);
    if (in->g) conv_backward_input(tape, node, packed, spread);
    conv_backward_weight(tape, node, dw, panels);
    if (node->n_param > 1) conv_backward_bias(tape, node, part);
}

/* ------------------------------------------------------------------------------------------------------ group norm */

/* Sums over the pixels of picture b, by channel: of x - shift (shift NULL: of x), and squared if `square`. Along rows in
 * real, over rows in double; then channels of a group together, divided by their number: out [groups]. */
static void group_means(double *out, const train_value *t, size_t b, size_t groups, const double *shift, double *channel)
{
    size_t C = t->C, per = C / groups;
    for (size_t c0 = 0; c0 < C; c0 += LANES) {
        size_t n = smaller(LANES, C - c0);
        real mid[LANES] = { 0 };
        double total[LANES] = { 0 };
        for (size_t l = 0; l < n && shift; l++) mid[l] = (real)shift[(c0 + l) / per];
        for (size_t y = 0; y < t->H; y++) {
            real sum[LANES] = { 0 };
            const real *x = t->x + train_at(t, b, (ptrdiff_t)y, 0) + c0;
            for (size_t i = 0; i < t->W; i++, x += C)
                for (size_t l = 0; l < LANES; l++) {
                    real d = x[l] - mid[l];
                    sum[l] += shift ? d * d : d;
                }
            for (size_t l = 0; l < n; l++) total[l] += (double)sum[l];
        }
        for (size_t l = 0; l < n; l++) channel[c0 + l] = total[l];
    }
    for (size_t g = 0; g < groups; g++) {
        out[g] = 0.0;
        for (size_t i = 0; i < per; i++) out[g] += channel[g * per + i];
        out[g] /= (double)(t->H * t->W * per);
    }
}

#define MAX_CHANNELS 1024

/* n = (x - mean) / sqrt(var + eps) * gain + bias over each group of channels; y = n, or n * sigmoid(n) (swish).
 * keep[0] [B][2][C]: mean and 1/sqrt by channel. */
void op_group_norm_forward(train_tape *tape, train_node *node)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    const real *gain = tape->params[node->param[0]].w, *bias = tape->params[node->param[1]].w;
    size_t C = in->C, per = C / node->groups;
    ptrdiff_t B = (ptrdiff_t)in->B;
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t b = 0; b < B; b++) {
        double mean[MAX_CHANNELS], var[MAX_CHANNELS], channel[MAX_CHANNELS];
        real *m = node->keep[0] + (size_t)b * 2 * C, *r = m + C;
        group_means(mean, in, (size_t)b, node->groups, NULL, channel);
        group_means(var, in, (size_t)b, node->groups, mean, channel);
        for (size_t c = 0; c < C; c++) {
            m[c] = (real)mean[c / per];
            r[c] = (real)(1.0 / sqrt(var[c / per] + node->eps));
        }
        for (size_t y = 0; y < in->H; y++) {
            const real *x = in->x + train_at(in, (size_t)b, (ptrdiff_t)y, 0);
            real *o = out->x + train_at(out, (size_t)b, (ptrdiff_t)y, 0);
            for (size_t i = 0; i < in->W; i++, x += C, o += C)
                if (node->flag)
                    for (size_t c = 0; c < C; c++) {
                        real n = (x[c] - m[c]) * r[c] * gain[c] + bias[c];
                        o[c] = n * SIGMOID(n);
                    }
                else
                    for (size_t c = 0; c < C; c++) o[c] = (x[c] - m[c]) * r[c] * gain[c] + bias[c];
        }
    }
}

/* First pass of the backward: dn = dy * d(swish)/dn written over dy, and the sums of dn and dn * xhat by channel of
 * picture b (along rows in real, over rows in double): sums [2][C]. */
static void group_norm_sums(train_tape *tape, train_node *node, size_t b, double *sums)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    const real *gain = tape->params[node->param[0]].w, *bias = tape->params[node->param[1]].w;
    size_t C = in->C;
    const real *m = node->keep[0] + b * 2 * C, *r = m + C;
    for (size_t c = 0; c < 2 * C; c++) sums[c] = 0.0;
    for (size_t y = 0; y < in->H; y++) {
        real s1[MAX_CHANNELS] = { 0 }, s2[MAX_CHANNELS] = { 0 };
        const real *x = in->x + train_at(in, b, (ptrdiff_t)y, 0);
        real *dy = out->g + train_at(out, b, (ptrdiff_t)y, 0);
        for (size_t i = 0; i < in->W; i++, x += C, dy += C)
            for (size_t c = 0; c < C; c++) {
                real hat = (x[c] - m[c]) * r[c];
                real dn = dy[c];
                if (node->flag) {
                    real n = hat * gain[c] + bias[c], sigmoid = SIGMOID(n);
                    dn *= sigmoid * (1 + n * (1 - sigmoid));
                }
                dy[c] = dn;
                s1[c] += dn;
                s2[c] += dn * hat;
            }
        for (size_t c = 0; c < C; c++) {
            sums[c] += (double)s1[c];
            sums[C + c] += (double)s2[c];
        }
    }
}

/* What the means of each group take from the gradient of its channels. sums [2][C]; mean1, mean2 [C]. */
static void group_norm_means(const train_node *node, const train_value *in, const real *gain, const double *sums, real *mean1, real *mean2)
{
    const size_t C = in->C, per = C / node->groups;
    for (size_t g = 0; g < node->groups; g++) {
        double a1 = 0.0, a2 = 0.0, count = (double)(in->H * in->W * per);
        for (size_t c = g * per; c < (g + 1) * per; c++) {
            a1 += sums[c] * (double)gain[c];
            a2 += sums[C + c] * (double)gain[c];
        }
        for (size_t c = g * per; c < (g + 1) * per; c++) {
            mean1[c] = (real)(a1 / count);
            mean2[c] = (real)(a2 / count);
        }
    }
}

/* dbias = sum dn, dgain = sum dn xhat; dx = (dn gain - mean(dn gain) - xhat mean(dn gain xhat)) / sqrt(var + eps), means
 * over the group. keep[1] [B][2][C] doubles as the pictures' sums. */
void op_group_norm_backward(train_tape *tape, train_node *node)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    const real *gain = tape->params[node->param[0]].w;
    size_t C = in->C;
    ptrdiff_t B = (ptrdiff_t)in->B;
    real *kept = node->keep[1];
    int add = adding(tape, node->in[0]);
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t b = 0; b < B; b++) {
        double sums[2 * MAX_CHANNELS];
        real mean1[MAX_CHANNELS], mean2[MAX_CHANNELS];
        const real *m = node->keep[0] + (size_t)b * 2 * C, *r = m + C;
        group_norm_sums(tape, node, (size_t)b, sums);
        for (size_t c = 0; c < 2 * C; c++) kept[(size_t)b * 2 * C + c] = (real)sums[c];
        group_norm_means(node, in, gain, sums, mean1, mean2);
        for (size_t y = 0; y < in->H; y++) {
            const real *x = in->x + train_at(in, (size_t)b, (ptrdiff_t)y, 0), *dn = out->g + train_at(out, (size_t)b, (ptrdiff_t)y, 0);
            real *dx = in->g + train_at(in, (size_t)b, (ptrdiff_t)y, 0);
            for (size_t i = 0; i < in->W; i++, x += C, dn += C, dx += C)
                for (size_t c = 0; c < C; c++) {
                    real hat = (x[c] - m[c]) * r[c];
                    real d = (dn[c] * gain[c] - mean1[c] - hat * mean2[c]) * r[c];
                    dx[c] = add ? dx[c] + d : d;
                }
        }
    }
    for (size_t b = 0; b < in->B; b++)
        for (size_t c = 0; c < C; c++) {
            tape->params[node->param[1]].g[c] += kept[b * 2 * C + c];
            tape->params[node->param[0]].g[c] += kept[b * 2 * C + C + c];
        }
}

/* -------------------------------------------------------------------------------------------------------- RMS norm */

/* y = x / sqrt(mean(x^2) + eps) * g. keep[0] [R]: the reciprocal of the root. */
void op_rms_norm_forward(train_tape *tape, train_node *node)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    const real *g = tape->params[node->param[0]].w;
    size_t d = in->C;
    ptrdiff_t R = (ptrdiff_t)in->W;
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t t = 0; t < R; t++) {
        const real *x = in->x + (size_t)t * d;
        real *y = out->x + (size_t)t * d, r = 1 / SQRT(sum_of(x, x, d) / (real)d + (real)node->eps);
        node->keep[0][t] = r;
        for (size_t i = 0; i < d; i++) y[i] = x[i] * r * g[i];
    }
}

/* dx = (dy g - x r^2 mean(dy g x)) r, dg = sum over rows of dy x r. keep[1] [d] scratch. */
void op_rms_norm_backward(train_tape *tape, train_node *node)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    const real *g = tape->params[node->param[0]].w;
    real *dg = tape->params[node->param[0]].g;
    size_t d = in->C;
    ptrdiff_t R = (ptrdiff_t)in->W, columns = (ptrdiff_t)((d + LANES - 1) / LANES);
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t column = 0; column < columns; column++) {
        size_t i0 = (size_t)column * LANES, n = smaller(LANES, d - i0);
        real sum[LANES] = { 0 };
        for (size_t t = 0; t < in->W; t++)
            for (size_t l = 0; l < n; l++) sum[l] += out->g[t * d + i0 + l] * (in->x[t * d + i0 + l] * node->keep[0][t]);
        for (size_t l = 0; l < n; l++) dg[i0 + l] += sum[l];
    }
    int add = adding(tape, node->in[0]);
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t t = 0; t < R; t++) {
        const real *x = in->x + (size_t)t * d;
        real *dy = out->g + (size_t)t * d, *dx = in->g + (size_t)t * d, r = node->keep[0][t];
        for (size_t i = 0; i < d; i++) dy[i] *= g[i];
        real pull = sum_of(dy, x, d) / (real)d * r * r;
        for (size_t i = 0; i < d; i++) {
            real dx_i = (dy[i] - x[i] * pull) * r;
            dx[i] = add ? dx[i] + dx_i : dx_i;
        }
    }
}

/* ---------------------------------------------------------------------------------------------- element by element */

#define PIECE 4096 /* elements of one piece of work */
#define FOR_PIECES(tape, n)                                                                                                                          \
    ptrdiff_t pieces_ = (ptrdiff_t)(((n) + PIECE - 1) / PIECE);                                                                                      \
    TSAR_PARALLEL_FOR((tape)->threads)                                                                                                               \
    for (ptrdiff_t piece_ = 0; piece_ < pieces_; piece_++)                                                                                           \
        for (size_t i = (size_t)piece_ * PIECE, end_ = smaller((n), ((size_t)piece_ + 1) * PIECE); i < end_; i++)

/* y = a + b, borders (zero) included. */
void op_add_forward(train_tape *tape, train_node *node)
{
    const real *a = tape->values[node->in[0]].x, *b = tape->values[node->in[1]].x;
    real *y = tape->values[node->out].x;
    size_t n = reals_of(&tape->values[node->out]);
    FOR_PIECES(tape, n)
    y[i] = a[i] + b[i];
}

void op_add_backward(train_tape *tape, train_node *node)
{
    const real *dy = tape->values[node->out].g;
    size_t n = reals_of(&tape->values[node->out]);
    for (int k = 0; k < 2; k++) {
        real *dx = tape->values[node->in[k]].g;
        int add = adding(tape, node->in[k]);
        FOR_PIECES(tape, n)
        dx[i] = add ? dx[i] + dy[i] : dy[i];
    }
}

/* gelu(x) = x sigmoid(2z), z = sqrt(2/pi) (x + 0.044715 x^3). */
#define GELU_SCALE ((real)0.7978845608028654)
#define GELU_CUBIC ((real)0.044715)
void op_gelu_forward(train_tape *tape, train_node *node)
{
    const real *x = tape->values[node->in[0]].x;
    real *y = tape->values[node->out].x;
    size_t n = reals_of(&tape->values[node->out]);
    FOR_PIECES(tape, n)
    {
        real z = GELU_SCALE * (x[i] + GELU_CUBIC * x[i] * x[i] * x[i]);
        y[i] = x[i] * SIGMOID(2 * z);
    }
}

void op_gelu_backward(train_tape *tape, train_node *node)
{
    const real *x = tape->values[node->in[0]].x, *dy = tape->values[node->out].g;
    real *dx = tape->values[node->in[0]].g;
    size_t n = reals_of(&tape->values[node->out]);
    int add = adding(tape, node->in[0]);
    FOR_PIECES(tape, n)
    {
        real z = GELU_SCALE * (x[i] + GELU_CUBIC * x[i] * x[i] * x[i]), sigmoid = SIGMOID(2 * z);
        real slope = GELU_SCALE * (1 + 3 * GELU_CUBIC * x[i] * x[i]);
        real d = dy[i] * (sigmoid + 2 * x[i] * sigmoid * (1 - sigmoid) * slope);
        dx[i] = add ? dx[i] + d : d;
    }
}

/* y = silu(a) * b, silu(a) = a sigmoid(a). */
void op_swiglu_forward(train_tape *tape, train_node *node)
{
    const real *a = tape->values[node->in[0]].x, *b = tape->values[node->in[1]].x;
    real *y = tape->values[node->out].x;
    size_t n = reals_of(&tape->values[node->out]);
    FOR_PIECES(tape, n)
    y[i] = a[i] * SIGMOID(a[i]) * b[i];
}

void op_swiglu_backward(train_tape *tape, train_node *node)
{
    const real *a = tape->values[node->in[0]].x, *b = tape->values[node->in[1]].x, *dy = tape->values[node->out].g;
    real *da = tape->values[node->in[0]].g, *db = tape->values[node->in[1]].g;
    size_t n = reals_of(&tape->values[node->out]);
    int add_a = adding(tape, node->in[0]), add_b = adding(tape, node->in[1]);
    FOR_PIECES(tape, n)
    {
        real sigmoid = SIGMOID(a[i]), ga = dy[i] * b[i] * (sigmoid * (1 + a[i] * (1 - sigmoid))), gb = dy[i] * (a[i] * sigmoid);
        da[i] = add_a ? da[i] + ga : ga;
        db[i] = add_b ? db[i] + gb : gb;
    }
}

/* y[2h][2w] = x[h][w], nearest. */
void op_upsample_forward(train_tape *tape, train_node *node)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    ptrdiff_t rows = (ptrdiff_t)(out->B * out->H);
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t row = 0; row < rows; row++) {
        size_t b = (size_t)row / out->H, y = (size_t)row % out->H;
        const real *x = in->x + train_at(in, b, (ptrdiff_t)(y / 2), 0);
        real *o = out->x + train_at(out, b, (ptrdiff_t)y, 0);
        for (size_t i = 0; i < out->W; i++) memcpy(o + i * out->C, x + i / 2 * in->C, in->C * sizeof(real));
    }
}

void op_upsample_backward(train_tape *tape, train_node *node)
{
    const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
    size_t C = in->C;
    int add = adding(tape, node->in[0]);
    ptrdiff_t rows = (ptrdiff_t)(in->B * in->H);
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t row = 0; row < rows; row++) {
        size_t b = (size_t)row / in->H, y = (size_t)row % in->H;
        real *dx = in->g + train_at(in, b, (ptrdiff_t)y, 0);
        const real *upper = out->g + train_at(out, b, (ptrdiff_t)(2 * y), 0), *lower = out->g + train_at(out, b, (ptrdiff_t)(2 * y + 1), 0);
        for (size_t i = 0; i < in->W; i++)
            for (size_t c = 0; c < C; c++) {
                size_t k = i * C + c, left = 2 * i * C + c, right = left + C;
                real d = upper[left] + upper[right] + lower[left] + lower[right];
                dx[k] = add ? dx[k] + d : d;
            }
    }
}

/* -------------------------------------------------------------------------------------------------------- attention */

/* One head of one sequence: T positions, rows ld apart. */
typedef struct {
    size_t T, Tp, hd, ld, ldo;
    const real *q, *k, *v, *g;         /* inputs, and the output's gradient */
    real *Q, *K, *Kt, *Vt, *P, *S, *G; /* scratch: [T][hd], [T][hd], [hd][Tp], [hd][Tp], [T][Tp], [T][Tp], [T][hd] */
    real scale;
    int causal;
    const real *cosine, *sine;
} attention_head;

size_t op_attention_scratch(size_t T, size_t hd)
{
    size_t Tp = round_up(T);
    return 3 * Tp * hd + 2 * round_up(hd) * Tp + 2 * Tp * Tp + LANES;
}

/* y = x turned by the angle of each pair; direction -1 turns back. SPEC 3, rotary positions. */
static void rotate(real *y, const real *x, size_t ld, const attention_head *h, real direction)
{
    for (size_t t = 0; t < h->T; t++)
        for (size_t i = 0; i < h->hd; i += 2) {
            real a = x[t * ld + i], b = x[t * ld + i + 1], c = 1, s = 0;
            if (h->cosine) {
                c = h->cosine[t * (h->hd / 2) + i / 2];
                s = h->sine[t * (h->hd / 2) + i / 2] * direction;
            }
            y[t * h->hd + i] = a * c - b * s;
            y[t * h->hd + i + 1] = a * s + b * c;
        }
}

static void transpose(real *y, size_t ldy, const real *x, size_t ldx, size_t rows, size_t columns)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < columns; c++) y[c * ldy + r] = x[r * ldx + c];
}

/* Rows t0 ... t0+count-1 of P = softmax(scale Q K^T); columns are computed up to a multiple of LANES, zero where masked. */
static void attention_weights(const attention_head *h, size_t t0, size_t count)
{
    size_t columns = h->causal ? smaller(h->T, t0 + count) : h->T;
    strides w = { h->hd, 0, 1, 0, h->Tp, 1, h->hd };
    product(h->P + t0 * h->Tp, h->Tp, NULL, 0, h->Q + t0 * h->hd, h->Kt, LANES, count, round_up(columns), &w);
    for (size_t t = t0; t < t0 + count; t++) {
        size_t n = h->causal ? t + 1 : h->T;
        real *p = h->P + t * h->Tp, most = largest(p, n);
        for (size_t j = 0; j < n; j++) p[j] = EXP((p[j] - most) * h->scale);
        real total = sum_of(p, NULL, n);
        for (size_t j = 0; j < n; j++) p[j] /= total;
        for (size_t j = n; j < round_up(columns); j++) p[j] = 0;
    }
}

/* Scratch and operands of head `item` = (sequence, head). */
static attention_head head_at(const train_tape *tape, const train_node *node, size_t item, real *scratch)
{
    const train_value *q = &tape->values[node->in[0]], *k = &tape->values[node->in[1]], *v = &tape->values[node->in[2]],
                      *out = &tape->values[node->out];
    size_t heads = node->groups, i = item % heads, sequence = item / heads, d = out->C;
    int merged = node->in[0] == node->in[1];
    attention_head h = { 0 };
    h.T = node->ragged->length[sequence];
    h.Tp = round_up(h.T);
    h.hd = d / heads;
    h.ld = q->C;
    h.ldo = d;
    size_t at = node->ragged->start[sequence] * h.ld + i * h.hd;
    h.q = q->x + at;
    h.k = k->x + at + (merged ? d : 0);
    h.v = v->x + at + (merged ? 2 * d : 0);
    h.g = out->g ? out->g + node->ragged->start[sequence] * d + i * h.hd : NULL;
    h.Q = scratch;
    h.K = h.Q + h.Tp * h.hd;
    h.G = h.K + h.Tp * h.hd;
    h.Kt = h.G + h.Tp * h.hd;
    h.Vt = h.Kt + round_up(h.hd) * h.Tp;
    h.P = h.Vt + round_up(h.hd) * h.Tp;
    h.S = h.P + h.Tp * h.Tp;
    h.scale = (real)(1.0 / sqrt((double)h.hd));
    h.causal = node->flag;
    h.cosine = node->cosine ? node->cosine + node->ragged->start[sequence] * (h.hd / 2) : NULL;
    h.sine = node->cosine ? node->sine + node->ragged->start[sequence] * (h.hd / 2) : NULL;
    rotate(h.Q, h.q, h.ld, &h, 1);
    rotate(h.K, h.k, h.ld, &h, 1);
    transpose(h.Kt, h.Tp, h.K, h.hd, h.T, h.hd);
    return h;
}

/* o = P v. keep[0]: scratch of each thread, node->size reals apart. */
void op_attention_forward(train_tape *tape, train_node *node)
{
    const train_value *out = &tape->values[node->out];
    size_t items = node->ragged->n * node->groups, threads = tape->threads;
    TSAR_PARALLEL_FOR(threads)
    for (ptrdiff_t worker = 0; worker < (ptrdiff_t)threads; worker++)
        for (size_t item = (size_t)worker; item < items; item += threads) {
            attention_head h = head_at(tape, node, item, node->keep[0] + (size_t)worker * node->size);
            real *o = out->x + (size_t)(node->ragged->start[item / node->groups] * h.ldo + item % node->groups * h.hd);
            for (size_t t = 0; t < h.T; t += TILE_ROWS) {
                size_t count = smaller(TILE_ROWS, h.T - t);
                attention_weights(&h, t, count);
                strides w = { h.Tp, 0, 1, 0, h.ld, 1, h.causal ? smaller(h.T, t + count) : h.T };
                product(o + t * h.ldo, h.ldo, NULL, 0, h.P + t * h.Tp, h.v, LANES, count, h.hd, &w);
            }
        }
}

/* y[t] (+)= x[t], T rows of hd; y rows ld apart. */
static void put_rows(real *y, size_t ld, const real *x, const attention_head *h, int add)
{
    for (size_t t = 0; t < h->T; t++)
        for (size_t i = 0; i < h->hd; i++) y[t * ld + i] = add ? y[t * ld + i] + x[t * h->hd + i] : x[t * h->hd + i];
}

/* S = P * (dP - sum(P dP)) * scale with dP = do v^T; sum over a row of P dP = do . o. */
static void attention_score_gradients(const attention_head *h, const real *o)
{
    transpose(h->Vt, h->Tp, h->v, h->ld, h->T, h->hd);
    for (size_t t0 = 0; t0 < h->T; t0 += TILE_ROWS) {
        size_t count = smaller(TILE_ROWS, h->T - t0), columns = h->causal ? smaller(h->T, t0 + count) : h->T;
        attention_weights(h, t0, count);
        strides w = { h->ldo, 0, 1, 0, h->Tp, 1, h->hd };
        product(h->S + t0 * h->Tp, h->Tp, NULL, 0, h->g + t0 * h->ldo, h->Vt, LANES, count, round_up(columns), &w);
        for (size_t t = t0; t < t0 + count; t++) {
            real mean = sum_of(h->g + t * h->ldo, o + t * h->ldo, h->hd), *s = h->S + t * h->Tp;
            const real *p = h->P + t * h->Tp;
            for (size_t j = 0; j < round_up(columns); j++) s[j] = p[j] * (s[j] - mean) * h->scale;
        }
    }
}

/* G[rows j] = sum over t, ascending, of x[t][j] * y[t]: x is P or S, [T][Tp]; y rows ldy apart. */
static void attention_transposed(const attention_head *h, const real *x, const real *y, size_t ldy)
{
    for (size_t j = 0; j < h->T; j += TILE_ROWS) {
        size_t from = h->causal ? j : 0;
        strides w = { 1, 0, h->Tp, 0, ldy, 1, h->T - from };
        product(h->G + j * h->hd, h->hd, NULL, 0, x + from * h->Tp + j, y + from * ldy, LANES, smaller(TILE_ROWS, h->T - j), h->hd, &w);
    }
}

/* dq = S k, dk = S^T q (both turned back), dv = P^T do. */
void op_attention_backward(train_tape *tape, train_node *node)
{
    const train_value *out = &tape->values[node->out];
    size_t items = node->ragged->n * node->groups, threads = tape->threads;
    int merged = node->in[0] == node->in[1], add[3];
    for (int k = 0; k < 3; k++) add[k] = merged && k > 0 ? add[0] : adding(tape, node->in[k]);
    TSAR_PARALLEL_FOR(threads)
    for (ptrdiff_t worker = 0; worker < (ptrdiff_t)threads; worker++)
        for (size_t item = (size_t)worker; item < items; item += threads) {
            attention_head h = head_at(tape, node, item, node->keep[0] + (size_t)worker * node->size);
            size_t start = node->ragged->start[item / node->groups], offset = item % node->groups * h.hd;
            size_t at = start * h.ld + offset, d = out->C;
            attention_score_gradients(&h, out->x + start * d + offset);
            for (size_t t = 0; t < h.T; t += TILE_ROWS) {
                size_t count = smaller(TILE_ROWS, h.T - t);
                strides w = { h.Tp, 0, 1, 0, h.hd, 1, h.causal ? smaller(h.T, t + count) : h.T };
                product(h.G + t * h.hd, h.hd, NULL, 0, h.S + t * h.Tp, h.K, LANES, count, h.hd, &w);
            }
            rotate(h.G, h.G, h.hd, &h, -1);
            put_rows(tape->values[node->in[0]].g + at, h.ld, h.G, &h, add[0]);
            attention_transposed(&h, h.S, h.Q, h.hd);
            rotate(h.G, h.G, h.hd, &h, -1);
            put_rows(tape->values[node->in[1]].g + at + (merged ? d : 0), h.ld, h.G, &h, add[1]);
            attention_transposed(&h, h.P, h.g, h.ldo);
            put_rows(tape->values[node->in[2]].g + at + (merged ? 2 * d : 0), h.ld, h.G, &h, add[2]);
        }
}

/* ------------------------------------------------------------------------------------------------------------- rows */

/* y[t] = table[index[t]] */
void op_lookup_forward(train_tape *tape, train_node *node)
{
    const train_value *out = &tape->values[node->out];
    for (size_t t = 0; t < out->W; t++)
        memcpy(out->x + t * out->C, tape->params[node->param[0]].w + (size_t)node->index[t] * out->C, out->C * sizeof(real));
}

void op_lookup_backward(train_tape *tape, train_node *node)
{
    const train_value *out = &tape->values[node->out];
    for (size_t t = 0; t < out->W; t++) {
        real *g = tape->params[node->param[0]].g + (size_t)node->index[t] * out->C;
        for (size_t i = 0; i < out->C; i++) g[i] += out->g[t * out->C + i];
    }
}

/* y[t] = a[index[t]], or b[-1 - index[t]] */
void op_choose_forward(train_tape *tape, train_node *node)
{
    const train_value *out = &tape->values[node->out];
    for (size_t t = 0; t < out->W; t++) {
        int64_t i = node->index[t];
        const real *x = i >= 0 ? tape->values[node->in[0]].x + (size_t)i * out->C : tape->values[node->in[1]].x + (size_t)(-1 - i) * out->C;
        memcpy(out->x + t * out->C, x, out->C * sizeof(real));
    }
}

void op_choose_backward(train_tape *tape, train_node *node)
{
    const train_value *out = &tape->values[node->out];
    for (int k = 0; k < 2; k++) {
        train_value *in = &tape->values[node->in[k]];
        if ((k == 0 || node->in[1] != node->in[0]) && !adding(tape, node->in[k])) memset(in->g, 0, reals_of(in) * sizeof(real));
    }
    for (size_t t = 0; t < out->W; t++) {
        int64_t i = node->index[t];
        real *g = i >= 0 ? tape->values[node->in[0]].g + (size_t)i * out->C : tape->values[node->in[1]].g + (size_t)(-1 - i) * out->C;
        for (size_t c = 0; c < out->C; c++) g[c] += out->g[t * out->C + c];
    }
}

/* --------------------------------------------------------------------------------------------------- cross entropy */

/* loss = weight (lse - x[target]) + z_loss weight lse^2, lse = log sum exp x; d loss / dx = weight (p (1 + 2 z_loss lse) - [target]). */
double op_cross_entropy(real *g, const real *x, const int64_t *target, const real *weight, size_t R, size_t V, double z_loss, size_t threads,
                        double *rows, double *entropy, size_t *right)
{
    TSAR_PARALLEL_FOR(threads)
    for (ptrdiff_t t = 0; t < (ptrdiff_t)R; t++) {
        const real *x_t = x + (size_t)t * V;
        real *g_t = g + (size_t)t * V, most = largest(x_t, V);
        size_t k = (size_t)target[t];
        for (size_t i = 0; i < V; i++) g_t[i] = EXP(x_t[i] - most);
        real total = sum_of(g_t, NULL, V);
        double lse = (double)most + tsar_log((double)total);
        real factor = weight[t] * (real)(1.0 + 2.0 * z_loss * lse) / total;
        for (size_t i = 0; i < V; i++) g_t[i] *= factor;
        g_t[k] -= weight[t];
        rows[3 * t] = lse - (double)x_t[k];
        rows[3 * t + 1] = z_loss * lse * lse;
        rows[3 * t + 2] = x_t[k] >= most ? 1.0 : 0.0;
    }
    double loss = 0.0;
    *entropy = 0.0;
    *right = 0;
    for (size_t t = 0; t < R; t++) {
        *entropy += (double)weight[t] * rows[3 * t];
        loss += (double)weight[t] * (rows[3 * t] + rows[3 * t + 1]);
        *right += rows[3 * t + 2] > 0.5;
    }
    return loss;
}
