/* tsar import: which model do these checkpoints hold? Names tell the parts (import_names.c), shapes tell the configuration (import_infer.c); what
 * neither can tell is asked for. Then tsar_weights lists what a model of this configuration needs, and the tensors are copied in that order,
 * so that the result does not depend on the form of the checkpoint. */
#include "import.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { COPY_BYTES = 1 << 18, MAX_PROBLEMS = 20, MAX_GROWTH = 16, EXAMPLES = 5, ROOM_FOR_PART = 64 };

static const char MERGES[] = "tokenizer.merges";

/* The file to which a tensor's checkpoint belongs: its first member. */
static tsar_import_file *file_of(const tsar_import_tensor *tensor) { return (tsar_import_file *)tensor->checkpoint; }

/* ----------------------------------------------------------------------------------------------------- opening the files */

/* The names in all state dicts of a file, or of all its tensors, one after another: NULL behind the last. */
typedef struct {
    const tsar_checkpoint *checkpoint;
    size_t state, at;
} name_cursor;

static const char *next_name(name_cursor *c)
{
    const tsar_checkpoint *checkpoint = c->checkpoint;
    if (checkpoint->file) return c->at < checkpoint->count ? checkpoint->tensors[c->at++].name : NULL;
    for (; c->state < checkpoint->n_states; c->state++, c->at = 0) {
        const char *name = tsar_torch_name(&checkpoint->states[c->state], &c->at);
        if (name) return name;
    }
    return NULL;
}

/* Files of one folder share what their names tell: shards of one model may be given one by one. *longest: the longest of all names. */
static void learn_names(tsar_importer *im, size_t k, size_t *longest)
{
    tsar_import_file *file = &im->files[k];
    const char *path = file->checkpoint.path, *name;
    const size_t folder = tsar_path_folder(path);
    name_cursor cursor = { &file->checkpoint, 0, 0 };
    file->naming = &im->namings[k];
    for (size_t i = 0; i < k; i++)
        if (tsar_path_folder(im->files[i].checkpoint.path) == folder && strncmp(im->files[i].checkpoint.path, path, folder) == 0)
            file->naming = im->files[i].naming;
    while ((name = next_name(&cursor))) {
        if (strlen(name) > *longest) *longest = strlen(name);
        tsar_import_naming(file->naming, name);
    }
}

/* Tensors of a state dict whose names are those of a model. */
static size_t count_known(const tsar_import_file *file, const tsar_state_dict *state, char *scratch, size_t room)
{
    size_t at = 0, known = 0;
    const char *name;
    while ((name = tsar_torch_name(state, &at))) known += tsar_import_name(scratch, room, name, file->naming) != 0;
    return known;
}

/* Where LlamaGen's own scripts and common trainers keep the weights, in order (QUIRKS, Checkpoints 1). */
static size_t preference(const char *path)
{
    static const char *const KEYS[] = { "", "model", "module", "state_dict", "model_state_dict", "net", "generator", "params", "params_ema", "ema", NULL };
    size_t k = 0;
    while (KEYS[k] && strcmp(KEYS[k], path) != 0) k++;
    return k;
}

/* The paths of up to five state dicts, for an error or a note; `but` is left out. */
static void list_states(const tsar_checkpoint *checkpoint, size_t but, char *text, size_t room)
{
    size_t used = 0, told = 0;
    text[0] = '\0';
    for (size_t k = 0; k < checkpoint->n_states && used < room; k++) {
        const tsar_state_dict *state = &checkpoint->states[k];
        if (state->n_tensors == 0 || k == but) continue;
        if (told++ == EXAMPLES) {
            snprintf(text + used, room - used, " ...");
            return;
        }
        used += (size_t)snprintf(text + used, room - used, "%s %.60s (%zu)", told > 1 ? "," : "", *state->path ? state->path : "the top", state->n_tensors);
    }
}

/* The state dict that holds the weights: the one with most known names, or one of at least half as many that scripts look for first; without a
 * known name the one with most tensors, so that an error can name them. n_states if there is none. */
static size_t choose_state(const tsar_importer *im, const tsar_import_file *file, char *scratch, size_t room, size_t *rivals)
{
    const tsar_checkpoint *checkpoint = &file->checkpoint;
    size_t most = 0, best = checkpoint->n_states, most_tensors = 0, fallback = checkpoint->n_states;
    *rivals = 0;
    for (size_t k = 0; k < checkpoint->n_states; k++) {
        const tsar_state_dict *state = &checkpoint->states[k];
        if (im->from && state->n_tensors && strcmp(state->path, im->from) == 0) return k;
        const size_t known = state->n_tensors ? count_known(file, state, scratch, room) : 0;
        if (known > most) most = known;
        if (state->n_tensors > most_tensors) most_tensors = state->n_tensors, fallback = k;
    }
    for (size_t k = 0; most > 0 && k < checkpoint->n_states; k++) {
        const tsar_state_dict *state = &checkpoint->states[k];
        if (state->n_tensors == 0 || 2 * count_known(file, state, scratch, room) < most) continue;
        ++*rivals;
        if (best == checkpoint->n_states || preference(state->path) < preference(checkpoint->states[best].path)) best = k;
    }
    return most > 0 ? best : fallback;
}

