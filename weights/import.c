/* tsar import: which model do these checkpoints hold? Names tell the parts, shapes tell the configuration (SPEC 2); what neither can tell is
 * asked for. Then tsar_weights lists what a model of this configuration needs, and the tensors are copied in that order, so that
 * the result does not depend on the form of the checkpoint. */
#include "files/files.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1 << 18 }; /* bytes that are copied at a time */

void tsar_note(tsar_note_fn note, void *context, const char *format, ...)
{
    char line[512];
    va_list arguments;
    if (!note) return;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    note(context, line);
}

/* -------------------------------------------------------------------------------------------------------- safetensors */

/* Appends the tensors of all shards to the list. */
static tsar_status list_shards(tsar_checkpoint *checkpoint, tsar_error *err)
{
    size_t total = 0;
    for (size_t s = 0; s < checkpoint->n_shards; s++) total += tsar_file_count(checkpoint->shards[s]);
    if (!(checkpoint->tensors = tsar_alloc(total, sizeof *checkpoint->tensors, "the list of tensors", err))) return TSAR_ROOM;
    for (size_t s = 0; s < checkpoint->n_shards; s++)
        for (size_t i = 0; i < tsar_file_count(checkpoint->shards[s]); i++) {
            const tsar_tensor *entry = tsar_file_at(checkpoint->shards[s], i);
            tsar_import_tensor *tensor = &checkpoint->tensors[checkpoint->count++];
            tensor->name = entry->name;
            tensor->checkpoint = checkpoint;
            tensor->dtype = entry->dtype;
            tensor->rank = entry->rank;
            memcpy(tensor->shape, entry->shape, sizeof entry->shape);
            tensor->count = tensor->span = entry->count;
            tensor->contiguous = 1;
            tensor->file = checkpoint->shards[s];
            tensor->entry = entry;
            checkpoint->bytes += entry->count * tsar_dtype_size(entry->dtype);
        }
    return TSAR_OK;
}

static tsar_status open_safetensors(tsar_checkpoint *checkpoint, tsar_error *err)
{
    if (!(checkpoint->shards = tsar_alloc(1, sizeof *checkpoint->shards, "the list of shards", err))) return TSAR_ROOM;
    tsar_status status = tsar_file_open(&checkpoint->shards[0], checkpoint->path, err);
    if (status) return status;
    checkpoint->n_shards = 1;
    return list_shards(checkpoint, err);
}

/* The index of a sharded model: {"metadata": {...}, "weight_map": {"name": "file", ...}}. */
typedef struct {
    char *at, *end;
} cursor;
typedef struct {
    const char *name, *shard;
} mapping;
enum { MAX_INDEX = 1 << 26, MAX_SHARDS = 1000, MAX_NESTING = 64 };

static char peek(cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r')) c->at++;
    return c->at < c->end ? *c->at : '\0';
}

static int expect(cursor *c, char wanted)
{
    if (peek(c) != wanted) return 0;
    c->at++;
    return 1;
}

/* A string in place, its closing quote overwritten with 0; NULL if there is none. Escapes stay as they are: no name in an index needs one. */
static char *read_string(cursor *c)
{
    if (!expect(c, '"')) return NULL;
    char *start = c->at;
    for (; c->at < c->end && *c->at != '"'; c->at++) {
        if ((unsigned char)*c->at < 32) return NULL;
        if (*c->at == '\\') c->at++;
    }
    if (c->at >= c->end) return NULL;
    *c->at++ = '\0';
    return start;
}

/* Any value, whatever it holds. */
static int skip_value(cursor *c)
{
    size_t depth = 0;
    do {
        char next = peek(c);
        if (next == '"') {
            if (!read_string(c)) return 0;
        } else if (next == '{' || next == '[') {
            c->at++;
            if (++depth > MAX_NESTING) return 0;
        } else if (next == '\0' || ((next == '}' || next == ']' || next == ',' || next == ':') && depth == 0))
            return 0;
        else {
            depth -= next == '}' || next == ']';
            c->at++;
        }
    } while (depth > 0);
    while (c->at < c->end && *c->at != ',' && *c->at != '}') /* the rest of a number or a word */
        c->at++;
    return 1;
}

/* The pairs of weight_map, of which `room` fit. */
static int read_map(cursor *c, mapping *pairs, size_t room, size_t *count)
{
    if (!expect(c, '{')) return 0;
    if (expect(c, '}')) return 1;
    do {
        const char *name = read_string(c), *shard = name && expect(c, ':') ? read_string(c) : NULL;
        if (!shard || *count == room) return 0;
        pairs[*count].name = name;
        pairs[(*count)++].shard = shard;
    } while (expect(c, ','));
    return expect(c, '}');
}

static int read_index(cursor *c, mapping *pairs, size_t room, size_t *count)
{
    if (!expect(c, '{')) return 0;
    do {
        const char *key = read_string(c);
        if (!key || !expect(c, ':') || !(strcmp(key, "weight_map") == 0 ? read_map(c, pairs, room, count) : skip_value(c))) return 0;
    } while (expect(c, ','));
    return expect(c, '}') && peek(c) == '\0' && c->at == c->end;
}

/* Opens the shard that a mapping names, once, and checks that it holds the tensor. */
static tsar_status open_shard(tsar_checkpoint *checkpoint, const mapping *pair, tsar_error *err)
{
    size_t s = 0, folder = 0, length = strlen(pair->shard);
    while (s < checkpoint->n_shards && strcmp(checkpoint->shard_names[s], pair->shard) != 0) s++;
    if (s == checkpoint->n_shards) {
        if (length == 0 || length > 255 || pair->shard[0] == '.' || strpbrk(pair->shard, "/\\:"))
            return tsar_fail(err, TSAR_INPUT, "%s: names the shard \"%.64s\", which is no plain file name", checkpoint->path, pair->shard);
        if (s == MAX_SHARDS) return tsar_fail(err, TSAR_INPUT, "%s: names more than %d shards", checkpoint->path, MAX_SHARDS);
        const char *slash = strrchr(checkpoint->path, '/');
        folder = slash ? (size_t)(slash - checkpoint->path) + 1 : 0;
        char *name = tsar_alloc(2 * (length + 1) + folder, 1, "a shard's path", err);
        if (!name) return TSAR_ROOM;
        char *path = name + length + 1; /* both in one piece of memory */
        memcpy(name, pair->shard, length + 1);
        memcpy(path, checkpoint->path, folder);
        memcpy(path + folder, pair->shard, length + 1);
        tsar_status status = tsar_file_open(&checkpoint->shards[s], path, err);
        if (status) {
            tsar_free(name);
            return status;
        }
        checkpoint->shard_names[s] = name;
        checkpoint->n_shards++;
    }
    if (!tsar_file_find(checkpoint->shards[s], pair->name))
        return tsar_fail(err, TSAR_INPUT, "%s: shard %.64s lacks tensor %.128s", checkpoint->path, pair->shard, pair->name);
    return TSAR_OK;
}

