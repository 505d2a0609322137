/* Models (SPEC 2, 3, 4, 6, 7): the configuration, the one table of all weights, and its users: loading, closing, synthesis. */
#include "../tsar.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ----------------------------------------------------------------------------------------------------- configuration */

#define MAX_VOCAB ((size_t)2147483647) /* 2^31 - 1: ids fit into 32 bits */
#define MAX_LAYERS ((size_t)4096)      /* of any kind: a few keys shall not make a billion weights to visit */

/* The source of a configuration, and what is wrong with it so far: after the first error every call returns 0. */
typedef struct {
    tsar_lookup lookup;
    const void *source;
    const char *name; /* of the file, for errors */
    tsar_status status;
    tsar_error *err;
} reader;

static int is_digit(char c) { return c >= '0' && c <= '9'; }

static void refuse(reader *r, const char *key, const char *expected)
{
    const char *value = r->lookup(r->source, key);
    if (r->status) return;
    r->status = value ? tsar_fail(r->err, TSAR_INPUT, "%s: %s=%.60s in the configuration is not %s", r->name, key, value, expected)
                      : tsar_fail(r->err, TSAR_INPUT, "%s: the configuration has no %s (add %s=VALUE, %s)", r->name, key, key, expected);
}

static int has(const reader *r, const char *key) { return r->lookup(r->source, key) != NULL; }

/* Decimal digits and nothing else, at most `limit`; 0 if it is none of that. *end is what stopped it, if end is not NULL. */
static int parse_u64(const char *text, uint64_t limit, uint64_t *value, const char **end)
{
    const char *at = text;
    *value = 0;
    for (; is_digit(*at); at++) {
        const uint64_t digit = (uint64_t)(*at - '0');
        if (digit > limit || *value > (limit - digit) / 10) return 0;
        *value = *value * 10 + digit;
    }
    if (end) *end = at;
    return at > text && (end || !*at);
}

/* A positive integer up to `limit`. */
static size_t read_size(reader *r, const char *key, size_t limit)
{
    char expected[80];
    uint64_t value = 0;
    const char *text = r->status ? NULL : r->lookup(r->source, key);
    if (text && parse_u64(text, limit, &value, NULL) && value > 0) return (size_t)value;
    snprintf(expected, sizeof expected, "a positive integer of at most %zu", limit);
    refuse(r, key, expected);
    return 0;
}

static size_t read_size_or(reader *r, const char *key, size_t limit, size_t absent) { return has(r, key) ? read_size(r, key, limit) : absent; }

/* A decimal number without sign: digits, a fraction, an exponent. strtod rounds it correctly, but would also take
 * "inf", "nan", blanks and hexadecimal. */
static int parse_number(const char *text, double *value)
{
    const char *at = text;
    while (is_digit(*at) || *at == '.') at++;
    if (at > text && (*at == 'e' || *at == 'E')) {
        at += at[1] == '+' || at[1] == '-' ? 2 : 1;
        while (is_digit(*at)) at++;
    }
    char *end;
    *value = strtod(text, &end);
    return at > text && !*at && end == at && *value <= DBL_MAX;
}

/* A positive finite number. */
static double read_positive(reader *r, const char *key)
{
    double value = 0;
    const char *text = r->status ? NULL : r->lookup(r->source, key);
    if (text && parse_number(text, &value) && value > 0) return value;
    refuse(r, key, "a positive finite number");
    return 1;
}

static void copy_name(char *into, size_t room, const char *text) { snprintf(into, room, "%s", text); }

/* vq_ch_mult: "1,1,2,2,4". */
static void read_levels(reader *r, tsar_config *c)
{
    const char *at = r->status ? NULL : r->lookup(r->source, "vq_ch_mult");
    uint64_t value = 0;
    int good = at != NULL;
    while (good) {
        good = c->vq_levels < TSAR_MAX_LEVELS && parse_u64(at, TSAR_MAX_DIM, &value, &at) && value > 0 && (*at == ',' || !*at);
        if (good) c->vq_ch_mult[c->vq_levels++] = (size_t)value;
        if (!good || !*at++) break;
    }
    if (!good) refuse(r, "vq_ch_mult", "a list of 1 to 16 positive integers such as 1,1,2,2,4");
}

