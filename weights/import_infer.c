/* From shapes to a configuration (SPEC 2): sizes by the vote of the tensors that show them, then each part in turn, with what official code fixes
 * where shapes cannot tell. What neither tells is asked for. */
#include "import.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { LONG_NAME = 256 };
static const char LLAMAGEN[] = "LlamaGen's own code", TAMING[] = "taming-transformers' and Chameleon's code", JANUS[] = "Janus's own code",
                  PUBLISHED[] = "the published models";

/* ---------------------------------------------------------------------------------------------- from shapes to settings */

/* Where a size shows: dimension `axis` of tensors of rank `rank` called `name`, # standing for any number. A size that several tensors
 * show is the one that most of them agree on, so that a misshapen one is told from the rest; check_weight then names it. "gpt.vocab"
 * and "gpt.wqkv" and their like are no keys of a configuration but rows of their tensors. */
typedef struct {
    const char *size, *name;
    size_t rank, axis;
} witness;
static const witness WITNESSES[] = {
    /* the first that agrees is named as the evidence */
    { "dim", "gpt.norm.weight", 1, 0 },
    { "dim", "gpt.tok_embeddings.weight", 2, 1 },
    { "dim", "gpt.output.weight", 2, 1 },
    { "dim", "gpt.layers.#.attention_norm.weight", 1, 0 },
    { "dim", "gpt.layers.#.ffn_norm.weight", 1, 0 },
    { "dim", "gpt.layers.#.attention.wqkv.weight", 2, 1 },
    { "dim", "gpt.layers.#.attention.wo.weight", 2, 0 },
    { "dim", "gpt.layers.#.feed_forward.w1.weight", 2, 1 },
    { "dim", "gpt.layers.#.feed_forward.w2.weight", 2, 0 },
    { "dim", "gpt.layers.#.feed_forward.w3.weight", 2, 1 },
    { "ffn_hidden", "gpt.layers.#.feed_forward.w1.weight", 2, 0 },
    { "ffn_hidden", "gpt.layers.#.feed_forward.w2.weight", 2, 1 },
    { "ffn_hidden", "gpt.layers.#.feed_forward.w3.weight", 2, 0 },
    { "gpt.wqkv", "gpt.layers.#.attention.wqkv.weight", 2, 0 },
    { "gpt.vocab", "gpt.tok_embeddings.weight", 2, 0 },
    { "gpt.vocab", "gpt.output.weight", 2, 0 },
    { "gpt.part", "gpt.shuffle.compress.weight", 2, 0 },
    { "gpt.part", "gpt.unshuffle.expand.weight", 2, 1 },
    { "shuffle_hidden", "gpt.shuffle.blocks.#.fc1.weight", 2, 0 },
    { "shuffle_hidden", "gpt.shuffle.blocks.#.fc2.weight", 2, 1 },
    { "shuffle_hidden", "gpt.unshuffle.blocks.#.fc1.weight", 2, 0 },
    { "shuffle_hidden", "gpt.unshuffle.blocks.#.fc2.weight", 2, 1 },
    { "num_classes", "gpt.cls_embedding.embedding_table.weight", 2, 0 },
    { "cond_tokens", "gpt.cls_embedding.uncond_embedding", 2, 0 },
    { "caption_dim", "gpt.cls_embedding.cap_proj.fc1.weight", 2, 1 },
    { "caption_dim", "gpt.cls_embedding.uncond_embedding", 2, 1 },
    { "image_embed", "gpt.image_embed.tok_embeddings.weight", 2, 1 },
    { "image_embed", "gpt.image_embed.fc1.weight", 2, 1 },
    { "image_head", "gpt.image_head.fc1.weight", 2, 0 },
    { "image_head", "gpt.image_head.fc2.weight", 2, 1 },
    { "gpt.image_codes", "gpt.image_embed.tok_embeddings.weight", 2, 0 },
    { "gpt.image_codes", "gpt.image_head.fc2.weight", 2, 0 },
    { "t5_dim", "t5.norm.weight", 1, 0 },
    { "t5_dim", "t5.tok_embeddings.weight", 2, 1 },
    { "t5_dim", "t5.layers.#.attention_norm.weight", 1, 0 },
    { "t5_dim", "t5.layers.#.attention.wqkv.weight", 2, 1 },
    { "t5_dim", "t5.layers.#.feed_forward.w1.weight", 2, 1 },
    { "t5_vocab", "t5.tok_embeddings.weight", 2, 0 },
    { "t5_ffn_hidden", "t5.layers.#.feed_forward.w1.weight", 2, 0 },
    { "t5_ffn_hidden", "t5.layers.#.feed_forward.w2.weight", 2, 1 },
    { "t5_ffn_hidden", "t5.layers.#.feed_forward.w3.weight", 2, 0 },
    { "t5_n_head", "t5.position_bias.weight", 2, 1 },
    { "t5_buckets", "t5.position_bias.weight", 2, 0 },
    { "t5.wqkv", "t5.layers.#.attention.wqkv.weight", 2, 0 },
    { "fine_dim", "fine.norm.weight", 1, 0 },
    { "fine_dim", "fine.coarse_embeddings.weight", 2, 1 },
    { "fine_dim", "fine.output.weight", 2, 1 },
    { "fine_dim", "fine.layers.#.attention_norm.weight", 1, 0 },
    { "fine_dim", "fine.layers.#.attention.wqkv.weight", 2, 1 },
    { "fine_dim", "fine.layers.#.attention.wo.weight", 2, 0 },
    { "fine_ffn_hidden", "fine.layers.#.feed_forward.w1.weight", 2, 0 },
    { "fine_ffn_hidden", "fine.layers.#.feed_forward.w2.weight", 2, 1 },
    { "fine_ffn_hidden", "fine.layers.#.feed_forward.w3.weight", 2, 0 },
    { "fine.wqkv", "fine.layers.#.attention.wqkv.weight", 2, 0 },
    { "n_coarse", "fine.coarse_embeddings.weight", 2, 0 },
    { "codebook_size", "vq.quantize.embedding.weight", 2, 0 },
    { "codebook_size", "fine.output.weight", 2, 0 },
    { "vq_embed_dim", "vq.quantize.embedding.weight", 2, 1 },
    { "vq_embed_dim", "vq.quant_conv.weight", 4, 0 },
    { "vq_embed_dim", "vq.post_quant_conv.weight", 4, 1 },
    { "vq_z_channels", "vq.encoder.conv_out.weight", 4, 0 },
    { "vq_z_channels", "vq.quant_conv.weight", 4, 1 },
    { "vq_z_channels", "vq.post_quant_conv.weight", 4, 0 },
    { "vq_z_channels", "vq.decoder.conv_in.weight", 4, 1 },
    { "vq_ch", "vq.encoder.conv_in.weight", 4, 0 },
    { "vq_ch", "vq.encoder.conv_in.bias", 1, 0 },
    { "vq_ch", "vq.encoder.conv_blocks.0.res.0.conv1.weight", 4, 1 },
    { "vq_ch", "vq.encoder.conv_blocks.0.res.0.norm1.weight", 1, 0 },
};

