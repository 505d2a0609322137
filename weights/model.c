/* Models (SPEC 2, 3, 4, 6, 11): the one table of all weights, and its users: loading and closing. */
#include "files/files.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ----------------------------------------------------------------------------------------------- the table of weights */

/* A pass over the table: who is told, what failed first, and the name of the module in which the pass is. */
typedef struct {
    tsar_weight_fn visit;
    void *context;
    tsar_status status;
    tsar_error *err;
    unsigned part; /* TSAR_PART_* */
    char module[96];
} walk;

/* &object->field, or NULL where there is no model. */
#define HOME(object, field) ((object) ? &(object)->field : NULL)
#define ELEMENT(array, i) ((array) ? &(array)[i] : NULL)

static void enter(walk *w, const char *format, ...) TSAR_FORMAT(2, 3);
static void enter(walk *w, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(w->module, sizeof w->module, format, arguments);
    va_end(arguments);
}

/* A weight `name` of the current module, all of which is kept: what the others start from. */
static tsar_weight described(const walk *w, const char *name, tsar_use use, void *home, size_t rank, const size_t *shape)
{
    tsar_weight weight = { .part = w->part, .use = use, .rank = rank, .rows = shape[0], .home = home };
    (void)snprintf(weight.name, sizeof weight.name, "%s%s", w->module, name);
    for (size_t i = 0; i < rank; i++) weight.shape[i] = shape[i];
    return weight;
}

static void visit(walk *w, const tsar_weight *weight)
{
    if (w->status == TSAR_OK) w->status = w->visit(w->context, weight, w->err);
}

static void matrix(walk *w, const char *name, tsar_matrix *home, size_t rows, size_t cols)
{
    const tsar_weight weight = described(w, name, TSAR_AS_MATRIX, home, 2, (const size_t[]){ rows, cols });
    visit(w, &weight);
}

static void table(walk *w, const char *name, tsar_table *home, size_t rows, size_t cols)
{
    const tsar_weight weight = described(w, name, TSAR_AS_TABLE, home, 2, (const size_t[]){ rows, cols });
    visit(w, &weight);
}

static void vector(walk *w, const char *name, double **home, size_t n)
{
    const tsar_weight weight = described(w, name, TSAR_AS_VECTOR, home, 1, &n);
    visit(w, &weight);
}

/* The sizes of the three stacks, by which their weights are named and allocated. */
static tsar_stack gpt_sizes(const tsar_config *c)
{
    return (tsar_stack){ .dim = c->dim,
                         .n_layer = c->n_layer,
                         .n_head = c->n_head,
                         .n_kv_head = c->n_kv_head,
                         .head_dim = c->dim / c->n_head,
                         .ffn_hidden = c->ffn_hidden,
                         .inner = c->dim,
                         .norm_eps = c->norm_eps,
                         .rope_base = c->rope_base,
                         .rope_2d = c->rope_2d,
                         .qk_norm = c->qk_norm,
                         .norm_post = c->norm_post };
}

static tsar_stack fine_sizes(const tsar_config *c)
{
    return (tsar_stack){ .dim = c->fine_dim,
                         .n_layer = c->fine_n_layer,
                         .n_head = c->fine_n_head,
                         .n_kv_head = c->fine_n_head,
                         .head_dim = c->fine_dim / c->fine_n_head,
                         .ffn_hidden = c->fine_ffn_hidden,
                         .inner = c->fine_dim,
                         .norm_eps = c->norm_eps,
                         .rope_base = c->rope_base,
                         .rope_2d = 1 };
}

static tsar_stack t5_sizes(const tsar_config *c)
{
    return (tsar_stack){ .dim = c->t5_dim,
                         .n_layer = c->t5_n_layer,
                         .n_head = c->t5_n_head,
                         .n_kv_head = c->t5_n_head,
                         .head_dim = c->t5_head_dim,
                         .ffn_hidden = c->t5_ffn_hidden,
                         .inner = c->t5_n_head * c->t5_head_dim,
                         .norm_eps = c->t5_norm_eps };
}

/* The transformer's blocks and final norm (SPEC 3), names behind `part` ("gpt.", "fine." or "t5."); stack NULL: no homes. */
static void visit_stack(walk *w, const char *part, const tsar_stack *sizes, tsar_stack *stack)
{
    const size_t d = sizes->dim, ffn = sizes->ffn_hidden, norms = sizes->qk_norm * sizes->head_dim;
    for (size_t i = 0; i < sizes->n_layer && w->status == TSAR_OK; i++) {
        tsar_layer *layer = stack ? ELEMENT(stack->layers, i) : NULL;
        enter(w, "%slayers.%lu.", part, (unsigned long)i);
        vector(w, "attention_norm.weight", HOME(layer, attention_norm), d);
        matrix(w, "attention.wqkv.weight", HOME(layer, wqkv), sizes->inner + 2 * sizes->n_kv_head * sizes->head_dim, d);
        if (norms) {
            vector(w, "attention.q_norm.weight", HOME(layer, q_norm), norms);
            vector(w, "attention.q_norm.bias", HOME(layer, q_norm_bias), norms);
            vector(w, "attention.k_norm.weight", HOME(layer, k_norm), norms);
            vector(w, "attention.k_norm.bias", HOME(layer, k_norm_bias), norms);
        }
        matrix(w, "attention.wo.weight", HOME(layer, wo), d, sizes->inner);
        vector(w, "ffn_norm.weight", HOME(layer, ffn_norm), d);
        matrix(w, "feed_forward.w1.weight", HOME(layer, w1), ffn, d);
        matrix(w, "feed_forward.w3.weight", HOME(layer, w3), ffn, d);
        matrix(w, "feed_forward.w2.weight", HOME(layer, w2), d, ffn);
    }
    enter(w, "%s", part);
    vector(w, "norm.weight", HOME(stack, norm), d);
}

/* The MLP blocks of token-shuffle or token-unshuffle (SPEC 3). */
static void visit_mlps(walk *w, const char *module, tsar_mlp *mlps, const tsar_config *c)
{
    for (size_t b = 0; b < c->shuffle_blocks && w->status == TSAR_OK; b++) {
        tsar_mlp *mlp = ELEMENT(mlps, b);
        enter(w, "gpt.%s.blocks.%lu.", module, (unsigned long)b);
        vector(w, "norm.weight", HOME(mlp, norm), c->dim);
        matrix(w, "fc1.weight", HOME(mlp, fc1), c->shuffle_hidden, c->dim);
        matrix(w, "fc2.weight", HOME(mlp, fc2), c->dim, c->shuffle_hidden);
    }
}