static int by_mapping(const void *a, const void *b) { return strcmp(((const mapping *)a)->name, ((const mapping *)b)->name); }

static tsar_status open_index(tsar_checkpoint *checkpoint, tsar_error *err)
{
    tsar_source *source = &checkpoint->source;
    if (source->size > MAX_INDEX) return tsar_fail(err, TSAR_INPUT, "%s: is too large for an index of shards", checkpoint->path);
    size_t size = (size_t)source->size, room = size / 6, count = 0; /* "a":"b", at least */
    char *text = tsar_alloc(size + 1, 1, "an index of shards", err);
    mapping *pairs = tsar_alloc(room, sizeof *pairs, "an index of shards", err);
    checkpoint->shards = tsar_alloc(MAX_SHARDS, sizeof *checkpoint->shards, "the list of shards", err);
    checkpoint->shard_names = tsar_alloc(MAX_SHARDS, sizeof *checkpoint->shard_names, "the list of shards", err);
    tsar_status status = text && pairs && checkpoint->shards && checkpoint->shard_names ? TSAR_OK : TSAR_ROOM;
    if (!status) status = tsar_source_read(source, 0, text, size, err);
    cursor c = { text, text ? text + size : NULL };
    if (!status && (!read_index(&c, pairs, room, &count) || count == 0))
        status = tsar_fail(err, TSAR_INPUT, "%s: is no index of shards: a JSON object with a weight_map of tensor and file names", checkpoint->path);
    if (!status) qsort(pairs, count, sizeof *pairs, by_mapping);
    for (size_t i = 1; !status && i < count; i++)
        if (strcmp(pairs[i].name, pairs[i - 1].name) == 0)
            status = tsar_fail(err, TSAR_INPUT, "%s: names tensor %.128s twice", checkpoint->path, pairs[i].name);
    for (size_t i = 0; !status && i < count; i++) status = open_shard(checkpoint, &pairs[i], err);
    tsar_free(text);
    tsar_free(pairs);
    if (!status) status = list_shards(checkpoint, err);
    if (!status && checkpoint->count != count)
        status = tsar_fail(err, TSAR_INPUT, "%s: its shards hold %zu tensors, it names %zu of them", checkpoint->path, checkpoint->count, count);
    return status;
}

/* -------------------------------------------------------------------------------------------------------- any format */

static void checkpoint_close(tsar_checkpoint *checkpoint)
{
    for (size_t s = 0; s < checkpoint->n_shards; s++) {
        tsar_file_close(checkpoint->shards[s]);
        if (checkpoint->shard_names) tsar_free(checkpoint->shard_names[s]);
    }
    tsar_free(checkpoint->shards);
    tsar_free(checkpoint->shard_names);
    tsar_free(checkpoint->tensors);
    tsar_zip_close(&checkpoint->zip);
    tsar_pickle_close(&checkpoint->pickle);
    tsar_source_close(&checkpoint->source);
    memset(checkpoint, 0, sizeof *checkpoint);
}

/* Each format has its own first bytes; only an index of shards is known by its name. */
static tsar_status open_format(tsar_checkpoint *checkpoint, tsar_note_fn note, void *context, tsar_error *err)
{
    uint8_t head[16] = { 0 };
    uint64_t size = checkpoint->source.size;
    size_t length = strlen(checkpoint->path);
    tsar_status status = tsar_source_read(&checkpoint->source, 0, head, size < sizeof head ? (size_t)size : sizeof head, err);
    if (status) return status;
    if (memcmp(head, "PK\3\4", 4) == 0) return tsar_torch_open(checkpoint, 0, note, context, err);
    if (tsar_torch_is_legacy(head)) return tsar_torch_open(checkpoint, 1, note, context, err);
    if (length > 5 && strcmp(checkpoint->path + length - 5, ".json") == 0) return open_index(checkpoint, err);
    if (head[8] == '{') return open_safetensors(checkpoint, err);
    return tsar_fail(err, TSAR_INPUT, "%s: is neither a file of torch.save (zip or legacy) nor safetensors nor an index of shards (.json)",
                     checkpoint->path);
}

/* `path` must outlive the checkpoint. On failure there is nothing to close. */
static tsar_status checkpoint_open(tsar_checkpoint *checkpoint, const char *path, tsar_note_fn note, void *context, tsar_error *err)
{
    memset(checkpoint, 0, sizeof *checkpoint);
    checkpoint->path = path;
    tsar_status status = tsar_source_open(&checkpoint->source, path, err);
    if (!status) status = open_format(checkpoint, note, context, err);
    if (status) checkpoint_close(checkpoint);
    return status;
}

/* ------------------------------------------------------------------------------------------------------- the elements */

static void swap_bytes(uint8_t *bytes, size_t count, size_t size)
{
    for (size_t i = 0; i < count; i++, bytes += size)
        for (size_t j = 0; j < size / 2; j++) {
            uint8_t byte = bytes[j];
            bytes[j] = bytes[size - 1 - j];
            bytes[size - 1 - j] = byte;
        }
}

/* A tensor whose elements are not in order, or not side by side: the stretch of the file that holds them is read whole. */
static tsar_status copy_strided(const tsar_import_tensor *tensor, tsar_writer *writer, uint8_t *block, tsar_error *err)
{
    tsar_checkpoint *checkpoint = tensor->checkpoint;
    size_t size = tsar_dtype_size(tensor->dtype), held = 0, index[TSAR_MAX_RANK] = { 0 };
    uint64_t at = 0;
    uint8_t *span = tensor->span > SIZE_MAX / size ? NULL : tsar_alloc((size_t)tensor->span, size, tensor->name, err);
    if (!span)
        return tsar_fail(err, TSAR_ROOM, "%s: tensor %.128s needs %" PRIu64 " elements in memory to be put in order", checkpoint->path, tensor->name,
                         tensor->span);
    tsar_status status = tsar_source_read(&checkpoint->source, tensor->offset, span, (size_t)tensor->span * size, err);
    if (!status && checkpoint->swapped) swap_bytes(span, (size_t)tensor->span, size);
    for (uint64_t i = 0; !status && i < tensor->count; i++) {
        memcpy(block + held * size, span + (size_t)at * size, size);
        if (++held == BLOCK / size || i + 1 == tensor->count) {
            status = tsar_writer_put(writer, block, held, err);
            held = 0;
        }
        for (size_t d = tensor->rank; d-- > 0;) { /* the next index, the last one fastest */
            at += tensor->stride[d];
            if (++index[d] < tensor->shape[d]) break;
            at -= tensor->stride[d] * tensor->shape[d];
            index[d] = 0;
        }
    }
    tsar_free(span);
    return status;
}

