/* test_vq.c - the image tokenizer against plain loops, bit for bit; bytes, codes, errors; k-means.
 *
 * The loops below compute SPEC 4 and QUIRKS's "VQ tokenizer" one output at a time, without the kernel, from the weights of small synthetic
 * models with odd sizes. Every traced tensor must have the same bits. */
#include "../tsar.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const model_path = "test_vq.tmp.safetensors";

typedef struct {
    size_t C, H, W;
    double *x;
} tensor; /* [C][H][W] */

/* What the library traced, and every array of the loops: released together. */
enum { MOST_CODES = 4096 };
static struct {
    char name[64];
    size_t count;
    void *data;
} traced[64];
static size_t n_traced, n_owned;
static void *owned[MOST_CODES];

static void *keep(size_t bytes)
{
    void *memory = n_owned < MOST_CODES ? calloc(bytes ? bytes : 1, 1) : NULL;
    if (memory == NULL) {
        printf("FAILED: out of memory\n");
        exit(1);
    }
    return owned[n_owned++] = memory;
}

static void release(void)
{
    while (n_owned > 0) free(owned[--n_owned]);
    n_traced = 0;
}

static tsar_status put(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    size_t count = 1;
    (void)context;
    (void)err;
    (void)dtype;
    for (size_t i = 0; i < rank; ++i) count *= shape[i];
    snprintf(traced[n_traced].name, sizeof traced[n_traced].name, "%s", name);
    traced[n_traced].count = count;
    traced[n_traced].data = keep(count * 8);
    memcpy(traced[n_traced++].data, data, count * 8);
    return TSAR_OK;
}

static const tsar_sink sink = { .put = put };

/* The tensor traced under this name has these bits. */
static void expect(const char *name, const void *data, size_t count)
{
    for (size_t i = 0; i < n_traced; ++i)
        if (strcmp(traced[i].name, name) == 0) {
            CHECK(traced[i].count == count && memcmp(traced[i].data, data, count * 8) == 0, "%s differs from the loops", name);
            return;
        }
    CHECK(0, "%s was not traced", name);
}

static void expect_tensor(const char *part, const char *name, tensor t)
{
    char full[64];
    snprintf(full, sizeof full, "vq.%s%s", part, name);
    expect(full, t.x, t.C * t.H * t.W);
}

/* ------------------------------------------------------------------------------------------------------- plain loops */

static tensor make(size_t C, size_t H, size_t W)
{
    tensor t = { C, H, W, keep(C * H * W * sizeof(double)) };
    return t;
}

/* The weights of a packed matrix, [rows][cols]: its products with unit vectors, which are exact. */
static double *weights(const tsar_matrix *w)
{
    double *unit = keep(w->cols * sizeof *unit), *column = keep(w->rows * sizeof *column), *values = keep(w->rows * w->cols * sizeof *values);
    for (size_t k = 0; k < w->cols; ++k) {
        unit[k] = 1;
        tsar_matmul(column, unit, w, NULL, 1, 1, NULL);
        unit[k] = 0;
        for (size_t r = 0; r < w->rows; ++r) values[r * w->cols + k] = column[r];
    }
    return values;
}

static double pixel(tensor in, size_t c, long y, long x)
{
    if (y < 0 || x < 0 || y >= (long)in.H || x >= (long)in.W) return 0.0;
    return in.x[(c * in.H + (size_t)y) * in.W + (size_t)x];
}

static tensor conv(tensor in, const tsar_conv *w, long stride, long pad)
{
    const size_t s = w->size;
    const double *weight = weights(&w->weight);
    tensor out = make(w->out, in.H / (size_t)stride, in.W / (size_t)stride);
    for (size_t r = 0; r < out.C; ++r)
        for (size_t y = 0; y < out.H; ++y)
            for (size_t x = 0; x < out.W; ++x) {
                double sum = w->bias[r];
                for (size_t c = 0; c < in.C; ++c)
                    for (size_t i = 0; i < s; ++i)
                        for (size_t j = 0; j < s; ++j)
                            sum += weight[((r * in.C + c) * s + i) * s + j] *
                                   pixel(in, c, (long)y * stride + (long)i - pad, (long)x * stride + (long)j - pad);
                out.x[(r * out.H + y) * out.W + x] = sum;
            }
    return out;
}

static tensor conv3(tensor in, const tsar_conv *w) { return conv(in, w, 1, 1); }