/* The value of a size, or of two that are the same (also, NULL: none), on which most tensors agree, with its evidence: the name of one of them.
 * What the user or a file's metadata says counts as one more; among equals the largest wins, as tensors are cut more often than they grow. 0
 * and no evidence if no tensor shows it. */
static size_t vote(tsar_importer *im, const char *size, const char *also, const char **evidence)
{
    enum { MOST_VALUES = 32 }; /* different values that are counted */
    struct {
        size_t value, votes;
        const char *name;
    } seen[MOST_VALUES];
    size_t n = 0, best = 0;
    for (size_t w = 0; w < sizeof WITNESSES / sizeof *WITNESSES; w++) {
        const witness *wanted = &WITNESSES[w];
        if (strcmp(wanted->size, size) != 0 && (!also || strcmp(wanted->size, also) != 0)) continue;
        for (size_t i = 0; i < im->count; i++) {
            const tsar_item *tensor = &im->items[i];
            size_t k = 0;
            if (tensor->rank != wanted->rank || tensor->count == 0 || !tsar_import_is_called(im->items[i].name, wanted->name)) continue;
            while (k < n && seen[k].value != tensor->shape[wanted->axis]) k++;
            if (k == MOST_VALUES) continue;
            if (k == n) seen[n].value = tensor->shape[wanted->axis], seen[n].votes = 0, seen[n++].name = im->items[i].name;
            seen[k].votes++;
        }
    }
    *evidence = NULL;
    if (n == 0) return 0;
    const size_t said = tsar_import_size(im, size);
    for (size_t k = 0; k < n; k++) seen[k].votes += seen[k].value == said;
    for (size_t k = 1; k < n; k++)
        if (seen[k].votes > seen[best].votes || (seen[k].votes == seen[best].votes && seen[k].value > seen[best].value)) best = k;
    *evidence = seen[best].name;
    return seen[best].value;
}

/* The vote on a size that some tensor must show; `expected` is the shape of the first one that could. */
static size_t measure(tsar_importer *im, const char *size, const char *also, const char **evidence, const char *expected)
{
    const witness *first = WITNESSES;
    char has[192], missing[LONG_NAME];
    *evidence = "";
    if (im->status != TSAR_OK) return 0;
    const size_t value = vote(im, size, also, evidence);
    if (*evidence) return value;
    while (strcmp(first->size, size) != 0 && (!also || strcmp(first->size, also) != 0)) first++;
    const tsar_item *item = NULL;
    for (size_t i = 0; i < im->count && !item; i++)
        if (tsar_import_is_called(im->items[i].name, first->name)) item = &im->items[i];
    if (item) tsar_shape_text(has, sizeof has, item->rank, item->shape);
    if (item && item->foreign && !item->count)
        im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s is no tensor there but %s, which cannot be read", im->name, item->name, item->foreign);
    else if (item)
        im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s has shape %s, expected %s", im->name, item->name, has, expected);
    else {
        snprintf(missing, sizeof missing, "%s", first->name);
        if (strchr(missing, '#')) *strchr(missing, '#') = '0';
        im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s is missing; expected shape %s", im->name, missing, expected);
    }
    *evidence = "";
    return 0;
}

/* The same for a key of the configuration. */
static size_t infer_size(tsar_importer *im, const char *key, const char *also, const char *expected)
{
    const char *evidence;
    const size_t value = measure(im, key, also, &evidence, expected);
    tsar_import_infer(im, key, value, evidence);
    return value;
}

/* Modules prefix0 ... prefix{n-1}: one more than the largest number that follows the prefix. Each has a tensor at least, which bounds n. */
static size_t count_modules(tsar_importer *im, const char *prefix)
{
    size_t n = 0, length = strlen(prefix);
    for (size_t i = tsar_import_first(im, prefix); i < im->count && strncmp(im->items[i].name, prefix, length) == 0; i++) {
        size_t index = 0, digits = 0;
        const char *text = im->items[i].name + length;
        for (; text[digits] >= '0' && text[digits] <= '9' && index < im->count; digits++) index = index * 10 + (size_t)(text[digits] - '0');
        if (digits > 0 && text[digits] == '.' && index < im->count && index + 1 > n) n = index + 1;
    }
    return n;
}