/* Gives the elements of a tensor to a writer, in order, bits unchanged. block has BLOCK bytes. */
static tsar_status checkpoint_copy(const tsar_import_tensor *tensor, tsar_writer *writer, void *block, tsar_error *err)
{
    tsar_checkpoint *checkpoint = tensor->checkpoint;
    size_t size = tsar_dtype_size(tensor->dtype), room = BLOCK / size;
    tsar_status status = TSAR_OK;
    if (!tensor->contiguous) return copy_strided(tensor, writer, block, err);
    for (uint64_t first = 0; !status && first < tensor->count;) {
        size_t count = tensor->count - first < room ? (size_t)(tensor->count - first) : room;
        if (tensor->file)
            status = tsar_file_read(tensor->file, tensor->entry, first, count, block, err);
        else if (!(status = tsar_source_read(&checkpoint->source, tensor->offset + first * size, block, count * size, err)) && checkpoint->swapped)
            swap_bytes(block, count, size);
        if (!status) status = tsar_writer_put(writer, block, count, err);
        first += count;
    }
    return status;
}

/* ------------------------------------------------------------------------------------------------------- the importer */

/* The keys of a configuration, in the order in which they are told to the user. */
static const char *const KEYS[] = { "arch",
                                    "dim",
                                    "n_layer",
                                    "n_head",
                                    "n_kv_head",
                                    "ffn_hidden",
                                    "norm_eps",
                                    "rope",
                                    "rope_base",
                                    "text_vocab",
                                    "codebook_size",
                                    "grid_h",
                                    "grid_w",
                                    "n_coarse",
                                    "shuffle",
                                    "shuffle_blocks",
                                    "shuffle_hidden",
                                    "num_classes",
                                    "cond_tokens",
                                    "caption_dim",
                                    "vq_ch",
                                    "vq_ch_mult",
                                    "vq_res_blocks",
                                    "vq_z_channels",
                                    "vq_embed_dim",
                                    "vq_l2_norm",
                                    "vq_groups",
                                    "fine_dim",
                                    "fine_n_layer",
                                    "fine_n_head",
                                    "fine_ffn_hidden",
                                    "seed",
                                    "default_cfg",
                                    "default_cfg_schedule",
                                    "default_temperature",
                                    "default_top_k",
                                    "default_top_p" };
enum { N_KEYS = sizeof KEYS / sizeof *KEYS, MAX_NAME = 128, MAX_VALUE = 96, MAX_PROBLEMS = 20, MAX_GROWTH = 16 };

static const char MERGES[] = "tokenizer.merges";

typedef enum { ABSENT, ASSUMED, INFERRED, FROM_FILE, ARGUMENT } origin;
typedef struct {
    origin from;
    char value[MAX_VALUE], evidence[MAX_NAME];
} choice;

/* A tensor under its name in a model file. */
typedef struct {
    char name[MAX_NAME];
    const tsar_import_tensor *tensor;
    int used;
} named;

typedef struct {
    const char *name; /* of the checkpoint, or the first of several, for errors */
    tsar_note_fn note;
    void *context;
    tsar_error *err;
    tsar_status status; /* of the inference: the first failure stays */
    tsar_checkpoint *checkpoints;
    size_t n_checkpoints;
    named *items; /* [count], ascending by name */
    size_t count;
    choice settings[N_KEYS];
    char asked[384]; /* key=value choices that the user must add */
    size_t problems;
    char first_problem[320];
    uint64_t bytes; /* of all tensors that the model takes */
    tsar_writer *writer;
} importer;

/* ------------------------------------------------------------------------------------------------------------ the names */

static const struct {
    const char *prefix, *part;
} PARTS[] = {
    { "gpt.", "" },
    { "vq.", "" },
    { "fine.", "" },
    { "ctf.", "" },
    { "tokenizer.", "" }, /* a model file's own names */
    { "tok_embeddings.", "gpt." },
    { "cls_embedding.", "gpt." },
    { "layers.", "gpt." },
    { "norm.", "gpt." },
    { "output.", "gpt." },
    { "shuffle.", "gpt." },
    { "unshuffle.", "gpt." },
    { "freqs_cis", "gpt." },
    { "causal_mask", "gpt." },
    { "encoder.", "vq." },
    { "decoder.", "vq." },
    { "quantize.", "vq." },
    { "quant_conv.", "vq." },
    { "post_quant_conv.", "vq." },
};

/* A checkpoint's name as a model file has it: without what torch.compile ("_orig_mod.") and DistributedDataParallel ("module.") add, with its
 * part in front. A name of no known part stays as it is. */
static void model_name(char *out, const char *name)
{
    char bare[MAX_NAME];
    size_t n = 0;
    while (*name && n + 1 < sizeof bare) {
        if (strncmp(name, "_orig_mod.", 10) == 0)
            name += 10;
        else if (n == 0 && strncmp(name, "module.", 7) == 0)
            name += 7;
        else {
            bare[n++] = (unsigned char)*name < 32 ? '?' : *name; /* it may end up on a terminal */
            name++;
        }
    }
    bare[n] = '\0';
    const char *part = "";
    for (size_t i = 0; i < sizeof PARTS / sizeof *PARTS; i++)
        if (strncmp(bare, PARTS[i].prefix, strlen(PARTS[i].prefix)) == 0) {
            part = PARTS[i].part;
            break;
        }
    snprintf(out, MAX_NAME, "%s%.*s", part, (int)(MAX_NAME - 1 - strlen(part)), bare);
}

/* State that a PyTorch module keeps beside its weights; integers never are weights either. */
static int is_buffer(const named *item)
{
    static const char *const PATTERNS[] = { ".kv_cache.", "freqs_cis", "causal_mask", "quantize.codebook_used", "num_batches_tracked" };
    if (!tsar_dtype_is_float(item->tensor->dtype)) return 1;
    for (size_t i = 0; i < sizeof PATTERNS / sizeof *PATTERNS; i++)
        if (strstr(item->name, PATTERNS[i])) return 1;
    return 0;
}