static tensor conv1(tensor in, const tsar_conv *w) { return conv(in, w, 1, 0); }

static tensor doubled(tensor in)
{
    tensor out = make(in.C, 2 * in.H, 2 * in.W);
    for (size_t c = 0; c < in.C; ++c)
        for (size_t y = 0; y < out.H; ++y)
            for (size_t x = 0; x < out.W; ++x) out.x[(c * out.H + y) * out.W + x] = in.x[(c * in.H + y / 2) * in.W + x / 2];
    return out;
}

static tensor norm(tensor in, const tsar_norm *w, size_t groups, int swish)
{
    const size_t P = in.H * in.W, n = in.C / groups * P;
    tensor out = make(in.C, in.H, in.W);
    for (size_t g = 0; g < groups; ++g) {
        double sum = 0, mean, spread;
        for (size_t i = 0; i < n; ++i) sum += in.x[g * n + i];
        mean = sum / (double)n;
        sum = 0;
        for (size_t i = 0; i < n; ++i) sum += (in.x[g * n + i] - mean) * (in.x[g * n + i] - mean);
        spread = sqrt(sum / (double)n + 1e-6);
        for (size_t i = g * n; i < (g + 1) * n; ++i) {
            double y = (in.x[i] - mean) / spread * w->gain[i / P] + w->bias[i / P];
            out.x[i] = swish ? y / (1.0 + tsar_exp(-y)) : y;
        }
    }
    return out;
}

static tensor plus(tensor a, tensor b)
{
    tensor out = make(a.C, a.H, a.W);
    for (size_t i = 0; i < a.C * a.H * a.W; ++i) out.x[i] = a.x[i] + b.x[i];
    return out;
}

static tensor resnet(tensor x, const tsar_resblock *b, size_t groups)
{
    tensor h = conv3(norm(x, &b->norm1, groups, 1), &b->conv1);
    h = conv3(norm(h, &b->norm2, groups, 1), &b->conv2);
    return plus(x.C == h.C ? x : conv1(x, &b->nin_shortcut), h);
}

static tensor attention(tensor x, const tsar_attnblock *b, size_t groups)
{
    const size_t P = x.H * x.W, C = x.C;
    tensor n = norm(x, &b->norm, groups, 0), q = conv1(n, &b->q), k = conv1(n, &b->k), v = conv1(n, &b->v), out = make(C, x.H, x.W);
    double *p = keep(P * sizeof *p);
    for (size_t i = 0; i < P; ++i) {
        double top = -INFINITY, total = 0;
        for (size_t j = 0; j < P; ++j) {
            double sum = 0;
            for (size_t c = 0; c < C; ++c) sum += q.x[c * P + i] * k.x[c * P + j];
            p[j] = sum * (1.0 / sqrt((double)C));
            top = p[j] > top ? p[j] : top;
        }
        for (size_t j = 0; j < P; ++j) {
            p[j] = tsar_exp(p[j] - top);
            total += p[j];
        }
        for (size_t c = 0; c < C; ++c) {
            double sum = 0;
            for (size_t j = 0; j < P; ++j) sum += p[j] / total * v.x[c * P + j];
            out.x[c * P + i] = sum;
        }
    }
    return plus(x, conv1(out, &b->proj_out));
}

static tensor middle(tensor x, const tsar_coder *w, size_t groups, const char *part)
{
    expect_tensor(part, "mid.0", x = resnet(x, &w->mid0, groups));
    expect_tensor(part, "mid.1", x = attention(x, &w->mid1, groups));
    expect_tensor(part, "mid.2", x = resnet(x, &w->mid2, groups));
    return x;
}

static tensor level(tensor x, const tsar_model *model, size_t i, int up)
{
    const tsar_level *w = (up ? model->vq.decoder : model->vq.encoder).levels + i;
    const size_t levels = model->config.vq_levels;
    const size_t res = model->config.vq_res_blocks + (up ? 1 : 0);
    char name[32];
    for (size_t j = 0; j < res; ++j) {
        x = resnet(x, &w->res[j], model->config.vq_groups);
        if (up ? i == 0 : i == levels - 1) x = attention(x, &w->attn[j], model->config.vq_groups);
    }
    if (i < levels - 1) x = up ? conv3(doubled(x), &w->resample) : conv(x, &w->resample, 2, 0);
    snprintf(name, sizeof name, "block.%u", (unsigned)i);
    expect_tensor(up ? "decoder." : "encoder.", name, x);
    return x;
}

