/* test_naive.c - the transformer against plain loops, bit for bit.
 *
 * The loops below compute SPEC 3 (and QUIRKS, GPT 1 to 5; SPEC 6 for stage two) one number at a time, with one accumulator for each sum,
 * from the tensors of a model file: no kernel, no cache, no panels. Every traced tensor must have the same bits. The models have norm_eps
 * and rope_base of their own, and both kinds of rope for each architecture. */
#include "../tsar.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const path = "test_naive.tmp.safetensors";

/* ---------------------------------------------------------------------------------------------------- what was traced */

enum { MOST_ARRAYS = 8000, MOST_TRACED = 64 };
static struct {
    char name[64];
    size_t count;
    double *x;
} traced[MOST_TRACED];
static size_t n_traced, n_owned;
static void *owned[MOST_ARRAYS];

static double *array(size_t count)
{
    double *x = n_owned < MOST_ARRAYS ? calloc(count + 1, sizeof *x) : NULL;
    if (!x) {
        printf("FAILED: out of memory\n");
        exit(1);
    }
    return owned[n_owned++] = x;
}

static void release(void)
{
    while (n_owned) free(owned[--n_owned]);
    n_traced = 0;
}

static tsar_status put(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    size_t count = 1;
    (void)context, (void)err;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    if (dtype != TSAR_F64 || n_traced == MOST_TRACED) return TSAR_OK;
    snprintf(traced[n_traced].name, sizeof traced[n_traced].name, "%s", name);
    traced[n_traced].count = count;
    traced[n_traced].x = array(count);
    memcpy(traced[n_traced++].x, data, count * sizeof(double));
    return TSAR_OK;
}

/* x [count] must be what was traced under this name. */
static void expect(const double *x, size_t count, const char *what, const char *format, size_t index)
{
    char name[64];
    size_t i = 0;
    snprintf(name, sizeof name, format, index);
    while (i < n_traced && strcmp(traced[i].name, name) != 0) i++;
    CHECK(i < n_traced && traced[i].count == count && memcmp(traced[i].x, x, count * sizeof *x) == 0, "%s: %s", what, name);
}

/* ------------------------------------------------------------------------------------------------------- plain loops */

static tsar_file *file;

/* A tensor of the file, flat. */
static const double *weight(const char *format, size_t index)
{
    char name[128];
    tsar_error err = { "" };
    snprintf(name, sizeof name, format, index);
    const tsar_tensor *t = tsar_file_find(file, name);
    if (!CHECK(t != NULL, "the model has %s", name)) exit(1);
    double *w = array((size_t)t->count);
    CHECK(tsar_file_read_f64(file, t, 0, t->count, w, &err) == TSAR_OK, "%s", err.text);
    return w;
}

/* y [outputs] = w [outputs][inputs] . x [inputs] */
static void linear(double *y, const double *w, const double *x, size_t outputs, size_t inputs)
{
    for (size_t o = 0; o < outputs; o++) {
        double sum = 0;
        for (size_t i = 0; i < inputs; i++) sum += w[o * inputs + i] * x[i];
        y[o] = sum;
    }
}

static void rmsnorm(double *y, const double *x, const double *g, size_t d, double eps)
{
    double sum = 0;
    for (size_t i = 0; i < d; i++) sum += x[i] * x[i];
    const double root = sqrt(sum / (double)d + eps);
    for (size_t i = 0; i < d; i++) y[i] = x[i] / root * g[i];
}

static double gelu(double x)
{
    const double z = sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
    return x / (1 + tsar_exp(-2 * z));
}

static double silu(double x) { return x / (1 + tsar_exp(-x)); }

typedef struct {
    const char *part; /* "gpt" or "fine" */
    size_t d, layers, heads, kv_heads, ffn, prefix, columns;
    double eps, base;
    int two_d, causal;
    const double *mask; /* [prefix]: 0 where a condition is padding; NULL: none is */
    int words;          /* 1: the prefix is text, whose words turn by their position in 2d too, and the grid counts from behind it */
} shape;