/* Janus: the way of a code into the stream and out of it. */
static void visit_code_mlp(walk *w, const char *module, tsar_code_mlp *mlp, size_t in, size_t hidden, size_t out)
{
    enter(w, "gpt.%s.", module);
    matrix(w, "fc1.weight", HOME(mlp, fc1), hidden, in);
    vector(w, "fc1.bias", HOME(mlp, b1), hidden);
    matrix(w, "fc2.weight", HOME(mlp, fc2), out, hidden);
    vector(w, "fc2.bias", HOME(mlp, b2), out);
}

/* What the prefix is made of, and the windows of Token-Shuffle. */
static void visit_inputs(walk *w, const tsar_config *c, tsar_model *m)
{
    const size_t d = c->dim, slots = c->shuffle * c->shuffle;
    switch (tsar_family_of(c)->prefix) {
    case TSAR_PREFIX_CLASS: table(w, "cls_embedding.embedding_table.weight", HOME(m, class_embeddings), c->num_classes + (c->no_null_class ? 0 : 1), d); break;
    case TSAR_PREFIX_CAPTION:
        matrix(w, "cls_embedding.cap_proj.fc1.weight", HOME(m, cap_fc1), d, c->caption_dim);
        matrix(w, "cls_embedding.cap_proj.fc2.weight", HOME(m, cap_fc2), d, d);
        table(w, "cls_embedding.uncond_embedding", HOME(m, uncond_embedding), c->cond_tokens, c->caption_dim);
        break;
    case TSAR_PREFIX_IDS:
    case TSAR_PREFIX_NONE: break;
    }
    if (c->shuffle == 1) return;
    matrix(w, "shuffle.compress.weight", HOME(m, compress), d / slots, d);
    matrix(w, "unshuffle.expand.weight", HOME(m, expand), d, d / slots);
    visit_mlps(w, "shuffle", m ? m->shuffle_mlp : NULL, c);
    visit_mlps(w, "unshuffle", m ? m->unshuffle_mlp : NULL, c);
}

static void visit_gpt(walk *w, const tsar_config *c, tsar_model *m)
{
    const tsar_stack sizes = gpt_sizes(c);
    const size_t d = c->dim, ids = c->vocab_size ? c->vocab_size : c->text_vocab + c->vocab;
    w->part = TSAR_PART_GPT;
    enter(w, "gpt.");
    table(w, "tok_embeddings.weight", HOME(m, tok_embeddings), ids, d);
    visit_inputs(w, c, m);
    visit_stack(w, "gpt.", &sizes, HOME(m, gpt));
    if (tsar_family_of(c)->shares_table) {
        tsar_weight output = described(w, "output.weight", TSAR_AS_MATRIX, m ? &m->gpt.output : NULL, 2, (const size_t[]){ ids, d });
        output.first_row = c->code_row;
        output.rows = c->vocab;
        visit(w, &output);
    } else {
        enter(w, "gpt.image_embed.");
        table(w, "tok_embeddings.weight", HOME(m, image_embeddings), c->vocab, c->image_embed);
        visit_code_mlp(w, "image_embed", HOME(m, image_embed), c->image_embed, d, d);
        visit_code_mlp(w, "image_head", HOME(m, image_head), d, c->image_head, c->vocab);
    }
}

static void visit_t5(walk *w, const tsar_config *c, tsar_model *m)
{
    const tsar_stack sizes = t5_sizes(c);
    w->part = TSAR_PART_T5;
    enter(w, "t5.");
    table(w, "tok_embeddings.weight", HOME(m, t5_embeddings), c->t5_vocab, c->t5_dim);
    table(w, "position_bias.weight", m ? &m->t5.position_bias : NULL, c->t5_buckets, c->t5_n_head);
    visit_stack(w, "t5.", &sizes, HOME(m, t5));
}

static void visit_fine(walk *w, const tsar_config *c, tsar_model *m)
{
    const tsar_stack sizes = fine_sizes(c);
    w->part = TSAR_PART_FINE;
    enter(w, "fine.");
    table(w, "coarse_embeddings.weight", HOME(m, coarse_embeddings), c->n_coarse, c->fine_dim);
    visit_stack(w, "fine.", &sizes, HOME(m, fine));
    matrix(w, "output.weight", m ? &m->fine.output : NULL, c->codebook_size, c->fine_dim);
}

/* A convolution `name` of the current module, whose weight has this shape; it also learns its own. Of a kernel of three taps in time a
 * picture meets the last one alone (QUIRKS, Emu3 4, 5 and 8). */
static void visit_kernel(walk *w, const char *name, tsar_conv *conv, size_t rank, const size_t *shape)
{
    char full[32];
    const size_t taps = rank == 5 ? shape[2] : 1, kept = taps == 3 ? 1 : taps;
    if (conv) {
        conv->in = shape[1];
        conv->out = shape[0];
        conv->size = shape[rank - 1];
        conv->taps = kept;
    }
    (void)snprintf(full, sizeof full, "%s.weight", name);
    tsar_weight weight = described(w, full, TSAR_AS_MATRIX, HOME(conv, weight), rank, shape);
    weight.last_tap = kept < taps;
    visit(w, &weight);
    (void)snprintf(full, sizeof full, "%s.bias", name);
    vector(w, full, HOME(conv, bias), shape[0]);
}

static void visit_conv(walk *w, const char *name, tsar_conv *conv, size_t in, size_t out, size_t size)
{
    visit_kernel(w, name, conv, 4, (const size_t[]){ out, in, size, size });
}

static void visit_time_conv(walk *w, const char *name, tsar_conv *conv, size_t in, size_t out, size_t taps, size_t size)
{
    visit_kernel(w, name, conv, 5, (const size_t[]){ out, in, taps, size, size });
}

/* A norm `name` of the current module; guided (Emu3's decoder) by the codewords, of `guide` numbers; 0: it is not. */
static void visit_norm(walk *w, const char *name, tsar_norm *norm, size_t channels, size_t guide)
{
    char full[32];
    if (norm) norm->channels = channels;
    (void)snprintf(full, sizeof full, "%s.weight", name);
    vector(w, full, HOME(norm, gain), channels);
    (void)snprintf(full, sizeof full, "%s.bias", name);
    vector(w, full, HOME(norm, bias), channels);
    if (guide == 0) return;
    (void)snprintf(full, sizeof full, "%s.conv_y", name);
    visit_conv(w, full, HOME(norm, conv_y), guide, channels, 1);
    (void)snprintf(full, sizeof full, "%s.conv_b", name);
    visit_conv(w, full, HOME(norm, conv_b), guide, channels, 1);
}

