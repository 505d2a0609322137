/* vq.c - the image tokenizers: LlamaGen's VQGAN (arXiv 2406.06525, section 2; SPEC 4), Chameleon's, which is the same with other keys, and
 * Emu3's (arXiv 2409.18869); k-means on a codebook (SPEC 6).
 *
 *     encode    bytes -> encoder -> quant_conv -> nearest codeword -> codes
 *     decode    codes -> codewords -> post_quant_conv -> decoder -> bytes
 *
 * Letters: C, H, W channels, rows, columns of a tensor; P = H*W its pixels; h, w rows, columns of the latent picture;
 * K codewords; E = vq_embed_dim; T positions that are computed together; G groups of a GroupNorm.
 *
 * Every tensor is kept as SPEC 8 traces it, [C][H][W], and there are two of them: the stream and a branch. One convolution serves all
 * sizes, strides, the upsampling and Emu3's kernels in time; the products of attention, of the quantizer and of k-means are
 * tsar_accumulate's. Where verify asks for a precision, the result of each operation is rounded to it (tsar_round_to, SPEC 10). */
#include "tsar.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Sizes of the convolution's kernel (tests/SPEED.md): OUTPUTS channels of PIXELS pixels at a time, VECTORS x OUTPUTS runs of WIDTH sums,
 * all in registers: gcc and clang keep these there, and few others. Weights are kept COPIES times where a register cannot be filled with
 * a number of memory at once. */
#if defined(__AVX512F__)
enum { VECTORS = 1, OUTPUTS = 4, WIDTH = 40, COPIES = 1 };
#elif defined(__AVX__)
enum { VECTORS = 3, OUTPUTS = 3, WIDTH = 4, COPIES = 1 };
#else
enum { VECTORS = 3, OUTPUTS = 3, WIDTH = 2, COPIES = 2 };
#endif
enum {
    PIXELS = VECTORS * WIDTH,
    TERMS = 144,                           /* of a sum that are taken at a time: 16 channels of a 3x3 convolution */
    OUTPUT_RUN = 8 * OUTPUTS,              /* outputs that take these terms in turn: 32, a panel, where OUTPUTS is 4 */
    WEIGHTS = TERMS * OUTPUT_RUN * COPIES, /* of these terms and outputs */
    BAND = 2048,                           /* pixels that share a pass over the weights, about, */
    STRIP = 256,                           /* of at most so many columns */
    QUERY_RUN = 192,                       /* T of attention: queries that share a pass over keys and values */
    CHAINS = 8,                            /* groups whose sums run side by side */
    POINTS = 16                            /* T of a search for the nearest codeword */
};

static const double NORM_EPS = 1e-6;    /* GroupNorm (QUIRKS, VQ 2) */
static const double BATCH_EPS = 1e-5;   /* batch norm (QUIRKS, Emu3 4) */
static const double LENGTH_MIN = 1e-12; /* unit length: x / max(|x|, 1e-12) (QUIRKS, VQ 6) */

/* One pass through the encoder or the decoder: the stream and a branch, which change places where a layer replaces the stream. */
typedef struct {
    const tsar_model *model;
    const tsar_sink *sink;
    tsar_error *err;
    const char *part;      /* "encoder" or "decoder", in trace names */
    size_t C, H, W;        /* of the activation */
    size_t frames;         /* of it in time: 1 but in the encoder's time convolutions, where it is [C][frames][H][W] */
    size_t h, w, widest;   /* of the latent picture; the most channels of the pass */
    double *x, *branch;    /* [capacity]: the stream, that is the activation [C][H][W]; what a branch makes of it */
    double *band;          /* [band_size]: what an area of a convolution sees */
    double *sums;          /* [threads][sums_size]: of the outputs of an area */
    double *weights;       /* [threads][WEIGHTS] */
    double *mean, *spread; /* [larger(G, z)]: of a norm */
    double *guide;         /* Emu3's decoder: [E][h][w], */
    double *factor, *term; /* [widest][h][w]: conv_y(guide) and conv_b(guide) of the present norm; else NULL */
    size_t capacity, band_size, sums_size;
} network;

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Item number `part` of `parts` equal shares of n begins here. */
static size_t share(size_t n, size_t part, size_t parts) { return n / parts * part + smaller(part, n % parts); }

static void swap(double **p, double **q)
{
    double *kept = *p;
    *p = *q;
    *q = kept;
}

typedef enum { PLAIN, DOWNSAMPLE, UPSAMPLE } resampling;
typedef enum { REPLACE, ADD } result_mode; /* what becomes of what stands in the output */
typedef enum { NORM_ONLY, NORM_SWISH } norm_mode;

/* ---------------------------------------------------------------------------------------------------------- GroupNorm */

/* Of each group x_l [n], two passes:   1. mean = sum(x) / n     2. spread = sqrt(sum((x - mean)^2) / n + eps)
 * Each sum has one accumulator, ascending, and waits for every addition; so `count` <= CHAINS groups, which follow one another in
 * memory, are summed side by side. Chains without a group repeat group 0.   mean, spread [count]; x [count][n] */
static void group_moments(double *mean, double *spread, const double *x, size_t n, size_t count)
{
    const double *x_l[CHAINS];
    double mean_l[CHAINS], sum[CHAINS];
    for (size_t l = 0; l < CHAINS; ++l) {
        x_l[l] = x + (l < count ? l * n : 0);
        sum[l] = 0.0;
    }
    for (size_t i = 0; i < n; ++i)
        for (size_t l = 0; l < CHAINS; ++l) sum[l] += x_l[l][i];
    for (size_t l = 0; l < CHAINS; ++l) {
        mean_l[l] = sum[l] / (double)n;
        sum[l] = 0.0;
    }
    for (size_t i = 0; i < n; ++i)
        for (size_t l = 0; l < CHAINS; ++l) {
            double d = x_l[l][i] - mean_l[l];
            sum[l] += d * d;
        }
    for (size_t l = 0; l < count; ++l) {
        mean[l] = mean_l[l];
        spread[l] = sqrt(sum[l] / (double)n + NORM_EPS);
    }
}

/* What becomes of pixels on their way into a convolution: y = (x - mean_g) / spread_g * gain_c + bias_c, where channel c belongs to
 * group g of `members` channels; where the norm is guided, y = y * factor + term, both enlarged to the size of x (nearest; SPEC 4,
 * QUIRKS Emu3 9); then, for NORM_SWISH, y = y / (1 + exp(-y)). */
typedef struct {
    const tsar_model *model;
    const double *gain, *bias;   /* [C] */
    const double *mean, *spread; /* [G] */
    size_t members;
    int halves;                  /* BF16 and F16 are rounded as torch's GroupNorm rounds them */
    const double *factor, *term; /* [C][h][w], or NULL */
    size_t h, w, zoom;           /* pixel (y, x) takes theirs of (y >> zoom, x >> zoom) */
    norm_mode mode;
} norming;

static void convolve(network *net, double *out, const double *in, const tsar_conv *conv, resampling mode, const norming *norm, result_mode result);

/* The GroupNorm of in [C][H][W], ready to be applied: its moments are taken, and the convolutions of the guide, at the guide's size. The
 * sums of a group take channels, rows, columns in this order. It is good until the next call. */