/* (a, b) -> (a cos + b (-sin), b cos + a sin) for the pairs of one head at a position; the difference a cos - b sin has the same bits, but
 * gcc 12.0 to 12.2 would fuse it (see rope_rotate in tsar.c). */
static void rotate(double *x, const shape *s, size_t position)
{
    const size_t pairs = s->d / s->heads / 2, half = s->two_d ? pairs / 2 : pairs;
    for (size_t p = 0; p < pairs; p++) {
        double c = 0, n = 0, a = x[2 * p], b = x[2 * p + 1];
        if (!s->two_d || s->words || position >= s->prefix) {
            const size_t token = position - s->prefix;
            size_t at = position;
            if (s->two_d && position >= s->prefix) at = (s->words ? s->prefix : 0) + (p < half ? token / s->columns : token % s->columns);
            const double angle = (double)at * tsar_pow(s->base, -(double)(2 * (p % half)) / (double)(2 * half));
            c = tsar_cos(angle);
            n = tsar_sin(angle);
        }
        const double minus = -n;
        x[2 * p] = a * c + b * minus;
        x[2 * p + 1] = b * c + a * n;
    }
}

/* out [hd] of query q at position i over keys and values at k, v + j * stride. */
static void attend(double *out, const shape *s, const double *q, const double *k, const double *v, size_t stride, size_t i, size_t T)
{
    const size_t hd = s->d / s->heads;
    double *p = array(T), m = -INFINITY, total = 0;
    for (size_t j = 0; j < T; j++) {
        const int allowed = !s->causal || i == j || (j < i && (j >= s->prefix || !s->mask || s->mask[j] != 0));
        double dot = 0;
        for (size_t e = 0; e < hd; e++) dot += q[e] * k[j * stride + e];
        p[j] = allowed ? dot * (1.0 / sqrt((double)hd)) : -INFINITY;
        m = p[j] > m ? p[j] : m;
    }
    for (size_t j = 0; j < T; j++) p[j] = p[j] > -INFINITY ? tsar_exp(p[j] - m) : 0;
    for (size_t j = 0; j < T; j++) total += p[j];
    for (size_t e = 0; e < hd; e++) {
        double sum = 0;
        for (size_t j = 0; j < T; j++) sum += p[j] / total * v[j * stride + e];
        out[e] = sum;
    }
}

/* All blocks over x [T][d], in place; each is compared. */
static void blocks(double *x, size_t T, const shape *s, const char *what)
{
    const size_t d = s->d, hd = d / s->heads, width = (s->heads + 2 * s->kv_heads) * hd, group = s->heads / s->kv_heads;
    double *n = array(d), *qkv = array(T * width), *mixed = array(d), *delta = array(d), *gate = array(s->ffn), *up = array(s->ffn);
    char name[64];
    snprintf(name, sizeof name, "%s.embed", s->part);
    expect(x, T * d, what, name, 0);
    for (size_t l = 0; l < s->layers; l++) {
        const double *w[7];
        static const char *const tensors[7] = { "attention_norm",   "attention.wqkv",   "attention.wo",   "ffn_norm",
                                                "feed_forward.w1", "feed_forward.w3", "feed_forward.w2" };
        for (int i = 0; i < 7; i++) {
            snprintf(name, sizeof name, "%s.layers.%%zu.%s.weight", s->part, tensors[i]);
            w[i] = weight(name, l);
        }
        for (size_t t = 0; t < T; t++) {
            rmsnorm(n, x + t * d, w[0], d, s->eps);
            linear(qkv + t * width, w[1], n, width, d);
            for (size_t h = 0; h < s->heads + s->kv_heads; h++) rotate(qkv + t * width + h * hd, s, t);
        }
        for (size_t t = 0; t < T; t++) {
            for (size_t h = 0; h < s->heads; h++) {
                const double *k = qkv + (s->heads + h / group) * hd, *v = k + s->kv_heads * hd;
                attend(mixed + h * hd, s, qkv + t * width + h * hd, k, v, width, t, T);
            }
            linear(delta, w[2], mixed, d, d);
            for (size_t i = 0; i < d; i++) x[t * d + i] = x[t * d + i] + delta[i];
            rmsnorm(n, x + t * d, w[3], d, s->eps);
            linear(gate, w[4], n, s->ffn, d);
            linear(up, w[5], n, s->ffn, d);
            for (size_t i = 0; i < s->ffn; i++) gate[i] = silu(gate[i]) * up[i];
            linear(delta, w[6], gate, d, s->ffn);
            for (size_t i = 0; i < d; i++) x[t * d + i] = x[t * d + i] + delta[i];
        }
        snprintf(name, sizeof name, "%s.block.%%zu", s->part);
        expect(x, T * d, what, name, l);
    }
}