static void visit_batch_norm(walk *w, const char *name, tsar_batch_norm *norm, size_t channels)
{
    char full[32];
    if (norm) norm->channels = channels;
    (void)snprintf(full, sizeof full, "%s.weight", name);
    vector(w, full, HOME(norm, gain), channels);
    (void)snprintf(full, sizeof full, "%s.bias", name);
    vector(w, full, HOME(norm, bias), channels);
    (void)snprintf(full, sizeof full, "%s.running_mean", name);
    vector(w, full, HOME(norm, mean), channels);
    (void)snprintf(full, sizeof full, "%s.running_var", name);
    vector(w, full, HOME(norm, variance), channels);
}

/* Emu3: time_conv.{i} and time_res_stack.{j}, all of z channels (SPEC 4). */
static void visit_time(walk *w, const char *part, const tsar_config *c, tsar_coder *coder, size_t taps)
{
    const size_t z = c->vq_z_channels;
    size_t i = 0;
    for (size_t factor = c->vq_temporal; factor > 1; factor /= 2, i++) {
        enter(w, "vq.%s.time_conv.", part);
        char name[32];
        (void)snprintf(name, sizeof name, "%lu", (unsigned long)i);
        visit_time_conv(w, name, coder ? ELEMENT(coder->time_conv, i) : NULL, z, z, taps, 3);
    }
    for (size_t j = 0; c->vq_temporal && j < c->vq_res_blocks && w->status == TSAR_OK; j++) {
        tsar_time_block *block = coder ? ELEMENT(coder->time_res, j) : NULL;
        enter(w, "vq.%s.time_res_stack.%lu.", part, (unsigned long)j);
        visit_batch_norm(w, "norm1", HOME(block, norm1), z);
        visit_time_conv(w, "conv1", HOME(block, conv1), z, z, 3, 3);
        visit_batch_norm(w, "norm2", HOME(block, norm2), z);
        visit_time_conv(w, "conv2", HOME(block, conv2), z, z, 3, 3);
    }
}

static void visit_resblock(walk *w, tsar_resblock *block, size_t in, size_t out, size_t guide)
{
    visit_norm(w, "norm1", HOME(block, norm1), in, guide);
    visit_conv(w, "conv1", HOME(block, conv1), in, out, 3);
    visit_norm(w, "norm2", HOME(block, norm2), out, guide);
    visit_conv(w, "conv2", HOME(block, conv2), out, out, 3);
    if (in != out) visit_conv(w, "nin_shortcut", HOME(block, nin_shortcut), in, out, 1);
}

static void visit_attnblock(walk *w, tsar_attnblock *block, size_t channels, size_t guide)
{
    visit_norm(w, "norm", HOME(block, norm), channels, guide);
    visit_conv(w, "q", HOME(block, q), channels, channels, 1);
    visit_conv(w, "k", HOME(block, k), channels, channels, 1);
    visit_conv(w, "v", HOME(block, v), channels, channels, 1);
    visit_conv(w, "proj_out", HOME(block, proj_out), channels, channels, 1);
}

static void visit_mid(walk *w, const char *part, tsar_coder *coder, size_t channels, size_t guide)
{
    enter(w, "vq.%s.mid.0.", part);
    visit_resblock(w, HOME(coder, mid0), channels, channels, guide);
    enter(w, "vq.%s.mid.1.", part);
    visit_attnblock(w, HOME(coder, mid1), channels, guide);
    enter(w, "vq.%s.mid.2.", part);
    visit_resblock(w, HOME(coder, mid2), channels, channels, guide);
}

/* conv_blocks.{i} of a coder: residual blocks from `in` to `out` channels, attention behind each of them where there is any,
 * and a convolution that changes the resolution ("" where there is none). */
typedef struct {
    const char *part;
    size_t i, in, out, n_res, guide;
    int attention;
    const char *resample;
} level_shape;

static void visit_level(walk *w, const level_shape *l, tsar_level *level)
{
    for (size_t b = 0; b < l->n_res && w->status == TSAR_OK; b++) {
        enter(w, "vq.%s.conv_blocks.%lu.res.%lu.", l->part, (unsigned long)l->i, (unsigned long)b);
        visit_resblock(w, level ? ELEMENT(level->res, b) : NULL, b == 0 ? l->in : l->out, l->out, l->guide);
    }
    for (size_t b = 0; b < l->n_res && l->attention && w->status == TSAR_OK; b++) {
        enter(w, "vq.%s.conv_blocks.%lu.attn.%lu.", l->part, (unsigned long)l->i, (unsigned long)b);
        visit_attnblock(w, level ? ELEMENT(level->attn, b) : NULL, l->out, l->guide);
    }
    enter(w, "vq.%s.conv_blocks.%lu.", l->part, (unsigned long)l->i);
    if (*l->resample) visit_conv(w, l->resample, HOME(level, resample), l->out, l->out, 3);
}

/* SPEC 4; widths and places of attention: QUIRKS, VQ 4 and 5, and Lumina, VQGAN 2. */
static void visit_encoder(walk *w, const tsar_config *c, tsar_coder *encoder)
{
    const size_t last = c->vq_levels - 1, z = c->vq_z_channels;
    size_t width = c->vq_ch;
    enter(w, "vq.encoder.");
    visit_conv(w, "conv_in", HOME(encoder, conv_in), 3, width, 3);
    for (size_t i = 0; i <= last; i++) {
        const level_shape level = { "encoder", i, width, c->vq_ch * c->vq_ch_mult[i], c->vq_res_blocks, 0, i == last && !c->vq_attn_mid,
                                    i < last ? "downsample.conv" : "" };
        visit_level(w, &level, encoder ? ELEMENT(encoder->levels, i) : NULL);
        width = level.out;
    }
    visit_mid(w, "encoder", encoder, width, 0);
    enter(w, "vq.encoder.");
    visit_norm(w, "norm_out", HOME(encoder, norm_out), width, 0);
    visit_conv(w, "conv_out", HOME(encoder, conv_out), width, z, 3);
    visit_time(w, "encoder", c, encoder, 4);
}

