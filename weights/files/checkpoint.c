/* A checkpoint of any form: the files of which it consists, its tensors, their elements in order. */
#include "files.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------ opening a file */

static tsar_status open_safetensors(tsar_checkpoint *checkpoint, tsar_error *err)
{
    tsar_source_close(&checkpoint->source);
    tsar_status status = tsar_file_open(&checkpoint->file, checkpoint->path, err);
    if (status != TSAR_OK) return status;
    const size_t count = tsar_file_count(checkpoint->file);
    checkpoint->tensors = tsar_alloc(count, sizeof *checkpoint->tensors, "the list of tensors", err);
    if (!checkpoint->tensors) return TSAR_ROOM;
    for (; checkpoint->count < count; checkpoint->count++) {
        const tsar_tensor *entry = tsar_file_at(checkpoint->file, checkpoint->count);
        tsar_import_tensor *tensor = &checkpoint->tensors[checkpoint->count];
        tensor->name = entry->name;
        tensor->checkpoint = checkpoint;
        tensor->dtype = entry->dtype;
        tensor->size = tsar_dtype_size(entry->dtype);
        tensor->rank = entry->rank;
        memcpy(tensor->shape, entry->shape, sizeof entry->shape);
        tensor->count = tensor->span = entry->count;
        tensor->contiguous = 1;
        tensor->entry = entry;
        checkpoint->bytes += entry->count * tensor->size;
    }
    return TSAR_OK;
}

void tsar_checkpoint_close(tsar_checkpoint *checkpoint)
{
    tsar_file_close(checkpoint->file);
    tsar_torch_close(checkpoint);
    tsar_free(checkpoint->tensors);
    tsar_source_close(&checkpoint->source);
    memset(checkpoint, 0, sizeof *checkpoint);
}

/* Whether n bytes are ASCII that can be printed, and there is any. */
static int is_printable(const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((bytes[i] < ' ' && !(bytes[i] >= '\t' && bytes[i] <= '\r')) || bytes[i] > '~') return 0;
    return n > 0;
}

/* Each form has its own first bytes. */
static tsar_status open_form(tsar_checkpoint *checkpoint, tsar_note_fn note, void *context, tsar_error *err)
{
    uint8_t head[TSAR_KIND + 1] = { 0 };
    const uint64_t size = checkpoint->source.size;
    const size_t n = size < TSAR_KIND ? (size_t)size : TSAR_KIND;
    tsar_status status = tsar_source_read(&checkpoint->source, 0, head, n, err);
    if (status != TSAR_OK) return status;
    const size_t legacy = tsar_torch_legacy(head, n);
    if (legacy || memcmp(head, "PK\3\4", 4) == 0) return tsar_torch_open(checkpoint, legacy, note, context, err);
    const char *kind = tsar_file_kind(head, n);
    if (kind) return tsar_fail(err, TSAR_INPUT, "%s: %s", checkpoint->path, kind);
    if (n > 8 && head[8] == '{') return open_safetensors(checkpoint, err);
    if (size == 0) return tsar_fail(err, TSAR_INPUT, "%s: is empty; download the file again", checkpoint->path);
    if (is_printable(head, n))
        return tsar_fail(err, TSAR_INPUT, "%s: is a text, \"%.40s\", not a checkpoint; did its download end at a message", checkpoint->path,
                         (const char *)head);
    return tsar_fail(err, TSAR_INPUT, "%s: is neither a file of torch.save (zip or legacy) nor safetensors nor an index of shards (.json)", checkpoint->path);
}