/* x [count][d] + fc2 . gelu(fc1 . rmsnorm(x)), `blocks` times. */
static void mlps(double *x, size_t count, const tsar_config *c, const char *module, const char *what)
{
    double *n = array(c->dim), *hidden = array(c->shuffle_hidden), *delta = array(c->dim);
    char name[96];
    for (size_t b = 0; b < c->shuffle_blocks; b++) {
        const double *w[3];
        static const char *const tensors[3] = { "norm", "fc1", "fc2" };
        for (int i = 0; i < 3; i++) {
            snprintf(name, sizeof name, "gpt.%s.blocks.%%zu.%s.weight", module, tensors[i]);
            w[i] = weight(name, b);
        }
        for (size_t t = 0; t < count; t++) {
            rmsnorm(n, x + t * c->dim, w[0], c->dim, c->norm_eps);
            linear(hidden, w[1], n, c->shuffle_hidden, c->dim);
            for (size_t i = 0; i < c->shuffle_hidden; i++) hidden[i] = gelu(hidden[i]);
            linear(delta, w[2], hidden, c->dim, c->shuffle_hidden);
            for (size_t i = 0; i < c->dim; i++) x[t * c->dim + i] = x[t * c->dim + i] + delta[i];
        }
        snprintf(name, sizeof name, "gpt.%s.block.%%zu", module);
        expect(x, count * c->dim, what, name, b);
    }
}

/* The condition's rows x [prefix][d]. */
static void embed_prefix(double *x, const tsar_config *c, const tsar_prompt *prompt)
{
    const size_t d = c->dim, width = c->caption_dim;
    if (c->arch == TSAR_TOKEN_SHUFFLE) {
        const double *table = weight("gpt.tok_embeddings.weight", 0);
        for (size_t t = 0; t < prompt->n_text; t++) memcpy(x + t * d, table + (size_t)prompt->text[t] * d, d * sizeof *x);
    } else if (c->arch == TSAR_LLAMAGEN_C2I) {
        memcpy(x, weight("gpt.cls_embedding.embedding_table.weight", 0) + prompt->class_id * d, d * sizeof *x);
    } else {
        const double *fc1 = weight("gpt.cls_embedding.cap_proj.fc1.weight", 0), *fc2 = weight("gpt.cls_embedding.cap_proj.fc2.weight", 0);
        double *feature = array(width), *hidden = array(d);
        for (size_t t = 0; t < c->cond_tokens; t++) {
            for (size_t i = 0; i < width; i++) feature[i] = prompt->caption[t * width + i] * prompt->caption_mask[t];
            linear(hidden, fc1, feature, d, width);
            for (size_t i = 0; i < d; i++) hidden[i] = gelu(hidden[i]);
            linear(x + t * d, fc2, hidden, d, d);
        }
    }
}

/* Token-shuffle's input side: x [n][d] of codes [gh][gw]. */
static void embed_codes(double *x, const tsar_config *c, const int64_t *codes, const char *what)
{
    const size_t s = c->shuffle, d = c->dim, part = d / (s * s), text = c->arch == TSAR_TOKEN_SHUFFLE ? c->text_vocab : 0;
    const double *table = weight("gpt.tok_embeddings.weight", 0), *compress = s > 1 ? weight("gpt.shuffle.compress.weight", 0) : NULL;
    double *raster = array(c->grid_h * c->grid_w * part);
    for (size_t i = 0; i < c->grid_h; i++)
        for (size_t j = 0; j < c->grid_w; j++) {
            const double *e = table + (text + (size_t)codes[i * c->grid_w + j]) * d;
            double *place = x + (i / s * c->columns + j / s) * d + (i % s * s + j % s) * part;
            if (s == 1)
                memcpy(place, e, d * sizeof *x);
            else
                linear(place, compress, e, part, d);
            memcpy(raster + (i * c->grid_w + j) * part, place, part * sizeof *x);
        }
    if (s == 1) return;
    expect(raster, c->grid_h * c->grid_w * part, what, "gpt.shuffle.compress", 0);
    expect(x, c->tokens * d, what, "gpt.shuffle.merge", 0);
    mlps(x, c->tokens, c, "shuffle", what);
}