/* LlamaGen's released shapes and two that its code names (its gpt.py, GPT configurations). */
static const struct {
    size_t dim, n_layer, n_head;
} SIZES[] = {
    { 768, 12, 12 }, { 1024, 24, 16 }, { 1280, 36, 20 }, { 1536, 48, 24 }, { 2560, 48, 40 }, { 2048, 22, 32 }, { 3200, 24, 32 }, { 4096, 32, 32 },
};

/* wqkv has (n_head + 2 n_kv_head) * dim / n_head rows: n_kv_head for a given n_head, 0 if the two do not go together. */
static size_t kv_heads(size_t dim, size_t rows, size_t n_head, size_t pair)
{
    if (n_head == 0 || dim % n_head || (dim / n_head) % pair || rows <= dim || (rows - dim) % (2 * (dim / n_head))) return 0;
    size_t n_kv_head = (rows - dim) / (2 * (dim / n_head));
    return n_head % n_kv_head ? 0 : n_kv_head;
}

/* Every possible n_head, as "4, 8 or 16". */
static void list_heads(char *text, size_t room, size_t dim, size_t rows, size_t pair)
{
    size_t used = 0, last = 0;
    text[0] = '\0';
    for (size_t n_head = 1; n_head <= dim && used < room; n_head++)
        if (kv_heads(dim, rows, n_head, pair)) {
            if (last) used += (size_t)snprintf(text + used, room - used, used ? ", %zu" : "%zu", last);
            last = n_head;
        }
    if (last && used < room) snprintf(text + used, room - used, used ? " or %zu" : "%zu", last);
}

/* n_head and n_kv_head (part "gpt.") or fine_n_head (part "fine."). */
static void infer_heads(tsar_importer *im, const char *part, size_t dim, size_t n_layer, int llamagen)
{
    char key[32], wqkv[32], choices[160], expected[96];
    const char *rope = tsar_import_get(im, "rope"), *evidence;
    const int fine = part[0] == 'f';
    snprintf(key, sizeof key, "%sn_head", fine ? "fine_" : "");
    snprintf(wqkv, sizeof wqkv, "%swqkv", part);
    snprintf(expected, sizeof expected, fine ? "[%zu, %zu]" : "[%zu, %zu] (fewer rows with fewer key heads)", 3 * dim, dim);
    const size_t rows = measure(im, wqkv, NULL, &evidence, expected), pair = fine || !rope || strcmp(rope, "1d") != 0 ? 4 : 2;
    for (size_t i = 0; llamagen && i < sizeof SIZES / sizeof *SIZES; i++)
        if (!tsar_import_get(im, key) && SIZES[i].dim == dim && SIZES[i].n_layer == n_layer) {
            char text[32];
            snprintf(text, sizeof text, "%zu", SIZES[i].n_head);
            tsar_import_assume(im, key, text, LLAMAGEN);
        }
    if (im->status != TSAR_OK || dim > TSAR_MAX_DIM) return; /* the configuration's own check refuses such a dim */
    const size_t n_head = tsar_import_size(im, key), n_kv_head = kv_heads(dim, rows, n_head, pair);
    const tsar_status blame = tsar_import_blame(im, key);
    list_heads(choices, sizeof choices, dim, rows, pair);
    if (!*choices)
        im->status =
            tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s has %zu rows, which fit no number of heads; expected shape %s", im->name, evidence, rows, expected);
    else if (tsar_import_get(im, key) && n_kv_head == 0)
        im->status = tsar_fail(im->err, blame, "%s: %s=%s does not fit tensor %s with %zu rows; possible: %s",
                               blame == TSAR_USAGE ? "the command line" : im->name, key, tsar_import_get(im, key), evidence, rows, choices);
    else if (n_kv_head && !fine)
        tsar_import_infer(im, "n_kv_head", n_kv_head, evidence);
    else if (n_kv_head == 0)
        tsar_import_ask(im, "%s=%s", key, choices);
}

/* Any folder whose names are those of another code than LlamaGen's. */
static int is_taming(const tsar_importer *im)
{
    int found = 0;
    for (size_t i = 0; i < im->n_files; i++) found |= im->files[i].naming->taming;
    return found;
}

static int is_gen(const tsar_importer *im)
{
    int found = 0;
    for (size_t i = 0; i < im->n_files; i++) found |= im->files[i].naming->gen;
    return found;
}

/* The image tokenizer's sizes (SPEC 4). */
static void infer_vq_sizes(tsar_importer *im, size_t levels)
{
    char name[LONG_NAME], mult[TSAR_IMPORT_VALUE] = "";
    const size_t ch = infer_size(im, "vq_ch", NULL, "[vq_ch, 3, 3, 3]");
    size_t used = 0;
    infer_size(im, "vq_embed_dim", NULL, "[codebook_size, vq_embed_dim]");
    infer_size(im, "vq_z_channels", NULL, "[vq_z_channels, channels, 3, 3]");
    tsar_import_infer(im, "vq_res_blocks", count_modules(im, "vq.encoder.conv_blocks.0.res."), "vq.encoder.conv_blocks.0.res");
    for (size_t i = 0; im->status == TSAR_OK && i < levels && used < sizeof mult; i++) {
        snprintf(name, sizeof name, "vq.encoder.conv_blocks.%lu.res.0.conv1.weight", (unsigned long)i);
        const tsar_item *item = tsar_import_find(im, name);
        const size_t width = item && item->rank == 4 ? item->shape[0] : 0;
        if (width == 0 || width % ch)
            im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s %s; expected 4 dimensions, the first a multiple of %zu", im->name, name,
                                   item ? "is misshapen" : "is missing", ch);
        else
            used += (size_t)snprintf(mult + used, sizeof mult - used, i ? ",%lu" : "%lu", (unsigned long)(width / ch));
    }
    tsar_import_infer_text(im, "vq_ch_mult", mult, "vq.encoder.conv_blocks");
}

