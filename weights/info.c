/* What a model costs, from its configuration and the header of its file alone: parameters, bytes, multiply-adds (MACs), passes, memory. */
#include "../tsar.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    tsar_note_fn print;
    void *context;
} output;

/* One line, at most 255 characters. */
TSAR_FORMAT(2, 3) static void put_line(const output *out, const char *format, ...)
{
    char text[256];
    va_list values;
    va_start(values, format);
    (void)vsnprintf(text, sizeof text, format, values);
    va_end(values);
    out->print(out->context, text);
}

typedef char number[32];

/* 2270000000 as "2.27 G" */
static const char *scaled(number text, double value)
{
    static const char *const units[] = { "", " k", " M", " G", " T", " P" };
    int unit = 0;
    for (; value >= 999.5 && unit < 5; unit++) value /= 1000;
    (void)snprintf(text, sizeof(number), value < 99.95 && unit ? "%.3g%s" : "%.0f%s", value, units[unit]);
    return text;
}

/* ------------------------------------------------------------------------------------------------------------- parts */

/* gpt.*, fine.*, vq.*, t5.*, and the rest. */
enum { PARTS = 5 };
static const char *const part_names[PARTS] = { "gpt", "fine", "vq", "t5", "other" };

typedef struct {
    size_t tensors, missing; /* in the configuration; of these not in the file, or too short there */
    uint64_t bytes;
    double parameters; /* of a configuration that no file holds they may be more than 2^64 */
    int dtypes[TSAR_DTYPES]; /* which occur */
} part;
typedef struct {
    const tsar_file *file;
    part parts[PARTS];
} counter;

static part *part_of(counter *c, const char *name)
{
    size_t i = 0;
    while (i < PARTS - 1 && (strncmp(name, part_names[i], strlen(part_names[i])) != 0 || name[strlen(part_names[i])] != '.')) i++;
    return &c->parts[i];
}

static tsar_status count_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    counter *c = context;
    const tsar_tensor *tensor = tsar_file_find(c->file, weight->name);
    part *p = part_of(c, weight->name);
    double parameters = 1;
    (void)err;
    for (size_t i = 0; i < weight->rank; i++) parameters *= (double)weight->shape[i];
    p->tensors++;
    p->parameters += parameters;
    if (!tensor || (double)tensor->count < parameters) p->missing++;
    return TSAR_OK;
}

static tsar_status put_parts(const output *out, const tsar_config *config, const tsar_file *file, tsar_error *err)
{
    number text[4];
    counter c = { .file = file };
    for (size_t i = 0; i < tsar_file_count(file); i++) {
        const tsar_tensor *tensor = tsar_file_at(file, i);
        part *p = part_of(&c, tensor->name);
        p->bytes += tensor->count * tsar_dtype_size(tensor->dtype);
        p->dtypes[tensor->dtype] = 1;
    }
    tsar_status status = tsar_weights(config, NULL, count_weight, &c, err);
    if (status != TSAR_OK) return status;
    put_line(out, "%s", "");
    put_line(out, "%-8s %8s %12s %12s  type", "part", "tensors", "parameters", "bytes");
    for (int i = 0; i < PARTS; i++) {
        const part *p = &c.parts[i];
        char types[128] = "", missing[64] = "";
        for (int k = 0; k < TSAR_DTYPES; k++)
            if (p->dtypes[k]) (void)snprintf(types + strlen(types), sizeof types - strlen(types), " %s", tsar_dtype_name((tsar_dtype)k));
        if (p->missing) (void)snprintf(missing, sizeof missing, "  (%zu tensors are missing)", p->missing);
        if (p->tensors || p->bytes)
            put_line(out, "%-8s %8zu %12s %12s %s%s", part_names[i], p->tensors, scaled(text[0], p->parameters),
                     scaled(text[1], (double)p->bytes), types, missing);
    }
    return TSAR_OK;
}