static tsar_status take_state(tsar_importer *im, tsar_import_file *file, char *scratch, size_t room)
{
    tsar_checkpoint *checkpoint = &file->checkpoint;
    char text[400];
    size_t rivals = 0;
    if (checkpoint->file) return TSAR_OK;
    const size_t k = choose_state(im, file, scratch, room, &rivals);
    if (k == checkpoint->n_states) {
        tsar_torch_describe(checkpoint, text, sizeof text);
        return tsar_fail(im->err, TSAR_INPUT,
                         "%s: holds no state dict, a dictionary of tensors under names (torch.save(model.state_dict(), FILE) writes one): %s", checkpoint->path,
                         text);
    }
    if (rivals > 1) {
        list_states(checkpoint, k, text, sizeof text);
        tsar_note(im->note, im->context, "%s: takes the weights under \"%s\", not those under%s; from=KEY chooses others", checkpoint->path,
                  checkpoint->states[k].path, text);
    }
    return tsar_torch_take(checkpoint, k, im->err);
}

/* from=KEY must name a state dict of one file at least. */
static tsar_status check_from(const tsar_importer *im)
{
    char text[300] = "";
    for (size_t i = 0; i < im->n_files; i++) {
        const tsar_checkpoint *checkpoint = &im->files[i].checkpoint;
        for (size_t k = 0; k < checkpoint->n_states; k++)
            if (checkpoint->states[k].n_tensors && strcmp(checkpoint->states[k].path, im->from) == 0) return TSAR_OK;
        if (!*text) list_states(checkpoint, checkpoint->n_states, text, sizeof text);
    }
    return tsar_fail(im->err, TSAR_USAGE, "from=%.100s: the command line names a dictionary of tensors that is not there; there are (with their tensors):%s",
                     im->from, *text ? text : " none");
}

static tsar_status open_operands(tsar_importer *im, const char *const *paths, size_t n)
{
    tsar_status status = TSAR_OK;
    size_t total = 0, longest = 0;
    im->operands = tsar_alloc(n, sizeof *im->operands, "the list of checkpoints", im->err);
    if (!im->operands) return TSAR_ROOM;
    for (; status == TSAR_OK && im->n_operands < n; im->n_operands++) {
        status = tsar_file_list_open(&im->operands[im->n_operands], paths[im->n_operands], im->err);
        if (status != TSAR_OK) return status;
        total += im->operands[im->n_operands].n;
    }
    if (total == 0) return tsar_fail(im->err, TSAR_USAGE, "%s: no checkpoint is given beside it", im->name);
    im->files = tsar_alloc(total, sizeof *im->files, "the list of checkpoints", im->err);
    im->namings = tsar_alloc(total, sizeof *im->namings, "the list of checkpoints", im->err);
    if (!im->files || !im->namings) return TSAR_ROOM;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < im->operands[i].n; k++) {
            status = tsar_checkpoint_open(&im->files[im->n_files].checkpoint, im->operands[i].paths[k], im->note, im->context, im->err);
            if (status != TSAR_OK) return status;
            learn_names(im, im->n_files++, &longest);
        }
    if (im->from) status = check_from(im);
    const size_t room = 2 * (longest + ROOM_FOR_PART);
    char *scratch = status == TSAR_OK ? tsar_alloc(room, 1, "a name", im->err) : NULL;
    if (status == TSAR_OK && !scratch) status = TSAR_ROOM;
    for (size_t i = 0; status == TSAR_OK && i < im->n_files; i++) status = take_state(im, &im->files[i], scratch, room);
    tsar_free(scratch);
    return status;
}

/* Every config.json beside the operands, once. */
static tsar_status read_configs(tsar_importer *im)
{
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < im->n_operands; i++) {
        const char *path = im->operands[i].config;
        for (size_t k = 0; path && k < i; k++)
            if (im->operands[k].config && strcmp(path, im->operands[k].config) == 0) path = NULL;
        if (path) status = tsar_import_config(im, path);
    }
    return status;
}