static void visit_decoder(walk *w, const tsar_config *c, tsar_coder *decoder)
{
    const size_t last = c->vq_levels - 1, guide = c->vq_temporal ? c->vq_embed_dim : 0;
    size_t width = c->vq_ch * c->vq_ch_mult[last];
    visit_time(w, "decoder", c, decoder, 3);
    enter(w, "vq.decoder.");
    visit_conv(w, "conv_in", HOME(decoder, conv_in), c->vq_z_channels, width, 3);
    visit_mid(w, "decoder", decoder, width, guide);
    for (size_t i = 0; i <= last; i++) {
        const level_shape level = { "decoder", i, width, c->vq_ch * c->vq_ch_mult[last - i], c->vq_res_blocks + 1, guide, i == 0 && !c->vq_attn_mid,
                                    i < last ? "upsample.conv" : "" };
        visit_level(w, &level, decoder ? ELEMENT(decoder->levels, i) : NULL);
        width = level.out;
    }
    enter(w, "vq.decoder.");
    visit_norm(w, "norm_out", HOME(decoder, norm_out), width, guide);
    visit_conv(w, "conv_out", HOME(decoder, conv_out), width, 3, 3);
}

static void visit_vq(walk *w, const tsar_config *c, tsar_model *m)
{
    tsar_vq *vq = HOME(m, vq);
    w->part = TSAR_PART_VQ;
    visit_encoder(w, c, HOME(vq, encoder));
    enter(w, "vq.");
    if (c->vq_temporal)
        visit_time_conv(w, "quant_conv", HOME(vq, quant_conv), c->vq_z_channels, c->vq_embed_dim, 3, 1);
    else
        visit_conv(w, "quant_conv", HOME(vq, quant_conv), c->vq_z_channels, c->vq_embed_dim, 1);
    table(w, "quantize.embedding.weight", HOME(vq, codebook), c->codebook_size, c->vq_embed_dim);
    if (c->vq_temporal)
        visit_time_conv(w, "post_quant_conv", HOME(vq, post_quant_conv), c->vq_embed_dim, c->vq_z_channels, 3, 1);
    else
        visit_conv(w, "post_quant_conv", HOME(vq, post_quant_conv), c->vq_embed_dim, c->vq_z_channels, 1);
    visit_decoder(w, c, HOME(vq, decoder));
}

static void visit_clusters(walk *w, const tsar_config *c, tsar_model *m)
{
    w->part = TSAR_PART_ALL;
    enter(w, "ctf.");
    const tsar_weight labels = described(w, "cluster_of", TSAR_AS_INTEGERS, HOME(m, cluster_of), 1, &c->codebook_size);
    visit(w, &labels);
}

tsar_status tsar_weights(const tsar_config *config, tsar_model *model, tsar_weight_fn visitor, void *context, tsar_error *err)
{
    walk w = { visitor, context, TSAR_OK, err, 0, "" };
    if (config->has_gpt) visit_gpt(&w, config, model);
    if (config->has_fine) visit_fine(&w, config, model);
    if (config->n_coarse) visit_clusters(&w, config, model);
    if (config->has_vq) visit_vq(&w, config, model);
    if (config->has_t5) visit_t5(&w, config, model);
    return w.status;
}

/* ----------------------------------------------------------------------------------------------------------- loading */

typedef struct {
    tsar_file *file;
    const char *path;
    const tsar_needs *needs;
    const size_t *grid;   /* NULL, or in place of the model's own */
    unsigned parts;       /* whose values are read */
    unsigned char *known; /* [tensors of the file]: 1 where the configuration has that tensor */
    void *slab;           /* rows on their way from the file into a matrix */
    size_t slab_bytes;
} loader;

static const char SPIECE[] = "t5.spiece";

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

/* At least `bytes` bytes of slab. */
static tsar_status reserve_slab(loader *l, size_t rows, size_t row_bytes, tsar_error *err)
{
    if (l->slab_bytes >= rows * row_bytes) return TSAR_OK;
    tsar_free(l->slab);
    l->slab_bytes = 0;
    l->slab = tsar_alloc(rows, row_bytes, "rows of weights", err);
    if (!l->slab) return TSAR_ROOM;
    l->slab_bytes = rows * row_bytes;
    return TSAR_OK;
}

/* In place: of n kernels [taps][area] the last tap of each, one behind the other. */
static void keep_last_taps(void *values, size_t n, size_t taps, size_t area_bytes)
{
    unsigned char *bytes = values;
    for (size_t i = 0; i < n; i++) memmove(bytes + i * area_bytes, bytes + (i * taps + taps - 1) * area_bytes, area_bytes);
}

/* Reads and packs a matrix by slabs of whole panels, about 4 MB, so that memory holds the weights only once. */
static tsar_status load_matrix(loader *l, const tsar_weight *weight, const tsar_tensor *tensor, tsar_error *err)
{
    const size_t size = tsar_dtype_size(tensor->dtype), target = (size_t)4 << 20, taps = weight->last_tap ? weight->shape[2] : 1;
    tsar_matrix *w = weight->home;
    size_t cols = 1; /* of the file */
    for (size_t i = 1; i < weight->rank; i++) cols *= weight->shape[i];
    const size_t area = weight->rank == 5 ? weight->shape[3] * weight->shape[4] : cols;
    size_t slab_rows = target / (cols * size) / TSAR_PANEL * TSAR_PANEL;
    if (slab_rows < TSAR_PANEL) slab_rows = TSAR_PANEL;
    if (slab_rows > weight->rows) slab_rows = weight->rows;
    tsar_status status = tsar_matrix_open(w, weight->rows, cols / taps, tensor->dtype, weight->name, err);
    if (status == TSAR_OK) status = reserve_slab(l, slab_rows, cols * size, err);
    for (size_t row = 0; row < weight->rows && status == TSAR_OK; row += slab_rows) {
        const size_t n = weight->rows - row < slab_rows ? weight->rows - row : slab_rows;
        const uint64_t first = (uint64_t)(weight->first_row + row) * cols;
        status = tsar_file_read(l->file, tensor, first, (uint64_t)n * cols, l->slab, err);
        if (status == TSAR_OK) status = check_finite(l, weight->name, tensor->dtype, l->slab, n * cols, first, err);
        if (status == TSAR_OK && weight->last_tap) keep_last_taps(l->slab, n * weight->shape[1], taps, area * size);
        if (status == TSAR_OK) tsar_matrix_set_rows(w, row, n, l->slab);
    }
    return status;
}