/* One more rule, stated as the sentence that is told when it does not hold. */
static void rule(reader *r, int holds, const char *format, ...) TSAR_FORMAT(3, 4);
static void rule(reader *r, int holds, const char *format, ...)
{
    if (r->status || holds) return;
    char sentence[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    r->status = tsar_fail(r->err, TSAR_INPUT, "%s: in the configuration %s", r->name, sentence);
}

/* dim = n_head * head_dim; RoPE turns pairs, in 2d in each half of the head. */
static void check_heads(reader *r, const char *prefix, size_t dim, size_t n_head, int rope_2d)
{
    rule(r, n_head && dim % n_head == 0, "%sdim=%zu is not divisible by %sn_head=%zu", prefix, dim, prefix, n_head);
    if (r->status) return;
    const size_t head_dim = dim / n_head, pair = rope_2d ? 4 : 2;
    rule(r, head_dim % pair == 0, "the head size %sdim/%sn_head=%zu is not a multiple of %zu, which rope %s needs", prefix, prefix, head_dim, pair,
         rope_2d ? "2d" : "1d");
}

static void read_token_shuffle(reader *r, tsar_config *c)
{
    const size_t s = c->shuffle = read_size(r, "shuffle", TSAR_MAX_DIM);
    c->text_vocab = read_size(r, "text_vocab", MAX_VOCAB);
    c->shuffle_blocks = s == 1 ? read_size_or(r, "shuffle_blocks", MAX_LAYERS, 0) : read_size(r, "shuffle_blocks", MAX_LAYERS);
    c->shuffle_hidden = s == 1 ? read_size_or(r, "shuffle_hidden", TSAR_MAX_DIM, 0) : read_size(r, "shuffle_hidden", TSAR_MAX_DIM);
    rule(r, c->text_vocab >= TSAR_SPECIALS, "text_vocab=%zu leaves no room for <bos>, <soi> and <eoi> (at least 3)", c->text_vocab);
    rule(r, s && (uint64_t)c->dim % ((uint64_t)s * s) == 0, "dim=%zu is not divisible by shuffle^2=%" PRIu64, c->dim, (uint64_t)s * s);
    rule(r, s && c->grid_h % s == 0 && c->grid_w % s == 0, "the grid %zu x %zu is not divisible by shuffle=%zu", c->grid_h, c->grid_w, s);
}

static void read_llamagen(reader *r, tsar_config *c)
{
    const int c2i = c->arch == TSAR_LLAMAGEN_C2I;
    c->cond_tokens = read_size(r, "cond_tokens", TSAR_MAX_DIM);
    if (c2i)
        c->num_classes = read_size(r, "num_classes", TSAR_MAX_DIM);
    else
        c->caption_dim = read_size(r, "caption_dim", TSAR_MAX_DIM);
    rule(r, !c2i || c->cond_tokens == 1, "cond_tokens=%zu must be 1 for llamagen-c2i: a class is one token", c->cond_tokens);
    rule(r, read_size_or(r, "shuffle", TSAR_MAX_DIM, 1) == 1, "shuffle must be 1 or absent for LlamaGen (arch=token-shuffle has it)");
}

static void read_gpt(reader *r, tsar_config *c)
{
    const char *arch = r->lookup(r->source, "arch"), *rope = r->lookup(r->source, "rope");
    c->arch = !strcmp(arch, "token-shuffle")  ? TSAR_TOKEN_SHUFFLE
              : !strcmp(arch, "llamagen-c2i") ? TSAR_LLAMAGEN_C2I
              : !strcmp(arch, "llamagen-t2i") ? TSAR_LLAMAGEN_T2I
                                              : TSAR_NO_GPT;
    if (c->arch == TSAR_NO_GPT) refuse(r, "arch", "token-shuffle, llamagen-c2i or llamagen-t2i");
    c->dim = read_size(r, "dim", TSAR_MAX_DIM);
    c->n_layer = read_size(r, "n_layer", MAX_LAYERS);
    c->n_head = read_size(r, "n_head", TSAR_MAX_DIM);
    c->n_kv_head = read_size(r, "n_kv_head", TSAR_MAX_DIM);
    c->ffn_hidden = read_size(r, "ffn_hidden", TSAR_MAX_DIM);
    c->rope_2d = rope && !strcmp(rope, "2d");
    if (!rope || (!c->rope_2d && strcmp(rope, "1d"))) refuse(r, "rope", "1d or 2d");
    check_heads(r, "", c->dim, c->n_head, c->rope_2d);
    rule(r, c->n_kv_head && c->n_head % c->n_kv_head == 0, "n_head=%zu is not a multiple of n_kv_head=%zu", c->n_head, c->n_kv_head);
    if (r->status) return;
    if (c->arch == TSAR_TOKEN_SHUFFLE)
        read_token_shuffle(r, c);
    else
        read_llamagen(r, c);
}

static void read_vq(reader *r, tsar_config *c)
{
    c->vq_ch = read_size(r, "vq_ch", TSAR_MAX_DIM);
    read_levels(r, c);
    c->vq_res_blocks = read_size(r, "vq_res_blocks", MAX_LAYERS);
    c->vq_z_channels = read_size(r, "vq_z_channels", TSAR_MAX_DIM);
    c->vq_embed_dim = read_size(r, "vq_embed_dim", TSAR_MAX_DIM);
    c->vq_groups = read_size_or(r, "vq_groups", TSAR_MAX_DIM, 32);
    const char *l2 = r->lookup(r->source, "vq_l2_norm");
    if (!l2 || (strcmp(l2, "0") && strcmp(l2, "1"))) refuse(r, "vq_l2_norm", "0 or 1");
    if (r->status) return;
    c->vq_l2_norm = l2[0] == '1';
    c->vq_factor = (size_t)1 << (c->vq_levels - 1);
    rule(r, c->vq_ch % c->vq_groups == 0, "vq_ch=%zu is not divisible by vq_groups=%zu", c->vq_ch, c->vq_groups);
    for (size_t i = 0; i < c->vq_levels; i++)
        rule(r, c->vq_ch_mult[i] <= TSAR_MAX_DIM / c->vq_ch,
             "level %zu of the tokenizer would have vq_ch * vq_ch_mult=%zu * %zu channels, more than %zu", i, c->vq_ch, c->vq_ch_mult[i],
             TSAR_MAX_DIM);
}

static void read_fine(reader *r, tsar_config *c)
{
    c->fine_dim = read_size(r, "fine_dim", TSAR_MAX_DIM);
    c->fine_n_layer = read_size(r, "fine_n_layer", MAX_LAYERS);
    c->fine_n_head = read_size(r, "fine_n_head", TSAR_MAX_DIM);
    c->fine_ffn_hidden = read_size(r, "fine_ffn_hidden", TSAR_MAX_DIM);
    check_heads(r, "fine_", c->fine_dim, c->fine_n_head, 1);
    if (c->n_coarse == 0) refuse(r, "n_coarse", "the number of coarse labels that stage two refines");
}

const char *const tsar_schedule_names[TSAR_SCHEDULES] = { "constant", "linear", "half-linear", "cosine" };

static int is_schedule(const char *text)
{
    int i = 0;
    while (i < TSAR_SCHEDULES && strcmp(text, tsar_schedule_names[i]) != 0) i++;
    return i < TSAR_SCHEDULES;
}

/* The default_* keys of sampling, else those of SPEC 9. */
static void read_defaults(reader *r, tsar_config *c)
{
    const int c2i = c->arch == TSAR_LLAMAGEN_C2I, t2i = c->arch == TSAR_LLAMAGEN_T2I;
    const char *schedule = r->lookup(r->source, "default_cfg_schedule"), *top_k = r->lookup(r->source, "default_top_k"),
               *top_p = r->lookup(r->source, "default_top_p");
    uint64_t k = c2i ? 2000 : t2i ? 1000 : 0;
    c->defaults.cfg = has(r, "default_cfg") ? read_positive(r, "default_cfg") : c2i ? 4.0 : 7.5;
    c->defaults.temperature = has(r, "default_temperature") ? read_positive(r, "default_temperature") : 1.0;
    if (!top_p)
        c->defaults.top_p = 1.0;
    else if (!parse_number(top_p, &c->defaults.top_p) || !(c->defaults.top_p >= 0 && c->defaults.top_p <= 1))
        refuse(r, "default_top_p", "a number from 0 (one code is kept) to 1 (which switches top-p off)");
    if (top_k && !parse_u64(top_k, MAX_VOCAB, &k, NULL)) refuse(r, "default_top_k", "an integer of at most 2147483647 (0 switches top-k off)");
    c->defaults.top_k = (size_t)k;
    if (!schedule)
        schedule = c2i || t2i ? "constant" : "half-linear";
    else if (!is_schedule(schedule))
        refuse(r, "default_cfg_schedule", "constant, linear, half-linear or cosine");
    copy_name(c->defaults.cfg_schedule, sizeof c->defaults.cfg_schedule, schedule);
}

tsar_status tsar_config_read(tsar_config *config, tsar_lookup lookup, const void *source, const char *name, tsar_error *err)
{
    reader state = { lookup, source, name, TSAR_OK, err }, *r = &state;
    tsar_config *c = config;
    memset(c, 0, sizeof *c);
    c->has_gpt = has(r, "arch");
    c->has_vq = has(r, "vq_ch");
    c->has_fine = has(r, "fine_dim");
    if (!c->has_gpt && !c->has_vq && !c->has_fine)
        return tsar_fail(err, TSAR_INPUT,
                         "%s describes no part of a tsar model: its configuration has none of the keys arch (transformer), vq_ch (image "
                         "tokenizer) and fine_dim (stage two); tsar import makes a model file from a checkpoint",
                         name);
    const int needs_grid = c->has_gpt || c->has_fine;
    c->shuffle = 1;
    c->rope_base = 10000;
    c->codebook_size = read_size(r, "codebook_size", MAX_VOCAB);
    c->grid_h = needs_grid ? read_size(r, "grid_h", TSAR_MAX_DIM) : read_size_or(r, "grid_h", TSAR_MAX_DIM, 0);
    c->grid_w = needs_grid ? read_size(r, "grid_w", TSAR_MAX_DIM) : read_size_or(r, "grid_w", TSAR_MAX_DIM, 0);
    c->n_coarse = read_size_or(r, "n_coarse", MAX_VOCAB, 0);
    rule(r, (uint64_t)c->grid_h * c->grid_w <= TSAR_MAX_DIM, "grid_h * grid_w=%zu * %zu is more than %zu codes", c->grid_h, c->grid_w, TSAR_MAX_DIM);
    rule(r, c->n_coarse <= c->codebook_size, "n_coarse=%zu is more than codebook_size=%zu", c->n_coarse, c->codebook_size);
    if (needs_grid) {
        c->norm_eps = read_positive(r, "norm_eps");
        c->rope_base = has(r, "rope_base") ? read_positive(r, "rope_base") : 10000;
    }
    if (c->has_gpt && r->status == TSAR_OK) read_gpt(r, c);
    if (c->has_vq && r->status == TSAR_OK) read_vq(r, c);
    if (c->has_fine && r->status == TSAR_OK) read_fine(r, c);
    if (has(r, "seed") && !parse_u64(lookup(source, "seed"), UINT64_MAX, &c->seed, NULL)) refuse(r, "seed", "an integer from 0 to 2^64 - 1");
    read_defaults(r, c);
    if (r->status) return r->status;
    c->vocab = c->n_coarse ? c->n_coarse : c->codebook_size;
    c->rows = c->grid_h / c->shuffle;
    c->columns = c->grid_w / c->shuffle;
    c->tokens = c->rows * c->columns;
    return TSAR_OK;
}

/* ----------------------------------------------------------------------------------------------- the table of weights */

/* A pass over the table: who is told, what failed first, and the name of the module in which the pass is. */
typedef struct {
    tsar_weight_fn visit;
    void *context;
    tsar_status status;
    tsar_error *err;
    char module[96];
} walk;

/* &object->field, or NULL where there is no model. */
#define SLOT(object, field) ((object) ? &(object)->field : NULL)
#define ELEMENT(array, i) ((array) ? &(array)[i] : NULL)

static void enter(walk *w, const char *format, ...) TSAR_FORMAT(2, 3);
static void enter(walk *w, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(w->module, sizeof w->module, format, arguments);
    va_end(arguments);
}

/* Visits the weight `name` of the current module: all of its rows, or those from first_row on. */
static void visit(walk *w, const char *name, tsar_use use, void *slot, size_t rank, const size_t *shape, size_t first_row)
{
    tsar_weight weight = { 0 };
    if (w->status) return;
    snprintf(weight.name, sizeof weight.name, "%s%s", w->module, name);
    weight.use = use;
    weight.rank = rank;
    for (size_t i = 0; i < rank; i++) weight.shape[i] = shape[i];
    weight.first_row = first_row;
    weight.rows = shape[0] - first_row;
    weight.slot = slot;
    w->status = w->visit(w->context, &weight, w->err);
}

static void matrix(walk *w, const char *name, tsar_matrix *slot, size_t rows, size_t cols)
{
    visit(w, name, TSAR_AS_MATRIX, slot, 2, (const size_t[]){ rows, cols }, 0);
}

static void table(walk *w, const char *name, tsar_table *slot, size_t rows, size_t cols)
{
    visit(w, name, TSAR_AS_TABLE, slot, 2, (const size_t[]){ rows, cols }, 0);
}

static void vector(walk *w, const char *name, double **slot, size_t n) { visit(w, name, TSAR_AS_VECTOR, slot, 1, &n, 0); }

/* The transformer's blocks and final norm (SPEC 3), names behind `part` ("gpt." or "fine."). */
static void visit_stack(walk *w, const char *part, tsar_stack *stack, size_t d, size_t n_layer, size_t qkv, size_t ffn)
{
    for (size_t i = 0; i < n_layer && w->status == TSAR_OK; i++) {
        tsar_layer *layer = stack ? ELEMENT(stack->layers, i) : NULL;
        enter(w, "%slayers.%zu.", part, i);
        vector(w, "attention_norm.weight", SLOT(layer, attention_norm), d);
        matrix(w, "attention.wqkv.weight", SLOT(layer, wqkv), qkv, d);
        matrix(w, "attention.wo.weight", SLOT(layer, wo), d, d);
        vector(w, "ffn_norm.weight", SLOT(layer, ffn_norm), d);
        matrix(w, "feed_forward.w1.weight", SLOT(layer, w1), ffn, d);
        matrix(w, "feed_forward.w3.weight", SLOT(layer, w3), ffn, d);
        matrix(w, "feed_forward.w2.weight", SLOT(layer, w2), d, ffn);
    }
    enter(w, "%s", part);
    vector(w, "norm.weight", SLOT(stack, norm), d);
}

/* The MLP blocks of token-shuffle or token-unshuffle (SPEC 3). */
static void visit_mlps(walk *w, const char *module, tsar_mlp *mlps, const tsar_config *c)
{
    for (size_t b = 0; b < c->shuffle_blocks && w->status == TSAR_OK; b++) {
        tsar_mlp *mlp = ELEMENT(mlps, b);
        enter(w, "gpt.%s.blocks.%zu.", module, b);
        vector(w, "norm.weight", SLOT(mlp, norm), c->dim);
        matrix(w, "fc1.weight", SLOT(mlp, fc1), c->shuffle_hidden, c->dim);
        matrix(w, "fc2.weight", SLOT(mlp, fc2), c->dim, c->shuffle_hidden);
    }
}

static void visit_gpt(walk *w, const tsar_config *c, tsar_model *m)
{
    const size_t d = c->dim, hd = d / c->n_head, window = c->shuffle * c->shuffle;
    const size_t text = c->arch == TSAR_TOKEN_SHUFFLE ? c->text_vocab : 0;
    enter(w, "gpt.");
    table(w, "tok_embeddings.weight", SLOT(m, tok_embeddings), text + c->vocab, d);
    if (c->arch == TSAR_LLAMAGEN_C2I) {
        table(w, "cls_embedding.embedding_table.weight", SLOT(m, class_embeddings), c->num_classes + 1, d);
    } else if (c->arch == TSAR_LLAMAGEN_T2I) {
        matrix(w, "cls_embedding.cap_proj.fc1.weight", SLOT(m, cap_fc1), d, c->caption_dim);
        matrix(w, "cls_embedding.cap_proj.fc2.weight", SLOT(m, cap_fc2), d, d);
        table(w, "cls_embedding.uncond_embedding", SLOT(m, uncond_embedding), c->cond_tokens, c->caption_dim);
    } else if (c->shuffle > 1) {
        matrix(w, "shuffle.compress.weight", SLOT(m, compress), d / window, d);
        matrix(w, "unshuffle.expand.weight", SLOT(m, expand), d, d / window);
        visit_mlps(w, "shuffle", m ? m->shuffle_mlp : NULL, c);
        visit_mlps(w, "unshuffle", m ? m->unshuffle_mlp : NULL, c);
    }
    visit_stack(w, "gpt.", SLOT(m, gpt), d, c->n_layer, (c->n_head + 2 * c->n_kv_head) * hd, c->ffn_hidden);
    visit(w, "output.weight", TSAR_AS_MATRIX, m ? &m->gpt.output : NULL, 2, (const size_t[]){ text + c->vocab, d }, text);
}

static void visit_fine(walk *w, const tsar_config *c, tsar_model *m)
{
    enter(w, "fine.");
    table(w, "coarse_embeddings.weight", SLOT(m, coarse_embeddings), c->n_coarse, c->fine_dim);
    visit_stack(w, "fine.", SLOT(m, fine), c->fine_dim, c->fine_n_layer, 3 * c->fine_dim, c->fine_ffn_hidden);
    matrix(w, "output.weight", m ? &m->fine.output : NULL, c->codebook_size, c->fine_dim);
}

/* A convolution `name` of the current module; it also learns its own shape. */
static void visit_conv(walk *w, const char *name, tsar_conv *conv, size_t in, size_t out, size_t size)
{
    char full[32];
    if (conv) {
        conv->in = in;
        conv->out = out;
        conv->size = size;
    }
    snprintf(full, sizeof full, "%s.weight", name);
    visit(w, full, TSAR_AS_MATRIX, SLOT(conv, weight), 4, (const size_t[]){ out, in, size, size }, 0);
    snprintf(full, sizeof full, "%s.bias", name);
    vector(w, full, SLOT(conv, bias), out);
}

static void visit_norm(walk *w, const char *name, tsar_norm *norm, size_t channels)
{
    char full[32];
    if (norm) norm->channels = channels;
    snprintf(full, sizeof full, "%s.weight", name);
    vector(w, full, SLOT(norm, gain), channels);
    snprintf(full, sizeof full, "%s.bias", name);
    vector(w, full, SLOT(norm, bias), channels);
}

static void visit_resblock(walk *w, tsar_resblock *block, size_t in, size_t out)
{
    visit_norm(w, "norm1", SLOT(block, norm1), in);
    visit_conv(w, "conv1", SLOT(block, conv1), in, out, 3);
    visit_norm(w, "norm2", SLOT(block, norm2), out);
    visit_conv(w, "conv2", SLOT(block, conv2), out, out, 3);
    if (in != out) visit_conv(w, "nin_shortcut", SLOT(block, nin_shortcut), in, out, 1);
}

static void visit_attnblock(walk *w, tsar_attnblock *block, size_t channels)
{
    visit_norm(w, "norm", SLOT(block, norm), channels);
    visit_conv(w, "q", SLOT(block, q), channels, channels, 1);
    visit_conv(w, "k", SLOT(block, k), channels, channels, 1);
    visit_conv(w, "v", SLOT(block, v), channels, channels, 1);
    visit_conv(w, "proj_out", SLOT(block, proj_out), channels, channels, 1);
}

static void visit_mid(walk *w, const char *part, tsar_coder *coder, size_t channels)
{
    enter(w, "vq.%s.mid.0.", part);
    visit_resblock(w, SLOT(coder, mid0), channels, channels);
    enter(w, "vq.%s.mid.1.", part);
    visit_attnblock(w, SLOT(coder, mid1), channels);
    enter(w, "vq.%s.mid.2.", part);
    visit_resblock(w, SLOT(coder, mid2), channels, channels);
}

/* conv_blocks.{i}: residual blocks from `in` to `out` channels, attention behind each of them at the lowest resolution,
 * and a convolution that changes the resolution ("" where there is none). */
static void visit_level(walk *w, const char *part, size_t i, tsar_level *level, size_t in, size_t out, size_t n_res, int attention,
                        const char *resample)
{
    for (size_t b = 0; b < n_res && w->status == TSAR_OK; b++) {
        enter(w, "vq.%s.conv_blocks.%zu.res.%zu.", part, i, b);
        visit_resblock(w, level ? ELEMENT(level->res, b) : NULL, b == 0 ? in : out, out);
    }
    for (size_t b = 0; b < n_res && attention && w->status == TSAR_OK; b++) {
        enter(w, "vq.%s.conv_blocks.%zu.attn.%zu.", part, i, b);
        visit_attnblock(w, level ? ELEMENT(level->attn, b) : NULL, out);
    }
    enter(w, "vq.%s.conv_blocks.%zu.", part, i);
    if (*resample) visit_conv(w, resample, SLOT(level, resample), out, out, 3);
}

/* SPEC 4; widths and places of attention: QUIRKS, VQ 4 and 5. */
static void visit_vq(walk *w, const tsar_config *c, tsar_model *m)
{
    tsar_vq *vq = SLOT(m, vq);
    tsar_coder *encoder = SLOT(vq, encoder), *decoder = SLOT(vq, decoder);
    const size_t last = c->vq_levels - 1, deepest = c->vq_ch * c->vq_ch_mult[last], z = c->vq_z_channels;
    size_t width = c->vq_ch;

    enter(w, "vq.encoder.");
    visit_conv(w, "conv_in", SLOT(encoder, conv_in), 3, width, 3);
    for (size_t i = 0; i <= last; i++) {
        const size_t out = c->vq_ch * c->vq_ch_mult[i];
        visit_level(w, "encoder", i, encoder ? ELEMENT(encoder->levels, i) : NULL, width, out, c->vq_res_blocks, i == last,
                    i < last ? "downsample.conv" : "");
        width = out;
    }
    visit_mid(w, "encoder", encoder, deepest);
    enter(w, "vq.encoder.");
    visit_norm(w, "norm_out", SLOT(encoder, norm_out), deepest);
    visit_conv(w, "conv_out", SLOT(encoder, conv_out), deepest, z, 3);

    enter(w, "vq.");
    visit_conv(w, "quant_conv", SLOT(vq, quant_conv), z, c->vq_embed_dim, 1);
    table(w, "quantize.embedding.weight", SLOT(vq, codebook), c->codebook_size, c->vq_embed_dim);
    visit_conv(w, "post_quant_conv", SLOT(vq, post_quant_conv), c->vq_embed_dim, z, 1);

    enter(w, "vq.decoder.");
    visit_conv(w, "conv_in", SLOT(decoder, conv_in), z, deepest, 3);
    visit_mid(w, "decoder", decoder, deepest);
    for (size_t i = 0; i <= last; i++) {
        const size_t out = c->vq_ch * c->vq_ch_mult[last - i];
        visit_level(w, "decoder", i, decoder ? ELEMENT(decoder->levels, i) : NULL, width, out, c->vq_res_blocks + 1, i == 0,
                    i < last ? "upsample.conv" : "");
        width = out;
    }
    enter(w, "vq.decoder.");
    visit_norm(w, "norm_out", SLOT(decoder, norm_out), width);
    visit_conv(w, "conv_out", SLOT(decoder, conv_out), width, 3, 3);
}

tsar_status tsar_weights(const tsar_config *config, tsar_model *model, tsar_weight_fn visitor, void *context, tsar_error *err)
{
    walk w = { visitor, context, TSAR_OK, err, "" };
    if (config->has_gpt) visit_gpt(&w, config, model);
    if (config->has_fine) visit_fine(&w, config, model);
    enter(&w, "ctf.");
    if (config->n_coarse) visit(&w, "cluster_of", TSAR_AS_INTEGERS, SLOT(model, cluster_of), 1, &config->codebook_size, 0);
    if (config->has_vq) visit_vq(&w, config, model);
    return w.status;
}

/* ----------------------------------------------------------------------------------------------------------- loading */

typedef struct {
    tsar_file *file;
    const char *path;
    unsigned char *known; /* [tensors of the file]: 1 where the configuration has that tensor */
    void *slab;           /* rows on their way from the file into a matrix */
    size_t slab_bytes;
} loader;

/* First pass, before anything is allocated: the file has this weight, of its shape, in a dtype that tsar computes with. */
static tsar_status check_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    loader *l = context;
    char has_text[192], needs_text[96];
    const tsar_tensor *tensor = tsar_file_find(l->file, weight->name);
    tsar_shape_text(needs_text, sizeof needs_text, weight->rank, weight->shape);
    if (!tensor)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %s is missing; the configuration needs it with shape %s", l->path, weight->name, needs_text);
    const int cuts_rows = !strcmp(weight->name, "gpt.cls_embedding.uncond_embedding"); /* QUIRKS, GPT 8: 120 rows whatever cond_tokens is */
    int fits = tensor->rank == weight->rank;
    for (size_t i = 0; fits && i < weight->rank; i++)
        fits = tensor->shape[i] == weight->shape[i] || (i == 0 && cuts_rows && tensor->shape[0] > weight->shape[0]);
    if (!fits)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %s has shape %s, the configuration needs %s", l->path, weight->name,
                         tsar_shape_text(has_text, sizeof has_text, tensor->rank, tensor->shape), needs_text);
    if (weight->use == TSAR_AS_INTEGERS ? tsar_dtype_is_float(tensor->dtype) : !tsar_dtype_is_float(tensor->dtype))
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %s has dtype %s, which must be %s", l->path, weight->name, tsar_dtype_name(tensor->dtype),
                         weight->use == TSAR_AS_INTEGERS ? "an integer one such as I64" : "F64, F32, BF16 or F16");
    l->known[tensor - tsar_file_at(l->file, 0)] = 1;
    return TSAR_OK;
}