/* The configuration in a safetensors file's metadata, where there is one. */
static tsar_status read_metadata(tsar_importer *im)
{
    for (size_t i = 0; i < im->n_files; i++) {
        const tsar_file *file = im->files[i].checkpoint.file;
        if (!file) continue;
        im->own_model |= tsar_file_meta(file, "arch") || tsar_file_meta(file, "vq_ch") || tsar_file_meta(file, "t5_dim");
        for (size_t k = 0; k < im->n_keys; k++) {
            const char *value = tsar_file_meta(file, im->keys[k].name);
            tsar_status status = value ? tsar_import_give(im, im->keys[k].name, value, TSAR_FROM_FILE, tsar_file_path(file)) : TSAR_OK;
            if (status != TSAR_OK) return status;
        }
    }
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------------------ the items */

/* What was left out, for one note: how much, and the first names. */
typedef struct {
    size_t n, used;
    char names[256];
} leftovers;

static void leave_out(leftovers *left, const char *name)
{
    if (left->n++ < 3 && left->used < sizeof left->names)
        left->used += (size_t)snprintf(left->names + left->used, sizeof left->names - left->used, " %.80s", name);
}

static void tell_left(const tsar_importer *im, const leftovers *left, const char *what, const char *why)
{
    if (left->n)
        tsar_note(im->note, im->context, "%s: left out %zu %s%s%s:%s%s", im->name, left->n, what, left->n > 1 ? "s" : "", why, left->names,
                  left->n > 3 ? " ..." : "");
}

static int by_name(const void *a, const void *b)
{
    const tsar_item *x = a, *y = b;
    const int order = strcmp(x->name, y->name);
    return order != 0 ? order : strcmp(x->source[0]->name, y->source[0]->name);
}

static void fill_item(tsar_item *item, const tsar_import_tensor *tensor, unsigned flags)
{
    item->source[0] = tensor;
    item->n_sources = 1;
    item->halves = (flags & TSAR_NAME_HALVES) != 0;
    item->dtype = tensor->dtype;
    item->foreign = tensor->foreign;
    item->rank = tensor->rank;
    memcpy(item->shape, tensor->shape, sizeof item->shape);
    item->count = tensor->count;
}

/* All tensors of all checkpoints under the names of a model file, but for those that no model needs. */
static tsar_status name_items(tsar_importer *im)
{
    leftovers rule = { 0 }, asked = { 0 };
    size_t total = 0, bytes = 0;
    for (size_t i = 0; i < im->n_files; i++) {
        total += im->files[i].checkpoint.count;
        for (size_t j = 0; j < im->files[i].checkpoint.count; j++) bytes += 2 * (strlen(im->files[i].checkpoint.tensors[j].name) + ROOM_FOR_PART);
    }
    im->items = tsar_alloc(total, sizeof *im->items, "the list of tensors", im->err);
    im->names = tsar_alloc(bytes, 1, "the names of tensors", im->err);
    if (!im->items || !im->names) return TSAR_ROOM;
    for (size_t i = 0; i < im->n_files; i++)
        for (size_t j = 0; j < im->files[i].checkpoint.count; j++) {
            const tsar_import_tensor *tensor = &im->files[i].checkpoint.tensors[j];
            char *name = im->names + im->names_used;
            const unsigned flags = tsar_import_name(name, 2 * (strlen(tensor->name) + ROOM_FOR_PART), tensor->name, im->files[i].naming);
            if ((flags & TSAR_NAME_LEFT) || tsar_import_drops(im, name) || tsar_import_drops(im, tensor->name)) {
                im->files[i].left++;
                leave_out(flags & TSAR_NAME_LEFT ? &rule : &asked, tensor->name);
                continue;
            }
            if (tensor->foreign && !(flags & TSAR_NAME_KNOWN) && !tensor->count) { /* a number, a text, an object beside the weights */
                tsar_note(im->note, im->context, "%s: %.128s is no tensor, left out", tensor->checkpoint->path, tensor->name);
                continue;
            }
            im->items[im->count].name = name;
            fill_item(&im->items[im->count++], tensor, flags);
            im->names_used += strlen(name) + 1;
        }
    tell_left(im, &rule, "tensor", " of modules that the model does without");
    tell_left(im, &asked, "tensor", " on request");
    for (size_t i = 0; i < im->n_drop && !asked.n; i++)
        if (strncmp(im->drop[i], "tokenizer", 9) != 0 && strncmp(im->drop[i], "t5.spiece", 9) != 0) /* those may be files of their own */
            return tsar_fail(im->err, TSAR_USAGE, "drop=%.100s: the command line names the beginning of no tensor's name", im->drop[i]);
    if (im->count) qsort(im->items, im->count, sizeof *im->items, by_name);
    return TSAR_OK;
}

/* Whether two tensors of one shape and dtype hold the same bits. */
static tsar_status same_bits(const tsar_importer *im, const tsar_item *a, const tsar_item *b, int *same)
{
    tsar_tensor_reader x = { 0 }, y = { 0 };
    *same = a->dtype == b->dtype && a->rank == b->rank && memcmp(a->shape, b->shape, a->rank * sizeof *a->shape) == 0 && !a->foreign && !b->foreign;
    if (!*same) return TSAR_OK;
    uint8_t *buffers = tsar_alloc(2, COPY_BYTES, "weights to compare", im->err);
    tsar_status status = buffers ? tsar_tensor_open(&x, a->source[0], im->err) : TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_tensor_open(&y, b->source[0], im->err);
    const size_t size = a->source[0]->size, room = COPY_BYTES / size;
    for (uint64_t first = 0; status == TSAR_OK && *same && first < a->count; first += room) {
        const size_t n = a->count - first < room ? (size_t)(a->count - first) : room;
        status = tsar_tensor_read(&x, first, n, buffers, im->err);
        if (status == TSAR_OK) status = tsar_tensor_read(&y, first, n, buffers + COPY_BYTES, im->err);
        *same = status == TSAR_OK && memcmp(buffers, buffers + COPY_BYTES, n * size) == 0;
    }
    tsar_tensor_close(&x);
    tsar_tensor_close(&y);
    tsar_free(buffers);
    return status;
}

/* A name twice is an error, unless it is T5's embedding, which has two names: then both must agree. */
static tsar_status merge_twins(tsar_importer *im)
{
    size_t kept = 0;
    for (size_t i = 0; i < im->count; i++) {
        tsar_item *item = &im->items[i], *last = kept ? &im->items[kept - 1] : NULL;
        int same = 0;
        if (last && strcmp(last->name, item->name) == 0) {
            tsar_status status = strcmp(item->name, "t5.tok_embeddings.weight") == 0 ? same_bits(im, last, item, &same) : TSAR_OK;
            if (status != TSAR_OK) return status;
            if (!same)
                return tsar_fail(im->err, TSAR_INPUT, "tensor %.128s is twice there, as %.128s in %s and as %.128s in %s; give each part of the model once",
                                 item->name, last->source[0]->name, last->source[0]->checkpoint->path, item->source[0]->name,
                                 item->source[0]->checkpoint->path);
            continue;
        }
        im->items[kept++] = *item;
    }
    im->count = kept;
    return TSAR_OK;
}

enum { NAME_BYTES = 128, END = 9 }; /* bytes of a name; of "wq.weight" */

/* The new names, without wk and wv. */
static void name_joined(tsar_importer *im)
{
    size_t kept = 0;
    for (size_t i = 0; i < im->count; i++) {
        tsar_item item = im->items[i];
        if (item.n_sources == 3) {
            const int length = (int)strlen(item.name) - END; /* the room of each name is twice what it takes, and more */
            char *name = im->names + im->names_used;
            im->names_used += (size_t)sprintf(name, "%.*swqkv.weight", length, item.name) + 1;
            item.name = name;
        }
        if (item.n_sources) im->items[kept++] = item;
    }
    im->count = kept;
    if (kept) qsort(im->items, kept, sizeof *im->items, by_name);
}

/* wq, wk and wv, which are matrices of their own in every code but LlamaGen's, become wqkv: its rows one behind another. */
static void join_heads(tsar_importer *im)
{
    static const char *const ends[3] = { "wq.weight", "wk.weight", "wv.weight" };
    for (size_t i = 0; i < im->count; i++) {
        tsar_item *item = &im->items[i], *part[3] = { NULL, NULL, NULL };
        const size_t length = strlen(item->name);
        char name[NAME_BYTES];
        if (length < 10 + END || length >= NAME_BYTES || strcmp(item->name + length - 10 - END, "attention.wq.weight") != 0) continue;
        memcpy(name, item->name, length + 1);
        for (int k = 0; k < 3; k++) {
            memcpy(name + length - END, ends[k], END);
            part[k] = tsar_import_find(im, name);
        }
        if (!part[1] || !part[2]) continue; /* check_weight tells which is missing */
        const tsar_item *q = part[0], *k = part[1], *v = part[2];
        const int alike = q->rank == 2 && k->rank == 2 && v->rank == 2 && q->shape[1] == k->shape[1] && q->shape[1] == v->shape[1] && q->dtype == k->dtype &&
                          q->dtype == v->dtype && !q->foreign && !k->foreign && !v->foreign && q->shape[0] < SIZE_MAX / 4 && k->shape[0] < SIZE_MAX / 4 &&
                          v->shape[0] < SIZE_MAX / 4;
        item->source[1] = k->source[0];
        item->source[2] = v->source[0];
        item->n_sources = 3;
        part[1]->n_sources = part[2]->n_sources = 0;
        item->halves = q->halves && k->halves;
        if (!alike) item->foreign = q->foreign ? q->foreign : "put together from wq, wk and wv of different widths or dtypes";
        if (alike) item->shape[0] += k->shape[0] + v->shape[0];
        item->count = q->count + k->count + v->count; /* each has less than 2^63 / 4 elements, being in a file */
    }
    name_joined(im);
}

/* ---------------------------------------------------------------------------------------------------- all there, and right */

/* Every problem is told, so that a user sees them all at once; the first one goes into the error. */
static void problem(tsar_importer *im, const char *format, ...) TSAR_FORMAT(2, 3);
static void problem(tsar_importer *im, const char *format, ...)
{
    char text[TSAR_IMPORT_PROBLEM];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (im->problems++ == 0) memcpy(im->first_problem, text, sizeof text);
    if (im->problems <= MAX_PROBLEMS) tsar_note(im->note, im->context, "%s", text);
}

/* A weight that is not there; where it is put together from three, those of them that are missing. */
static void tell_missing(tsar_importer *im, const tsar_weight *weight, const char *needs)
{
    static const char *const ends[3] = { "wq.weight", "wk.weight", "wv.weight" };
    const size_t length = strlen(weight->name), suffix = strlen("wqkv.weight");
    char name[3][sizeof weight->name];
    int there = 0, missing[3] = { 0 };
    for (int k = 0; k < 3 && length > suffix && strcmp(weight->name + length - suffix, "wqkv.weight") == 0; k++) {
        snprintf(name[k], sizeof name[k], "%.*s%s", (int)(length - suffix), weight->name, ends[k]);
        missing[k] = !tsar_import_find(im, name[k]);
        there += !missing[k];
    }
    for (int k = 0; k < 3 && there > 0; k++)
        if (missing[k]) problem(im, "tensor %s is missing; expected shape [.., %zu]", name[k], weight->shape[1]);
    if (there == 0) problem(im, "tensor %s is missing; expected shape %s", weight->name, needs);
}

/* What is wrong with the elements of a tensor: integers where weights are needed, quantised weights, an object of another class. */
static void check_dtype(tsar_importer *im, const tsar_item *item, const tsar_weight *weight)
{
    const int floating = tsar_dtype_is_float(item->dtype), integers = weight->use == TSAR_AS_INTEGERS;
    const char *is = item->foreign ? item->foreign : tsar_dtype_name(item->dtype);
    const char *expected = integers ? "integers" : "F32, F16, BF16 or F64";
    if (!item->foreign && floating != integers && (floating || item->dtype < TSAR_FOREIGN)) return;
    if (item->foreign && !item->count)
        problem(im, "tensor %s is no tensor there but %s, which cannot be read", weight->name, is);
    else if (integers)
        problem(im, "tensor %s has dtype %s, expected %s", weight->name, is, expected);
    else
        problem(im, "tensor %s has dtype %s, expected %s; quantised weights are not read: give the checkpoint that they were made from", weight->name, is,
                expected);
}

/* One line of what the model needs: is it there, in shape and kind? */
static tsar_status check_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    tsar_importer *im = context;
    tsar_item *item = tsar_import_find(im, weight->name);
    char has[192], needs[192];
    (void)err;
    tsar_shape_text(needs, sizeof needs, weight->rank, weight->shape);
    if (!item) {
        tell_missing(im, weight, needs);
        return TSAR_OK;
    }
    int same = item->rank == weight->rank, longer = strcmp(weight->name, "gpt.cls_embedding.uncond_embedding") == 0; /* QUIRKS, GPT 8 */
    for (size_t i = 0; same && i < weight->rank; i++) same = item->shape[i] == weight->shape[i] || (longer && i == 0 && item->shape[0] > weight->shape[0]);
    if (item->n_sources == 3) same &= item->source[1]->shape[0] == item->source[2]->shape[0];
    item->used = 1;
    for (size_t i = 0; i < item->n_sources; i++) file_of(item->source[i])->used++;
    if (item->foreign || same)
        check_dtype(im, item, weight);
    else
        problem(im, "tensor %s has shape %s, expected %s", weight->name, tsar_shape_text(has, sizeof has, item->rank, item->shape), needs);
    if (item->count > (UINT64_MAX - im->bytes) / 8) return tsar_fail(im->err, TSAR_INPUT, "%s: tensor %s is larger than any file", im->name, weight->name);
    im->bytes += item->count * tsar_dtype_size(item->dtype);
    return TSAR_OK;
}