static int by_item(const void *a, const void *b) { return strcmp(((const named *)a)->name, ((const named *)b)->name); }

static named *find_item(const importer *im, const char *name)
{
    named wanted = { "", NULL, 0 };
    snprintf(wanted.name, sizeof wanted.name, "%s", name);
    return im->count ? bsearch(&wanted, im->items, im->count, sizeof wanted, by_item) : NULL;
}

/* The first of the items whose names start with prefix: they stand together. */
static size_t first_item(const importer *im, const char *prefix)
{
    size_t i = 0;
    while (i < im->count && strncmp(im->items[i].name, prefix, strlen(prefix)) != 0) i++;
    return i;
}

static int has_part(const importer *im, const char *prefix)
{
    for (size_t i = first_item(im, prefix); i < im->count && strncmp(im->items[i].name, prefix, strlen(prefix)) == 0; i++)
        if (!is_buffer(&im->items[i])) return 1;
    return 0;
}

/* All tensors of all checkpoints, by name. */
static tsar_status list_items(importer *im)
{
    size_t total = 0;
    for (size_t i = 0; i < im->n_checkpoints; i++) total += im->checkpoints[i].count;
    if (!(im->items = tsar_alloc(total, sizeof *im->items, "the list of tensors", im->err))) return TSAR_ROOM;
    for (size_t i = 0; i < im->n_checkpoints; i++)
        for (size_t j = 0; j < im->checkpoints[i].count; j++) {
            named *item = &im->items[im->count++];
            item->tensor = &im->checkpoints[i].tensors[j];
            model_name(item->name, item->tensor->name);
        }
    if (im->count) qsort(im->items, im->count, sizeof *im->items, by_item);
    for (size_t i = 1; i < im->count; i++)
        if (strcmp(im->items[i].name, im->items[i - 1].name) == 0)
            return tsar_fail(im->err, TSAR_INPUT, "tensor %s is in %s and in %s; give each part of the model once", im->items[i].name,
                             im->items[i - 1].tensor->checkpoint->path, im->items[i].tensor->checkpoint->path);
    return TSAR_OK;
}

/* -------------------------------------------------------------------------------------------------------- the settings */

static choice *find_setting(importer *im, const char *key)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (strcmp(KEYS[i], key) == 0) return &im->settings[i];
    return NULL;
}

static const char *get(importer *im, const char *key)
{
    choice *setting = find_setting(im, key);
    return setting && setting->from != ABSENT ? setting->value : NULL;
}

static tsar_status give(importer *im, const char *key, const char *value, origin from, const char *evidence)
{
    choice *setting = find_setting(im, key);
    if (!setting)
        return tsar_fail(im->err, TSAR_USAGE,
                         "%.60s=%.60s: no such key; the keys are those of a model file's configuration, such as n_head, grid_h and grid_w", key,
                         value);
    int plain = strlen(value) < MAX_VALUE;
    for (const char *c = value; plain && *c; c++) plain = (unsigned char)*c >= 32;
    if (!plain)
        return tsar_fail(im->err, from == ARGUMENT ? TSAR_USAGE : TSAR_INPUT, "%s: the value of %s is no line of at most %d characters", evidence,
                         key, MAX_VALUE - 1);
    if (setting->from == from && strcmp(setting->value, value) != 0)
        return tsar_fail(im->err, from == ARGUMENT ? TSAR_USAGE : TSAR_INPUT, "%s=%s (%s) contradicts %s=%s (%s)", key, value, evidence, key,
                         setting->value, setting->evidence);
    if (setting->from < from) { /* an argument outranks a file */
        setting->from = from;
        snprintf(setting->value, sizeof setting->value, "%s", value);
        snprintf(setting->evidence, sizeof setting->evidence, "%s", evidence);
    }
    return TSAR_OK;
}

/* The configuration in a safetensors file's metadata, where there is one. */
static tsar_status read_metadata(importer *im)
{
    for (size_t i = 0; i < im->n_checkpoints; i++)
        for (size_t s = 0; s < im->checkpoints[i].n_shards; s++)
            for (size_t k = 0; k < N_KEYS; k++) {
                const char *value = tsar_file_meta(im->checkpoints[i].shards[s], KEYS[k]);
                tsar_status status = value ? give(im, KEYS[k], value, FROM_FILE, tsar_file_path(im->checkpoints[i].shards[s])) : TSAR_OK;
                if (status) return status;
            }
    return TSAR_OK;
}

/* What a shape proves. A different value from anywhere else is a contradiction. */
static void infer_text(importer *im, const char *key, const char *value, const char *evidence)
{
    choice *setting = find_setting(im, key);
    if (im->status) return;
    if (setting->from != ABSENT && strcmp(setting->value, value) != 0)
        im->status = tsar_fail(im->err, setting->from == ARGUMENT ? TSAR_USAGE : TSAR_INPUT, "%s: tensor %s makes %s=%s, but %s says %s=%s", im->name,
                               evidence, key, value, setting->evidence, key, setting->value);
    setting->from = INFERRED;
    snprintf(setting->value, sizeof setting->value, "%s", value);
    snprintf(setting->evidence, sizeof setting->evidence, "%s", evidence);
}

static void infer(importer *im, const char *key, size_t value, const char *evidence)
{
    char text[32];
    snprintf(text, sizeof text, "%zu", value);
    infer_text(im, key, text, evidence);
}

/* What shapes cannot tell and the official code fixes. */
static void assume(importer *im, const char *key, const char *value)
{
    if (!im->status && !get(im, key)) im->status = give(im, key, value, ASSUMED, "LlamaGen's own code");
}

static void ask(importer *im, const char *format, ...) TSAR_FORMAT(2, 3);
static void ask(importer *im, const char *format, ...)
{
    size_t used = strlen(im->asked);
    va_list arguments;
    if (used > 0) used += (size_t)snprintf(im->asked + used, sizeof im->asked - used, "; and ");
    if (used >= sizeof im->asked) return;
    va_start(arguments, format);
    vsnprintf(im->asked + used, sizeof im->asked - used, format, arguments);
    va_end(arguments);
}

/* ---------------------------------------------------------------------------------------------- from shapes to settings */

/* Where a size shows: dimension `axis` of tensors of rank `rank` called `name`, # standing for any number. A size that several tensors
 * show is the one that most of them agree on, so that a misshapen one is told from the rest; check_weight then names it. "gpt.vocab"
 * and "gpt.wqkv" are no keys of a configuration but rows of their tensors. */
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