static void codeword(const tsar_model *model, const double *from, double *out)
{
    const size_t E = model->config.vq_embed_dim;
    double sum = 0, length;
    for (size_t e = 0; e < E; ++e) sum += from[e] * from[e];
    length = sqrt(sum);
    for (size_t e = 0; e < E; ++e) out[e] = model->config.vq_l2_norm ? from[e] / (length > 1e-12 ? length : 1e-12) : from[e];
}

/* The loops' codes of a picture, every tensor on the way compared. */
static void check_encoder(const tsar_model *model, const uint8_t *rgb, size_t H, size_t W, const int64_t *codes)
{
    const size_t groups = model->config.vq_groups, E = model->config.vq_embed_dim, K = model->config.codebook_size;
    const tsar_coder *w = &model->vq.encoder;
    tensor x = make(3, H, W);
    double *z = keep(E * sizeof *z), *e = keep(E * sizeof *e), *raw = keep(E * sizeof *raw), *d = keep(K * sizeof *d);
    for (size_t i = 0; i < 3 * H * W; ++i) x.x[i % 3 * H * W + i / 3] = rgb[i] / 127.5 - 1;
    expect_tensor("encoder.", "conv_in", x = conv3(x, &w->conv_in));
    for (size_t i = 0; i < model->config.vq_levels; ++i) x = level(x, model, i, 0);
    x = middle(x, w, groups, "encoder.");
    expect_tensor("encoder.", "conv_out", x = conv3(norm(x, &w->norm_out, groups, 1), &w->conv_out));
    expect_tensor("", "latent", x = conv1(x, &model->vq.quant_conv));
    expect("vq.codes", codes, x.H * x.W);
    for (size_t p = 0; p < x.H * x.W; ++p) {
        size_t best = 0;
        int64_t *all = keep(K * sizeof *all);
        for (size_t i = 0; i < E; ++i) raw[i] = x.x[i * x.H * x.W + p];
        codeword(model, raw, z);
        for (size_t k = 0; k < K; ++k) {
            double zz = 0, ee = 0, ze = 0;
            all[k] = (int64_t)k;
            tsar_table_row(e, &model->vq.codebook, k);
            codeword(model, e, e);
            for (size_t i = 0; i < E; ++i) {
                zz += z[i] * z[i];
                ee += e[i] * e[i];
                ze += e[i] * z[i];
            }
            d[k] = zz + ee - 2 * ze;
            if (d[k] < d[best]) best = k;
        }
        CHECK(codes[p] == (int64_t)best, "position %d has code %d, the loops find %d", (int)p, (int)codes[p], (int)best);
        double *theirs = keep(K * sizeof *theirs);
        CHECK(tsar_vq_distances(model, raw, all, K, theirs, NULL) == TSAR_OK && memcmp(theirs, d, K * sizeof *d) == 0, "distances differ");
    }
}

static void check_decoder(const tsar_model *model, const int64_t *codes, size_t h, size_t w, const uint8_t *rgb)
{
    const size_t groups = model->config.vq_groups, E = model->config.vq_embed_dim;
    const tsar_coder *c = &model->vq.decoder;
    tensor x = make(E, h, w);
    double *e = keep(E * sizeof *e), *library = keep(E * sizeof *e);
    for (size_t p = 0; p < h * w; ++p) {
        tsar_table_row(e, &model->vq.codebook, (size_t)codes[p]);
        codeword(model, e, e);
        tsar_vq_codeword(model, (size_t)codes[p], library);
        CHECK(memcmp(e, library, E * sizeof *e) == 0, "codeword %d differs", (int)codes[p]);
        for (size_t i = 0; i < E; ++i) x.x[i * h * w + p] = e[i];
    }
    expect_tensor("", "quantized", x);
    expect_tensor("decoder.", "post_quant", x = conv1(x, &model->vq.post_quant_conv));
    expect_tensor("decoder.", "conv_in", x = conv3(x, &c->conv_in));
    x = middle(x, c, groups, "decoder.");
    for (size_t i = 0; i < model->config.vq_levels; ++i) x = level(x, model, i, 1);
    expect_tensor("decoder.", "conv_out", x = conv3(norm(x, &c->norm_out, groups, 1), &c->conv_out));
    size_t wrong = 0, P = x.H * x.W;
    for (size_t i = 0; i < 3 * P; ++i) {
        double v = floor(127.5 * x.x[i % 3 * P + i / 3] + 128);
        wrong += rgb[i] != (v < 0 ? 0 : v > 255 ? 255 : (int)v);
    }
    CHECK(wrong == 0, "%d of %d bytes differ", (int)wrong, (int)(3 * P));
}