/* What text needs beside the weights: taken as it is, where it goes with the model. */
static int is_text(const tsar_item *item) { return strncmp(item->name, "tokenizer.", 10) == 0 || strcmp(item->name, "t5.spiece") == 0; }

static tsar_status check_text(tsar_importer *im, const tsar_config *config, tsar_item *item)
{
    const size_t ids = TSAR_SPECIALS + 256, merges = item->rank ? item->shape[0] : 0;
    if (strcmp(item->name, MERGES) == 0 && tsar_family_of(config)->prefix != TSAR_PREFIX_IDS)
        problem(im, "tensor %s belongs to models with arch=token-shuffle only", MERGES);
    else if (strcmp(item->name, MERGES) == 0 && config->text_vocab && (merges > config->text_vocab || config->text_vocab - merges < ids))
        problem(im, "tensor %s has %zu merges, which with %zu specials and bytes exceed text_vocab=%zu", MERGES, merges, ids, config->text_vocab);
    tsar_weight weight = { .part = TSAR_PART_TEXT, .use = TSAR_AS_INTEGERS, .rank = item->rank };
    if (strlen(item->name) >= sizeof weight.name || item->rank > sizeof weight.shape / sizeof *weight.shape) {
        problem(im, "tensor %.100s is none of a tokenizer", item->name);
        return TSAR_OK;
    }
    strcpy(weight.name, item->name);
    memcpy(weight.shape, item->shape, item->rank * sizeof *weight.shape);
    if (strcmp(item->name, MERGES) == 0) weight.rank = 2, weight.shape[0] = merges, weight.shape[1] = 2;
    return check_weight(im, &weight, im->err);
}