static void put_shapes(const output *out, const tsar_config *c)
{
    char widths[TSAR_MAX_LEVELS * 24] = "";
    if (c->has_gpt) {
        put_line(out, "gpt      %s: dim %zu, %zu layers, %zu heads of %zu (%zu for keys and values), ffn %zu, rope %s", tsar_family_of(c)->name, c->dim,
                 c->n_layer, c->n_head, c->dim / c->n_head, c->n_kv_head, c->ffn_hidden, c->rope_2d ? "2d" : "1d");
        put_line(out, "         %zu x %zu codes of %zu, s = %zu: %zu x %zu = %zu fused tokens", c->grid_h, c->grid_w, c->codebook_size, c->shuffle,
                 c->rows, c->columns, c->tokens);
        if (c->text_vocab) put_line(out, "         %zu text ids", c->text_vocab);
        if (c->vocab_size) put_line(out, "         vocabulary %zu%s", c->vocab_size, tsar_family_of(c)->shares_table ? "" : " (text alone)");
        if (c->image_base) put_line(out, "         code 0 is id %zu", c->image_base);
        if (c->eol >= 0) put_line(out, "         id %ld behind every row of codes", (long)c->eol);
        if (c->qk_norm || c->norm_post)
            put_line(out, "         norms of queries and keys: %zu rows; the others %s the branches", c->qk_norm, c->norm_post ? "behind" : "before");
        if (c->image_embed) put_line(out, "         codes enter through %zu -> %zu -> %zu, leave through %zu -> %zu -> %zu", c->image_embed, c->dim,
                                     c->dim, c->dim, c->image_head, c->vocab);
        if (c->num_classes) put_line(out, "         %zu classes", c->num_classes);
        if (c->caption_dim) put_line(out, "         captions of %zu features x %zu", c->cond_tokens, c->caption_dim);
    }
    if (c->n_coarse) put_line(out, "ctf      %zu coarse labels for %zu codes", c->n_coarse, c->codebook_size);
    if (c->has_fine)
        put_line(out, "fine     dim %zu, %zu layers, %zu heads, ffn %zu", c->fine_dim, c->fine_n_layer, c->fine_n_head, c->fine_ffn_hidden);
    if (c->has_t5)
        put_line(out, "t5       dim %zu, %zu layers, %zu heads of %zu, ffn %zu, %zu ids", c->t5_dim, c->t5_n_layer, c->t5_n_head, c->t5_head_dim,
                 c->t5_ffn_hidden, c->t5_vocab);
    if (!c->has_vq) return;
    for (size_t i = 0; i < c->vq_levels; i++)
        (void)snprintf(widths + strlen(widths), sizeof widths - strlen(widths), " %zu", c->vq_ch * c->vq_ch_mult[i]);
    put_line(out, "vq       widths%s, %zu x %zu pixels per code, codebook %zu x %zu%s%s", widths, c->vq_factor, c->vq_factor, c->codebook_size,
             c->vq_embed_dim, c->vq_l2_norm ? " of unit length" : "", c->vq_attn_mid ? ", attention in the middle only" : "");
    if (c->vq_temporal) put_line(out, "         made for video, %zu frames a code; norms of the decoder guided by the codewords", c->vq_temporal);
}

/* ------------------------------------------------------------------------------------------------------------- tokens */

/* Multiply-adds of one fused token, and bytes of its keys and values. */
typedef struct {
    double layers;    /* the blocks' matrices */
    double attention; /* scores and sums, for each position that it attends to */
    double shuffle;   /* both shuffle modules, or Janus's way of a code into the stream; 0 where a code is a row of a table */
    double head;      /* the logits of its s*s codes */
    double kv_bytes;
} token_cost;

/* SPEC 3. Each token multiplies every matrix of its blocks once; query and values meet each position that it attends to.
 * Token-Shuffle with window side s: compress and expand are s*s products of d/s^2 x d, so d*d each; two fc products for each block on either
 * side; the head is evaluated for all s*s codes. Janus: two products for the code, two for its logits. Keys and values are double. */