/* Whether name is pattern, # being one or more digits. */
static int is_called(const char *name, const char *pattern)
{
    for (; *pattern; pattern++) {
        if (*pattern != '#') {
            if (*name++ != *pattern) return 0;
            continue;
        }
        if (*name < '0' || *name > '9') return 0;
        while (*name >= '0' && *name <= '9') name++;
    }
    return *name == '\0';
}

/* The value of a size, or of two that are the same (also, NULL: none), on which most tensors agree, with its evidence: the name of one of them.
 * What the user or a file's metadata says counts as one more; among equals the largest wins, as tensors are cut more often than they grow. 0
 * and no evidence if no tensor shows it. */
static size_t vote(importer *im, const char *size, const char *also, const char **evidence)
{
    enum { MOST = 32 }; /* different values that are counted */
    struct {
        size_t value, votes;
        const char *name;
    } seen[MOST];
    size_t n = 0, best = 0;
    for (size_t w = 0; w < sizeof WITNESSES / sizeof *WITNESSES; w++) {
        const witness *wanted = &WITNESSES[w];
        if (strcmp(wanted->size, size) != 0 && (!also || strcmp(wanted->size, also) != 0)) continue;
        for (size_t i = 0; i < im->count; i++) {
            const tsar_import_tensor *tensor = im->items[i].tensor;
            size_t k = 0;
            if (tensor->rank != wanted->rank || tensor->count == 0 || !is_called(im->items[i].name, wanted->name)) continue;
            while (k < n && seen[k].value != tensor->shape[wanted->axis]) k++;
            if (k == MOST) continue;
            if (k == n) seen[n].value = tensor->shape[wanted->axis], seen[n].votes = 0, seen[n++].name = im->items[i].name;
            seen[k].votes++;
        }
    }
    *evidence = NULL;
    if (n == 0) return 0;
    const size_t said = get(im, size) ? (size_t)strtoul(get(im, size), NULL, 10) : 0;
    for (size_t k = 0; k < n; k++) seen[k].votes += seen[k].value == said;
    for (size_t k = 1; k < n; k++)
        if (seen[k].votes > seen[best].votes || (seen[k].votes == seen[best].votes && seen[k].value > seen[best].value)) best = k;
    *evidence = seen[best].name;
    return seen[best].value;
}