/* Up to five names of a file, for an error about what is there. */
static void list_names(const tsar_checkpoint *checkpoint, char *text, size_t room)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t j = 0; j < checkpoint->count && j < EXAMPLES && used < room; j++)
        used += (size_t)snprintf(text + used, room - used, "%s%.60s", j ? ", " : "", checkpoint->tensors[j].name);
    if (checkpoint->count > EXAMPLES && used < room) snprintf(text + used, room - used, " ...");
}

/* A file that gives nothing would silently be a part of the model that is not there. */
static tsar_status check_files(const tsar_importer *im)
{
    char names[340];
    for (size_t i = 0; i < im->n_files; i++) {
        const tsar_import_file *file = &im->files[i];
        if (file->used || file->left) continue;
        list_names(&file->checkpoint, names, sizeof names);
        return tsar_fail(im->err, TSAR_INPUT, "%s: none of its %zu tensors belongs to this model; they are called %s", file->checkpoint.path,
                         file->checkpoint.count, names);
    }
    return TSAR_OK;
}

static tsar_status check_all(tsar_importer *im, const tsar_config *config)
{
    leftovers buffers = { 0 };
    char shape[192];
    uint64_t given = 0;
    tsar_status status = tsar_weights(config, NULL, check_weight, im, im->err);
    for (size_t i = 0; status == TSAR_OK && i < im->count; i++) {
        tsar_item *item = &im->items[i];
        if (item->used) continue;
        if (is_text(item))
            status = check_text(im, config, item);
        else if (tsar_import_is_buffer(item) || item->foreign || !tsar_dtype_is_float(item->dtype))
            leave_out(&buffers, item->name);
        else
            problem(im, "tensor %.128s of shape %s belongs to no part of this model (drop=PREFIX leaves tensors out)", item->name,
                    tsar_shape_text(shape, sizeof shape, item->rank, item->shape));
    }
    if (status == TSAR_OK) status = check_files(im);
    if (status != TSAR_OK) return status;
    if (im->problems > MAX_PROBLEMS) tsar_note(im->note, im->context, "... and %zu more", im->problems - MAX_PROBLEMS);
    if (im->problems) return tsar_fail(im->err, TSAR_INPUT, "%s: %s%s", im->name, im->first_problem, im->problems > 1 ? " (the first of several)" : "");
    tell_left(im, &buffers, "buffer", "");
    for (size_t i = 0; i < im->n_files; i++) given += im->files[i].checkpoint.bytes;
    if (im->bytes > given * MAX_GROWTH + (1 << 20)) /* tensors that repeat a storage many times over */
        return tsar_fail(im->err, TSAR_INPUT, "%s: %" PRIu64 " bytes would become %" PRIu64 " of weights; its tensors repeat their storages beyond belief",
                         im->name, given, im->bytes);
    return TSAR_OK;
}