static tsar_status load_table(loader *l, const tsar_weight *weight, const tsar_tensor *tensor, tsar_error *err)
{
    tsar_table *t = weight->home;
    const size_t cols = weight->shape[1], size = tsar_dtype_size(tensor->dtype);
    t->values = cols <= SIZE_MAX / size ? tsar_alloc(weight->rows, cols * size, weight->name, err) : NULL;
    if (!t->values) return TSAR_ROOM;
    t->rows = weight->rows;
    t->cols = cols;
    t->dtype = tensor->dtype;
    const tsar_status status = tsar_file_read(l->file, tensor, 0, (uint64_t)t->rows * cols, t->values, err);
    return status != TSAR_OK ? status : check_finite(l, weight->name, t->dtype, t->values, t->rows * cols, 0, err);
}

static tsar_status load_vector(loader *l, const tsar_weight *weight, const tsar_tensor *tensor, tsar_error *err)
{
    double *values = *(double **)weight->home = tsar_alloc(weight->rows, sizeof *values, weight->name, err);
    if (!values) return TSAR_ROOM;
    const tsar_status status = tsar_file_read_f64(l->file, tensor, 0, weight->rows, values, err);
    return status != TSAR_OK ? status : check_finite(l, weight->name, TSAR_F64, values, weight->rows, 0, err);
}

/* Second pass: a weight into its home, if its part is wanted. */
static tsar_status load_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    loader *l = context;
    if (!(weight->part & l->parts)) return TSAR_OK;
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
    int64_t *values = *(int64_t **)weight->home = tsar_alloc(weight->rows, sizeof *values, weight->name, err);
    return values ? tsar_file_read_i64(l->file, tensor, 0, weight->rows, values, err) : TSAR_ROOM;
}

static tsar_status free_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    (void)context;
    (void)err;
    if (!weight->home) return TSAR_OK;
    switch (weight->use) {
    case TSAR_AS_MATRIX:
        tsar_matrix_close(weight->home);
        break;
    case TSAR_AS_TABLE:
        tsar_free(((tsar_table *)weight->home)->values);
        break;
    case TSAR_AS_VECTOR:
        tsar_free(*(double **)weight->home);
        break;
    case TSAR_AS_INTEGERS:
        tsar_free(*(int64_t **)weight->home);
        break;
    }
    return TSAR_OK;
}

/* Tensors of the four parts that no key of the configuration explains would silently be left unused: refused. */
static tsar_status check_unknown(const loader *l, tsar_error *err)
{
    static const char *const parts[] = { "gpt.", "fine.", "vq.", "t5." };
    for (size_t i = 0; i < tsar_file_count(l->file); i++) {
        const char *name = tsar_file_at(l->file, i)->name;
        int of_part = 0;
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) of_part |= strncmp(name, parts[k], strlen(parts[k])) == 0;
        if (!l->known[i] && of_part && strcmp(name, SPIECE) != 0)
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
    for (size_t factor = c->vq_temporal; factor > 1; factor /= 2) coder->n_time_conv++;
    coder->n_time_res = c->vq_temporal ? c->vq_res_blocks : 0;
    if (status == TSAR_OK) status = allocate(&coder->time_conv, coder->n_time_conv, sizeof *coder->time_conv, err);
    if (status == TSAR_OK) status = allocate(&coder->time_res, coder->n_time_res, sizeof *coder->time_res, err);
    for (size_t i = 0; i < c->vq_levels && status == TSAR_OK; i++) {
        tsar_level *level = &coder->levels[i];
        level->n_res = n_res;
        level->n_attn = i == lowest && !c->vq_attn_mid ? n_res : 0;
        status = allocate(&level->res, level->n_res, sizeof *level->res, err);
        if (status == TSAR_OK) status = allocate(&level->attn, level->n_attn, sizeof *level->attn, err);
    }
    return status;
}

tsar_status tsar_model_allocate(tsar_model *m, tsar_error *err)
{
    const tsar_config *c = &m->config;
    const size_t mlps = c->shuffle > 1 ? c->shuffle_blocks : 0;
    tsar_status status;
    if (c->has_gpt) m->gpt = gpt_sizes(c);
    if (c->has_fine) m->fine = fine_sizes(c);
    if (c->has_t5) m->t5 = t5_sizes(c);
    m->parts = (c->has_gpt ? TSAR_PART_GPT : 0u) | (c->has_gpt || c->has_t5 ? TSAR_PART_TEXT : 0u) | (c->has_fine ? TSAR_PART_FINE : 0u) |
               (c->has_vq ? TSAR_PART_VQ : 0u) | (c->has_t5 ? TSAR_PART_T5 : 0u);
    status = allocate(&m->gpt.layers, m->gpt.n_layer, sizeof *m->gpt.layers, err);
    if (status == TSAR_OK) status = allocate(&m->shuffle_mlp, mlps, sizeof *m->shuffle_mlp, err);
    if (status == TSAR_OK) status = allocate(&m->unshuffle_mlp, mlps, sizeof *m->unshuffle_mlp, err);
    if (status == TSAR_OK) status = allocate(&m->fine.layers, m->fine.n_layer, sizeof *m->fine.layers, err);
    if (status == TSAR_OK) status = allocate(&m->t5.layers, m->t5.n_layer, sizeof *m->t5.layers, err);
    if (c->has_vq && status == TSAR_OK) status = allocate_coder(&m->vq.encoder, c, c->vq_res_blocks, c->vq_levels - 1, err);
    if (c->has_vq && status == TSAR_OK) status = allocate_coder(&m->vq.decoder, c, c->vq_res_blocks + 1, 0, err);
    return status;
}

/* A tensor that a model may have or not, and where its values go: `rank` 1, or 2 with rows of two. */
typedef struct {
    const char *name;
    unsigned part;
    tsar_dtype dtype;
    size_t rank;
    void *values; /* int64_t ** (any integers), uint8_t ** (U8) */
    size_t *n;    /* NULL, or its shape[0] */
} optional_tensor;