/* The vote on a size that some tensor must show; `expected` is the shape of the first one that could. */
static size_t measure(importer *im, const char *size, const char *also, const char **evidence, const char *expected)
{
    const witness *first = WITNESSES;
    char has[192], missing[MAX_NAME];
    *evidence = "";
    if (im->status) return 0;
    const size_t value = vote(im, size, also, evidence);
    if (*evidence) return value;
    while (strcmp(first->size, size) != 0 && (!also || strcmp(first->size, also) != 0)) first++;
    const named *item = NULL;
    for (size_t i = 0; i < im->count && !item; i++)
        if (is_called(im->items[i].name, first->name)) item = &im->items[i];
    if (item) tsar_shape_text(has, sizeof has, item->tensor->rank, item->tensor->shape);
    if (item)
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
static size_t infer_size(importer *im, const char *key, const char *also, const char *expected)
{
    const char *evidence;
    const size_t value = measure(im, key, also, &evidence, expected);
    infer(im, key, value, evidence);
    return value;
}

/* Modules prefix0 ... prefix{n-1}: one more than the largest number that follows the prefix. Each has a tensor at least, which bounds n. */
static size_t count_modules(importer *im, const char *prefix)
{
    size_t n = 0, length = strlen(prefix);
    for (size_t i = first_item(im, prefix); i < im->count && strncmp(im->items[i].name, prefix, length) == 0; i++) {
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
static void infer_heads(importer *im, const char *part, size_t dim, size_t n_layer, int llamagen)
{
    char key[32], wqkv[32], choices[160], expected[96];
    const char *rope = get(im, "rope"), *evidence;
    const int fine = part[0] == 'f';
    snprintf(key, sizeof key, "%sn_head", fine ? "fine_" : "");
    snprintf(wqkv, sizeof wqkv, "%swqkv", part);
    snprintf(expected, sizeof expected, fine ? "[%zu, %zu]" : "[%zu, %zu] (fewer rows with fewer key heads)", 3 * dim, dim);
    const size_t rows = measure(im, wqkv, NULL, &evidence, expected), pair = fine || !rope || strcmp(rope, "1d") != 0 ? 4 : 2;
    for (size_t i = 0; llamagen && i < sizeof SIZES / sizeof *SIZES; i++)
        if (!get(im, key) && SIZES[i].dim == dim && SIZES[i].n_layer == n_layer) {
            char text[32];
            snprintf(text, sizeof text, "%zu", SIZES[i].n_head);
            assume(im, key, text);
        }
    if (im->status || dim > TSAR_MAX_DIM) return; /* the configuration's own check refuses such a dim */
    const size_t n_head = get(im, key) ? (size_t)strtoul(get(im, key), NULL, 10) : 0, n_kv_head = kv_heads(dim, rows, n_head, pair);
    list_heads(choices, sizeof choices, dim, rows, pair);
    if (!*choices)
        im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s has %zu rows, which fit no number of heads; expected shape %s", im->name, evidence,
                               rows, expected);
    else if (get(im, key) && n_kv_head == 0)
        im->status = tsar_fail(im->err, find_setting(im, key)->from == ARGUMENT ? TSAR_USAGE : TSAR_INPUT,
                               "%s: %s=%s does not fit tensor %s with %zu rows; possible: %s", im->name, key, get(im, key), evidence, rows, choices);
    else if (n_kv_head && !fine)
        infer(im, "n_kv_head", n_kv_head, evidence);
    else if (n_kv_head == 0)
        ask(im, "%s=%s", key, choices);
}

/* The image tokenizer: LlamaGen's VQGAN (SPEC 4). */
static void infer_vq(importer *im)
{
    char name[MAX_NAME], mult[MAX_VALUE] = "";
    const size_t ch = infer_size(im, "vq_ch", NULL, "[vq_ch, 3, 3, 3]"), levels = count_modules(im, "vq.encoder.conv_blocks.");
    size_t used = 0;
    infer_size(im, "vq_embed_dim", NULL, "[codebook_size, vq_embed_dim]");
    infer_size(im, "vq_z_channels", NULL, "[vq_z_channels, channels, 3, 3]");
    infer(im, "vq_res_blocks", count_modules(im, "vq.encoder.conv_blocks.0.res."), "vq.encoder.conv_blocks.0.res");
    for (size_t i = 0; !im->status && i < levels && used < sizeof mult; i++) {
        snprintf(name, sizeof name, "vq.encoder.conv_blocks.%zu.res.0.conv1.weight", i);
        const named *item = find_item(im, name);
        const size_t width = item && item->tensor->rank == 4 ? item->tensor->shape[0] : 0;
        if (width == 0 || width % ch)
            im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s %s; expected 4 dimensions, the first a multiple of %zu", im->name, name,
                                   item ? "is misshapen" : "is missing", ch);
        else
            used += (size_t)snprintf(mult + used, sizeof mult - used, i ? ",%zu" : "%zu", width / ch);
    }
    infer_text(im, "vq_ch_mult", mult, "vq.encoder.conv_blocks");
    assume(im, "vq_l2_norm", "1");
    assume(im, "vq_groups", "32");
}

/* CTF stage two (SPEC 6). */
static void infer_fine(importer *im)
{
    const size_t dim = infer_size(im, "fine_dim", NULL, "[fine_dim]"), n_layer = count_modules(im, "fine.layers.");
    infer(im, "fine_n_layer", n_layer, "fine.layers");
    infer_size(im, "fine_ffn_hidden", NULL, "[fine_ffn_hidden, fine_dim]");
    infer_heads(im, "fine.", dim, n_layer, 0);
    assume(im, "norm_eps", "1e-05");
    assume(im, "rope_base", "10000");
}

/* Token-Shuffle's own sizes (SPEC 3). tok_embeddings has text_vocab + V rows, V = n_coarse or codebook_size: one of the two must be known. */
static void infer_shuffle(importer *im, size_t dim)
{
    const char *rows_of, *compress;
    size_t rows = measure(im, "gpt.vocab", NULL, &rows_of, "[text_vocab + codebook_size, dim]"), s = 1;
    const char *text = get(im, "text_vocab"), *predicted = get(im, "n_coarse") ? "n_coarse" : "codebook_size", *vocab = get(im, predicted);
    if (has_part(im, "gpt.shuffle.") || has_part(im, "gpt.unshuffle.")) {
        const size_t part = measure(im, "gpt.part", NULL, &compress, "[dim / s^2, dim]");
        while (part && s * s < dim / part) s++;
        if (!im->status && part * s * s != dim)
            im->status = tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s does not go with dim=%zu: %zu is no dim / s^2", im->name, compress, dim, part);
        infer(im, "shuffle", s, compress);
        infer(im, "shuffle_blocks", count_modules(im, "gpt.shuffle.blocks."), "gpt.shuffle.blocks");
        infer_size(im, "shuffle_hidden", NULL, "[shuffle_hidden, dim]");
    } else
        infer(im, "shuffle", 1, "gpt.shuffle.compress.weight (absent)");
    size_t known = text ? (size_t)strtoul(text, NULL, 10) : vocab ? (size_t)strtoul(vocab, NULL, 10) : 0;
    if (!im->status && known >= rows)
        im->status = tsar_fail(im->err, find_setting(im, text ? "text_vocab" : predicted)->from == ARGUMENT ? TSAR_USAGE : TSAR_INPUT,
                               "%s: %s=%zu leaves nothing of the %zu rows of tensor %s for %s", im->name, text ? "text_vocab" : predicted, known,
                               rows, rows_of, text ? predicted : "text_vocab");
    else if (!im->status && known)
        infer(im, text ? predicted : "text_vocab", rows - known, rows_of);
    else if (!im->status)
        ask(im, "text_vocab=N or codebook_size=N, whose sum is %zu", rows);
    if (!get(im, "rope")) ask(im, "rope=1d (Llama) or rope=2d (LlamaGen)");
    if (!get(im, "grid_h") || !get(im, "grid_w")) ask(im, "grid_h and grid_w (codes per column and row, multiples of %zu)", s);
}

/* The pixels that LlamaGen's releases are made for, and the grid that gives them. */
static void ask_grid(importer *im, int t2i)
{
    const char *mult = get(im, "vq_ch_mult");
    size_t factor = 16;
    if (mult)
        for (factor = 1; (mult = strchr(mult, ',')); mult++) factor = factor < 64 ? factor * 2 : factor;
    size_t small = 256 / factor, large = (t2i ? 512 : 384) / factor;
    ask(im, "grid_h=%zu grid_w=%zu (256 pixels) or grid_h=%zu grid_w=%zu (%d pixels)", small, small, large, large, t2i ? 512 : 384);
}

/* arch: LlamaGen's by their condition, Token-Shuffle by its modules or by text_vocab, which only it has; else what the user or a file says. A
 * transformer that shows nothing of these may be a c2i model whose condition got lost: it is not guessed. */
static const char *infer_arch(importer *im)
{
    static const char classes[] = "gpt.cls_embedding.embedding_table.weight";
    const int shuffles = has_part(im, "gpt.shuffle.") || has_part(im, "gpt.unshuffle.");
    const char *evidence;
    if (find_item(im, classes))
        infer_text(im, "arch", "llamagen-c2i", classes);
    else if (has_part(im, "gpt.cls_embedding."))
        infer_text(im, "arch", "llamagen-t2i", "gpt.cls_embedding.uncond_embedding");
    else if (shuffles)
        infer_text(im, "arch", "token-shuffle", has_part(im, "gpt.shuffle.") ? "gpt.shuffle" : "gpt.unshuffle");
    else if (!get(im, "arch") && (get(im, "text_vocab") || get(im, "shuffle")))
        infer_text(im, "arch", "token-shuffle", "gpt.cls_embedding (absent)");
    else if (!get(im, "arch") && !im->status)
        im->status = tsar_fail(im->err, TSAR_INPUT,
                               "%s: tensor %s is missing; expected shape [num_classes + 1, %zu]; if this is no llamagen-c2i model, add "
                               "arch=llamagen-t2i or arch=token-shuffle (without shuffle modules)",
                               im->name, classes, vote(im, "dim", NULL, &evidence));
    return get(im, "arch") ? get(im, "arch") : "";
}

/* codebook_size and n_coarse, which all parts of a model share. LlamaGen's transformer has a row for each label or code in two tensors. */
static void infer_vocabularies(importer *im, int llamagen, int vq, int fine)
{
    const int coarse = fine || get(im, "n_coarse"), codes = llamagen && !coarse;
    if (codes || vq || fine)
        infer_size(im, "codebook_size", codes ? "gpt.vocab" : NULL, codes ? "[codebook_size, dim]" : "[codebook_size, vq_embed_dim]");
    if (coarse && (fine || llamagen))
        infer_size(im, "n_coarse", llamagen ? "gpt.vocab" : NULL, llamagen ? "[n_coarse, dim]" : "[n_coarse, fine_dim]");
}

/* The autoregressive transformer. */
static void infer_gpt(importer *im, const char *arch)
{
    const int c2i = strcmp(arch, "llamagen-c2i") == 0, t2i = strcmp(arch, "llamagen-t2i") == 0;
    const size_t dim = infer_size(im, "dim", NULL, "[dim]"), n_layer = count_modules(im, "gpt.layers.");
    const char *evidence;
    char expected[64];
    infer(im, "n_layer", n_layer, "gpt.layers");
    snprintf(expected, sizeof expected, "[ffn_hidden, %zu]", dim);
    infer_size(im, "ffn_hidden", NULL, expected);
    if (c2i) {
        snprintf(expected, sizeof expected, "[num_classes + 1, %zu]", dim);
        const size_t rows = measure(im, "num_classes", NULL, &evidence, expected);
        infer(im, "num_classes", rows - 1, evidence); /* the last row stands for no class (QUIRKS, GPT 6) */
        infer(im, "cond_tokens", 1, evidence);
    } else if (t2i) {
        const size_t rows = measure(im, "cond_tokens", NULL, &evidence, "[cond_tokens, caption_dim]");
        if (!get(im, "cond_tokens") || strtoul(get(im, "cond_tokens"), NULL, 10) > rows) /* fewer is possible: QUIRKS, GPT 8 */
            infer(im, "cond_tokens", rows, evidence);
        infer_size(im, "caption_dim", NULL, "[dim, caption_dim]");
    }
    if (c2i || t2i)
        assume(im, "rope", "2d");
    else
        infer_shuffle(im, dim);
    infer_heads(im, "gpt.", dim, n_layer, c2i || t2i);
    if ((c2i || t2i) && (!get(im, "grid_h") || !get(im, "grid_w"))) ask_grid(im, t2i);
    assume(im, "norm_eps", "1e-05");
    assume(im, "rope_base", "10000");
}

/* The whole configuration, or the status of what is missing. */
static tsar_status infer_all(importer *im)
{
    int gpt = has_part(im, "gpt."), vq = has_part(im, "vq."), fine = has_part(im, "fine.");
    char assumed[256] = "";
    size_t used = 0;
    if (!gpt && !vq && !fine)
        return tsar_fail(im->err, TSAR_INPUT,
                         "%s: of its %zu tensors none has a name of LlamaGen's transformer (tok_embeddings.weight ...), of its tokenizer "
                         "(quantize.embedding.weight ...) or of a tsar model file",
                         im->name, im->count);
    const char *arch = gpt ? infer_arch(im) : "";
    if (!im->status) infer_vocabularies(im, strncmp(arch, "llamagen", 8) == 0, vq, fine);
    if (vq) infer_vq(im);
    if (fine) infer_fine(im);
    if (gpt)
        infer_gpt(im, arch);
    else if (fine && !im->status && (!get(im, "grid_h") || !get(im, "grid_w")))
        ask(im, "grid_h and grid_w (codes per column and row)");
    if (im->status) return im->status;
    if (*im->asked) return tsar_fail(im->err, TSAR_USAGE, "%s: shapes cannot tell everything; add %s", im->name, im->asked);
    for (size_t i = 0; i < N_KEYS && used < sizeof assumed; i++)
        if (im->settings[i].from == ASSUMED)
            used += (size_t)snprintf(assumed + used, sizeof assumed - used, " %s=%s", KEYS[i], im->settings[i].value);
    if (used) tsar_note(im->note, im->context, "%s: assumed as in LlamaGen's own code (shapes cannot tell):%s", im->name, assumed);
    return TSAR_OK;
}

static const char *look_up(const void *source, const char *key)
{
    const importer *im = source;
    for (size_t i = 0; i < N_KEYS; i++)
        if (strcmp(KEYS[i], key) == 0) return im->settings[i].from == ABSENT ? NULL : im->settings[i].value;
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- all there, and right */

/* Every problem is told, so that a user sees them all at once; the first one goes into the error. */
static void problem(importer *im, const char *format, ...) TSAR_FORMAT(2, 3);
static void problem(importer *im, const char *format, ...)
{
    char text[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (im->problems++ == 0) memcpy(im->first_problem, text, sizeof text);
    if (im->problems <= MAX_PROBLEMS) tsar_note(im->note, im->context, "%s", text);
}

/* One line of what the model needs: is it there, in shape and kind? */
static tsar_status check_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    importer *im = context;
    named *item = find_item(im, weight->name);
    char has[192], needs[192];
    (void)err;
    tsar_shape_text(needs, sizeof needs, weight->rank, weight->shape);
    if (!item) {
        problem(im, "tensor %s is missing; expected shape %s", weight->name, needs);
        return TSAR_OK;
    }
    const tsar_import_tensor *tensor = item->tensor;
    int same = tensor->rank == weight->rank, longer = strcmp(weight->name, "gpt.cls_embedding.uncond_embedding") == 0; /* QUIRKS, GPT 8 */
    for (size_t i = 0; same && i < weight->rank; i++)
        same = tensor->shape[i] == weight->shape[i] || (longer && i == 0 && tensor->shape[0] > weight->shape[0]);
    tsar_shape_text(has, sizeof has, tensor->rank, tensor->shape);
    item->used = 1;
    int floating = tsar_dtype_is_float(tensor->dtype);
    if (!same)
        problem(im, "tensor %s has shape %s, expected %s", weight->name, has, needs);
    else if (floating != (weight->use != TSAR_AS_INTEGERS))
        problem(im, "tensor %s has dtype %s, expected %s", weight->name, tsar_dtype_name(tensor->dtype),
                floating ? "integers" : "F32, F16, BF16 or F64");
    if (tensor->count > (UINT64_MAX - im->bytes) / 8)
        return tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s is larger than any file", im->name, weight->name);
    im->bytes += tensor->count * tsar_dtype_size(tensor->dtype);
    return TSAR_OK;
}

static tsar_status check_all(importer *im, const tsar_config *config)
{
    char left_out[256] = "", shape[192];
    size_t used = 0, buffers = 0;
    uint64_t given = 0;
    tsar_status status = tsar_weights(config, NULL, check_weight, im, im->err);
    if (status) return status;
    for (size_t i = 0; i < im->count; i++) {
        const named *item = &im->items[i];
        if (item->used) continue;
        if (strcmp(item->name, MERGES) == 0) { /* an optional one, as long as there are ids for it */
            const size_t ids = TSAR_SPECIALS + 256, merges = item->tensor->rank ? item->tensor->shape[0] : 0;
            if (config->arch != TSAR_TOKEN_SHUFFLE)
                problem(im, "tensor %s belongs to models with arch=token-shuffle only", MERGES);
            else if (merges > config->text_vocab || config->text_vocab - merges < ids)
                problem(im, "tensor %s has %zu merges, which with %zu specials and bytes exceed text_vocab=%zu", MERGES, merges, ids, config->text_vocab);
            const tsar_weight weight = { .name = "tokenizer.merges", .part = TSAR_PART_TEXT, .use = TSAR_AS_INTEGERS, .rank = 2, .shape = { merges, 2 } };
            if ((status = check_weight(im, &weight, im->err))) return status;
            continue;
        }
        tsar_shape_text(shape, sizeof shape, item->tensor->rank, item->tensor->shape);
        if (!is_buffer(item))
            problem(im, "tensor %s of shape %s belongs to no part of this model", item->name, shape);
        else if (buffers++ < 3 && used < sizeof left_out)
            used += (size_t)snprintf(left_out + used, sizeof left_out - used, " %s", item->name);
    }
    if (im->problems > MAX_PROBLEMS) tsar_note(im->note, im->context, "... and %zu more", im->problems - MAX_PROBLEMS);
    if (im->problems)
        return tsar_fail(im->err, TSAR_INPUT, "%s: %s%s", im->name, im->first_problem, im->problems > 1 ? " (the first of several)" : "");
    if (buffers)
        tsar_note(im->note, im->context, "%s: left out %zu buffer%s that inference does not need:%s%s", im->name, buffers, buffers > 1 ? "s" : "",
                  left_out, buffers > 3 ? " ..." : "");
    for (size_t i = 0; i < im->n_checkpoints; i++) given += im->checkpoints[i].bytes;
    if (im->bytes > given * MAX_GROWTH + (1 << 20)) /* tensors that repeat a storage many times over */
        return tsar_fail(im->err, TSAR_INPUT,
                         "%s: %" PRIu64 " bytes would become %" PRIu64 " of weights; its tensors repeat their storages beyond belief", im->name,
                         given, im->bytes);
    return TSAR_OK;
}

/* --------------------------------------------------------------------------------------------------------- the model file */

static tsar_status declare_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    importer *im = context;
    const tsar_import_tensor *tensor = find_item(im, weight->name)->tensor;
    return tsar_writer_declare(im->writer, weight->name, tensor->dtype, tensor->rank, tensor->shape, err);
}

/* What a tsar model file says beside its configuration (known_words, keys of the user's own) stays with it. */
static tsar_status copy_notes(importer *im, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < im->n_checkpoints; i++)
        for (size_t s = 0; s < im->checkpoints[i].n_shards; s++) {
            const tsar_file *file = im->checkpoints[i].shards[s];
            if (!tsar_file_meta(file, "arch") && !tsar_file_meta(file, "vq_ch") && !tsar_file_meta(file, "fine_dim")) continue;
            for (size_t k = 0; k < tsar_file_meta_count(file) && !status; k++) {
                const char *key, *value;
                tsar_file_meta_at(file, k, &key, &value);
                if (!find_setting(im, key)) status = tsar_writer_meta(im->writer, key, value, err);
            }
        }
    return status;
}