/* No tensor has a name that is known: what is there instead. */
static tsar_status refuse_unknown(const tsar_importer *im)
{
    const tsar_checkpoint *checkpoint = &im->files[0].checkpoint;
    char names[400], keys[400] = "";
    list_names(checkpoint, names, sizeof names);
    if (checkpoint->n_states) tsar_torch_describe(checkpoint, keys, sizeof keys);
    return tsar_fail(im->err, TSAR_INPUT,
                     "%s: of its %zu tensors none has a name of a known transformer (tok_embeddings.weight ...), of an image tokenizer "
                     "(quantize.embedding.weight ...) or of a tsar model file; they are called %s%s%s",
                     im->name, checkpoint->count, names, *keys ? "; " : "", keys);
}

/* --------------------------------------------------------------------------------------------------------- the model file */

static tsar_dtype target_dtype(const tsar_importer *im, const tsar_item *item)
{
    return im->round_bf16 && tsar_dtype_is_float(item->dtype) ? TSAR_BF16 : item->dtype;
}

static tsar_status declare_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    tsar_importer *im = context;
    const tsar_item *item = tsar_import_find(im, weight->name);
    return tsar_writer_declare(im->writer, weight->name, target_dtype(im, item), item->rank, item->shape, err);
}

/* Rounds to float so that rounding on to fewer digits gives what rounding at once gives: towards zero, and where that is not exact the last
 * bit is set ("round to odd"; Boldo and Melquiond 2008). */
static float to_odd(double x)
{
    float near = (float)x;
    uint32_t bits;
    if ((double)near == x || near != near) return near;
    memcpy(&bits, &near, sizeof bits);
    if ((double)near > 0 ? (double)near > x : (double)near < x) bits--; /* one step towards zero; from infinity to the largest number */
    bits |= 1;
    memcpy(&near, &bits, sizeof near);
    return near;
}

/* n values as bfloat16, in place: no element grows. */
static void round_values(void *values, size_t n, tsar_dtype dtype)
{
    const uint8_t *from = values;
    uint8_t *to = values;
    for (size_t i = 0; i < n; i++) {
        double wide;
        float single = 0;
        uint16_t half;
        if (dtype == TSAR_F64) {
            memcpy(&wide, from + 8 * i, 8);
            single = to_odd(wide);
        } else if (dtype == TSAR_F32)
            memcpy(&single, from + 4 * i, 4);
        else {
            memcpy(&half, from + 2 * i, 2);
            single = (float)tsar_widen_f16(half);
        }
        half = tsar_round_bf16(single);
        memcpy(to + 2 * i, &half, 2);
    }
}

/* Gives n elements in the dtype of the checkpoint to the model file. */
static tsar_status put_values(tsar_importer *im, const tsar_item *item, void *values, size_t n)
{
    if (target_dtype(im, item) != item->dtype) round_values(values, n, item->dtype);
    return tsar_writer_put(im->writer, values, n, im->err);
}

/* A source as it is, a buffer at a time. */
static tsar_status copy_plain(tsar_importer *im, const tsar_item *item, const tsar_import_tensor *tensor, void *buffer)
{
    const size_t room = COPY_BYTES / tensor->size;
    tsar_tensor_reader reader;
    tsar_status status = tsar_tensor_open(&reader, tensor, im->err);
    for (uint64_t first = 0; status == TSAR_OK && first < tensor->count;) {
        const size_t n = tensor->count - first < room ? (size_t)(tensor->count - first) : room;
        status = tsar_tensor_read(&reader, first, n, buffer, im->err);
        if (status == TSAR_OK) status = put_values(im, item, buffer, n);
        first += n;
    }
    tsar_tensor_close(&reader);
    return status;
}

/* Where in Hugging Face's order of a head the row stands that is row i here (SPEC 3): its pairs are halves apart, tsar's are neighbours. */
static size_t turned(size_t i, size_t hd) { return i % 2 ? hd / 2 + i / 2 : i / 2; }

/* The rows of queries or keys, each head's in tsar's order. */
static tsar_status copy_turned(tsar_importer *im, const tsar_item *item, const tsar_import_tensor *tensor, size_t hd)
{
    const size_t rows = tensor->shape[0], cols = tensor->shape[1];
    tsar_tensor_reader reader;
    void *row = tsar_alloc(cols, tensor->size, "a row of weights", im->err);
    if (!row) return TSAR_ROOM;
    tsar_status status = tsar_tensor_open(&reader, tensor, im->err);
    for (size_t r = 0; status == TSAR_OK && r < rows; r++) {
        status = tsar_tensor_read(&reader, (uint64_t)(r / hd * hd + turned(r % hd, hd)) * cols, cols, row, im->err);
        if (status == TSAR_OK) status = put_values(im, item, row, cols);
    }
    tsar_tensor_close(&reader);
    tsar_free(row);
    return status;
}