/* Index of the first NaN or infinity among n values of dtype, n if there is none. A number is finite where its exponent
 * bits are not all set. The first loop only asks whether there is any, so that it vectorises. */
#define FIRST_BAD(type, mask)                                                                                                                        \
    do {                                                                                                                                             \
        const type *bits = values;                                                                                                                   \
        type bad = 0;                                                                                                                                \
        for (size_t i = 0; i < n; i++) bad = (type)(bad | ((bits[i] & (mask)) == (mask)));                                                           \
        if (!bad) return n;                                                                                                                          \
        for (size_t i = 0;; i++)                                                                                                                     \
            if ((bits[i] & (mask)) == (mask)) return i;                                                                                              \
    } while (0)

static size_t first_bad_64(const void *values, size_t n) { FIRST_BAD(uint64_t, UINT64_C(0x7FF0000000000000)); }
static size_t first_bad_32(const void *values, size_t n) { FIRST_BAD(uint32_t, UINT32_C(0x7F800000)); }
static size_t first_bad_16(const void *values, size_t n, uint16_t mask) { FIRST_BAD(uint16_t, mask); }

static tsar_status check_finite(const loader *l, const char *name, tsar_dtype dtype, const void *values, size_t n, uint64_t first, tsar_error *err)
{
    const size_t bad = dtype == TSAR_F64   ? first_bad_64(values, n)
                       : dtype == TSAR_F32 ? first_bad_32(values, n)
                                           : first_bad_16(values, n, dtype == TSAR_F16 ? 0x7C00 : 0x7F80);
    if (bad == n) return TSAR_OK;
    return tsar_fail(err, TSAR_INPUT, "%s: element %" PRIu64 " of tensor %s is NaN or infinite (the checkpoint is damaged, or its training diverged)",
                     l->path, first + bad, name);
}