tsar_status tsar_checkpoint_open(tsar_checkpoint *checkpoint, const char *path, tsar_note_fn note, void *context, tsar_error *err)
{
    memset(checkpoint, 0, sizeof *checkpoint);
    checkpoint->path = path;
    tsar_status status = tsar_source_open(&checkpoint->source, path, err);
    if (status == TSAR_OK) status = open_form(checkpoint, note, context, err);
    if (status != TSAR_OK) tsar_checkpoint_close(checkpoint);
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

/* Elements of a PyTorch file from byte `offset` on. */
static tsar_status read_storage(tsar_checkpoint *checkpoint, uint64_t offset, size_t count, size_t size, void *out, tsar_error *err)
{
    tsar_status status = tsar_source_read(&checkpoint->source, offset, out, count * size, err);
    if (status == TSAR_OK && checkpoint->swapped) swap_bytes(out, count, size);
    return status;
}

/* Puts the elements in order: element i of the tensor, whose index in each dimension is counted up, the last one fastest. */
static void gather(const tsar_import_tensor *tensor, const uint8_t *span, uint8_t *ordered)
{
    size_t index[TSAR_MAX_RANK] = { 0 };
    uint64_t at = 0;
    for (uint64_t i = 0; i < tensor->count; i++) {
        memcpy(ordered + (size_t)i * tensor->size, span + (size_t)at * tensor->size, tensor->size);
        for (size_t d = tensor->rank; d-- > 0;) {
            at += tensor->stride[d];
            if (++index[d] < tensor->shape[d]) break;
            at -= tensor->stride[d] * tensor->shape[d];
            index[d] = 0;
        }
    }
}

/* A tensor whose elements are not in order, or not side by side, is read whole. */
tsar_status tsar_tensor_open(tsar_tensor_reader *reader, const tsar_import_tensor *tensor, tsar_error *err)
{
    reader->tensor = tensor;
    reader->span = NULL;
    if (tensor->contiguous) return TSAR_OK;
    const int fits = tensor->span <= SIZE_MAX / tensor->size && tensor->count <= SIZE_MAX / tensor->size;
    uint8_t *span = fits ? tsar_alloc((size_t)tensor->span, tensor->size, tensor->name, NULL) : NULL;
    reader->span = span ? tsar_alloc((size_t)tensor->count, tensor->size, tensor->name, NULL) : NULL;
    tsar_status status = reader->span ? TSAR_OK
                                      : tsar_fail(err, TSAR_ROOM, "%s: tensor %.128s needs %" PRIu64 " elements in memory to be put in order",
                                                  tensor->checkpoint->path, tensor->name, tensor->span);
    if (status == TSAR_OK) status = read_storage(tensor->checkpoint, tensor->offset, (size_t)tensor->span, tensor->size, span, err);
    if (status == TSAR_OK) gather(tensor, span, reader->span);
    tsar_free(span);
    return status;
}

tsar_status tsar_tensor_read(tsar_tensor_reader *reader, uint64_t first, size_t count, void *out, tsar_error *err)
{
    const tsar_import_tensor *tensor = reader->tensor;
    if (tensor->entry) return tsar_file_read(tensor->checkpoint->file, tensor->entry, first, count, out, err);
    if (!reader->span) return read_storage(tensor->checkpoint, tensor->offset + first * tensor->size, count, tensor->size, out, err);
    memcpy(out, reader->span + (size_t)first * tensor->size, count * tensor->size);
    return TSAR_OK;
}

void tsar_tensor_close(tsar_tensor_reader *reader)
{
    tsar_free(reader->span);
    reader->span = NULL;
}

/* ------------------------------------------------------------------------------------------- shards, indexes and folders */

enum { MAX_INDEX = 1 << 26, MAX_SHARDS = 1000 };

/* folder + '/' + name, where folder has `length` bytes; folder "" gives the name alone. */
static char *join(const char *folder, size_t length, const char *name, tsar_error *err)
{
    char *path = tsar_alloc(length + strlen(name) + 2, 1, "a path", err);
    if (!path) return NULL;
    memcpy(path, folder, length);
    if (length && folder[length - 1] != '/') path[length++] = '/';
    memcpy(path + length, name, strlen(name) + 1);
    return path;
}

static int exists(const char *path) { return tsar_path_kind(path) == TSAR_PATH_FILE; }

/* Appends a path that it takes over; NULL (memory is out) passes through. */
static tsar_status add_path(tsar_file_list *list, char *path)
{
    if (!path) return TSAR_ROOM;
    list->paths[list->n++] = path;
    return TSAR_OK;
}

/* A shard of the index at `path`, once. */
static tsar_status add_shard(tsar_file_list *list, const char *path, const char *shard, tsar_error *err)
{
    const size_t length = strlen(shard), folder = tsar_path_folder(path);
    for (size_t i = 0; i < list->n; i++)
        if (strcmp(list->paths[i] + folder, shard) == 0) return TSAR_OK;
    if (length == 0 || length > 255 || shard[0] == '.' || strpbrk(shard, "/\\:"))
        return tsar_fail(err, TSAR_INPUT, "%s: names the shard \"%.64s\", which is no plain file name", path, shard);
    if (list->n == MAX_SHARDS) return tsar_fail(err, TSAR_INPUT, "%s: names more than %d shards", path, MAX_SHARDS);
    return add_path(list, join(path, folder, shard, err));
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* {"metadata": {...}, "weight_map": {"name": "file", ...}}: the shards, in the order in which they are named. `names` has room for every name. */
static tsar_status read_index(tsar_json *json, tsar_file_list *list, const char *path, const char **names, tsar_error *err)
{
    const char *key, *shard;
    size_t count = 0;
    tsar_status status = tsar_json_object(json);
    while (status == TSAR_OK) {
        status = tsar_json_member(json, &key, NULL);
        if (status != TSAR_OK || !key) break;
        if (strcmp(key, "weight_map") != 0) {
            status = tsar_json_skip(json);
            continue;
        }
        status = tsar_json_object(json);
        while (status == TSAR_OK) {
            status = tsar_json_member(json, &names[count], NULL);
            if (status != TSAR_OK || !names[count]) break;
            count++;
            status = tsar_json_string(json, &shard, NULL);
            if (status == TSAR_OK) status = add_shard(list, path, shard, err);
        }
    }
    if (status == TSAR_OK) status = tsar_json_end(json);
    if (status == TSAR_OK && list->n == 0)
        status = tsar_fail(err, TSAR_INPUT, "%s: is no index of shards: a JSON object with a weight_map of tensor and file names", path);
    if (status == TSAR_OK) qsort(names, count, sizeof *names, by_text);
    for (size_t i = 1; status == TSAR_OK && i < count; i++)
        if (strcmp(names[i], names[i - 1]) == 0) status = tsar_fail(err, TSAR_INPUT, "%s: names tensor %.128s twice", path, names[i]);
    return status;
}

static tsar_status open_index(tsar_file_list *list, const char *path, tsar_error *err)
{
    char *text;
    size_t bytes;
    tsar_json json;
    tsar_status status = tsar_text_file(path, MAX_INDEX, "an index of shards", &text, &bytes, err);
    if (status != TSAR_OK) return status;
    const char **names = tsar_alloc(bytes / 6 + 1, sizeof *names, "an index of shards", err); /* "a":"b", at least */
    tsar_json_open(&json, text, bytes, path, "the file", "an index of shards is a JSON object with a weight_map", err);
    status = names ? read_index(&json, list, path, names, err) : TSAR_ROOM;
    tsar_free(names);
    tsar_free(text);
    return status;
}

/* What a folder of weights may hold, the best first. */
static const char *const IN_FOLDER[] = { "model.safetensors.index.json",
                                         "model.safetensors",
                                         "diffusion_pytorch_model.safetensors",
                                         "pytorch_model.bin.index.json",
                                         "pytorch_model.bin",
                                         "consolidated.pth",
                                         "consolidated.00.pth",
                                         NULL };

static tsar_status open_list(tsar_file_list *list, const char *path, tsar_error *err)
{
    const size_t length = strlen(path);
    const char *name = path + tsar_path_folder(path);
    for (size_t i = 0; tsar_path_kind(path) == TSAR_PATH_FOLDER && IN_FOLDER[i]; i++) {
        char *inner = join(path, length, IN_FOLDER[i], err);
        if (!inner) return TSAR_ROOM;
        if (exists(inner)) {
            tsar_status status = tsar_file_list_open(list, inner, err);
            tsar_free(inner);
            return status;
        }
        tsar_free(inner);
    }
    if (tsar_path_kind(path) == TSAR_PATH_FOLDER)
        return tsar_fail(err, TSAR_INPUT,
                         "%s: is a folder without model.safetensors, pytorch_model.bin, an index of either, or consolidated.pth; name the files", path);
    list->paths = tsar_alloc(MAX_SHARDS, sizeof *list->paths, "the list of shards", err);
    list->config = list->paths ? join(path, tsar_path_folder(path), "config.json", err) : NULL;
    if (!list->config) return TSAR_ROOM;
    if (strcmp(name, "config.json") == 0) return TSAR_OK;
    if (!exists(list->config)) {
        tsar_free(list->config);
        list->config = NULL;
    }
    if (length > 5 && strcmp(path + length - 5, ".json") == 0) return open_index(list, path, err);
    return add_path(list, tsar_copy_string(path, err));
}

tsar_status tsar_file_list_open(tsar_file_list *list, const char *path, tsar_error *err)
{
    memset(list, 0, sizeof *list);
    tsar_status status = open_list(list, path, err);
    if (status != TSAR_OK) tsar_file_list_close(list);
    return status;
}

void tsar_file_list_close(tsar_file_list *list)
{
    for (size_t i = 0; i < list->n; i++) tsar_free(list->paths[i]);
    tsar_free(list->paths);
    tsar_free(list->config);
    memset(list, 0, sizeof *list);
}