static token_cost cost_of_token(const tsar_config *config, size_t s)
{
    const double d = (double)config->dim, layers = (double)config->n_layer, slots = (double)(s * s);
    const double kv = d / (double)config->n_head * (double)config->n_kv_head;
    token_cost cost = { 0, 0, 0, 0, 0 };
    cost.layers = layers * (d * (d + 2 * kv) + d * d + 3 * d * (double)config->ffn_hidden);
    cost.attention = layers * 2 * d;
    if (s > 1) cost.shuffle = 2 * d * d + 4 * (double)config->shuffle_blocks * d * (double)config->shuffle_hidden;
    cost.head = slots * d * (double)config->vocab;
    if (!tsar_family_of(config)->shares_table) {
        cost.shuffle = (double)config->image_embed * d + d * d;
        cost.head = (double)config->image_head * (d + (double)config->vocab);
    }
    cost.kv_bytes = layers * 2 * kv * (double)sizeof(double);
    return cost;
}

/* n tokens after one another and `eols` ids that end rows among them, without a prompt. */
static double cost_of_image(const token_cost *cost, size_t n, size_t eols)
{
    const double positions = (double)n + (double)eols;
    return positions * cost->layers + (double)n * (cost->shuffle + cost->head) + cost->attention * positions * (positions + 1) / 2;
}

/* Passes for one image in raster order and with ZipAR's windows W up to the whole row (SPEC 6). Where rows end by a token, the authors count
 * it: their window is W + 1, and their raster order spends a pass on it. */
static void put_passes(const output *out, const tsar_config *c)
{
    static const size_t windows[] = { 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 15, 16, 19, 20, 23, 24, 31, 32, 47, 48, 64, 96, 128 };
    const int eol = c->eol >= 0;
    enum { WINDOWS = sizeof windows / sizeof windows[0] };
    tsar_settings settings = { .cfg = 1, .cfg_interval = -1, .temperature = 1, .top_p = 1, .order = TSAR_ZIPAR };
    put_line(out, "%s", "");
    put_line(out, "%-16s %8s %20s", "passes per image", "", eol ? "as the authors count" : "first-row");
    if (eol)
        put_line(out, "%-16s %8zu %20zu", "raster", c->tokens, c->tokens + c->rows);
    else
        put_line(out, "%-16s %8zu", "raster", c->tokens);
    for (size_t i = 0; i <= WINDOWS; i++) {
        const int is_last = i == WINDOWS || windows[i] >= c->columns;
        settings.window = is_last ? c->columns : windows[i];
        settings.first_row = 0;
        const size_t passes = tsar_order_passes(&settings, c->rows, c->columns);
        settings.first_row = 1;
        if (eol)
            put_line(out, "zipar:%-10zu %8zu %14s %5zu", settings.window, passes, "window", settings.window + 1);
        else
            put_line(out, "zipar:%-10zu %8zu %20zu", settings.window, passes, tsar_order_passes(&settings, c->rows, c->columns));
        if (is_last) break;
    }
}

/* Token-Shuffle's trade (paper, section 3): the side of the window against tokens, passes, multiply-adds and memory. */
static void put_shuffle_table(const output *out, const tsar_config *config)
{
    number text[4];
    tsar_config c = *config;
    const size_t factor = c.has_vq ? c.vq_factor : 16;
    if (!c.shuffle_blocks) c.shuffle_blocks = 2; /* a model with s = 1 has none: two, as in the paper */
    if (!c.shuffle_hidden) c.shuffle_hidden = c.dim;
    put_line(out, "%s", "");
    put_line(out, "%zu pixels per code and side, raster order, one sequence (guidance doubles MACs and KV memory):", factor);
    put_line(out, "%8s %4s %10s %10s %12s %12s", "pixels", "s", "tokens", "passes", "MACs/image", "KV bytes");
    for (size_t pixels = 1024; pixels <= 2048; pixels *= 2)
        for (size_t s = 1; s <= 4; s *= 2) {
            const size_t side = pixels / factor / s, n = side * side;
            if (n == 0 || c.dim % (s * s)) continue;
            const token_cost cost = cost_of_token(&c, s);
            put_line(out, "%8zu %4zu %10zu %10zu %12s %12s", pixels, s, n, n, scaled(text[0], cost_of_image(&cost, n, 0)),
                     scaled(text[1], cost.kv_bytes * (double)n));
        }
}