/* The rows of a norm of queries or keys: row j of g is row j * R / g of the R that the file has (import_infer.c, infer_norms). */
static tsar_status copy_norm(tsar_importer *im, const tsar_item *item, size_t hd)
{
    const tsar_import_tensor *tensor = item->source[0];
    const size_t g = item->shape[0] / hd, R = (size_t)tensor->count / hd, size = tensor->size;
    tsar_tensor_reader reader;
    uint8_t *from = tsar_alloc(R * hd, size, "a norm", im->err), *to = tsar_alloc(g * hd, size, "a norm", im->err);
    tsar_status status = from && to ? tsar_tensor_open(&reader, tensor, im->err) : TSAR_ROOM;
    if (status == TSAR_OK) {
        status = tsar_tensor_read(&reader, 0, R * hd, from, im->err);
        tsar_tensor_close(&reader);
    }
    for (size_t j = 0; status == TSAR_OK && j < g; j++)
        for (size_t i = 0; i < hd; i++) memcpy(to + (j * hd + i) * size, from + (j * R / g * hd + (item->halves ? turned(i, hd) : i)) * size, size);
    if (status == TSAR_OK) status = put_values(im, item, to, g * hd);
    tsar_free(from);
    tsar_free(to);
    return status;
}

/* The elements of one tensor of the model file. buffer has COPY_BYTES bytes. */
static tsar_status copy_item(tsar_importer *im, const tsar_config *config, const tsar_item *item, void *buffer)
{
    const size_t hd = config->has_gpt ? config->dim / config->n_head : 1;
    tsar_status status = TSAR_OK;
    if (tsar_import_is_called(item->name, "gpt.layers.#.attention.q_norm.*") || tsar_import_is_called(item->name, "gpt.layers.#.attention.k_norm.*"))
        return copy_norm(im, item, hd);
    for (size_t k = 0; status == TSAR_OK && k < item->n_sources; k++) /* queries, keys, values: the last ones are not turned */
        status = item->halves && k < 2 ? copy_turned(im, item, item->source[k], hd) : copy_plain(im, item, item->source[k], buffer);
    return status;
}

/* What a tsar model file says beside its configuration (known_words, keys of the user's own) stays with it. */
static tsar_status copy_notes(const tsar_importer *im)
{
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < im->n_files; i++) {
        const tsar_file *file = im->files[i].checkpoint.file;
        if (!file || !(tsar_file_meta(file, "arch") || tsar_file_meta(file, "vq_ch") || tsar_file_meta(file, "fine_dim"))) continue;
        for (size_t k = 0; k < tsar_file_meta_count(file) && status == TSAR_OK; k++) {
            const char *key, *value;
            tsar_file_meta_at(file, k, &key, &value);
            if (!tsar_import_setting(im, key)) status = tsar_writer_meta(im->writer, key, value, im->err);
        }
    }
    return status;
}

/* A tensor of a tokenizer that lies beside the checkpoints. */
static tsar_status put_text(const tsar_importer *im, const tsar_tensor *tensor)
{
    size_t i = 0;
    while (strcmp(im->text[i].name, tensor->name) != 0) i++; /* it was declared */
    return tsar_writer_put(im->writer, im->text[i].data, tensor->count, im->err);
}

static tsar_status write_model(tsar_importer *im, const tsar_config *config, const char *path)
{
    const tsar_tensor *next;
    void *buffer = tsar_alloc(COPY_BYTES, 1, "a buffer of weights", im->err);
    tsar_status status = buffer ? tsar_writer_open(&im->writer, path, im->err) : TSAR_ROOM;
    for (size_t i = 0; status == TSAR_OK && i < im->n_keys; i++)
        if (im->settings[i].from != TSAR_ABSENT) status = tsar_writer_meta(im->writer, im->keys[i].name, im->settings[i].value, im->err);
    if (status == TSAR_OK) status = copy_notes(im);
    if (status == TSAR_OK) status = tsar_weights(config, NULL, declare_weight, im, im->err);
    for (size_t i = 0; status == TSAR_OK && i < im->count; i++)
        if (is_text(&im->items[i]))
            status = tsar_writer_declare(im->writer, im->items[i].name, im->items[i].dtype, im->items[i].rank, im->items[i].shape, im->err);
    for (size_t i = 0; status == TSAR_OK && i < im->n_text; i++)
        status = tsar_writer_declare(im->writer, im->text[i].name, im->text[i].dtype, im->text[i].rank, im->text[i].shape, im->err);
    while (status == TSAR_OK && (next = tsar_writer_next(im->writer))) {
        const tsar_item *item = tsar_import_find(im, next->name);
        status = item ? copy_item(im, config, item, buffer) : put_text(im, next);
    }
    tsar_free(buffer);
    if (status == TSAR_OK) return tsar_writer_commit(im->writer, im->err);
    tsar_writer_abandon(im->writer);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------------ import */

/* What may lie beside a file of this path. */
static tsar_status tell_beside(const char *path, tsar_path_fn tell, void *context, tsar_error *err)
{
    const size_t folder = tsar_path_folder(path);
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && tsar_import_beside[i]; i++) {
        char *beside = tsar_alloc(folder + strlen(tsar_import_beside[i]) + 1, 1, "a path", err);
        if (!beside) return TSAR_ROOM;
        memcpy(beside, path, folder);
        strcpy(beside + folder, tsar_import_beside[i]);
        if (tsar_path_is_file(beside)) status = tell(context, beside, err);
        tsar_free(beside);
    }
    return status;
}