/* From h [count][d] of the last block to logits. */
static void predict(double *h, size_t count, const tsar_config *c, const char *what)
{
    const size_t s2 = c->shuffle * c->shuffle, d = c->dim, text = c->arch == TSAR_TOKEN_SHUFFLE ? c->text_vocab : 0;
    const double *norm = weight("gpt.norm.weight", 0), *output = weight("gpt.output.weight", 0) + text * d;
    double *x = h, *logits = array(count * s2 * c->vocab);
    if (s2 > 1) {
        const double *expand = weight("gpt.unshuffle.expand.weight", 0);
        mlps(h, count, c, "unshuffle", what);
        x = array(count * s2 * d);
        for (size_t i = 0; i < count * s2; i++) linear(x + i * d, expand, h + i * (d / s2), d, d / s2);
        expect(x, count * s2 * d, what, "gpt.unshuffle.expand", 0);
    }
    for (size_t i = 0; i < count * s2; i++) {
        rmsnorm(x + i * d, x + i * d, norm, d, c->norm_eps);
        linear(logits + i * c->vocab, output, x + i * d, c->vocab, d);
    }
    expect(x, count * s2 * d, what, "gpt.norm", 0);
    expect(logits, count * s2 * c->vocab, what, "gpt.logits", 0);
}

/* ------------------------------------------------------------------------------------------------------------ models */

static const tsar_sink sink = { .put = put };

static void compare_gpt(const tsar_model *model, const tsar_prompt *prompt, const char *what)
{
    const tsar_config *c = &model->config;
    const size_t prefix = tsar_prompt_length(model, prompt), T = prefix + c->tokens, d = c->dim;
    const size_t first = c->arch == TSAR_TOKEN_SHUFFLE ? prefix - 1 : 0, count = c->arch == TSAR_TOKEN_SHUFFLE ? c->tokens : T;
    const shape s = { "gpt", d, c->n_layer, c->n_head, c->n_kv_head, c->ffn_hidden, prefix, c->columns, c->norm_eps, c->rope_base, c->rope_2d, 1,
                      c->arch == TSAR_LLAMAGEN_T2I ? prompt->caption_mask : NULL, c->arch == TSAR_TOKEN_SHUFFLE };
    int64_t codes[64];
    tsar_error err = { "" };
    double *x = array(T * d);
    for (size_t i = 0; i < c->grid_h * c->grid_w; i++) codes[i] = (int64_t)(tsar_mix(i + 5) % c->vocab);
    if (!CHECK(tsar_gpt_trace(model, prompt, codes, &sink, &err) == TSAR_OK, "%s: %s", what, err.text)) return;
    embed_prefix(x, c, prompt);
    embed_codes(x + prefix * d, c, codes, what);
    blocks(x, T, &s, what);
    predict(x + first * d, count, c, what);
}