static tsar_status load_optional(loader *l, const optional_tensor *o, tsar_error *err)
{
    const tsar_tensor *tensor = l->parts & o->part ? tsar_file_find(l->file, o->name) : NULL;
    const size_t size = o->dtype == TSAR_U8 ? 1 : sizeof(int64_t);
    if (!tensor) return TSAR_OK;
    if (tensor->rank != o->rank || (o->rank == 2 && tensor->shape[1] != 2))
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %s needs the shape %s", l->path, o->name, o->rank == 2 ? "[n, 2]" : "[n]");
    if (o->dtype == TSAR_U8 ? tensor->dtype != TSAR_U8 : tsar_dtype_is_float(tensor->dtype))
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %s has dtype %s, which must be %s", l->path, o->name, tsar_dtype_name(tensor->dtype),
                         o->dtype == TSAR_U8 ? "U8" : "an integer one such as I64");
    void *values = tsar_alloc(tensor->shape[0], o->rank * size, o->name, err);
    if (!values) return TSAR_ROOM;
    memcpy(o->values, &values, sizeof values);
    if (o->n) *o->n = tensor->shape[0];
    return o->dtype == TSAR_U8 ? tsar_file_read(l->file, tensor, 0, tensor->count, values, err)
                               : tsar_file_read_i64(l->file, tensor, 0, tensor->count, values, err);
}

/* Merges are of use to models that take ids; tsar's own, and what makes a published tokenizer, are complete. */
static tsar_status check_merges(const tsar_model *m, const char *path, tsar_error *err)
{
    const int64_t first = TSAR_SPECIALS + 256;
    const tsar_bpe *bpe = &m->bpe;
    if (bpe->n_merges && !m->config.n_ids)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor tokenizer.merges is of no use to arch=%s, which takes no ids", path,
                         tsar_family_of(&m->config)->name);
    const int extras = (bpe->merge_ids != NULL) + (bpe->merge_ranks != NULL) + (bpe->byte_ids != NULL);
    if (extras != 0 && (extras != 3 || !bpe->merges))
        return tsar_fail(err, TSAR_INPUT, "%s: of tokenizer.merges, merge_ids, merge_ranks and bytes a published tokenizer needs all four", path);
    if (extras == 0 && bpe->n_merges && (uint64_t)bpe->n_merges + (uint64_t)first > m->config.n_ids)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor tokenizer.merges has %zu merges, which with %d specials and 256 bytes exceed %s=%zu", path,
                         bpe->n_merges, TSAR_SPECIALS, m->config.text_vocab ? "text_vocab" : "vocab_size", m->config.n_ids);
    return TSAR_OK;
}

/* The places at [n + 1] of n pieces ascend from 0 to the number of their bytes. */
static tsar_status check_pieces(const tsar_pieces *p, const char *name, size_t n_bytes, size_t n_at, const char *path, tsar_error *err)
{
    int fits = p->n == 0 ? n_bytes == 0 && n_at <= 1 : p->bytes && p->at && n_at == p->n + 1 && p->at[0] == 0 && p->at[p->n] == (int64_t)n_bytes;
    for (size_t i = 0; fits && i < p->n; i++) fits = p->at[i] <= p->at[i + 1] && p->at[i] >= 0;
    return fits ? TSAR_OK
                : tsar_fail(err, TSAR_INPUT, "%s: tokenizer.%s_at does not divide the %zu bytes of tokenizer.%s into the %zu pieces of tokenizer.%s_ids",
                            path, name, n_bytes, name, p->n, name);
}

/* Entries of the tensors of tokenizer.* whose number another one's must fit. */
typedef struct {
    size_t merge_ids, merge_ranks, bytes, whole_at, special_at, special_pass;
} tokenizer_entries;

/* The tensors of tokenizer.* fit together. */
static tsar_status check_text_tokenizer(tsar_model *m, const tokenizer_entries *n, const char *path, tsar_error *err)
{
    const tsar_bpe *bpe = &m->bpe;
    tsar_status status = check_merges(m, path, err);
    if (status == TSAR_OK && ((bpe->merge_ids && n->merge_ids != bpe->n_merges) || (bpe->merge_ranks && n->merge_ranks != bpe->n_merges)))
        status = tsar_fail(err, TSAR_INPUT, "%s: tokenizer.merges has %zu merges, but merge_ids %zu and merge_ranks %zu", path, bpe->n_merges, n->merge_ids,
                           n->merge_ranks);
    if (status == TSAR_OK && bpe->byte_ids && n->bytes != 256)
        status = tsar_fail(err, TSAR_INPUT, "%s: tokenizer.bytes has %zu ids, there are 256 bytes", path, n->bytes);
    if (status == TSAR_OK && bpe->special_pass && n->special_pass != bpe->special.n)
        status = tsar_fail(err, TSAR_INPUT, "%s: tokenizer.special_pass has %zu entries for %zu added tokens", path, n->special_pass, bpe->special.n);
    if (status == TSAR_OK) status = check_pieces(&bpe->whole, "whole", bpe->whole.n_bytes, n->whole_at, path, err);
    if (status == TSAR_OK) status = check_pieces(&bpe->special, "special", bpe->special.n_bytes, n->special_at, path, err);
    if (status == TSAR_OK && bpe->special.n && !bpe->special_pass)
        status = tsar_fail(err, TSAR_INPUT, "%s: tokenizer.special_ids needs tokenizer.special_pass beside it", path);
    return status;
}