/* Reads and packs a matrix by slabs of whole panels, about 4 MB, so that memory holds the weights only once. */
static tsar_status load_matrix(loader *l, const tsar_weight *weight, const tsar_tensor *tensor, tsar_error *err)
{
    const size_t size = tsar_dtype_size(tensor->dtype), target = (size_t)4 << 20;
    tsar_matrix *w = weight->slot;
    size_t cols = 1;
    for (size_t i = 1; i < weight->rank; i++) cols *= weight->shape[i];
    tsar_status status = tsar_matrix_open(w, weight->rows, cols, tensor->dtype, weight->name, err);
    if (status) return status;
    size_t slab_rows = target / (cols * size) / TSAR_PANEL * TSAR_PANEL;
    if (slab_rows < TSAR_PANEL) slab_rows = TSAR_PANEL;
    if (slab_rows > weight->rows) slab_rows = weight->rows;
    if (l->slab_bytes < slab_rows * cols * size) {
        tsar_free(l->slab);
        l->slab_bytes = 0;
        l->slab = tsar_alloc(slab_rows, cols * size, "rows of weights", err);
        if (!l->slab) return TSAR_ROOM;
        l->slab_bytes = slab_rows * cols * size;
    }
    for (size_t row = 0; row < weight->rows && status == TSAR_OK; row += slab_rows) {
        const size_t n = weight->rows - row < slab_rows ? weight->rows - row : slab_rows;
        const uint64_t first = (uint64_t)(weight->first_row + row) * cols;
        status = tsar_file_read(l->file, tensor, first, (uint64_t)n * cols, l->slab, err);
        if (status == TSAR_OK) status = check_finite(l, weight->name, tensor->dtype, l->slab, n * cols, first, err);
        if (status == TSAR_OK) tsar_matrix_set_rows(w, row, n, l->slab);
    }
    return status;
}