static void compare_fine(const tsar_model *model, const char *what)
{
    const tsar_config *c = &model->config;
    const size_t N = c->grid_h * c->grid_w, d = c->fine_dim;
    const shape s = { "fine", d, c->fine_n_layer, c->fine_n_head, c->fine_n_head, c->fine_ffn_hidden, 0, c->grid_w, c->norm_eps, c->rope_base, 1, 0, NULL, 0 };
    const double *table = weight("fine.coarse_embeddings.weight", 0), *norm = weight("fine.norm.weight", 0), *output = weight("fine.output.weight", 0);
    int64_t labels[64];
    tsar_error err = { "" };
    double *x = array(N * d), *hidden = array(N * d), *logits = array(N * c->codebook_size), *theirs = array(N * c->codebook_size);
    for (size_t i = 0; i < N; i++) {
        labels[i] = (int64_t)(tsar_mix(i + 9) % c->n_coarse);
        memcpy(x + i * d, table + (size_t)labels[i] * d, d * sizeof *x);
    }
    if (!CHECK(tsar_fine_hidden(model, labels, hidden, &sink, &err) == TSAR_OK, "%s: %s", what, err.text)) return;
    CHECK(tsar_fine_logits(model, hidden, 0, N, theirs, &err) == TSAR_OK, "%s: %s", what, err.text);
    blocks(x, N, &s, what);
    for (size_t i = 0; i < N; i++) {
        rmsnorm(x + i * d, x + i * d, norm, d, c->norm_eps);
        linear(logits + i * c->codebook_size, output, x + i * d, c->codebook_size, d);
    }
    expect(x, N * d, what, "fine.norm", 0);
    CHECK(memcmp(logits, theirs, N * c->codebook_size * sizeof *logits) == 0, "%s: fine.logits", what);
}

int main(void)
{
    static const int64_t text[] = { 0, 7, 12, 30, 5, 1 };
    static const char stack[] = "dim=24 n_layer=2 n_head=3 n_kv_head=1 ffn_hidden=20 norm_eps=0.01 rope_base=37 codebook_size=33 grid_h=4 grid_w=6";
    static const struct {
        const char *keys;
        tsar_dtype dtype;
    } models[] = { { "arch=token-shuffle rope=1d text_vocab=40 shuffle=1 seed=1", TSAR_F32 },
                   { "arch=token-shuffle rope=2d text_vocab=40 shuffle=1 n_coarse=9 fine_dim=16 fine_n_layer=2 fine_n_head=2 fine_ffn_hidden=12 seed=2",
                     TSAR_BF16 },
                   { "arch=token-shuffle rope=1d text_vocab=40 shuffle=2 shuffle_blocks=2 shuffle_hidden=14 seed=3", TSAR_F16 },
                   { "arch=token-shuffle rope=2d text_vocab=40 shuffle=2 shuffle_blocks=1 shuffle_hidden=14 seed=4", TSAR_F32 },
                   { "arch=llamagen-c2i rope=1d cond_tokens=1 num_classes=7 seed=5", TSAR_F32 },
                   { "arch=llamagen-c2i rope=2d cond_tokens=1 num_classes=7 seed=6", TSAR_BF16 },
                   { "arch=llamagen-t2i rope=1d cond_tokens=5 caption_dim=10 seed=7", TSAR_F32 },
                   { "arch=llamagen-t2i rope=2d cond_tokens=5 caption_dim=10 seed=8", TSAR_F32 } };
    double caption[5 * 10], mask[5] = { 0, 0, 1, 1, 1 };
    for (size_t i = 0; i < 50; i++) caption[i] = (double)(tsar_mix(i) % 101) / 50.0 - 1.0;
    const tsar_prompt prompt = { .text = text, .n_text = 6, .class_id = 3, .caption = caption, .caption_mask = mask };
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        char keys[512];
        test_settings settings;
        tsar_error err = { "" };
        tsar_model *model = NULL;
        snprintf(keys, sizeof keys, "%s %s", stack, models[i].keys);
        test_split(&settings, keys);
        tsar_status status = tsar_synth(path, settings.keys, settings.values, settings.n, models[i].dtype, &err);
        if (status == TSAR_OK) status = tsar_model_open(&model, path, TSAR_PART_ALL, 1, &err);
        if (status == TSAR_OK) status = tsar_file_open(&file, path, &err);
        if (!CHECK(status == TSAR_OK, "%s: %s", models[i].keys, err.text)) break;
        compare_gpt(model, &prompt, models[i].keys);
        if (model->config.has_fine) compare_fine(model, models[i].keys);
        tsar_file_close(file);
        tsar_model_close(model);
        release();
    }
    remove(path);
    return test_end();
}