static norming group_norm(network *net, const double *in, const tsar_norm *norm, norm_mode mode)
{
    const size_t H = net->H, W = net->W, P = H * W, G = net->model->config.vq_groups, members = norm->channels / G;
    const size_t batches = (G + CHAINS - 1) / CHAINS, threads = net->model->threads;
    const int halves = net->model->precision == TSAR_BF16 || net->model->precision == TSAR_F16;
    norming v = { net->model, norm->gain, norm->bias, net->mean, net->spread, members, halves, NULL, NULL, net->h, net->w, 0, mode };

    TSAR_PARALLEL_FOR(threads)
    for (size_t batch = 0; batch < batches; ++batch) {
        size_t g = batch * CHAINS;
        group_moments(net->mean + g, net->spread + g, in + g * members * P, members * P, smaller(CHAINS, G - g));
    }
    if (norm->conv_y.out == 0) return v;
    net->H = net->h, net->W = net->w;
    convolve(net, net->factor, net->guide, &norm->conv_y, PLAIN, NULL, REPLACE);
    convolve(net, net->term, net->guide, &norm->conv_b, PLAIN, NULL, REPLACE);
    net->H = H, net->W = W;
    v.factor = net->factor, v.term = net->term;
    while (net->h << v.zoom < H) ++v.zoom;
    return v;
}

/* A batch norm is a GroupNorm of one channel a group with given moments, spread = sqrt(variance + 1e-5). */
static norming batch_norm(network *net, const tsar_batch_norm *norm, norm_mode mode)
{
    for (size_t c = 0; c < norm->channels; ++c) net->spread[c] = sqrt(norm->variance[c] + BATCH_EPS);
    return (norming){ net->model, norm->gain, norm->bias, norm->mean, net->spread, 1, 0, NULL, NULL, 0, 0, 0, mode };
}

/* For verify (SPEC 10): the value before its weight and the one after it are rounded; BF16 and F16 of a GroupNorm as in torch's CPU
 * code, x a + b with a = gain / spread and b = bias - mean a. */
static void normalise_rounded(const norming *v, double *x, size_t n, double mean, double spread, double gain, double bias)
{
    double a = 1.0 / spread, b = mean;
    tsar_round_to(v->model, &a, 1);
    tsar_round_to(v->model, &b, 1);
    a = a * gain;
    tsar_round_to(v->model, &a, 1);
    b = b * a;
    tsar_round_to(v->model, &b, 1);
    b = bias - b;
    tsar_round_to(v->model, &b, 1);
    for (size_t i = 0; i < n; ++i) x[i] = v->halves ? x[i] * a : (x[i] - mean) / spread;
    tsar_round_to(v->model, x, n);
    for (size_t i = 0; i < n; ++i) x[i] = v->halves ? x[i] + b : x[i] * gain + bias;
    tsar_round_to(v->model, x, n);
}

/* In place: line[n] = pixels (y, x), (y, x+1) ... of channel c. */
static void normalise(const norming *v, double *line, size_t n, size_t c, size_t y, size_t x)
{
    const double mean = v->mean[c / v->members], spread = v->spread[c / v->members], gain = v->gain[c], bias = v->bias[c];
    if (v->model->precision == TSAR_F64)
        for (size_t i = 0; i < n; ++i) line[i] = (line[i] - mean) / spread * gain + bias;
    else
        normalise_rounded(v, line, n, mean, spread, gain, bias);
    if (v->factor != NULL) {
        const double *factor = v->factor + (c * v->h + (y >> v->zoom)) * v->w, *term = v->term + (c * v->h + (y >> v->zoom)) * v->w;
        for (size_t i = 0; i < n; ++i) line[i] *= factor[(x + i) >> v->zoom];
        tsar_round_to(v->model, line, n);
        for (size_t i = 0; i < n; ++i) line[i] += term[(x + i) >> v->zoom];
        tsar_round_to(v->model, line, n);
    }
    if (v->mode == NORM_ONLY) return;
    tsar_silu_n(line, n);
    tsar_round_to(v->model, line, n);
}

/* -------------------------------------------------------------------------------------------------------- convolution */

/* Which pixels a convolution reads: the input [in][H][W], upsampled by 1 << up, framed by zeros, seen through a kernel of
 * size x size that moves by stride; and how a band of it is kept: band_H x band_W outputs see, in each channel, stride x stride
 * planes, plane (i, j) holding rows i, i + stride, ... and columns j, j + stride, ... of the framed input, rows `pitch` apart. So
 * what output q = y * pitch + x multiplies with term k of the kernel stands at q + at[k]: a term sees one shifted run of pixels,
 * whatever the size, the stride and the row. (The pitch - band_W outputs between two rows are computed and left.) Where a band is as wide as
 * the picture, the zero behind a row is the one before the next.
 *
 * In time: an input [in][frames][H][W] is read as in * taps channels, channel c * taps + t being frame 2 * frame + t - 2 of channel c:
 * stride 2, two frames of zeros in front. That is the order of the sum in SPEC 4; the zeros change no sum. */
typedef struct {
    size_t H, W, up;           /* of the input in memory */
    size_t size, stride, lead; /* lead: rows of zeros above, and columns on the left */
    size_t taps, frames;       /* of the kernel, of the input in time */
    size_t frames_out, frame;  /* of the output; which one is computed */
    size_t out_H, out_W;
    size_t band_H, band_W, pitch, plane;
    size_t outputs;   /* of a band, q = 0 ... outputs-1, filled up to whole tiles */
    size_t channels;  /* whose terms are summed at a time */
    size_t at[TERMS]; /* of the terms of these channels */
} framing;

/* SPEC 4, QUIRKS VQ 1. 3x3: one pixel of padding on every side; downsampling: on the right and at the bottom only, then
 * stride 2; upsampling: nearest, each pixel twice in both directions, then as 3x3. 1x1: no padding. */
static framing framing_of(const tsar_conv *conv, resampling mode, size_t H, size_t W)
{
    framing v = { .H = H, .W = W, .size = conv->size, .stride = 1, .lead = conv->size == 3 ? 1 : 0, .out_H = H, .out_W = W };
    v.taps = conv->taps;
    v.frames = v.frames_out = 1;
    if (mode == DOWNSAMPLE) {
        v.stride = 2;
        v.lead = 0;
        v.out_H = H / 2;
        v.out_W = W / 2;
    } else if (mode == UPSAMPLE) {
        v.up = 1;
        v.out_H = tsar_product(2, H);
        v.out_W = tsar_product(2, W);
    }
    const size_t margin = (v.size - 1) / v.stride;
    v.band_W = smaller(v.out_W, STRIP);
    v.band_H = smaller(v.out_H, larger(1, BAND / larger(1, v.band_W)));
    const size_t shared = v.lead == 1 && v.band_W == v.out_W ? 1 : 0; /* zeros that two rows have in common */
    v.pitch = v.band_W + margin - shared;
    v.plane = (v.band_H + margin) * v.pitch + shared;
    v.outputs = (v.band_H * v.pitch + PIXELS - 1) / PIXELS * PIXELS;
    v.channels = TERMS / (v.size * v.size);
    for (size_t k = 0; k < v.channels * v.size * v.size; ++k) {
        const size_t c = k / (v.size * v.size), i = k / v.size % v.size, j = k % v.size, stride = v.stride;
        v.at[k] = (c * stride * stride + i % stride * stride + j % stride) * v.plane + i / stride * v.pitch + j / stride;
    }
    return v;
}

/* Elements of a band of `channels` channels, and of what the last tile reads behind it. */
static size_t band_size(const framing *v, size_t channels) { return tsar_product(channels, v->stride * v->stride * v->plane) + PIXELS; }

/* The plane [H][W] that is read as channel c; NULL: zeros. */
static const double *plane_of(const double *in, const framing *v, size_t c)
{
    const size_t frame = 2 * v->frame + c % v->taps;
    if (v->taps == 1) return in + c * v->H * v->W;
    return frame < 2 ? NULL : in + (c / v->taps * v->frames + frame - 2) * v->H * v->W;
}

/* line[n] = the framed input of channel c at row `row`, columns `column` ... column+n-1, counted from the frame's corner; normalised
 * unless norm is NULL. The frame stays zero.   plane [H][W] or NULL */