static tsar_status load_table(loader *l, const tsar_weight *weight, const tsar_tensor *tensor, tsar_error *err)
{
    tsar_table *t = weight->slot;
    const size_t cols = weight->shape[1], size = tsar_dtype_size(tensor->dtype);
    t->values = cols <= SIZE_MAX / size ? tsar_alloc(weight->rows, cols * size, weight->name, err) : NULL;
    if (!t->values) return TSAR_ROOM;
    t->rows = weight->rows;
    t->cols = cols;
    t->dtype = tensor->dtype;
    const tsar_status status = tsar_file_read(l->file, tensor, 0, (uint64_t)t->rows * cols, t->values, err);
    return status ? status : check_finite(l, weight->name, t->dtype, t->values, t->rows * cols, 0, err);
}

static tsar_status load_vector(loader *l, const tsar_weight *weight, const tsar_tensor *tensor, tsar_error *err)
{
    double *values = *(double **)weight->slot = tsar_alloc(weight->rows, sizeof *values, weight->name, err);
    if (!values) return TSAR_ROOM;
    const tsar_status status = tsar_file_read_f64(l->file, tensor, 0, weight->rows, values, err);
    return status ? status : check_finite(l, weight->name, TSAR_F64, values, weight->rows, 0, err);
}

/* Second pass: a weight into its slot. */
static tsar_status load_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    loader *l = context;
    const tsar_tensor *tensor = tsar_file_find(l->file, weight->name);
    switch (weight->use) {
    case TSAR_AS_MATRIX:
        return load_matrix(l, weight, tensor, err);
    case TSAR_AS_TABLE:
        return load_table(l, weight, tensor, err);
    case TSAR_AS_VECTOR:
        return load_vector(l, weight, tensor, err);
    default:
        break;
    }
    int64_t *values = *(int64_t **)weight->slot = tsar_alloc(weight->rows, sizeof *values, weight->name, err);
    return values ? tsar_file_read_i64(l->file, tensor, 0, weight->rows, values, err) : TSAR_ROOM;
}