/* The image tokenizer: sizes, the places of attention, convolutions in time, and what its code fixes. */
static void infer_vq(tsar_importer *im)
{
    char name[LONG_NAME];
    const size_t levels = count_modules(im, "vq.encoder.conv_blocks."), times = count_modules(im, "vq.encoder.time_conv.");
    const int taming = is_taming(im), gen = is_gen(im);
    infer_vq_sizes(im, levels);
    snprintf(name, sizeof name, "vq.encoder.conv_blocks.%lu.attn.", (unsigned long)(levels ? levels - 1 : 0));
    if (im->status == TSAR_OK && !tsar_import_has(im, name)) tsar_import_infer_text(im, "vq_attn", "mid", "vq.encoder.mid (alone with attention)");
    if (times > 0 && times < 16) tsar_import_infer(im, "vq_temporal", (size_t)1 << times, "vq.encoder.time_conv");
    if (!im->own_model && (taming || gen)) tsar_import_assume(im, "vq_pixels", "down", taming ? TAMING : JANUS);
    tsar_import_assume(im, "vq_l2_norm", taming ? "0" : "1", taming ? TAMING : LLAMAGEN);
    tsar_import_assume(im, "vq_groups", "32", taming ? TAMING : LLAMAGEN);
}

/* CTF stage two (SPEC 6). */
static void infer_fine(tsar_importer *im)
{
    const size_t dim = infer_size(im, "fine_dim", NULL, "[fine_dim]"), n_layer = count_modules(im, "fine.layers.");
    tsar_import_infer(im, "fine_n_layer", n_layer, "fine.layers");
    infer_size(im, "fine_ffn_hidden", NULL, "[fine_ffn_hidden, fine_dim]");
    infer_heads(im, "fine.", dim, n_layer, 0);
    tsar_import_assume(im, "norm_eps", "1e-05", LLAMAGEN);
    tsar_import_assume(im, "rope_base", "10000", LLAMAGEN);
}

/* Token-Shuffle's own sizes (SPEC 3). tok_embeddings has text_vocab + V rows, V = n_coarse or codebook_size: one of the two must be known. */
static void infer_shuffle(tsar_importer *im, size_t dim)
{
    const char *rows_of, *compress;
    size_t rows = measure(im, "gpt.vocab", NULL, &rows_of, "[text_vocab + codebook_size, dim]"), s = 1;
    const char *text = tsar_import_get(im, "text_vocab"), *predicted = tsar_import_get(im, "n_coarse") ? "n_coarse" : "codebook_size",
               *vocab = tsar_import_get(im, predicted);
    if (tsar_import_has(im, "gpt.shuffle.") || tsar_import_has(im, "gpt.unshuffle.")) {
        const size_t part = measure(im, "gpt.part", NULL, &compress, "[dim / s^2, dim]");
        while (part && s * s < dim / part) s++;
        if (im->status == TSAR_OK && part * s * s != dim)
            im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s does not go with dim=%zu: %zu is no dim / s^2", im->name, compress, dim, part);
        tsar_import_infer(im, "shuffle", s, compress);
        tsar_import_infer(im, "shuffle_blocks", count_modules(im, "gpt.shuffle.blocks."), "gpt.shuffle.blocks");
        infer_size(im, "shuffle_hidden", NULL, "[shuffle_hidden, dim]");
    } else
        tsar_import_infer(im, "shuffle", 1, "gpt.shuffle.compress.weight (absent)");
    size_t known = text ? tsar_import_size(im, "text_vocab") : vocab ? tsar_import_size(im, predicted) : 0;
    if (im->status == TSAR_OK && known >= rows)
        im->status = tsar_fail(im->err, tsar_import_blame(im, text ? "text_vocab" : predicted), "%s: %s=%zu leaves nothing of the %zu rows of tensor %s for %s",
                               im->name, text ? "text_vocab" : predicted, known, rows, rows_of, text ? predicted : "text_vocab");
    else if (im->status == TSAR_OK && known)
        tsar_import_infer(im, text ? predicted : "text_vocab", rows - known, rows_of);
    else if (im->status == TSAR_OK)
        tsar_import_ask(im, "text_vocab=N or codebook_size=N, whose sum is %zu", rows);
    if (!tsar_import_get(im, "rope")) tsar_import_ask(im, "rope=1d (Llama) or rope=2d (LlamaGen)");
    if (!tsar_import_get(im, "grid_h") || !tsar_import_get(im, "grid_w"))
        tsar_import_ask(im, "grid_h and grid_w (codes per column and row, multiples of %zu)", s);
}