static void fetch_line(double *line, const double *plane, const framing *v, size_t row, size_t column, size_t n, const norming *norm, size_t c)
{
    const int inside = plane != NULL && row >= v->lead && row - v->lead < v->H << v->up;
    const size_t begin = column < v->lead ? v->lead - column : 0;      /* line[begin] is the first pixel, */
    const size_t end = smaller(n, (v->W << v->up) + v->lead - column); /* line[end] the first zero behind */
    if (!inside) {
        for (size_t k = 0; k < n; ++k) line[k] = 0.0;
        return;
    }
    const double *source = plane + ((row - v->lead) >> v->up) * v->W;
    const size_t first = column + begin - v->lead;
    for (size_t k = 0; k < begin; ++k) line[k] = 0.0;
    if (v->up)
        for (size_t k = begin; k < end; ++k) line[k] = source[(first + k - begin) >> 1];
    else
        memcpy(line + begin, source + first, (end - begin) * sizeof *line);
    if (norm != NULL) normalise(norm, line + begin, end - begin, c, row - v->lead, first);
    for (size_t k = end; k < n; ++k) line[k] = 0.0;
}

/* A place in the picture: outputs of rows y ... y+H-1 and columns x ... x+W-1. */
typedef struct {
    size_t y, x, H, W;
} area;

/* The planes of channel c that the outputs of an area see; what the area above has seen of it, is moved.
 * band [stride][stride][plane]; in [in][H][W] */
static void fill_band(double *band, const double *in, const framing *v, area a, const norming *norm, size_t c)
{
    const size_t stride = v->stride, rows = (a.H - 1) * stride + v->size, n = (a.W - 1) * stride + v->size;
    const size_t known = a.y > 0 && stride == 1 ? v->size - 1 : 0;
    double line[2 * STRIP + 3];
    memmove(band, band + v->band_H * v->pitch, known * v->pitch * sizeof *band);
    for (size_t row = known; row < rows; ++row) {
        double *into = band + row % stride * stride * v->plane + row / stride * v->pitch, *whole = stride == 1 ? into : line;
        fetch_line(whole, plane_of(in, v, c), v, a.y * stride + row, a.x * stride, n, norm, c);
        for (size_t j = 0; stride > 1 && j < stride; ++j)
            for (size_t k = 0; k * stride + j < n; ++k) into[j * v->plane + k] = line[k * stride + j];
    }
}

/* The kernel: sum[r][p] += w[k][r] * x[at[k] + p], k ascending, for OUTPUTS outputs r and PIXELS pixels p, each in an accumulator of
 * its own, all of them in registers.   sum [OUTPUTS] rows ld apart; w [terms][OUTPUTS of OUTPUT_RUN][COPIES] */
TSAR_APART void tile(double *restrict sum, size_t ld, const double *restrict x, const size_t *restrict at, const double *restrict w, size_t terms)
{
    double acc[VECTORS][OUTPUTS][WIDTH];
    for (size_t i = 0; i < VECTORS; ++i)
        for (size_t r = 0; r < OUTPUTS; ++r)
            for (size_t l = 0; l < WIDTH; ++l) acc[i][r][l] = sum[r * ld + i * WIDTH + l];
    for (size_t k = 0; k < terms; ++k, w += OUTPUT_RUN * COPIES) {
        const double *x_k = x + at[k];
        for (size_t i = 0; i < VECTORS; ++i)
            for (size_t r = 0; r < OUTPUTS; ++r)
                for (size_t l = 0; l < WIDTH; ++l) acc[i][r][l] += w[r * COPIES + l % COPIES] * x_k[i * WIDTH + l];
    }
    for (size_t i = 0; i < VECTORS; ++i)
        for (size_t r = 0; r < OUTPUTS; ++r)
            for (size_t l = 0; l < WIDTH; ++l) sum[r * ld + i * WIDTH + l] = acc[i][r][l];
}

/* w [terms][OUTPUT_RUN][COPIES] = columns k ... k+terms-1 of rows r ... r+rows-1 of the weights. */
static void widen(double *w, const tsar_matrix *weight, size_t r, size_t rows, size_t k, size_t terms)
{
    tsar_matrix_part(w, OUTPUT_RUN, weight, r, rows, k, terms);
    for (size_t i = terms * OUTPUT_RUN; COPIES > 1 && i-- > 0;) {
        const double w_i = w[i];
        for (size_t copy = 0; copy < COPIES; ++copy) w[i * COPIES + copy] = w_i;
    }
}

/* Outputs r ... r+rows-1, at most OUTPUT_RUN, of a convolution in an area, see convolve. The terms of a few channels are taken for all of them before
 * the next: their weights are widened once, and their part of the band stays in the cache. (Sums that fill up a tile are left.)
 * band [in][stride][stride][plane]; sum [OUTPUT_RUN][outputs] and w [WEIGHTS] are scratch */
static void convolve_area(const tsar_model *model, double *out, const double *band, const tsar_conv *conv, const framing *v, area a, size_t r, size_t rows,
                          result_mode result, double *sum, double *w)
{
    const size_t in = conv->in * v->taps, terms = v->size * v->size, n = (a.H - 1) * v->pitch + a.W;
    for (size_t i = 0; i < OUTPUT_RUN; ++i)
        for (size_t q = 0; q < v->outputs; ++q) sum[i * v->outputs + q] = i < rows ? conv->bias[r + i] : 0.0;
    for (size_t c = 0; c < in; c += v->channels) {
        const size_t channels = smaller(v->channels, in - c);
        const double *x = band + c * v->stride * v->stride * v->plane;
        widen(w, &conv->weight, r, rows, c * terms, channels * terms);
        for (size_t i = 0; i < rows; i += OUTPUTS)
            for (size_t q = 0; q < n; q += PIXELS) tile(sum + i * v->outputs + q, v->outputs, x + q, v->at, w + i * COPIES, channels * terms);
    }
    for (size_t i = 0; i < rows; ++i)
        for (size_t y = 0; y < a.H; ++y) {
            double *sum_y = sum + i * v->outputs + y * v->pitch;
            double *out_y = out + (((r + i) * v->frames_out + v->frame) * v->out_H + a.y + y) * v->out_W + a.x;
            tsar_round_to(model, sum_y, a.W);
            for (size_t x = 0; x < a.W; ++x) out_y[x] = result == ADD ? out_y[x] + sum_y[x] : sum_y[x];
            if (result == ADD) tsar_round_to(model, out_y, a.W);
        }
}

/* All areas of one frame, each strip of columns from above. Area by area, the threads first share the channels that enter the band, then the outputs. */
static void convolve_frame(network *net, double *out, const double *in, const tsar_conv *conv, const framing *v, const norming *norm, result_mode result)
{
    const size_t sets = (conv->out + OUTPUTS - 1) / OUTPUTS, workers = net->model->threads, channel = v->stride * v->stride * v->plane;
    for (size_t x = 0; x < v->out_W; x += v->band_W)
        for (size_t y = 0; y < v->out_H; y += v->band_H) {
            const area a = { y, x, smaller(v->band_H, v->out_H - y), smaller(v->band_W, v->out_W - x) };
            TSAR_PARALLEL_FOR(workers)
            for (size_t c = 0; c < conv->in * v->taps; ++c) fill_band(net->band + c * channel, in, v, a, norm, c);
            TSAR_PARALLEL_FOR(workers)
            for (size_t worker = 0; worker < workers; ++worker) {
                const size_t first = share(sets, worker, workers) * OUTPUTS, end = smaller(conv->out, share(sets, worker + 1, workers) * OUTPUTS);
                double *sum = net->sums + worker * net->sums_size, *w = net->weights + worker * WEIGHTS;
                for (size_t r = first; r < end; r += OUTPUT_RUN)
                    convolve_area(net->model, out, net->band, conv, v, a, r, smaller(OUTPUT_RUN, end - r), result, sum, w);
            }
        }
}