tsar_status tsar_import_inputs(const char *const *paths, size_t n, tsar_path_fn tell, void *context, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < n; i++) {
        tsar_file_list list;
        status = tell(context, paths[i], err);
        if (status == TSAR_OK) status = tsar_file_list_open(&list, paths[i], err);
        if (status != TSAR_OK) return status;
        for (size_t k = 0; status == TSAR_OK && k < list.n; k++) status = tell(context, list.paths[k], err);
        for (size_t k = 0; status == TSAR_OK && k < list.n; k++) status = tell_beside(list.paths[k], tell, context, err);
        if (status == TSAR_OK) status = tell_beside(paths[i], tell, context, err);
        tsar_file_list_close(&list);
    }
    return status;
}

static const char *look_up(const void *source, const char *key) { return tsar_import_get(source, key); }

/* A configuration that is wrong because of a value that the command line gave is the command line's fault, which the error then names. */
static tsar_status read_config(tsar_importer *im, tsar_config *config)
{
    char text[TSAR_IMPORT_VALUE + 64];
    tsar_status status = tsar_config_read(config, look_up, im, im->name, im->err);
    for (size_t i = 0; status == TSAR_INPUT && im->err && i < im->n_keys; i++) {
        snprintf(text, sizeof text, "%s=%s", im->keys[i].name, im->settings[i].value);
        if (im->settings[i].from == TSAR_ARGUMENT && strstr(im->err->text, text)) {
            (void)tsar_config_read(config, look_up, im, "the command line", im->err);
            return TSAR_USAGE;
        }
    }
    return status;
}

/* key=value arguments; from and drop are no keys of a configuration. */
static tsar_status read_arguments(tsar_importer *im, const char *const *keys, const char *const *values, size_t n)
{
    tsar_status status = TSAR_OK;
    const char **drop = tsar_alloc(n, sizeof *drop, "the arguments", im->err);
    if (!drop) return TSAR_ROOM;
    im->drop = drop;
    for (size_t i = 0; status == TSAR_OK && i < n; i++) {
        if (strcmp(keys[i], "drop") == 0 || strcmp(keys[i], "from") == 0) {
            if (!*values[i]) return tsar_fail(im->err, TSAR_USAGE, "%s=: the command line gives no name", keys[i]);
            if (keys[i][0] == 'd')
                drop[im->n_drop++] = values[i];
            else
                im->from = values[i];
        } else
            status = tsar_import_give(im, keys[i], values[i], TSAR_ARGUMENT, "the command line");
    }
    return status;
}

static tsar_status run(tsar_importer *im, const char *const *paths, size_t n_paths, const char *path, const char *const *keys, const char *const *values,
                       size_t n)
{
    tsar_config config;
    im->keys = tsar_keys(&im->n_keys);
    im->settings = tsar_alloc(im->n_keys, sizeof *im->settings, "the configuration", im->err);
    tsar_status status = im->settings ? read_arguments(im, keys, values, n) : TSAR_ROOM;
    if (status == TSAR_OK) status = open_operands(im, paths, n_paths);
    if (status == TSAR_OK) status = read_metadata(im);
    if (status == TSAR_OK) status = read_configs(im);
    if (status == TSAR_OK) status = name_items(im);
    if (status == TSAR_OK) status = merge_twins(im);
    if (status != TSAR_OK) return status;
    join_heads(im);
    if (!tsar_import_has(im, "gpt.") && !tsar_import_has(im, "vq.") && !tsar_import_has(im, "fine.") && !tsar_import_has(im, "t5.")) return refuse_unknown(im);
    status = tsar_import_infer_all(im);
    if (status == TSAR_OK) status = tsar_import_text(im);
    if (status == TSAR_OK) status = read_config(im, &config);
    if (status == TSAR_OK) status = tsar_import_check_text(im, &config);
    if (status == TSAR_OK) status = check_all(im, &config);
    return status == TSAR_OK ? write_model(im, &config, path) : status;
}

tsar_status tsar_import(const char *const *paths, size_t n_paths, const char *path, const char *const *keys, const char *const *values, size_t n,
                        tsar_dtype dtype, tsar_note_fn note, void *context, tsar_error *err)
{
    if (n_paths == 0) return tsar_fail(err, TSAR_USAGE, "no checkpoint is given; name one or more .pt, .pth, .bin or .safetensors files, or their folder");
    tsar_importer *im = tsar_alloc(1, sizeof *im, "the importer", err);
    if (!im) return TSAR_ROOM;
    im->name = paths[0];
    im->note = note;
    im->context = context;
    im->err = err;
    im->round_bf16 = dtype == TSAR_BF16;
    tsar_status status = run(im, paths, n_paths, path, keys, values, n);
    for (size_t i = 0; i < im->n_files; i++) tsar_checkpoint_close(&im->files[i].checkpoint);
    for (size_t i = 0; i < im->n_operands; i++) tsar_file_list_close(&im->operands[i]);
    tsar_import_close_text(im);
    tsar_free((void *)im->drop);
    tsar_free(im->operands);
    tsar_free(im->files);
    tsar_free(im->namings);
    tsar_free(im->names);
    tsar_free(im->items);
    tsar_free(im->settings);
    tsar_free(im);
    return status;
}