static tsar_status write_model(importer *im, const tsar_config *config, const char *path, tsar_error *err)
{
    const named *merges = find_item(im, MERGES);
    const tsar_tensor *next;
    void *block = tsar_alloc(BLOCK, 1, "a block of weights", err);
    tsar_status status = block ? tsar_writer_open(&im->writer, path, err) : TSAR_ROOM;
    for (size_t i = 0; !status && i < N_KEYS; i++)
        if (im->settings[i].from != ABSENT) status = tsar_writer_meta(im->writer, KEYS[i], im->settings[i].value, err);
    if (!status) status = copy_notes(im, err);
    if (!status) status = tsar_weights(config, NULL, declare_weight, im, err);
    if (!status && merges)
        status = tsar_writer_declare(im->writer, merges->name, merges->tensor->dtype, merges->tensor->rank, merges->tensor->shape, err);
    while (!status && (next = tsar_writer_next(im->writer))) status = checkpoint_copy(find_item(im, next->name)->tensor, im->writer, block, err);
    tsar_free(block);
    if (!status) return tsar_writer_commit(im->writer, err);
    tsar_writer_abandon(im->writer);
    return status;
}

static tsar_status run(importer *im, const char *path, const char *const *keys, const char *const *values, size_t n)
{
    tsar_config config;
    tsar_status status = TSAR_OK;
    for (size_t i = 0; !status && i < n; i++) status = give(im, keys[i], values[i], ARGUMENT, "the command line");
    if (!status) status = read_metadata(im);
    if (!status) status = list_items(im);
    if (!status) status = infer_all(im);
    if (!status) status = tsar_config_read(&config, look_up, im, im->name, im->err);
    if (!status) status = check_all(im, &config);
    return status ? status : write_model(im, &config, path, im->err);
}

tsar_status tsar_import(const char *const *paths, size_t n_paths, const char *path, const char *const *keys, const char *const *values, size_t n,
                        tsar_note_fn note, void *context, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    if (n_paths == 0) return tsar_fail(err, TSAR_USAGE, "no checkpoint is given; name one or more .pt, .pth, .bin or .safetensors files");
    importer *im = tsar_alloc(1, sizeof *im, "the importer", err);
    if (!im) return TSAR_ROOM;
    im->name = paths[0];
    im->note = note;
    im->context = context;
    im->err = err;
    if (!(im->checkpoints = tsar_alloc(n_paths, sizeof *im->checkpoints, "the list of checkpoints", err))) status = TSAR_ROOM;
    for (; !status && im->n_checkpoints < n_paths; im->n_checkpoints++)
        if ((status = checkpoint_open(&im->checkpoints[im->n_checkpoints], paths[im->n_checkpoints], note, context, err))) break;
    if (!status) status = run(im, path, keys, values, n);
    for (size_t i = 0; i < im->n_checkpoints; i++) checkpoint_close(&im->checkpoints[i]);
    tsar_free(im->checkpoints);
    tsar_free(im->items);
    tsar_free(im);
    return status;
}