/* The pixels that LlamaGen's releases are made for, and the grid that gives them. */
static void ask_grid(tsar_importer *im, int t2i)
{
    const char *mult = tsar_import_get(im, "vq_ch_mult");
    size_t factor = 16;
    if (mult)
        for (factor = 1; (mult = strchr(mult, ',')); mult++) factor = factor < 64 ? factor * 2 : factor;
    size_t small = 256 / factor, large = (t2i ? 512 : 384) / factor;
    tsar_import_ask(im, "grid_h=%zu grid_w=%zu (256 pixels) or grid_h=%zu grid_w=%zu (%d pixels)", small, small, large, large, t2i ? 512 : 384);
}

/* The family of an architecture, the empty row for one that is none. */
static const tsar_family *family_of(const char *arch)
{
    int i = TSAR_ARCHS - 1;
    while (i > 0 && strcmp(tsar_families[i].name, arch) != 0) i--;
    return &tsar_families[i];
}

/* What proves an architecture: a tensor, or a module, that only it has. */
static const struct {
    const char *prefix, *arch;
} EVIDENCE[] = {
    { "gpt.cls_embedding.embedding_table.weight", "llamagen-c2i" },
    { "gpt.cls_embedding.uncond_embedding", "llamagen-t2i" },
    { "gpt.cls_embedding.", "llamagen-t2i" },
    { "gpt.shuffle.", "token-shuffle" },
    { "gpt.unshuffle.", "token-shuffle" },
    { "gpt.image_embed.", "janus" },
    { "gpt.image_head.", "janus" },
};

/* Whether the transformer's names are those of a Llama whose queries and keys have matrices of their own. */
static int is_split(const tsar_importer *im)
{
    for (size_t i = tsar_import_first(im, "gpt.layers."); i < im->count && strncmp(im->items[i].name, "gpt.layers.", 11) == 0; i++)
        if (im->items[i].n_sources == 3) return 1;
    return 0;
}

/* arch: by what only one has, Token-Shuffle also by text_vocab, Lumina by its norms of queries and keys; else what the user or a file says. A
 * transformer that shows nothing of these may be a c2i model whose condition got lost: it is not guessed. */
static const char *infer_arch(tsar_importer *im)
{
    const char *evidence;
    size_t k = 0;
    while (k < sizeof EVIDENCE / sizeof *EVIDENCE && !tsar_import_has(im, EVIDENCE[k].prefix)) k++;
    if (k < sizeof EVIDENCE / sizeof *EVIDENCE)
        tsar_import_infer_text(im, "arch", EVIDENCE[k].arch, EVIDENCE[k].prefix);
    else if (!tsar_import_get(im, "arch") && (tsar_import_get(im, "text_vocab") || tsar_import_get(im, "shuffle")))
        tsar_import_infer_text(im, "arch", "token-shuffle", "gpt.cls_embedding (absent)");
    else if (!tsar_import_get(im, "arch") && tsar_import_find(im, "gpt.layers.0.attention.q_norm.weight"))
        tsar_import_infer_text(im, "arch", "lumina-mgpt", "gpt.layers.0.attention.q_norm.weight");
    else if (!tsar_import_get(im, "arch") && im->status == TSAR_OK && is_split(im))
        im->status =
            tsar_fail(im->err, TSAR_USAGE,
                      "%s: has a Llama's names, which do not tell the model; add arch=emu3 or arch=lumina-mgpt, or put its config.json beside it", im->name);
    else if (!tsar_import_get(im, "arch") && im->status == TSAR_OK)
        im->status = tsar_fail(im->err, TSAR_INPUT,
                               "%s: tensor gpt.cls_embedding.embedding_table.weight is missing; expected shape [num_classes + 1, %zu]; if this is no "
                               "llamagen-c2i model, add arch=llamagen-t2i or arch=token-shuffle (without shuffle modules)",
                               im->name, vote(im, "dim", NULL, &evidence));
    return tsar_import_get(im, "arch") ? tsar_import_get(im, "arch") : "";
}

/* codebook_size and n_coarse, which all parts of a model share. LlamaGen's transformer has a row for each label or code in two tensors. */
static void infer_vocabularies(tsar_importer *im, int llamagen, int vq, int fine)
{
    const int coarse = fine || tsar_import_get(im, "n_coarse"), codes = llamagen && !coarse, modules = tsar_import_has(im, "gpt.image_embed.");
    if (codes || vq || fine || modules)
        infer_size(im, "codebook_size",
                   codes     ? "gpt.vocab"
                   : modules ? "gpt.image_codes"
                             : NULL,
                   codes     ? "[codebook_size, dim]"
                   : modules ? "[codebook_size, image_embed]"
                             : "[codebook_size, vq_embed_dim]");
    if (coarse && (fine || llamagen)) infer_size(im, "n_coarse", llamagen ? "gpt.vocab" : NULL, llamagen ? "[n_coarse, dim]" : "[n_coarse, fine_dim]");
}

/* Classes: the last row of the table stands for no class (QUIRKS, GPT 6), unless the user says that there are as many classes as rows. */
static void infer_classes(tsar_importer *im, size_t dim)
{
    const char *evidence;
    char expected[64];
    snprintf(expected, sizeof expected, "[num_classes + 1, %zu]", dim);
    const size_t rows = measure(im, "num_classes", NULL, &evidence, expected);
    const int all = rows > 0 && tsar_import_size(im, "num_classes") == rows && !im->own_model;
    if (all) tsar_import_infer_text(im, "null_class", "0", evidence);
    const char *null_class = tsar_import_get(im, "null_class");
    const int has_null = !null_class || strcmp(null_class, "0") != 0;
    if (im->status == TSAR_OK && has_null && !im->own_model)
        tsar_note(im->note, im->context,
                  "%s: the last of the %zu rows of classes is taken for \"no class\" (num_classes=%zu); if there is none, add num_classes=%zu", im->name, rows,
                  rows - 1, rows);
    tsar_import_infer(im, "num_classes", has_null ? rows - 1 : rows, evidence);
    tsar_import_infer(im, "cond_tokens", 1, evidence);
}