static tsar_status free_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    (void)context;
    (void)err;
    if (!weight->slot) return TSAR_OK;
    switch (weight->use) {
    case TSAR_AS_MATRIX:
        tsar_matrix_close(weight->slot);
        break;
    case TSAR_AS_TABLE:
        tsar_free(((tsar_table *)weight->slot)->values);
        break;
    case TSAR_AS_VECTOR:
        tsar_free(*(double **)weight->slot);
        break;
    case TSAR_AS_INTEGERS:
        tsar_free(*(int64_t **)weight->slot);
        break;
    }
    return TSAR_OK;
}

/* Tensors of the three parts that no key of the configuration explains would silently be left unused: refused. */
static tsar_status check_unknown(const loader *l, tsar_error *err)
{
    for (size_t i = 0; i < tsar_file_count(l->file); i++) {
        const char *name = tsar_file_at(l->file, i)->name;
        if (!l->known[i] && (!strncmp(name, "gpt.", 4) || !strncmp(name, "vq.", 3) || !strncmp(name, "fine.", 5)))
            return tsar_fail(err, TSAR_INPUT,
                             "%s: tensor %.100s does not belong to the model that the configuration describes (remove it or correct the "
                             "configuration)",
                             l->path, name);
    }
    return TSAR_OK;
}

/* A block or level array of n elements; NULL for n = 0. */
static tsar_status allocate(void *array, size_t n, size_t size, tsar_error *err)
{
    void *memory = n ? tsar_alloc(n, size, "the blocks of the model", err) : NULL;
    memcpy(array, &memory, sizeof memory);
    return memory || n == 0 ? TSAR_OK : TSAR_ROOM;
}

static tsar_status allocate_coder(tsar_coder *coder, const tsar_config *c, size_t n_res, size_t lowest, tsar_error *err)
{
    tsar_status status = allocate(&coder->levels, c->vq_levels, sizeof *coder->levels, err);
    for (size_t i = 0; i < c->vq_levels && status == TSAR_OK; i++) {
        tsar_level *level = &coder->levels[i];
        level->n_res = n_res;
        level->n_attn = i == lowest ? n_res : 0;
        status = allocate(&level->res, level->n_res, sizeof *level->res, err);
        if (status == TSAR_OK) status = allocate(&level->attn, level->n_attn, sizeof *level->attn, err);
    }
    return status;
}