/* y[r][y][x] = bias[r] + sum over c, i, j, in this order, of weight[r][c][i][j] * framed input[c][y*stride + i][x*stride + j];
 * out = y, or out + y for ADD. The input is normalised unless norm is NULL. A convolution of size 1 may write what it reads.
 * out [conv.out][out_H][out_W], in [conv.in][H][W]; with taps in time out [conv.out][frames/2][H][W], in [conv.in][frames][H][W] */
static void convolve(network *net, double *out, const double *in, const tsar_conv *conv, resampling mode, const norming *norm, result_mode result)
{
    framing v = framing_of(conv, mode, net->H, net->W);
    if (v.taps > 1) v.frames = net->frames, v.frames_out = net->frames / 2;
    for (; v.frame < v.frames_out; ++v.frame) convolve_frame(net, out, in, conv, &v, norm, result);
}

/* x = convolution of x. */
static void conv_layer(network *net, const tsar_conv *conv, resampling mode, const norming *norm)
{
    const framing v = framing_of(conv, mode, net->H, net->W);
    convolve(net, net->branch, net->x, conv, mode, norm, REPLACE);
    swap(&net->x, &net->branch);
    net->C = conv->out;
    net->H = v.out_H;
    net->W = v.out_W;
}

/* ------------------------------------------------------------------------------------------------------------- blocks */

/* x = shortcut(x) + conv2(swish(norm2(conv1(swish(norm1(x)))))); the shortcut is nin_shortcut where the width changes,
 * else the identity (QUIRKS, VQ 3). */
static void resnet_block(network *net, const tsar_resblock *block)
{
    const norming norm1 = group_norm(net, net->x, &block->norm1, NORM_SWISH);
    convolve(net, net->branch, net->x, &block->conv1, PLAIN, &norm1, REPLACE);
    const norming norm2 = group_norm(net, net->branch, &block->norm2, NORM_SWISH);
    if (block->nin_shortcut.out != 0) convolve(net, net->x, net->x, &block->nin_shortcut, PLAIN, NULL, REPLACE);
    convolve(net, net->x, net->branch, &block->conv2, PLAIN, &norm2, ADD);
    net->C = block->conv2.out;
}

/* vectors[t][c] = x[c][first + t].   vectors [T][C], x [C][P] */
static void positions(double *vectors, const double *x, size_t C, size_t P, size_t first, size_t T)
{
    for (size_t c = 0; c < C; ++c)
        for (size_t t = 0; t < T; ++t) vectors[t * C + c] = x[c * P + first + t];
}

/* y[t][r] = sum over k of w[r][k] * x[t][k].   y [T] rows ldy apart, x [T][w.cols] */
static void products(double *y, size_t ldy, const double *x, const tsar_matrix *w, size_t T, double *scratch)
{
    tsar_accumulate(y, ldy, x, w->cols, w, NULL, 0, w->cols, T, 0, tsar_panels(w->rows), scratch);
}

/* x[c][p] = sum over positions j of softmax_j(sum over c' of x[c'][p] key[j][c'] * (1 / sqrt(C))) value[c][j], for T positions p of the
 * queries x.   x [C][P], key [P][C], value [C][P]; scratch: vectors [QUERY_RUN][C], score [QUERY_RUN][P], and tsar_scratch(QUERY_RUN, 1) */
static void attend(const tsar_model *model, double *x, const tsar_matrix *key, const tsar_matrix *value, size_t first, size_t T, double *vectors, double *score,
                   double *scratch)
{
    const size_t C = value->rows, P = value->cols;
    const double scale = 1.0 / sqrt((double)C);

    positions(vectors, x, C, P, first, T);
    products(score, P, vectors, key, T, scratch);
    tsar_round_to(model, score, T * P);
    for (size_t i = 0; i < T * P; ++i) score[i] *= scale;
    tsar_round_to(model, score, T * P);
    tsar_softmax_rows(score, P, P, T);
    tsar_round_to(model, score, T * P);
    products(vectors, C, score, value, T, scratch);
    tsar_round_to(model, vectors, T * C);
    for (size_t c = 0; c < C; ++c)
        for (size_t t = 0; t < T; ++t) x[c * P + first + t] = vectors[t * C + c];
}

/* x = x + proj_out(attention(q, k, v)), each of q, k, v a 1x1 convolution of norm(x): one head over all positions
 * (QUIRKS, VQ 4). Queries go in runs, so memory grows with h*w and not with its square. */
static tsar_status attn_block(network *net, const tsar_attnblock *block)
{
    const size_t C = net->C, P = net->H * net->W, runs = (P + QUERY_RUN - 1) / QUERY_RUN, workers = smaller(net->model->threads, runs);
    tsar_matrix key = { 0, 0, TSAR_F64, NULL }, value = { 0, 0, TSAR_F64, NULL };
    double *vectors = tsar_alloc(tsar_product(workers * QUERY_RUN, C), sizeof *vectors, "the queries of an attention block", net->err);
    double *score = tsar_alloc(tsar_product(workers * QUERY_RUN, P), sizeof *score, "the scores of an attention block", net->err);
    double *scratch = tsar_alloc(tsar_scratch(QUERY_RUN, workers), sizeof *scratch, "the products of an attention block", net->err);
    tsar_status status = vectors && score && scratch ? TSAR_OK : TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_matrix_open(&key, P, C, TSAR_F64, "the keys of an attention block", net->err);
    if (status == TSAR_OK) status = tsar_matrix_open(&value, C, P, TSAR_F64, "the values of an attention block", net->err);
    if (status == TSAR_OK) {
        const norming norm = group_norm(net, net->x, &block->norm, NORM_ONLY);
        convolve(net, net->branch, net->x, &block->k, PLAIN, &norm, REPLACE);
        for (size_t p = 0; p < P; p += QUERY_RUN) {
            positions(vectors, net->branch, C, P, p, smaller(QUERY_RUN, P - p));
            tsar_matrix_set_rows(&key, p, smaller(QUERY_RUN, P - p), vectors);
        }
        convolve(net, net->branch, net->x, &block->v, PLAIN, &norm, REPLACE);
        tsar_matrix_set_rows(&value, 0, C, net->branch);
        convolve(net, net->branch, net->x, &block->q, PLAIN, &norm, REPLACE);
        TSAR_PARALLEL_FOR(workers)
        for (size_t worker = 0; worker < workers; ++worker)
            for (size_t run = share(runs, worker, workers); run < share(runs, worker + 1, workers); ++run)
                attend(net->model, net->branch, &key, &value, run * QUERY_RUN, smaller(QUERY_RUN, P - run * QUERY_RUN), vectors + worker * QUERY_RUN * C,
                       score + worker * QUERY_RUN * P, scratch + worker * tsar_scratch(QUERY_RUN, 1));
        convolve(net, net->x, net->branch, &block->proj_out, PLAIN, NULL, ADD);
    }
    tsar_matrix_close(&key);
    tsar_matrix_close(&value);
    tsar_free(vectors);
    tsar_free(score);
    tsar_free(scratch);
    return status;
}

/* ------------------------------------------------------------------------------------------- the encoder, the decoder */

/* Emits t [C][H][W] as vq.{part}.{name}.{number}; without a number where that is NO_NUMBER. */
enum { NO_NUMBER = -1 };
static tsar_status trace_of(const network *net, double *t, const char *name, int number)
{
    const size_t shape[3] = { net->C, net->H, net->W };
    if (number == NO_NUMBER) return tsar_emit(net->sink, net->err, TSAR_F64, t, 3, shape, "vq.%s.%s", net->part, name);
    return tsar_emit(net->sink, net->err, TSAR_F64, t, 3, shape, "vq.%s.%s.%d", net->part, name, number);
}