/* tokenizer.* and t5.spiece (SPEC 11). */
static tsar_status load_text_tokenizer(tsar_model *m, loader *l, tsar_error *err)
{
    tokenizer_entries n = { 0, 0, 0, 0, 0, 0 };
    tsar_bpe *bpe = &m->bpe;
    const optional_tensor tensors[] = {
        { "tokenizer.merges", TSAR_PART_TEXT, TSAR_I64, 2, &bpe->merges, &bpe->n_merges },
        { "tokenizer.merge_ids", TSAR_PART_TEXT, TSAR_I64, 1, &bpe->merge_ids, &n.merge_ids },
        { "tokenizer.merge_ranks", TSAR_PART_TEXT, TSAR_I64, 1, &bpe->merge_ranks, &n.merge_ranks },
        { "tokenizer.bytes", TSAR_PART_TEXT, TSAR_I64, 1, &bpe->byte_ids, &n.bytes },
        { "tokenizer.whole", TSAR_PART_TEXT, TSAR_U8, 1, &bpe->whole.bytes, &bpe->whole.n_bytes },
        { "tokenizer.whole_at", TSAR_PART_TEXT, TSAR_I64, 1, &bpe->whole.at, &n.whole_at },
        { "tokenizer.whole_ids", TSAR_PART_TEXT, TSAR_I64, 1, &bpe->whole.ids, &bpe->whole.n },
        { "tokenizer.special", TSAR_PART_TEXT, TSAR_U8, 1, &bpe->special.bytes, &bpe->special.n_bytes },
        { "tokenizer.special_at", TSAR_PART_TEXT, TSAR_I64, 1, &bpe->special.at, &n.special_at },
        { "tokenizer.special_ids", TSAR_PART_TEXT, TSAR_I64, 1, &bpe->special.ids, &bpe->special.n },
        { "tokenizer.special_pass", TSAR_PART_TEXT, TSAR_U8, 1, &bpe->special_pass, &n.special_pass },
        { SPIECE, TSAR_PART_T5 | TSAR_PART_TEXT, TSAR_U8, 1, &m->t5_spiece, &m->n_t5_spiece },
    };
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors && status == TSAR_OK; i++) status = load_optional(l, &tensors[i], err);
    if (status == TSAR_OK) status = check_text_tokenizer(m, &n, l->path, err);
    bpe->split = (tsar_split)m->config.text_split;
    bpe->nfc = m->config.text_normal_nfc;
    if (status == TSAR_OK && m->t5_spiece) status = tsar_spiece_open(&m->spiece, m->t5_spiece, m->n_t5_spiece, l->path, err);
    if (status == TSAR_OK && m->spiece && tsar_spiece_count(m->spiece) > m->config.t5_vocab)
        status = tsar_fail(err, TSAR_INPUT, "%s: the tokenizer t5.spiece has %zu pieces, more than t5_vocab=%zu", l->path, tsar_spiece_count(m->spiece),
                           m->config.t5_vocab);
    return status == TSAR_OK && m->config.n_ids && l->parts & TSAR_PART_TEXT ? tsar_bpe_open(bpe, m->config.n_ids, l->path, err) : status;
}