tsar_status tsar_model_allocate(tsar_model *m, tsar_error *err)
{
    const tsar_config *c = &m->config;
    const size_t mlps = c->shuffle > 1 ? c->shuffle_blocks : 0;
    tsar_status status = TSAR_OK;
    if (c->has_gpt) {
        m->gpt = (tsar_stack){ .dim = c->dim,
                               .n_layer = c->n_layer,
                               .n_head = c->n_head,
                               .n_kv_head = c->n_kv_head,
                               .head_dim = c->dim / c->n_head,
                               .ffn_hidden = c->ffn_hidden,
                               .norm_eps = c->norm_eps,
                               .rope_base = c->rope_base,
                               .rope_2d = c->rope_2d };
        status = allocate(&m->gpt.layers, c->n_layer, sizeof *m->gpt.layers, err);
        if (status == TSAR_OK) status = allocate(&m->shuffle_mlp, mlps, sizeof *m->shuffle_mlp, err);
        if (status == TSAR_OK) status = allocate(&m->unshuffle_mlp, mlps, sizeof *m->unshuffle_mlp, err);
    }
    if (c->has_fine && status == TSAR_OK) {
        m->fine = (tsar_stack){ .dim = c->fine_dim,
                                .n_layer = c->fine_n_layer,
                                .n_head = c->fine_n_head,
                                .n_kv_head = c->fine_n_head,
                                .head_dim = c->fine_dim / c->fine_n_head,
                                .ffn_hidden = c->fine_ffn_hidden,
                                .norm_eps = c->norm_eps,
                                .rope_base = c->rope_base,
                                .rope_2d = 1 };
        status = allocate(&m->fine.layers, c->fine_n_layer, sizeof *m->fine.layers, err);
    }
    if (c->has_vq && status == TSAR_OK) status = allocate_coder(&m->vq.encoder, c, c->vq_res_blocks, c->vq_levels - 1, err);
    if (c->has_vq && status == TSAR_OK) status = allocate_coder(&m->vq.decoder, c, c->vq_res_blocks + 1, 0, err);
    return status;
}

/* tokenizer.merges [n_merges][2] (SPEC 3, Text): merge r makes id 3 + 256 + r of two smaller ones, none of them special. */
static tsar_status load_merges(tsar_model *m, loader *l, tsar_error *err)
{
    const int64_t first = TSAR_SPECIALS + 256;
    const tsar_tensor *tensor = tsar_file_find(l->file, "tokenizer.merges");
    if (!tensor) return TSAR_OK;
    if (m->config.arch != TSAR_TOKEN_SHUFFLE)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor tokenizer.merges belongs to models with arch=token-shuffle only", l->path);
    if (tensor->rank != 2 || tensor->shape[1] != 2)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor tokenizer.merges needs the shape [merges, 2]", l->path);
    if ((uint64_t)tensor->shape[0] + (uint64_t)first > m->config.text_vocab)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor tokenizer.merges has %zu merges, which with %d specials and 256 bytes exceed text_vocab=%zu",
                         l->path, tensor->shape[0], TSAR_SPECIALS, m->config.text_vocab);
    m->merges = tsar_alloc(tensor->shape[0], 2 * sizeof *m->merges, "tokenizer.merges", err);
    if (!m->merges) return TSAR_ROOM;
    m->n_merges = tensor->shape[0];
    const tsar_status status = tsar_file_read_i64(l->file, tensor, 0, tensor->count, m->merges, err);
    for (size_t i = 0; i < 2 * m->n_merges && status == TSAR_OK; i++)
        if (m->merges[i] < TSAR_SPECIALS || m->merges[i] >= first + (int64_t)(i / 2))
            return tsar_fail(err, TSAR_INPUT, "%s: merge %zu of tokenizer.merges uses id %" PRId64 ", which is not from %d to %" PRId64, l->path,
                             i / 2, m->merges[i], TSAR_SPECIALS, first + (int64_t)(i / 2) - 1);
    return status;
}

/* The key known_words, which outlives the file. */
static tsar_status load_words(tsar_model *m, const loader *l, tsar_error *err)
{
    const char *words = tsar_file_meta(l->file, "known_words");
    if (!words) return TSAR_OK;
    m->known_words = tsar_alloc(strlen(words) + 1, 1, "known_words", err);
    if (!m->known_words) return TSAR_ROOM;
    memcpy(m->known_words, words, strlen(words) + 1);
    return TSAR_OK;
}

static tsar_status check_clusters(const tsar_model *m, const char *path, tsar_error *err)
{
    const tsar_config *c = &m->config;
    for (size_t i = 0; m->cluster_of && i < c->codebook_size; i++)
        if (m->cluster_of[i] < 0 || (uint64_t)m->cluster_of[i] >= c->n_coarse)
            return tsar_fail(err, TSAR_INPUT, "%s: element %zu of tensor ctf.cluster_of is %" PRId64 ", no label below n_coarse=%zu", path, i,
                             m->cluster_of[i], c->n_coarse);
    return TSAR_OK;
}

static const char *lookup_file(const void *source, const char *key) { return tsar_file_meta(source, key); }

/* From an open file into an empty model. */
static tsar_status load_model(tsar_model *m, loader *l, tsar_error *err)
{
    tsar_status status = tsar_config_read(&m->config, lookup_file, l->file, l->path, err);
    if (status) return status;
    l->known = tsar_alloc(tsar_file_count(l->file), 1, "the list of tensors", err);
    if (!l->known) return TSAR_ROOM;
    status = tsar_weights(&m->config, NULL, check_weight, l, err);
    if (status == TSAR_OK) status = check_unknown(l, err);
    if (status == TSAR_OK) status = tsar_model_allocate(m, err);
    if (status == TSAR_OK) status = tsar_weights(&m->config, m, load_weight, l, err);
    if (status == TSAR_OK) status = check_clusters(m, l->path, err);
    if (status == TSAR_OK) status = load_words(m, l, err);
    return status == TSAR_OK ? load_merges(m, l, err) : status;
}

tsar_status tsar_model_open(tsar_model **model, const char *path, size_t threads, tsar_error *err)
{
    *model = NULL;
    if (threads < 1 || threads > 1024) return tsar_fail(err, TSAR_USAGE, "the number of threads is %zu, which must be from 1 to 1024", threads);
    tsar_model *m = tsar_alloc(1, sizeof *m, "a model", err);
    if (!m) return TSAR_ROOM;
    loader l = { NULL, path, NULL, NULL, 0 };
    tsar_status status = tsar_file_open(&l.file, path, err);
    if (status == TSAR_OK) status = load_model(m, &l, err);
    tsar_file_close(l.file);
    tsar_free(l.known);
    tsar_free(l.slab);
#ifdef _OPENMP
    m->threads = threads;
#else
    m->threads = 1;
#endif
    if (status)
        tsar_model_close(m);
    else
        *model = m;
    return status;
}

static void free_coder(tsar_coder *coder, size_t n_levels)
{
    for (size_t i = 0; coder->levels && i < n_levels; i++) {
        tsar_free(coder->levels[i].res);
        tsar_free(coder->levels[i].attn);
    }
    tsar_free(coder->levels);
}