static tsar_status trace(const network *net, const char *name, int number) { return trace_of(net, net->x, name, number); }

/* t = t + conv2(silu(bn2(conv1(silu(bn1(t))))))   (SPEC 4, time_res_stack) */
static void time_block(network *net, double *t, const tsar_time_block *block)
{
    const norming norm1 = batch_norm(net, &block->norm1, NORM_SWISH);
    convolve(net, net->branch, t, &block->conv1, PLAIN, &norm1, REPLACE);
    const norming norm2 = batch_norm(net, &block->norm2, NORM_SWISH);
    convolve(net, t, net->branch, &block->conv2, PLAIN, &norm2, ADD);
}

/* t = silu(conv(t))   (SPEC 4, time_conv). The encoder's halves the frames. */
static void time_conv(network *net, double *t, const tsar_conv *conv)
{
    convolve(net, net->branch, t, conv, PLAIN, NULL, REPLACE);
    if (conv->taps > 1) net->frames /= 2;
    const size_t n = conv->out * net->frames * net->H * net->W;
    memcpy(t, net->branch, n * sizeof *t);
    tsar_silu_n(t, n);
    tsar_round_to(net->model, t, n);
}

/* Behind the encoder: one picture is vq_temporal equal frames, of which the convolutions make one; then the residual stack. */
static tsar_status encoder_time(network *net, const tsar_coder *coder)
{
    const size_t P = net->H * net->W, frames = net->model->config.vq_temporal;
    tsar_status status = TSAR_OK;
    if (coder->n_time_conv > 0) {
        net->frames = frames;
        for (size_t c = net->C; c-- > 0;)
            for (size_t f = frames; f-- > 0;) memmove(net->x + (c * frames + f) * P, net->x + c * P, P * sizeof *net->x);
    }
    for (size_t i = 0; i < coder->n_time_conv && status == TSAR_OK; ++i) {
        time_conv(net, net->x, &coder->time_conv[i]);
        const size_t shape[4] = { net->C, net->frames, net->H, net->W };
        status = tsar_emit(net->sink, net->err, TSAR_F64, net->x, 4, shape, "vq.encoder.time_conv.%lu", (unsigned long)i);
    }
    for (size_t j = 0; j < coder->n_time_res && status == TSAR_OK; ++j) {
        time_block(net, net->x, &coder->time_res[j]);
        status = trace(net, "time_res", (int)j);
    }
    return status;
}

/* In front of the decoder: the stream and its guide go through the same residual stack and convolutions (QUIRKS, Emu3 7). */
static tsar_status decoder_time(network *net, const tsar_coder *coder)
{
    tsar_status status = TSAR_OK;
    for (size_t j = 0; j < coder->n_time_res && status == TSAR_OK; ++j) {
        time_block(net, net->x, &coder->time_res[j]);
        time_block(net, net->guide, &coder->time_res[j]);
        status = trace(net, "time_res", (int)j);
        if (status == TSAR_OK) status = trace_of(net, net->guide, "guide_res", (int)j);
    }
    for (size_t i = 0; i < coder->n_time_conv && status == TSAR_OK; ++i) {
        time_conv(net, net->x, &coder->time_conv[i]);
        time_conv(net, net->guide, &coder->time_conv[i]);
        status = trace(net, "time_conv", (int)i);
        if (status == TSAR_OK) status = trace_of(net, net->guide, "guide_conv", (int)i);
    }
    return status;
}

/* x = norm_out, swish, conv_out: how both coders end. */
static tsar_status coder_end(network *net, const tsar_coder *coder)
{
    const norming norm = group_norm(net, net->x, &coder->norm_out, NORM_SWISH);
    conv_layer(net, &coder->conv_out, PLAIN, &norm);
    return trace(net, "conv_out", NO_NUMBER);
}

/* x = conv_in: how both begin. */
static tsar_status coder_start(network *net, const tsar_coder *coder)
{
    conv_layer(net, &coder->conv_in, PLAIN, NULL);
    return trace(net, "conv_in", NO_NUMBER);
}

/* The middle, at the lowest resolution: ResnetBlock, AttnBlock, ResnetBlock. */
static tsar_status coder_middle(network *net, const tsar_coder *coder)
{
    resnet_block(net, &coder->mid0);
    tsar_status status = trace(net, "mid", 0);
    if (status == TSAR_OK) status = attn_block(net, &coder->mid1);
    if (status == TSAR_OK) status = trace(net, "mid", 1);
    if (status == TSAR_OK) {
        resnet_block(net, &coder->mid2);
        status = trace(net, "mid", 2);
    }
    return status;
}

/* conv_blocks.{i}: ResnetBlocks, each followed by an AttnBlock at the lowest resolution, then the change of resolution. */
static tsar_status coder_levels(network *net, const tsar_coder *coder, resampling mode)
{
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < net->model->config.vq_levels && status == TSAR_OK; ++i) {
        const tsar_level *level = &coder->levels[i];
        for (size_t j = 0; j < level->n_res && status == TSAR_OK; ++j) {
            resnet_block(net, &level->res[j]);
            if (j < level->n_attn) status = attn_block(net, &level->attn[j]);
        }
        if (status != TSAR_OK) break;
        if (level->resample.out != 0) conv_layer(net, &level->resample, mode, NULL);
        status = trace(net, "block", (int)i);
    }
    return status;
}

/* The encoder: conv_in, levels from the highest resolution to the lowest, middle, conv_out; Emu3's parts in time. */
static tsar_status encoder(network *net, const tsar_coder *coder)
{
    tsar_status status = coder_start(net, coder);
    if (status == TSAR_OK) status = coder_levels(net, coder, DOWNSAMPLE);
    if (status == TSAR_OK) status = coder_middle(net, coder);
    if (status == TSAR_OK) status = coder_end(net, coder);
    return status == TSAR_OK ? encoder_time(net, coder) : status;
}

/* The decoder: Emu3's parts in time; conv_in, middle, levels from the lowest resolution to the highest, conv_out. */
static tsar_status decoder(network *net, const tsar_coder *coder)
{
    tsar_status status = decoder_time(net, coder);
    if (status == TSAR_OK) status = coder_start(net, coder);
    if (status == TSAR_OK) status = coder_middle(net, coder);
    if (status == TSAR_OK) status = coder_levels(net, coder, UPSAMPLE);
    return status == TSAR_OK ? coder_end(net, coder) : status;
}

/* Makes room for what a convolution of an input of H x W pixels reads and writes. */
static void measure_conv(network *net, const tsar_conv *conv, resampling mode, size_t H, size_t W)
{
    const framing v = framing_of(conv, mode, H, W);
    net->widest = larger(net->widest, larger(conv->in, conv->out));
    net->capacity = larger(net->capacity, tsar_product(tsar_product(H, W), conv->in));
    net->capacity = larger(net->capacity, tsar_product(tsar_product(v.out_H, v.out_W), conv->out));
    net->band_size = larger(net->band_size, band_size(&v, conv->in * v.taps));
    net->sums_size = larger(net->sums_size, OUTPUT_RUN * v.outputs);
}

/* The same for a residual block, or for what is measured like one: no convolution of an attention block is larger than those of the
 * residual block before it. */
static void measure_block(network *net, const tsar_resblock *block, size_t H, size_t W)
{
    measure_conv(net, &block->conv1, PLAIN, H, W);
    measure_conv(net, &block->conv2, PLAIN, H, W);
    if (block->nin_shortcut.out != 0) measure_conv(net, &block->nin_shortcut, PLAIN, H, W);
}