/* Captions: cond_tokens may be fewer than the table has (QUIRKS, GPT 8). */
static void infer_captions(tsar_importer *im)
{
    const char *evidence;
    const size_t rows = measure(im, "cond_tokens", NULL, &evidence, "[cond_tokens, caption_dim]");
    if (!tsar_import_get(im, "cond_tokens") || tsar_import_size(im, "cond_tokens") > rows) tsar_import_infer(im, "cond_tokens", rows, evidence);
    infer_size(im, "caption_dim", NULL, "[dim, caption_dim]");
}

/* ---------------------------------------------------------------------------------------- Lumina-mGPT, Emu3, Janus: sequences of ids */

/* What the published models have that neither shapes nor their config.json tell (SPEC 11). A value of NULL is vocab_size - codebook_size. A constant
 * with a vocabulary goes with models of that vocabulary alone. */
static const struct {
    const char *arch, *key, *value, *vocabulary;
} CONSTANTS[] = {
    { "lumina-mgpt", "image_base", "4", NULL },
    { "lumina-mgpt", "codebook_size", "8192", NULL },
    { "lumina-mgpt", "bos", "0", NULL },
    { "lumina-mgpt", "sep", "8710", NULL },
    { "lumina-mgpt", "boi", "8197", NULL },
    { "lumina-mgpt", "eoi", "8196", NULL },
    { "lumina-mgpt", "eol", "8803", NULL },
    { "lumina-mgpt", "size_base", "8804", NULL },
    { "lumina-mgpt", "size_unit", "2", NULL },
    { "lumina-mgpt", "norm_order", "pre", NULL },
    { "lumina-mgpt", "grid_h", "48", NULL },
    { "lumina-mgpt", "grid_w", "48", NULL },
    { "lumina-mgpt", "norm_eps", "1e-05", NULL },
    { "lumina-mgpt", "rope_base", "10000", NULL },
    { "emu3", "codebook_size", "32768", NULL },
    { "emu3", "image_base", NULL, NULL },
    { "emu3", "pad", "151643", "184622" },
    { "emu3", "eol", "151846", "184622" },
    { "emu3", "eof", "151847", "184622" },
    { "emu3", "bos", "151849", "184622" },
    { "emu3", "eos", "151850", "184622" },
    { "emu3", "img", "151851", "184622" },
    { "emu3", "boi", "151852", "184622" },
    { "emu3", "eoi", "151853", "184622" },
    { "emu3", "grid_h", "90", NULL },
    { "emu3", "grid_w", "90", NULL },
    { "emu3", "norm_eps", "1e-05", NULL },
    { "emu3", "rope_base", "1000000", NULL },
    { "janus", "bos", "100000", "102400" },
    { "janus", "eos", "100001", "102400" },
    { "janus", "pad", "100015", "102400" },
    { "janus", "boi", "100016", "102400" },
    { "janus", "eoi", "100593", "102400" },
    { "janus", "grid_h", "24", NULL },
    { "janus", "grid_w", "24", NULL },
    { "janus", "norm_eps", "1e-06", NULL },
    { "janus", "rope_base", "10000", NULL },
};

static void assume_constants(tsar_importer *im, const char *arch)
{
    const char *vocabulary = tsar_import_get(im, "vocab_size");
    char difference[32];
    for (size_t i = 0; im->status == TSAR_OK && i < sizeof CONSTANTS / sizeof *CONSTANTS; i++) {
        const char *value = CONSTANTS[i].value;
        if (strcmp(CONSTANTS[i].arch, arch) != 0 || (CONSTANTS[i].vocabulary && (!vocabulary || strcmp(vocabulary, CONSTANTS[i].vocabulary) != 0))) continue;
        if (!value) {
            const size_t all = tsar_import_size(im, "vocab_size"), codes = tsar_import_size(im, "codebook_size");
            if (codes == 0 || codes > all) continue; /* the configuration's own check tells it */
            snprintf(difference, sizeof difference, "%lu", (unsigned long)(all - codes));
            value = difference;
        }
        tsar_import_assume(im, CONSTANTS[i].key, value, PUBLISHED);
    }
}

/* n_head: head_dim shows in the norms of queries and keys, and is 128 in every published model. */
static void assume_heads(tsar_importer *im, size_t dim)
{
    enum { PUBLISHED_HEAD = 128 };
    const tsar_item *norm = tsar_import_find(im, "gpt.layers.0.attention.q_norm.weight");
    const int shows = norm && (norm->rank == 2 || norm->rank == 1);
    const size_t head_dim = shows ? norm->shape[norm->rank - 1] : PUBLISHED_HEAD;
    char text[32];
    if (head_dim == 0 || dim % head_dim || im->own_model) return;
    snprintf(text, sizeof text, "%lu", (unsigned long)(dim / head_dim));
    tsar_import_assume(im, "n_head", text, shows ? "the width of its norms of queries and keys" : PUBLISHED);
}

enum { MAX_NORM_HEADS = 4096 };