/* ------------------------------------------------------------------------------------------------------------- models */

static tsar_model *open_model(const char *ch, const char *ch_mult, const char *res, const char *z, const char *embed, const char *l2,
                              const char *groups, const char *K, tsar_dtype dtype)
{
    static const char *const keys[] = { "vq_ch",      "vq_ch_mult", "vq_res_blocks", "vq_z_channels", "vq_embed_dim",
                                        "vq_l2_norm", "vq_groups",  "codebook_size", "seed" };
    const char *values[] = { ch, ch_mult, res, z, embed, l2, groups, K, "11" };
    tsar_error err = { "" };
    tsar_model *model = NULL;
    if (tsar_synth(model_path, keys, values, sizeof keys / sizeof *keys, dtype, &err) || tsar_model_open(&model, model_path, TSAR_PART_ALL, 1, &err)) {
        CHECK(0, "no model: %s", err.text);
        exit(test_end());
    }
    remove(model_path);
    return model;
}

/* Encodes and decodes an h x w latent picture with 1, 2 and 3 threads, all against the loops. */
static void round_trip(tsar_model *model, size_t h, size_t w)
{
    const size_t f = model->config.vq_factor, H = h * f, W = w * f;
    for (model->threads = 1; model->threads <= 3; ++model->threads) {
        uint8_t *rgb = keep(3 * H * W), *back = keep(3 * H * W);
        int64_t *codes = keep(h * w * sizeof *codes);
        tsar_error err = { "" };
        for (size_t i = 0; i < 3 * H * W; ++i) rgb[i] = (uint8_t)(tsar_mix(i + 1000 * h) >> 56);
        CHECK(tsar_vq_encode(model, rgb, H, W, codes, &sink, &err) == TSAR_OK, "encode: %s", err.text);
        check_encoder(model, rgb, H, W, codes);
        CHECK(tsar_vq_decode(model, codes, h, w, back, &sink, &err) == TSAR_OK, "decode: %s", err.text);
        check_decoder(model, codes, h, w, back);
        release();
    }
    model->threads = 1;
}

static void test_loops(void)
{
    static const struct {
        const char *ch, *ch_mult, *res, *z, *embed, *l2, *groups, *K;
        tsar_dtype dtype;
        size_t h, w;
    } cases[] = {
        { "8", "1,2", "1", "6", "3", "1", "4", "20", TSAR_F32, 3, 5 },   /* nin_shortcut, down, up; not square */
        { "40", "1,2", "1", "7", "5", "0", "5", "33", TSAR_BF16, 1, 3 }, /* more channels than are summed at a time, one row */
        { "17", "1", "2", "4", "2", "1", "17", "9", TSAR_F16, 9, 13 },   /* no change of resolution; one channel a group */
        { "6", "2,1,3", "1", "3", "4", "1", "3", "50", TSAR_F32, 2, 1 }, /* three levels, one column */
        { "9", "1", "1", "300", "2", "1", "9", "2", TSAR_F32, 1, 1 },    /* one pixel; more channels than a 1x1 sums at a time */
        { "10", "1,1", "1", "5", "1", "0", "10", "1", TSAR_F32, 7, 11 }, /* one codeword; two batches of groups */
        { "4", "3,1", "1", "4", "8", "1", "1", "18", TSAR_F32, 5, 14 },  /* one group; attention over 70 positions */
        { "4", "1", "1", "4", "1", "1", "2", "20", TSAR_F32, 3, 4 },     /* every codeword is 1 or -1: ties go to the lower index */
        { "3", "1", "1", "2", "2", "1", "3", "5", TSAR_F32, 17, 23 }, /* attention over more positions than share a pass, and than terms taken at a time */
        { "2", "1,1", "1", "2", "2", "1", "1", "4", TSAR_F32, 5, 275 }, /* wider than a strip and higher than a band, the downsampled picture too */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        tsar_model *model = open_model(cases[i].ch, cases[i].ch_mult, cases[i].res, cases[i].z, cases[i].embed, cases[i].l2, cases[i].groups,
                                       cases[i].K, cases[i].dtype);
        round_trip(model, cases[i].h, cases[i].w);
        tsar_model_close(model);
    }
}