void tsar_model_close(tsar_model *model)
{
    if (!model) return;
    if (model->gpt.layers || model->fine.layers || model->vq.encoder.levels) /* else nothing was loaded */
        tsar_weights(&model->config, model, free_weight, NULL, NULL);
    tsar_free(model->gpt.layers);
    tsar_free(model->shuffle_mlp);
    tsar_free(model->unshuffle_mlp);
    tsar_free(model->fine.layers);
    free_coder(&model->vq.encoder, model->config.vq_levels);
    free_coder(&model->vq.decoder, model->config.vq_levels);
    tsar_free(model->merges);
    tsar_free(model->known_words);
    tsar_free(model);
}

/* ------------------------------------------------------------------------------------------------- synthesis (SPEC 7) */

#define GOLDEN UINT64_C(0x9E3779B97F4A7C15)
#define SYNTH_CHUNK ((size_t)4096)

/* key = FNV-1a-64(name) xor (seed * G) */
uint64_t tsar_synth_key(const char *name, uint64_t seed)
{
    uint64_t hash = UINT64_C(0xCBF29CE484222325);
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * UINT64_C(0x100000001B3);
    return hash ^ seed * GOLDEN;
}

/* z = finaliser of splitmix64 at key + (i + 1) G */
uint64_t tsar_synth_word(uint64_t key, uint64_t index) { return tsar_mix(key + (index + 1) * GOLDEN); }

static int ends_in(const char *name, const char *ending)
{
    const size_t n = strlen(name), e = strlen(ending);
    return n >= e && !strcmp(name + n - e, ending);
}

/* A value is float32(offset + scale * u): 1 + 0.1 u for the gain of a norm, 0.1 u for a bias, u for an embedding, and
 * sqrt(3 / fan_in) u, of variance 1 / fan_in, for any other weight. */
static void synth_law(const tsar_weight *weight, double *offset, double *scale)
{
    static const char *const embeddings[] = { "tok_embeddings.weight", "embedding_table.weight", "quantize.embedding.weight", "uncond_embedding",
                                              "coarse_embeddings.weight" };
    double fan_in = 1;
    for (size_t i = 1; i < weight->rank; i++) fan_in *= (double)weight->shape[i];
    *offset = weight->rank == 1 && strstr(weight->name, "norm") && ends_in(weight->name, "weight") ? 1 : 0;
    *scale = weight->rank == 1 ? 0.1 : sqrt(3 / fan_in);
    for (size_t i = 0; i < sizeof embeddings / sizeof *embeddings && weight->rank > 1; i++)
        if (ends_in(weight->name, embeddings[i])) *scale = 1;
}

typedef struct {
    tsar_writer *writer;
    tsar_dtype dtype;
    const tsar_config *config;
    const tsar_tensor *due; /* the tensor whose data the writer awaits */
} synthesis;

static tsar_status declare_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    synthesis *s = context;
    return tsar_writer_declare(s->writer, weight->name, weight->use == TSAR_AS_INTEGERS ? TSAR_I64 : s->dtype, weight->rank, weight->shape, err);
}

/* The n values from flat index `first` on. out [n] of the dtype asked for. */
static void synth_values(void *out, tsar_dtype dtype, uint64_t key, uint64_t first, size_t n, double offset, double scale)
{
    float values[SYNTH_CHUNK];
    uint16_t *halves = out;
    for (size_t i = 0; i < n; i++) {
        const double u = (double)(int32_t)(tsar_synth_word(key, first + i) >> 40) * 0x1p-23 - 1;
        values[i] = (float)(offset + scale * u);
    }
    if (dtype == TSAR_F32)
        memcpy(out, values, n * sizeof *values);
    else
        for (size_t i = 0; i < n; i++) halves[i] = dtype == TSAR_F16 ? tsar_round_f16(values[i]) : tsar_round_bf16(values[i]);
}

/* Writes the data of a weight if it is the one that is due. */
static tsar_status write_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    synthesis *s = context;
    const tsar_tensor *tensor = s->due;
    double offset, scale;
    int64_t chunk[SYNTH_CHUNK];
    if (!tensor || strcmp(tensor->name, weight->name)) return TSAR_OK;
    const uint64_t key = tsar_synth_key(weight->name, s->config->seed);
    tsar_status status = TSAR_OK;
    synth_law(weight, &offset, &scale);
    for (uint64_t first = 0; first < tensor->count && status == TSAR_OK; first += SYNTH_CHUNK) {
        const size_t n = tensor->count - first < SYNTH_CHUNK ? (size_t)(tensor->count - first) : SYNTH_CHUNK;
        if (weight->use != TSAR_AS_INTEGERS)
            synth_values(chunk, tensor->dtype, key, first, n, offset, scale);
        else
            for (size_t i = 0; i < n; i++) /* ctf.cluster_of */
                chunk[i] = (int64_t)((tsar_synth_word(key, first + i) >> 33) % s->config->n_coarse);
        status = tsar_writer_put(s->writer, chunk, n, err);
    }
    s->due = tsar_writer_next(s->writer);
    return status;
}

/* Arguments key=value as a source of configuration strings: a later value replaces an earlier one. */
typedef struct {
    const char *const *keys, *const *values;
    size_t n;
} arguments;

static const char *lookup_arguments(const void *source, const char *key)
{
    const arguments *a = source;
    for (size_t i = a->n; i > 0; i--)
        if (!strcmp(a->keys[i - 1], key)) return a->values[i - 1];
    return NULL;
}

tsar_status tsar_synth(const char *path, const char *const *keys, const char *const *values, size_t n, tsar_dtype dtype, tsar_error *err)
{
    const arguments source = { keys, values, n };
    tsar_config config;
    if (dtype != TSAR_F32 && dtype != TSAR_BF16 && dtype != TSAR_F16)
        return tsar_fail(err, TSAR_USAGE, "synthetic weights have the dtype f32, bf16 or f16");
    tsar_status status = tsar_config_read(&config, lookup_arguments, &source, path, err);
    if (status) return status;
    synthesis s = { NULL, dtype, &config, NULL };
    status = tsar_writer_open(&s.writer, path, err);
    if (status) return status;
    status = tsar_writer_meta(s.writer, "seed", "0", err);
    for (size_t i = 0; i < n && status == TSAR_OK; i++) status = tsar_writer_meta(s.writer, keys[i], values[i], err);
    if (status == TSAR_OK) status = tsar_weights(&config, NULL, declare_weight, &s, err);
    if (status == TSAR_OK) s.due = tsar_writer_next(s.writer);
    for (const tsar_tensor *before = NULL; status == TSAR_OK && s.due && s.due != before;) {
        before = s.due; /* integers come first in the file, so a second pass reaches what the first one passed */
        status = tsar_weights(&config, NULL, write_weight, &s, err);
    }
    if (status) {
        tsar_writer_abandon(s.writer);
        return status;
    }
    return tsar_writer_commit(s.writer, err);
}