/* The same for everything that a coder computes from H x W pixels on. The middle is as wide as the level beside it. */
static void measure_coder(network *net, const tsar_coder *coder, resampling mode, size_t H, size_t W)
{
    measure_conv(net, &coder->conv_in, PLAIN, H, W);
    for (size_t i = 0; i < net->model->config.vq_levels; ++i) {
        const tsar_level *level = &coder->levels[i];
        for (size_t j = 0; j < level->n_res; ++j) measure_block(net, &level->res[j], H, W);
        if (level->resample.out == 0) continue;
        measure_conv(net, &level->resample, mode, H, W);
        if (mode == UPSAMPLE) H = tsar_product(H, 2), W = tsar_product(W, 2);
        if (mode == DOWNSAMPLE) H /= 2, W /= 2;
    }
    measure_conv(net, &coder->conv_out, PLAIN, H, W);
}

/* The same for the parts in time, at the size of the latent picture. */
static void measure_time(network *net, const tsar_coder *coder)
{
    const size_t volume = tsar_product(net->model->config.vq_temporal, net->model->config.vq_z_channels);
    for (size_t i = 0; i < coder->n_time_conv; ++i) measure_conv(net, &coder->time_conv[i], PLAIN, net->h, net->w);
    for (size_t j = 0; j < coder->n_time_res; ++j) measure_conv(net, &coder->time_res[j].conv1, PLAIN, net->h, net->w);
    net->capacity = larger(net->capacity, tsar_product(tsar_product(net->h, net->w), volume));
}

static void network_close(network *net)
{
    tsar_free(net->x);
    tsar_free(net->branch);
    tsar_free(net->band);
    tsar_free(net->sums);
    tsar_free(net->weights);
    tsar_free(net->mean);
    tsar_free(net->spread);
    tsar_free(net->guide);
    tsar_free(net->factor);
    tsar_free(net->term);
}

/* The tensors of a network that is measured. */
static tsar_status network_allocate(network *net, int guided)
{
    const tsar_config *config = &net->model->config;
    const size_t groups = larger((config->vq_groups + CHAINS - 1) / CHAINS * CHAINS, config->vq_z_channels), threads = net->model->threads;
    const size_t guide = guided ? tsar_product(net->h, net->w) : 0;
    const struct {
        double **home;
        size_t count;
    } tensors[] = {
        { &net->x, net->capacity },
        { &net->branch, net->capacity },
        { &net->band, net->band_size },
        { &net->sums, tsar_product(threads, net->sums_size) },
        { &net->weights, tsar_product(threads, WEIGHTS) },
        { &net->mean, groups },
        { &net->spread, groups },
        { &net->guide, tsar_product(guide, config->vq_embed_dim) },
        { &net->factor, tsar_product(guide, net->widest) },
        { &net->term, tsar_product(guide, net->widest) },
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; ++i) {
        double *tensor = tsar_alloc(tensors[i].count, sizeof *tensor, "the tensors of the image tokenizer", net->err);
        if (tensor == NULL) return TSAR_ROOM;
        *tensors[i].home = tensor;
    }
    return TSAR_OK;
}

/* A network whose tensors hold what `coder` computes from H x W pixels, and what `outside`, quant_conv or post_quant_conv,
 * does at h x w; to be closed also after a failure. */
static tsar_status network_open(network *net, const tsar_model *model, const tsar_coder *coder, const tsar_conv *outside, const char *part, size_t H, size_t W,
                                size_t h, size_t w, const tsar_sink *sink, tsar_error *err)
{
    const int decodes = coder == &model->vq.decoder;
    *net = (network){ .model = model, .sink = sink, .err = err, .part = part, .frames = 1, .h = h, .w = w };
    measure_coder(net, coder, decodes ? UPSAMPLE : DOWNSAMPLE, H, W);
    measure_conv(net, outside, PLAIN, h, w);
    measure_time(net, coder);
    return network_allocate(net, decodes && model->config.vq_temporal > 0);
}

/* ---------------------------------------------------------------------------------------------------------- quantizer */