static void put_costs(const output *out, const tsar_config *c, double weights)
{
    number text[4];
    const token_cost cost = cost_of_token(c, c->shuffle);
    put_line(out, "%s", "");
    const size_t eols = c->eol >= 0 ? c->rows : 0;
    const double kv = tsar_sequence_bytes(c, 0);
    put_line(out, "MACs per token   layers %s, %s %s, head %s, attention %s for each position attended to", scaled(text[0], cost.layers),
             tsar_family_of(c)->shares_table ? "shuffle" : "code", scaled(text[1], cost.shuffle), scaled(text[2], cost.head), scaled(text[3], cost.attention));
    put_line(out, "per image        %zu tokens%s: %s MACs; keys and values %s bytes, %s with guidance", c->tokens, eols ? " and the ends of rows" : "",
             scaled(text[0], cost_of_image(&cost, c->tokens, eols)), scaled(text[1], kv), scaled(text[2], 2 * kv));
    put_line(out, "memory           weights %s bytes, with a picture's keys and values %s, with guidance %s", scaled(text[0], weights),
             scaled(text[1], weights + kv), scaled(text[2], weights + 2 * kv));
    put_passes(out, c);
    if (tsar_family_of(c)->takes & TSAR_TAKES_SHUFFLE) put_shuffle_table(out, c);
}

/* CTF's stage two: the blocks over all N codes of the grid at once, each attending to all, and logits of the whole codebook for each. */
static void put_stage_two(const output *out, const tsar_config *c)
{
    number text;
    const double d = (double)c->fine_dim, N = (double)c->grid_h * (double)c->grid_w;
    const double block = 4 * d * d + 3 * d * (double)c->fine_ffn_hidden + 2 * d * N;
    put_line(out, "%s", "");
    put_line(out, "stage two        one pass more: %s MACs", scaled(text, N * ((double)c->fine_n_layer * block + d * (double)c->codebook_size)));
}

/* ---------------------------------------------------------------------------------------------------------- tokenizer */

typedef struct {
    size_t levels, frames; /* vq_temporal */
    double positions, encoder, decoder;
} vq_counter;

/* Convolutions in time (Emu3): at the lowest resolution; of three taps only the last meets data, the decoder takes them twice (codeword and
 * guide); the encoder's halve the frames one after another. The guide's 1x1 convolutions are taken at its own size. */
static double cost_in_time(const vq_counter *c, const tsar_weight *weight, int is_decoder)
{
    const char *conv = strstr(weight->name, "encoder.time_conv.");
    double macs = c->positions * (is_decoder && strstr(weight->name, "post_quant") == NULL ? 2 : 1);
    for (size_t i = 0; i < 5; i++) macs *= (double)weight->shape[i];
    if (conv) return macs * (double)(c->frames >> (strtoul(conv + strlen("encoder.time_conv."), NULL, 10) + 1));
    return macs / (double)weight->shape[2];
}

/* A convolution costs its weights once for each position it is evaluated at: N = h*w at the lowest resolution, 4 times as many on
 * each level above. Encoder level i lies levels - 1 - i above it, its downsampling (evaluated at its result) one less; decoder
 * level i lies i above it, its upsampling (behind the doubling) one more. Attention: N x N scores and sums over C channels. */