/* ------------------------------------------------------------------------------------------------------------- errors */

static void refused(tsar_status status, tsar_status expected, const tsar_error *err, const char *word)
{
    CHECK(status == expected && strstr(err->text, word) != NULL, "status %d, \"%s\" does not mention %s", (int)status, err->text, word);
}

static void test_errors(void)
{
    tsar_model *model = open_model("4", "1,1,1", "1", "4", "2", "1", "2", "7", TSAR_F32);
    tsar_error err = { "" };
    uint8_t rgb[3 * 8 * 8] = { 0 };
    int64_t codes[4] = { 0, 6, 3, 2 }, labels[7];
    double latent[2] = { 1, 2 }, d[1];

    refused(tsar_vq_encode(model, rgb, 8, 6, codes, NULL, &err), TSAR_INPUT, &err, "8 x 6");
    refused(tsar_vq_encode(model, rgb, 0, 8, codes, NULL, &err), TSAR_INPUT, &err, "0 x 8");
    refused(tsar_vq_decode(model, codes, 0, 1, rgb, NULL, &err), TSAR_INPUT, &err, "0 x 1");
    refused(tsar_vq_decode(model, codes, SIZE_MAX / 2, 3, rgb, NULL, &err), TSAR_INPUT, &err, "address");
    codes[2] = 7;
    refused(tsar_vq_decode(model, codes, 2, 2, rgb, NULL, &err), TSAR_INPUT, &err, "code 7 at index 2");
    codes[2] = -1;
    refused(tsar_vq_decode(model, codes, 2, 2, rgb, NULL, &err), TSAR_INPUT, &err, "code -1 at index 2");
    refused(tsar_vq_distances(model, latent, codes + 2, 1, d, &err), TSAR_INPUT, &err, "code -1");
    refused(tsar_cluster(model, 0, 1, labels, &err), TSAR_USAGE, &err, "1 to 7");
    refused(tsar_cluster(model, 8, 1, labels, &err), TSAR_USAGE, &err, "1 to 7");
    model->parts &= ~(unsigned)TSAR_PART_VQ;
    refused(tsar_vq_encode(model, rgb, 8, 8, codes, NULL, &err), TSAR_INPUT, &err, "no image tokenizer");
    refused(tsar_vq_decode(model, codes, 1, 1, rgb, NULL, &err), TSAR_INPUT, &err, "no image tokenizer");
    refused(tsar_cluster(model, 2, 1, labels, &err), TSAR_INPUT, &err, "no image tokenizer");
    model->parts |= TSAR_PART_VQ;
    tsar_model_close(model);
}

/* NaN and infinity in the last bias become bytes, and nothing traps. */
static void test_bytes(void)
{
    const double values[] = { NAN, INFINITY, -INFINITY, 1e300, -1e300 };
    static const int bytes[] = { 0, 255, 0, 255, 0 };
    tsar_model *model = open_model("4", "1", "1", "4", "2", "1", "2", "7", TSAR_F32);
    int64_t code = 3;
    uint8_t rgb[3];
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; ++i) {
        model->vq.decoder.conv_out.bias[1] = values[i];
        CHECK(tsar_vq_decode(model, &code, 1, 1, rgb, NULL, NULL) == TSAR_OK && rgb[1] == bytes[i], "%g becomes %d", values[i], rgb[1]);
    }
    tsar_model_close(model);
}

/* A sink's failure ends the run. */
static tsar_status full(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    int *left = context;
    (void)dtype, (void)rank, (void)shape, (void)data;
    return (*left)-- > 0 ? TSAR_OK : tsar_fail(err, TSAR_ROOM, "%s: no room", name);
}

static void test_sink(void)
{
    tsar_model *model = open_model("4", "1,1", "1", "4", "2", "1", "2", "7", TSAR_F32);
    uint8_t rgb[3 * 2 * 2] = { 1, 2, 3 };
    int64_t code = 5;
    tsar_error err = { "" };
    for (int n = 0; n <= 9; ++n) {
        int left = n;
        const tsar_sink failing = { .put = full, .context = &left };
        CHECK(tsar_vq_encode(model, rgb, 2, 2, &code, &failing, &err) == (n < 9 ? TSAR_ROOM : TSAR_OK), "encode with %d traced", n);
    }
    for (int n = 0; n <= 9; ++n) {
        int left = n;
        const tsar_sink failing = { .put = full, .context = &left };
        CHECK(tsar_vq_decode(model, &code, 1, 1, NULL, &failing, &err) == (n < 9 ? TSAR_ROOM : TSAR_OK), "decode with %d traced", n);
    }
    tsar_model_close(model);
}