/* The key known_words, which outlives the file. */
static tsar_status load_words(tsar_model *m, const loader *l, tsar_error *err)
{
    const char *words = l->parts & TSAR_PART_TEXT ? tsar_file_meta(l->file, "known_words") : NULL;
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

/* ------------------------------------------------------------------------------------------------------------- memory */

double tsar_sequence_bytes(const tsar_config *config, size_t prefix)
{
    const size_t columns = config->columns + (config->eol >= 0 ? 1 : 0), hd = config->dim / config->n_head;
    const double positions = (double)prefix + (double)config->rows * (double)columns;
    return 2 * (double)config->n_layer * (double)config->n_kv_head * (double)hd * positions * (double)sizeof(double);
}

/* conv_blocks.i of the decoder turns `width` channels into `out` at 2^i times the codes' resolution, and all but the last enlarge these once more. */
double tsar_decoder_bytes(const tsar_config *c, size_t h, size_t w)
{
    const size_t last = c->vq_levels - 1;
    double pixels = (double)h * (double)w, width = (double)c->vq_ch * (double)c->vq_ch_mult[last], most = 0, widest = width;
    const double guide = c->vq_temporal ? pixels : 0;
    for (size_t i = 0; i <= last; i++, pixels *= 4) {
        const double out = (double)c->vq_ch * (double)c->vq_ch_mult[last - i], tensor = pixels * (i < last ? 4 * out : out);
        if (out > widest) widest = out;
        if (pixels * width > most) most = pixels * width;
        if (tensor > most) most = tensor;
        width = out;
    }
    return 2 * (most + widest * guide) * (double)sizeof(double);
}

typedef struct {
    const tsar_file *file;
    unsigned parts;
    double bytes;
} weigher;

/* A matrix is kept in whole panels, a vector in double. */
static tsar_status weigh(void *context, const tsar_weight *weight, tsar_error *err)
{
    weigher *w = context;
    const tsar_tensor *tensor = weight->part & w->parts ? tsar_file_find(w->file, weight->name) : NULL;
    double cols = 1;
    (void)err;
    for (size_t i = 1; i < weight->rank; i++) cols *= weight->last_tap && i == 2 ? 1 : (double)weight->shape[i];
    if (!tensor) return TSAR_OK;
    if (weight->use == TSAR_AS_MATRIX)
        w->bytes += (double)tsar_panels(weight->rows) * TSAR_PANEL * cols * (double)tsar_dtype_size(tensor->dtype);
    else
        w->bytes += (double)weight->rows * cols * (weight->use == TSAR_AS_TABLE ? (double)tsar_dtype_size(tensor->dtype) : 8.0);
    return TSAR_OK;
}

tsar_status tsar_weights_bytes(double *bytes, const tsar_config *config, const tsar_file *file, unsigned parts, tsar_error *err)
{
    weigher w = { file, parts, 0 };
    const tsar_status status = tsar_weights(config, NULL, weigh, &w, err);
    *bytes = w.bytes;
    return status;
}

tsar_status tsar_memory_check(double bytes, const char *what, const char *instead, tsar_error *err)
{
    uint64_t room;
    if (!tsar_memory_room(&room) || bytes <= (double)room) return TSAR_OK;
    return tsar_fail(err, TSAR_ROOM, "%s take %.2f GB, and this machine has %.2f GB to give (take %s, or a machine with more)", what, bytes / 1e9,
                     (double)room / 1e9, instead);
}

/* The weights, and what will be generated, before any of them is read: the keys and values, and when these are gone the picture's decoder. */
static tsar_status check_room(const tsar_model *m, const loader *l, tsar_error *err)
{
    const tsar_config *c = &m->config;
    const int generates = c->has_gpt && l->needs->generates, guided = (l->needs->cfg < 0 ? c->defaults.cfg : l->needs->cfg) > 1;
    const double codes = generates ? (guided ? 2 : 1) * tsar_sequence_bytes(c, 0) : 0;
    const double decoder = generates && c->has_vq && l->parts & TSAR_PART_VQ ? tsar_decoder_bytes(c, c->grid_h, c->grid_w) : 0;
    const double more = decoder > codes ? decoder : codes;
    double weights = 0;
    uint64_t room = 0;
    char text[128] = "";
    const tsar_status status = tsar_weights_bytes(&weights, c, l->file, l->parts, err);
    if (status != TSAR_OK || !tsar_memory_room(&room) || weights + more <= (double)room) return status;
    if (generates)
        (void)snprintf(text, sizeof text, ", %s%s %.2f GB", decoder > codes ? "decoding a picture" : "the keys and values of a picture",
                       guided && decoder <= codes ? " and its unguided twin" : "", more / 1e9);
    return tsar_fail(err, TSAR_ROOM, "%s: its weights take %.2f GB of memory%s, and this machine has %.2f GB to give (take %s%sa machine with more)", l->path,
                     weights / 1e9, text, (double)room / 1e9, generates && !c->rope_2d && weights < (double)room ? "a smaller --grid, or " : "",
                     guided && codes > decoder && weights < (double)room ? "--cfg 1, or " : "");
}

/* ------------------------------------------------------------------------------------------------------ opening, closing */

static const char *lookup_file(const void *source, const char *key) { return tsar_file_meta(source, key); }

/* The grid of given codes if the model can take it, else `grid`, else the model's own. */
static tsar_status choose_grid(tsar_config *c, const size_t of_codes[2], const size_t *grid, tsar_error *err)
{
    if (c->has_gpt && of_codes[0] && of_codes[1] && of_codes[0] <= TSAR_MAX_DIM / of_codes[1] && tsar_config_grid(c, of_codes, NULL) == TSAR_OK) return TSAR_OK;
    return grid ? tsar_config_grid(c, grid, err) : TSAR_OK;
}

/* From an open file into an empty model. */
static tsar_status load_model(tsar_model *m, loader *l, tsar_error *err)
{
    tsar_status status = tsar_config_read(&m->config, lookup_file, l->file, l->path, err);
    if (status == TSAR_OK) status = choose_grid(&m->config, l->needs->grid, l->grid, err);
    if (status != TSAR_OK) return status;
    l->known = tsar_alloc(tsar_file_count(l->file), 1, "the list of tensors", err);
    if (!l->known) return TSAR_ROOM;
    status = tsar_weights(&m->config, NULL, check_weight, l, err);
    if (status == TSAR_OK) status = check_unknown(l, err);
    if (status == TSAR_OK) status = check_room(m, l, err);
    if (status == TSAR_OK) status = tsar_model_allocate(m, err);
    l->parts = m->parts &= l->parts;
    if (status == TSAR_OK) status = tsar_weights(&m->config, m, load_weight, l, err);
    if (status == TSAR_OK) status = check_clusters(m, l->path, err);
    if (status == TSAR_OK) status = load_words(m, l, err);
    return status == TSAR_OK ? load_text_tokenizer(m, l, err) : status;
}

tsar_status tsar_model_open(tsar_model **model, const char *path, unsigned parts, size_t threads, tsar_error *err)
{
    const tsar_needs needs = { .parts = parts };
    return tsar_model_open_for(model, path, &needs, NULL, threads, err);
}

tsar_status tsar_model_open_for(tsar_model **model, const char *path, const tsar_needs *needs, const size_t *grid, size_t threads, tsar_error *err)
{
    *model = NULL;
    if (threads < 1 || threads > 1024) return tsar_fail(err, TSAR_USAGE, "the number of threads is %zu, which must be from 1 to 1024", threads);
    tsar_model *m = tsar_alloc(1, sizeof *m, "a model", err);
    if (!m) return TSAR_ROOM;
    loader l = { .path = path, .needs = needs, .grid = grid, .parts = needs->parts };
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
    if (status != TSAR_OK)
        tsar_model_close(m);
    else
        *model = m;
    return status;
}

tsar_status tsar_model_needs(const tsar_model *model, unsigned part, const char *what, tsar_error *err)
{
    static const char *const names[] = { "transformer (gpt.*)", "stage two (fine.*)", "image tokenizer (vq.*)", "text encoder (t5.*)", "tokenizer of text" };
    size_t i = 0;
    while (i < 4 && !(part >> i & 1u)) i++;
    if (model->parts & part) return TSAR_OK;
    return tsar_fail(err, TSAR_INPUT, "the model has no %s: it cannot %s", names[i], what);
}

/* A prompt alone is generated from: its codes then feed the tokenizer. */
tsar_status tsar_needs_of(tsar_needs *needs, const char *path, tsar_error *err)
{
    enum { EITHER_STACK = TSAR_PART_GPT | TSAR_PART_FINE };
    static const struct {
        const char *name;
        unsigned parts;
        int is_grid;
    } inputs[] = { { "codes", 0, 1 },
                   { "coarse", TSAR_PART_FINE, 1 },
                   { "input.coarse", TSAR_PART_FINE, 1 },
                   { "vq.codes", TSAR_PART_VQ, 1 },
                   { "input.image", TSAR_PART_VQ, 0 },
                   { "input.codes", TSAR_PART_VQ, 1 },
                   { "input.t5_ids", TSAR_PART_T5, 0 },
                   { "input.text", EITHER_STACK, 0 },
                   { "input.class", EITHER_STACK, 0 },
                   { "input.caption", EITHER_STACK, 0 } };
    tsar_file *file = NULL;
    const tsar_status status = tsar_file_open_alone(&file, path, err);
    memset(needs, 0, sizeof *needs);
    for (size_t i = 0; status == TSAR_OK && i < sizeof inputs / sizeof *inputs; i++) {
        const tsar_tensor *tensor = tsar_file_find(file, inputs[i].name);
        if (!tensor) continue;
        needs->parts |= inputs[i].parts | (needs->parts == 0 && inputs[i].parts == EITHER_STACK ? TSAR_PART_VQ : 0u);
        if (inputs[i].is_grid && tensor->rank == 2) memcpy(needs->grid, tensor->shape, sizeof needs->grid);
    }
    tsar_file_close(file);
    return status;
}

static void free_coder(tsar_coder *coder, size_t n_levels)
{
    for (size_t i = 0; coder->levels && i < n_levels; i++) {
        tsar_free(coder->levels[i].res);
        tsar_free(coder->levels[i].attn);
    }
    tsar_free(coder->levels);
    tsar_free(coder->time_conv);
    tsar_free(coder->time_res);
}

void tsar_model_close(tsar_model *model)
{
    if (!model) return;
    if (model->gpt.layers || model->fine.layers || model->vq.encoder.levels || model->t5.layers) /* else nothing was loaded */
        tsar_weights(&model->config, model, free_weight, NULL, NULL);
    tsar_free(model->gpt.layers);
    tsar_free(model->shuffle_mlp);
    tsar_free(model->unshuffle_mlp);
    tsar_free(model->fine.layers);
    free_coder(&model->vq.encoder, model->config.vq_levels);
    free_coder(&model->vq.decoder, model->config.vq_levels);
    tsar_free(model->t5.layers);
    tsar_spiece_close(model->spiece);
    tsar_free(model->t5_spiece);
    tsar_bpe_close(&model->bpe);
    tsar_free(model->known_words);
    tsar_free(model);
}