/* sum of a*b, ascending.   a, b [n] */
static double dot(const double *a, const double *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

/* x = x / max(sqrt(sum of x*x), 1e-12) where the model normalises; else nothing.   x [E] */
static void unit_length(const tsar_config *config, double *x)
{
    if (!config->vq_l2_norm) return;
    double length = sqrt(dot(x, x, config->vq_embed_dim));
    if (length < LENGTH_MIN) length = LENGTH_MIN;
    for (size_t i = 0; i < config->vq_embed_dim; ++i) x[i] = x[i] / length;
}

void tsar_vq_codeword(const tsar_model *model, size_t code, double *out)
{
    tsar_table_row(out, &model->vq.codebook, code);
    unit_length(&model->config, out);
}

/* d = (|z|^2 + |e|^2) - 2 z.e, from the two squares and the product (QUIRKS, VQ 6). */
static double distance(double zz, double ee, double ze) { return (zz + ee) - 2.0 * ze; }

/* For each of n points: which of the words is at the least distance, the first of equals.
 * index [n], points [n][E], words [count][E], squares [count] = |word|^2 */
static tsar_status nearest(int64_t *index, const double *points, size_t n, const tsar_matrix *words, const double *squares, size_t threads, tsar_error *err)
{
    const size_t count = words->rows, E = words->cols, runs = (n + POINTS - 1) / POINTS, workers = smaller(threads, runs);
    double *dots = tsar_alloc(tsar_product(workers * POINTS, count), sizeof *dots, "the distances to the codewords", err);
    double *scratch = tsar_alloc(tsar_scratch(POINTS, workers), sizeof *scratch, "the distances to the codewords", err);
    if (!dots || !scratch) {
        tsar_free(dots);
        tsar_free(scratch);
        return TSAR_ROOM;
    }
    TSAR_PARALLEL_FOR(workers)
    for (size_t worker = 0; worker < workers; ++worker)
        for (size_t run = share(runs, worker, workers); run < share(runs, worker + 1, workers); ++run) {
            const size_t first = run * POINTS, T = smaller(POINTS, n - first);
            double *dots_w = dots + worker * POINTS * count;
            products(dots_w, count, points + first * E, words, T, scratch + worker * tsar_scratch(POINTS, 1));
            for (size_t t = 0; t < T; ++t) {
                const double *z = points + (first + t) * E, *dots_t = dots_w + t * count;
                const double zz = dot(z, z, E);
                size_t best = 0;
                double least = distance(zz, squares[0], dots_t[0]);
                for (size_t r = 1; r < count; ++r) {
                    double d = distance(zz, squares[r], dots_t[r]);
                    if (d < least) {
                        least = d;
                        best = r;
                    }
                }
                index[first + t] = (int64_t)best;
            }
        }
    tsar_free(dots);
    tsar_free(scratch);
    return TSAR_OK;
}

/* squares[r] = |values[r]|^2, and values packed for the kernel.   squares [count], packed and values [count][E] */
static void pack(tsar_matrix *packed, double *squares, const double *values)
{
    tsar_matrix_set_rows(packed, 0, packed->rows, values);
    for (size_t r = 0; r < packed->rows; ++r) squares[r] = dot(values + r * packed->cols, values + r * packed->cols, packed->cols);
}

/* All codewords as the model takes them.   words [K][E], the caller's to tsar_free; NULL without memory */
static double *codewords(const tsar_model *model, tsar_error *err)
{
    const size_t K = model->vq.codebook.rows, E = model->vq.codebook.cols;
    double *words = tsar_alloc(tsar_product(K, E), sizeof *words, "the codewords", err);
    for (size_t code = 0; words && code < K; ++code) tsar_vq_codeword(model, code, words + code * E);
    return words;
}

/* codes[p] = the codeword nearest to latent[:][p].   latent [E][P], codes [P] */
static tsar_status quantize(const tsar_model *model, const double *latent, size_t P, int64_t *codes, tsar_error *err)
{
    const size_t K = model->vq.codebook.rows, E = model->vq.codebook.cols;
    tsar_matrix packed = { 0, 0, TSAR_F64, NULL };
    double *words = codewords(model, err);
    double *squares = words ? tsar_alloc(K, sizeof *squares, "the codewords", err) : NULL;
    double *points = squares ? tsar_alloc(tsar_product(P, E), sizeof *points, "the latent vectors", err) : NULL;
    tsar_status status = points ? tsar_matrix_open(&packed, K, E, TSAR_F64, "the codewords", err) : TSAR_ROOM;
    if (status == TSAR_OK) {
        pack(&packed, squares, words);
        positions(points, latent, E, P, 0, P);
        for (size_t p = 0; p < P; ++p) unit_length(&model->config, points + p * E);
        status = nearest(codes, points, P, &packed, squares, model->threads, err);
    }
    tsar_matrix_close(&packed);
    tsar_free(words);
    tsar_free(squares);
    tsar_free(points);
    return status;
}

/* TSAR_OK if the model has vq.*. */
static tsar_status check_tokenizer(const tsar_model *model, tsar_error *err)
{
    if (model->parts & TSAR_PART_VQ) return TSAR_OK;
    return tsar_fail(err, TSAR_INPUT, "this model has no image tokenizer (keys vq_ch and following); use a model file that holds vq.* tensors");
}

static tsar_status check_code(const tsar_model *model, int64_t code, size_t index, tsar_error *err)
{
    const size_t K = model->vq.codebook.rows;
    if (code >= 0 && (uint64_t)code < K) return TSAR_OK;
    return tsar_fail(err, TSAR_INPUT, "code %lld at index %zu is not in the codebook of %zu; codes go from 0 to %zu", (long long)code, index, K, K - 1);
}

tsar_status tsar_vq_distances(const tsar_model *model, const double *latent, const int64_t *codes, size_t n, double *distances, tsar_error *err)
{
    tsar_status status = check_tokenizer(model, err);
    for (size_t i = 0; i < n && status == TSAR_OK; ++i) status = check_code(model, codes[i], i, err);
    if (status != TSAR_OK) return status;
    const size_t E = model->config.vq_embed_dim;
    double *z = tsar_alloc(tsar_product(E, 2), sizeof *z, "a latent vector", err);
    if (!z) return TSAR_ROOM;
    double *e = z + E;
    memcpy(z, latent, E * sizeof *z);
    unit_length(&model->config, z);
    for (size_t i = 0; i < n; ++i) {
        tsar_vq_codeword(model, (size_t)codes[i], e);
        distances[i] = distance(dot(z, z, E), dot(e, e, E), dot(e, z, E));
    }
    tsar_free(z);
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------- pictures and codes */

/* Bytes to codes: encoder, quant_conv, nearest codewords.   rgb [H][W][3], codes [h][w] */
static tsar_status encode(network *net, const uint8_t *rgb, size_t H, size_t W, int64_t *codes)
{
    const tsar_vq *vq = &net->model->vq;
    const size_t P = H * W;

    /* bytes to [-1, 1] */
    net->C = 3, net->H = H, net->W = W;
    for (size_t c = 0; c < 3; ++c)
        for (size_t p = 0; p < P; ++p) net->x[c * P + p] = rgb[3 * p + c] / 127.5 - 1.0;
    tsar_status status = encoder(net, &vq->encoder);
    if (status != TSAR_OK) return status;
    conv_layer(net, &vq->quant_conv, PLAIN, NULL);
    const size_t latent_shape[3] = { net->C, net->H, net->W }, *codes_shape = latent_shape + 1;
    status = tsar_emit(net->sink, net->err, TSAR_F64, net->x, 3, latent_shape, "vq.latent");
    if (status == TSAR_OK) status = quantize(net->model, net->x, net->H * net->W, codes, net->err);
    if (status == TSAR_OK) status = tsar_emit(net->sink, net->err, TSAR_I64, codes, 2, codes_shape, "vq.codes");
    return status;
}

tsar_status tsar_vq_encode(const tsar_model *model, const uint8_t *rgb, size_t H, size_t W, int64_t *codes, const tsar_sink *sink, tsar_error *err)
{
    const size_t f = model->config.vq_factor;
    network net;
    tsar_status status = check_tokenizer(model, err);
    if (status != TSAR_OK) return status;
    if (H == 0 || W == 0 || H % f != 0 || W % f != 0)
        return tsar_fail(err, TSAR_INPUT, "a picture of %zu x %zu pixels (height x width) cannot be encoded: both must be multiples of %zu; crop or resize it",
                         H, W, f);
    status = network_open(&net, model, &model->vq.encoder, &model->vq.quant_conv, "encoder", H, W, H / f, W / f, sink, err);
    if (status == TSAR_OK) status = encode(&net, rgb, H, W, codes);
    network_close(&net);
    return status;
}

/* floor(127.5 x + 128), clamped to 0 ... 255 (QUIRKS, VQ 8); vq_pixels=down: (x + 1) / 2 * 255 of x clamped to -1 ... 1, truncated
 * (QUIRKS, Lumina, VQGAN 6). 0 for NaN. */
static uint8_t to_byte(const tsar_config *config, double x)
{
    const double clamped = x >= 1.0 ? 1.0 : x > -1.0 ? x : -1.0;
    const double level = config->vq_pixels_down ? floor((clamped + 1.0) / 2.0 * 255.0) : floor(127.5 * x + 128.0);
    return (uint8_t)(level >= 255.0 ? 255 : level > 0.0 ? (int)level : 0);
}

/* Codes to bytes: codewords, post_quant_conv, decoder.   codes [h][w]; rgb [h*factor][w*factor][3] or NULL */
static tsar_status decode(network *net, const int64_t *codes, size_t h, size_t w, uint8_t *rgb)
{
    const tsar_vq *vq = &net->model->vq;
    const size_t E = vq->codebook.cols;

    net->C = E, net->H = h, net->W = w;
    for (size_t p = 0; p < h * w; ++p) {
        double *word = net->branch; /* [E] */
        tsar_vq_codeword(net->model, (size_t)codes[p], word);
        for (size_t e = 0; e < E; ++e) net->x[e * h * w + p] = word[e];
    }
    const size_t shape[3] = { E, h, w };
    tsar_round_to(net->model, net->x, E * h * w);
    tsar_status status = tsar_emit(net->sink, net->err, TSAR_F64, net->x, 3, shape, "vq.quantized");
    if (status != TSAR_OK) return status;
    if (net->model->config.vq_temporal) memcpy(net->guide, net->x, E * h * w * sizeof *net->x);
    conv_layer(net, &vq->post_quant_conv, PLAIN, NULL);
    status = trace(net, "post_quant", NO_NUMBER);
    if (status == TSAR_OK) status = decoder(net, &vq->decoder);
    if (status != TSAR_OK || rgb == NULL) return status;
    const size_t P = net->H * net->W;
    for (size_t c = 0; c < 3; ++c)
        for (size_t p = 0; p < P; ++p) rgb[3 * p + c] = to_byte(&net->model->config, net->x[c * P + p]);
    return TSAR_OK;
}

tsar_status tsar_vq_decode(const tsar_model *model, const int64_t *codes, size_t h, size_t w, uint8_t *rgb, const tsar_sink *sink, tsar_error *err)
{
    network net;
    tsar_status status = check_tokenizer(model, err);
    if (status != TSAR_OK) return status;
    if (h == 0 || w == 0) return tsar_fail(err, TSAR_INPUT, "%zu x %zu codes make no picture; give at least one row and one column", h, w);
    if (tsar_product(tsar_product(h, w), sizeof *codes) == SIZE_MAX)
        return tsar_fail(err, TSAR_INPUT, "%zu x %zu codes are more than this machine can address; decode a smaller picture", h, w);
    for (size_t p = 0; p < h * w && status == TSAR_OK; ++p) status = check_code(model, codes[p], p, err);
    if (status == TSAR_OK) status = tsar_memory_check(tsar_decoder_bytes(&model->config, h, w), "the tensors of the decoder", "a smaller picture", err);
    if (status != TSAR_OK) return status;
    status = network_open(&net, model, &model->vq.decoder, &model->vq.post_quant_conv, "decoder", h, w, h, w, sink, err);
    if (status == TSAR_OK) status = decode(&net, codes, h, w, rgb);
    network_close(&net);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------ k-means */

/* Clusters of codewords (SPEC 6, CTF; arXiv 2503.16194). */
typedef struct {
    const double *points; /* [K][E] */
    double *centres;      /* [k][E] */
    double *squares;      /* [k]: |centre|^2 */
    double *weight;       /* [K]: squared distance to the nearest, or the own, centre */
    size_t *members;      /* [k]: points of each cluster */
    int64_t *label;       /* [K]: the cluster of each point */
    tsar_matrix packed;   /* centres, as the kernel takes them */
    size_t K, k, E, threads;
} clusters;

/* sum over e of (a[e] - b[e])^2, ascending: exactly 0 for equal points, and for no others short of underflow. */
static double gap(const double *a, const double *b, size_t E)
{
    double sum = 0.0;
    for (size_t e = 0; e < E; ++e) {
        double d = a[e] - b[e];
        sum += d * d;
    }
    return sum;
}

/* k-means++ (Arthur and Vassilvitskii 2007): centre j is a point drawn with probability proportional to D^2, its squared
 * distance to the nearest centre chosen before; centre 0 is any point (all weights 1). The draw takes the first point whose
 * running sum exceeds u * total, u = tsar_uniform(seed, image 0, row j, column 0, slot 0, TSAR_KMEANS, attempt 0). */
static tsar_status start_centres(clusters *km, uint64_t seed, tsar_error *err)
{
    for (size_t i = 0; i < km->K; ++i) km->weight[i] = 1.0;
    for (size_t j = 0; j < km->k; ++j) {
        double total = 0.0, sum = 0.0;
        for (size_t i = 0; i < km->K; ++i) total += km->weight[i];
        if (total == 0.0)
            return tsar_fail(err, TSAR_INPUT, "%zu clusters were asked for, but the codebook has only %zu different codewords; ask for at most %zu", km->k, j,
                             j);
        const double limit = tsar_uniform(seed, 0, j, 0, 0, TSAR_KMEANS, 0) * total;
        size_t chosen = 0;
        for (size_t i = 0; i < km->K && !(sum > limit); ++i)
            if (km->weight[i] > 0.0) {
                sum += km->weight[i];
                chosen = i;
            }
        double *centre = km->centres + j * km->E;
        memcpy(centre, km->points + chosen * km->E, km->E * sizeof *centre);
        for (size_t i = 0; i < km->K; ++i) {
            double d = gap(km->points + i * km->E, centre, km->E);
            if (j == 0 || d < km->weight[i]) km->weight[i] = d;
        }
    }
    return TSAR_OK;
}

/* Each cluster without a point takes the point farthest from its centre, the first of equals, from a cluster that keeps
 * another one. Since K >= k there always is one, so that no cluster is empty afterwards. */
static void fill_empty(clusters *km)
{
    for (size_t j = 0; j < km->k; ++j) km->members[j] = 0;
    for (size_t i = 0; i < km->K; ++i) {
        km->members[km->label[i]] += 1;
        km->weight[i] = gap(km->points + i * km->E, km->centres + (size_t)km->label[i] * km->E, km->E);
    }
    for (size_t j = 0; j < km->k; ++j) {
        size_t farthest = km->K;
        if (km->members[j] > 0) continue;
        for (size_t i = 0; i < km->K; ++i)
            if (km->members[km->label[i]] > 1 && (farthest == km->K || km->weight[i] > km->weight[farthest])) farthest = i;
        km->members[km->label[farthest]] -= 1;
        km->members[j] = 1;
        km->label[farthest] = (int64_t)j;
    }
}

/* centre = (sum of its points, ascending) / their number. A mean of unit vectors is not made a unit vector again (ours). */
static void move_centres(clusters *km)
{
    memset(km->centres, 0, km->k * km->E * sizeof *km->centres);
    for (size_t i = 0; i < km->K; ++i)
        for (size_t e = 0; e < km->E; ++e) km->centres[(size_t)km->label[i] * km->E + e] += km->points[i * km->E + e];
    for (size_t j = 0; j < km->k; ++j)
        for (size_t e = 0; e < km->E; ++e) km->centres[j * km->E + e] /= (double)km->members[j];
}

/* Lloyd's iterations; then labels in the order in which the clusters first appear among the codewords. previous [K] scratch */
static tsar_status iterate(clusters *km, int64_t *previous, tsar_error *err)
{
    for (int round = 0; round < 100; ++round) {
        pack(&km->packed, km->squares, km->centres);
        tsar_status status = nearest(km->label, km->points, km->K, &km->packed, km->squares, km->threads, err);
        if (status != TSAR_OK) return status;
        fill_empty(km);
        if (round > 0 && memcmp(km->label, previous, km->K * sizeof *previous) == 0) break;
        memcpy(previous, km->label, km->K * sizeof *previous);
        move_centres(km);
    }
    int64_t *renamed = previous, next = 0; /* [k], k <= K */
    for (size_t j = 0; j < km->k; ++j) renamed[j] = -1;
    for (size_t i = 0; i < km->K; ++i) {
        if (renamed[km->label[i]] < 0) renamed[km->label[i]] = next++;
        km->label[i] = renamed[km->label[i]];
    }
    return TSAR_OK;
}

tsar_status tsar_cluster(const tsar_model *model, size_t k, uint64_t seed, int64_t *cluster_of, tsar_error *err)
{
    static const char *const what = "the clusters of codewords";
    tsar_status status = check_tokenizer(model, err);
    if (status != TSAR_OK) return status;
    clusters km = { .K = model->vq.codebook.rows, .k = k, .E = model->vq.codebook.cols, .threads = model->threads, .label = cluster_of };
    if (k == 0 || k > km.K) return tsar_fail(err, TSAR_USAGE, "%zu clusters of %zu codewords cannot be made; ask for 1 to %zu", k, km.K, km.K);
    double *points = codewords(model, err);
    int64_t *previous = points ? tsar_alloc(km.K, sizeof *previous, what, err) : NULL;
    km.points = points;
    km.centres = previous ? tsar_alloc(tsar_product(k, km.E), sizeof *km.centres, what, err) : NULL;
    km.squares = km.centres ? tsar_alloc(k, sizeof *km.squares, what, err) : NULL;
    km.weight = km.squares ? tsar_alloc(km.K, sizeof *km.weight, what, err) : NULL;
    km.members = km.weight ? tsar_alloc(k, sizeof *km.members, what, err) : NULL;
    status = km.members ? tsar_matrix_open(&km.packed, k, km.E, TSAR_F64, what, err) : TSAR_ROOM;
    if (status == TSAR_OK) status = start_centres(&km, seed, err);
    if (status == TSAR_OK) status = iterate(&km, previous, err);
    tsar_matrix_close(&km.packed);
    tsar_free(points);
    tsar_free(previous);
    tsar_free(km.centres);
    tsar_free(km.squares);
    tsar_free(km.weight);
    tsar_free(km.members);
    return status;
}