/* ------------------------------------------------------------------------------------------------------------ k-means */

/* labels number clusters as they first appear, none is empty, and no codeword is nearer to another mean than to its own. */
static void check_clusters(const tsar_model *model, const int64_t *labels, size_t k)
{
    const size_t K = model->config.codebook_size, E = model->config.vq_embed_dim;
    double *mean = keep(k * E * sizeof *mean), *word = keep(E * sizeof *word), *n = keep(k * sizeof *n);
    int64_t next = 0;
    size_t misplaced = 0;
    for (size_t i = 0; i < K; ++i) {
        if (!CHECK(labels[i] >= 0 && labels[i] <= next && labels[i] < (int64_t)k, "label %d of codeword %d", (int)labels[i], (int)i)) return;
        next += labels[i] == next;
        tsar_vq_codeword(model, i, word);
        n[labels[i]] += 1;
        for (size_t e = 0; e < E; ++e) mean[(size_t)labels[i] * E + e] += word[e];
    }
    CHECK(next == (int64_t)k, "%d of %d clusters have members", (int)next, (int)k);
    for (size_t j = 0; j < k * E; ++j) mean[j] /= n[j / E];
    for (size_t i = 0; i < K; ++i) {
        double own = 0, least = INFINITY;
        tsar_vq_codeword(model, i, word);
        for (size_t j = 0; j < k; ++j) {
            double zz = 0, ee = 0, ze = 0, d;
            for (size_t e = 0; e < E; ++e) {
                zz += word[e] * word[e];
                ee += mean[j * E + e] * mean[j * E + e];
                ze += word[e] * mean[j * E + e];
            }
            d = zz + ee - 2 * ze;
            own = (int64_t)j == labels[i] ? d : own;
            least = d < least ? d : least;
        }
        misplaced += own > least;
    }
    CHECK(misplaced == 0, "%d codewords are nearer to another cluster", (int)misplaced);
}

static void test_cluster(void)
{
    static const size_t counts[] = { 1, 2, 7, 60, 123 };
    tsar_model *model = open_model("4", "1", "1", "4", "3", "1", "2", "123", TSAR_F32);
    const size_t K = 123;
    int64_t labels[123], again[123];
    tsar_error err = { "" };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; ++i) {
        CHECK(tsar_cluster(model, counts[i], 5, labels, &err) == TSAR_OK, "%s", err.text);
        check_clusters(model, labels, counts[i]);
        model->threads = 3;
        CHECK(tsar_cluster(model, counts[i], 5, again, &err) == TSAR_OK && memcmp(labels, again, sizeof labels) == 0, "threads change clusters");
        model->threads = 1;
        release();
    }
    tsar_cluster(model, 7, 5, labels, &err);
    tsar_cluster(model, 7, 6, again, &err);
    CHECK(memcmp(labels, again, sizeof labels) != 0, "the seed does not matter");

    /* Codewords at four places, 0 ... 3 in turn: four clusters find them, five cannot be. */
    float *words = model->vq.codebook.values;
    for (size_t i = 0; i < K; ++i) {
        words[3 * i] = i % 4 == 0 ? 1.0f : -1.0f;
        words[3 * i + 1] = (float)(i % 4);
        words[3 * i + 2] = 0.1f;
    }
    for (uint64_t seed = 0; seed < 20; ++seed) {
        size_t wrong = 0;
        CHECK(tsar_cluster(model, 4, seed, labels, &err) == TSAR_OK, "%s", err.text);
        for (size_t i = 0; i < K; ++i) wrong += labels[i] != (int64_t)(i % 4);
        CHECK(wrong == 0, "%d codewords in a wrong cluster with seed %d", (int)wrong, (int)seed);
        CHECK(tsar_cluster(model, 3, seed, labels, &err) == TSAR_OK, "%s", err.text);
        refused(tsar_cluster(model, 5, seed, labels, &err), TSAR_INPUT, &err, "only 4 different codewords");
    }
    tsar_model_close(model);
}

int main(void)
{
    test_loops();
    test_errors();
    test_bytes();
    test_sink();
    test_cluster();
    release();
    return test_end();
}