/* Which of 1 ... MAX_NORM_HEADS rows are enough for a norm whose rows are `count / hd`: those for which the rows of each group agree. */
static tsar_status mark_groups(tsar_importer *im, const tsar_item *item, size_t hd, uint8_t *enough, size_t n_head)
{
    const size_t size = item->source[0]->size, rows = (size_t)item->count / hd, width = hd * size;
    tsar_tensor_reader reader;
    uint8_t *values = tsar_alloc(rows, width, item->name, im->err);
    if (!values) return TSAR_ROOM;
    tsar_status status = tsar_tensor_open(&reader, item->source[0], im->err);
    if (status == TSAR_OK) status = tsar_tensor_read(&reader, 0, (size_t)item->count, values, im->err);
    tsar_tensor_close(&reader);
    for (size_t g = 1; status == TSAR_OK && g <= n_head; g++)
        for (size_t r = 0; enough[g] && r < rows; r++)
            enough[g] = rows % g == 0 && memcmp(values + r * width, values + r / (rows / g) * (rows / g) * width, width) == 0;
    tsar_free(values);
    return status;
}

/* The norms of queries and keys of all layers, one after another; NULL behind the last. */
static tsar_item *next_norm(const tsar_importer *im, size_t *at)
{
    static const char *const patterns[] = { "gpt.layers.#.attention.q_norm.weight", "gpt.layers.#.attention.q_norm.bias",
                                            "gpt.layers.#.attention.k_norm.weight", "gpt.layers.#.attention.k_norm.bias" };
    for (; *at < im->count; (*at)++)
        for (int i = 0; i < 4; i++)
            if (tsar_import_is_called(im->items[*at].name, patterns[i])) return &im->items[(*at)++];
    return NULL;
}

/* qk_norm: as many rows as the file has; where it has one for each head, the fewest that say the same, else one for each query head (SPEC 11). */
static void infer_norms(tsar_importer *im, size_t n_head, size_t n_kv_head, size_t hd)
{
    uint8_t enough[MAX_NORM_HEADS + 1];
    size_t at = 0, g = 1, most = 0;
    int per_head = 1;
    const tsar_item *first = NULL;
    memset(enough, 1, sizeof enough);
    if (n_head == 0 || n_kv_head == 0 || hd == 0 || n_head > MAX_NORM_HEADS) return;
    for (tsar_item *item; im->status == TSAR_OK && (item = next_norm(im, &at));) {
        const size_t heads = strstr(item->name, ".q_norm.") ? n_head : n_kv_head;
        const size_t rows = (size_t)item->count / hd;
        if (item->rank == 0 || item->rank > 2 || item->count == 0 || item->count % hd || rows > n_head || n_head % rows || item->foreign) {
            char has[192];
            im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s has shape %s, expected [qk_norm, %zu]", im->name, item->name,
                                   tsar_shape_text(has, sizeof has, item->rank, item->shape), hd);
            return;
        }
        if (!first) first = item;
        if (rows > most) most = rows;
        per_head &= rows == heads;
        if (rows == heads) im->status = mark_groups(im, item, hd, enough, n_head);
    }
    if (!first || im->status != TSAR_OK) return;
    const size_t wanted = tsar_import_size(im, "qk_norm");
    if (per_head) {
        while (g < n_head && !(enough[g] && n_head % g == 0 && n_kv_head % g == 0)) g++;
        if (wanted > g && wanted <= n_head && ((enough[wanted] && n_head % wanted == 0 && n_kv_head % wanted == 0) || wanted == n_head)) g = wanted;
    } else
        g = most;
    for (at = 0; (first = next_norm(im, &at));) {
        tsar_item *item = &im->items[at - 1];
        item->rank = 1;
        item->shape[0] = g * hd;
    }
    tsar_import_infer(im, "qk_norm", g, "gpt.layers.0.attention.q_norm.weight");
}

/* What stands in a sequence of ids: the vocabulary, norms of queries and keys, a code's own modules. */
static void infer_sequence(tsar_importer *im, const char *arch, size_t dim)
{
    const tsar_family *family = family_of(arch);
    infer_size(im, "vocab_size", "gpt.vocab", "[vocab_size, dim]");
    tsar_import_assume(im, "rope", "1d", PUBLISHED);
    if (!family->shares_table) {
        infer_size(im, "image_embed", NULL, "[codebook_size, image_embed]");
        infer_size(im, "image_head", NULL, "[image_head, dim]");
    }
    if (!im->own_model) assume_constants(im, arch);
    assume_heads(im, dim);
}

/* The autoregressive transformer. */
static void infer_gpt(tsar_importer *im, const char *arch)
{
    const tsar_family *family = family_of(arch);
    const int llamagen = family->prefix == TSAR_PREFIX_CLASS || family->prefix == TSAR_PREFIX_CAPTION;
    const size_t dim = infer_size(im, "dim", NULL, "[dim]"), n_layer = count_modules(im, "gpt.layers.");
    char expected[64];
    tsar_import_infer(im, "n_layer", n_layer, "gpt.layers");
    snprintf(expected, sizeof expected, "[ffn_hidden, %zu]", dim);
    infer_size(im, "ffn_hidden", NULL, expected);
    if (family->prefix == TSAR_PREFIX_CLASS) infer_classes(im, dim);
    if (family->prefix == TSAR_PREFIX_CAPTION) infer_captions(im);
    if (llamagen)
        tsar_import_assume(im, "rope", "2d", LLAMAGEN);
    else if (family->takes & TSAR_TAKES_SHUFFLE)
        infer_shuffle(im, dim);
    else if (family->prefix == TSAR_PREFIX_IDS)
        infer_sequence(im, arch, dim);
    infer_heads(im, "gpt.", dim, n_layer, llamagen);
    const size_t n_head = tsar_import_size(im, "n_head");
    if (im->status == TSAR_OK && n_head && dim % n_head == 0) infer_norms(im, n_head, tsar_import_size(im, "n_kv_head"), dim / n_head);
    if (llamagen && (!tsar_import_get(im, "grid_h") || !tsar_import_get(im, "grid_w"))) ask_grid(im, family->prefix == TSAR_PREFIX_CAPTION);
    tsar_import_assume(im, "norm_eps", "1e-05", LLAMAGEN);
    tsar_import_assume(im, "rope_base", "10000", LLAMAGEN);
}