static tsar_status count_convolution(void *context, const tsar_weight *weight, tsar_error *err)
{
    vq_counter *c = context;
    const char *name = weight->name, *block = strstr(name, "conv_blocks.");
    const int is_decoder = strncmp(name, "vq.decoder.", 11) == 0 || strcmp(name, "vq.post_quant_conv.weight") == 0;
    const size_t top = c->levels - 1, length = strlen(name);
    size_t above = 0;
    (void)err;
    if (strncmp(name, "vq.", 3) != 0 || weight->rank < 4) return TSAR_OK;
    if (weight->rank == 5) {
        *(is_decoder ? &c->decoder : &c->encoder) += cost_in_time(c, weight, is_decoder);
        return TSAR_OK;
    }
    if (strstr(name, ".conv_y.") || strstr(name, ".conv_b.")) {
        above = 0;
    } else if (block) {
        const size_t i = (size_t)strtoul(block + strlen("conv_blocks."), NULL, 10);
        above = is_decoder ? i + (strstr(name, "upsample") != NULL) : top - i - (strstr(name, "downsample") != NULL);
    } else if (strcmp(name, is_decoder ? "vq.decoder.conv_out.weight" : "vq.encoder.conv_in.weight") == 0) {
        above = top;
    }
    double macs = ldexp(c->positions, 2 * (int)above);
    for (size_t i = 0; i < 4; i++) macs *= (double)weight->shape[i];
    if (length > 9 && strcmp(name + length - 9, ".q.weight") == 0) macs += 2 * c->positions * c->positions * (double)weight->shape[0];
    *(is_decoder ? &c->decoder : &c->encoder) += macs;
    return TSAR_OK;
}

static tsar_status put_tokenizer(const output *out, const tsar_config *config, tsar_error *err)
{
    number text[4];
    const size_t h = config->grid_h ? config->grid_h : 16, w = config->grid_w ? config->grid_w : 16;
    vq_counter c = { config->vq_levels, config->vq_temporal, (double)h * (double)w, 0, 0 };
    tsar_status status = tsar_weights(config, NULL, count_convolution, &c, err);
    if (status != TSAR_OK) return status;
    put_line(out, "%s", "");
    put_line(out, "tokenizer        %zu x %zu codes, %zu x %zu pixels: encode %s MACs, decode %s MACs and %s bytes", h, w,
             w * config->vq_factor, h * config->vq_factor, scaled(text[0], c.encoder), scaled(text[1], c.decoder),
             scaled(text[2], tsar_decoder_bytes(config, h, w)));
    return TSAR_OK;
}

/* The text encoder over all tokens that a caption may have: every layer attends from each to each. */
static void put_encoder(const output *out, const tsar_config *c)
{
    number text;
    const double d = (double)c->t5_dim, inner = (double)c->t5_n_head * (double)c->t5_head_dim, L = c->cond_tokens ? (double)c->cond_tokens : 120;
    const double layer = 4 * d * inner + 3 * d * (double)c->t5_ffn_hidden + 2 * inner * L;
    put_line(out, "%s", "");
    put_line(out, "text encoder     %.0f tokens: %s MACs", L, scaled(text, L * (double)c->t5_n_layer * layer));
}

static const char *lookup(const void *source, const char *key) { return tsar_file_meta(source, key); }

tsar_status tsar_info(const char *path, const size_t *grid, tsar_note_fn print, void *context, tsar_error *err)
{
    const output out = { print, context };
    tsar_file *file = NULL;
    tsar_config config;
    double weights = 0;
    tsar_status status = tsar_file_open(&file, path, err);
    if (status != TSAR_OK) return status;
    status = tsar_config_read(&config, lookup, file, path, err);
    if (status == TSAR_OK && grid) status = tsar_config_grid(&config, grid, err);
    if (status == TSAR_OK) {
        put_shapes(&out, &config);
        status = put_parts(&out, &config, file, err);
    }
    if (status == TSAR_OK) status = tsar_weights_bytes(&weights, &config, file, TSAR_PART_ALL, err);
    if (status == TSAR_OK && config.has_gpt) put_costs(&out, &config, weights);
    if (status == TSAR_OK && config.has_fine) put_stage_two(&out, &config);
    if (status == TSAR_OK && config.has_vq) status = put_tokenizer(&out, &config, err);
    if (status == TSAR_OK && config.has_t5) put_encoder(&out, &config);
    tsar_file_close(file);
    return status;
}