/* The text encoder. Heads cannot be had from the matrices, but the position bias has one column each. */
static void infer_t5(tsar_importer *im, int captions)
{
    const char *evidence;
    const size_t n_layer = count_modules(im, "t5.layers.");
    if (tsar_import_has(im, "t5.block."))
        im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s is not of a gated T5 encoder (flan-t5, t5-v1_1); older ones are not covered", im->name,
                               im->items[tsar_import_first(im, "t5.block.")].source[0]->name);
    infer_size(im, "t5_dim", NULL, "[t5_dim]");
    tsar_import_infer(im, "t5_n_layer", n_layer, "t5.layers");
    infer_size(im, "t5_vocab", NULL, "[t5_vocab, t5_dim]");
    infer_size(im, "t5_ffn_hidden", NULL, "[t5_ffn_hidden, t5_dim]");
    infer_size(im, "t5_buckets", NULL, "[t5_buckets, t5_n_head]");
    const size_t heads = infer_size(im, "t5_n_head", NULL, "[t5_buckets, t5_n_head]");
    const size_t rows = measure(im, "t5.wqkv", NULL, &evidence, "[3 * t5_n_head * t5_head_dim, t5_dim]");
    if (im->status == TSAR_OK && (heads == 0 || rows % (3 * heads)))
        im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s has %zu rows, which %zu heads do not divide by three", im->name, evidence, rows, heads);
    if (im->status == TSAR_OK) tsar_import_infer(im, "t5_head_dim", rows / (3 * heads), evidence);
    if (im->own_model) return;
    tsar_import_assume(im, "t5_max_distance", "128", "T5's own code");
    tsar_import_assume(im, "t5_norm_eps", "1e-06", "T5's own code");
    if (captions) tsar_import_assume(im, "t5_clean", "llamagen", LLAMAGEN);
}

/* A config.json may lie beside other things than its model: what it says of parts that are not there is forgotten. */
static void forget_absent(tsar_importer *im, unsigned parts)
{
    for (size_t i = 0; i < im->n_keys; i++)
        if (im->settings[i].from == TSAR_CONFIG_JSON && !(im->keys[i].parts & parts)) im->settings[i].from = TSAR_ABSENT;
}

/* What was assumed, a line for each whose code it is. */
static void tell_assumed(const tsar_importer *im)
{
    for (size_t i = 0; i < im->n_keys; i++) {
        const char *who = im->settings[i].evidence;
        char line[400] = "";
        size_t used = 0;
        int told = im->settings[i].from != TSAR_ASSUMED;
        for (size_t k = 0; k < i && !told; k++) told = im->settings[k].from == TSAR_ASSUMED && strcmp(im->settings[k].evidence, who) == 0;
        for (size_t k = i; k < im->n_keys && !told && used < sizeof line; k++)
            if (im->settings[k].from == TSAR_ASSUMED && strcmp(im->settings[k].evidence, who) == 0)
                used += (size_t)snprintf(line + used, sizeof line - used, " %s=%s", im->keys[k].name, im->settings[k].value);
        if (!told) tsar_note(im->note, im->context, "%s: assumed as in %s (shapes cannot tell):%s", im->name, who, line);
    }
}

tsar_status tsar_import_infer_all(tsar_importer *im)
{
    const int gpt = tsar_import_has(im, "gpt."), vq = tsar_import_has(im, "vq."), fine = tsar_import_has(im, "fine."), t5 = tsar_import_has(im, "t5.");
    forget_absent(im, (gpt ? TSAR_PART_GPT | TSAR_PART_TEXT : 0u) | (fine ? TSAR_PART_FINE : 0u) | (vq ? TSAR_PART_VQ : 0u) | (t5 ? TSAR_PART_T5 : 0u));
    const char *arch = gpt ? infer_arch(im) : "";
    const tsar_prefix prefix = family_of(arch)->prefix;
    if (im->status == TSAR_OK) infer_vocabularies(im, prefix == TSAR_PREFIX_CLASS || prefix == TSAR_PREFIX_CAPTION, vq, fine);
    if (vq) infer_vq(im);
    if (fine) infer_fine(im);
    if (gpt)
        infer_gpt(im, arch);
    else if (fine && im->status == TSAR_OK && (!tsar_import_get(im, "grid_h") || !tsar_import_get(im, "grid_w")))
        tsar_import_ask(im, "grid_h and grid_w (codes per column and row)");
    if (t5) infer_t5(im, prefix == TSAR_PREFIX_CAPTION);
    if (im->status != TSAR_OK) return im->status;
    if (*im->asked) return tsar_fail(im->err, TSAR_USAGE, "%s: shapes cannot tell everything; add %s", im->name, im->asked);
    tell_assumed(im);
    return TSAR_OK;
}
