/* Files (SPEC 2): the safetensors reader and writer.
 *
 *     u64 little-endian   n, the length of the header
 *     n bytes             JSON: {"__metadata__": {key: string, ...}, name: {"dtype", "shape", "data_offsets": [begin, end]}, ...},
 *                         filled up with spaces
 *     the rest            the tensors' data, little-endian, end to end; offsets count from its first byte
 *
 * The reader proves all of that before it believes any of it, and allocates nothing in proportion to a number that the
 * file merely claims: the header's length is first compared with the file's, and everything else is in proportion to the header. */
#include "files.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_HEADER ((uint64_t)100000000) /* the limit of the safetensors library */
#define CONVERTED ((size_t)1024)         /* elements converted at a time */

typedef struct {
    const char *key, *value;
    size_t place; /* of the writer: how many were given before it */
} meta_pair;

/* ---------------------------------------------------------------------------------------------------------- helpers */

static int host_is_little_endian(void)
{
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    return first == 1;
}

/* Between the file's byte order and the host's, either way: reverses the bytes of every element on big-endian hosts. */
static void swap_to_little_endian(void *values, size_t count, size_t size)
{
    if (size == 1 || host_is_little_endian()) return;
    unsigned char *bytes = values;
    for (size_t i = 0; i < count; i++, bytes += size)
        for (size_t b = 0; b < size / 2; b++) {
            const unsigned char low = bytes[b];
            bytes[b] = bytes[size - 1 - b];
            bytes[size - 1 - b] = low;
        }
}

/* Room for one more element of `size` bytes in *array: doubles its capacity when it is full. */
static tsar_status grow(void **array, size_t count, size_t *capacity, size_t size, const char *what, tsar_error *err)
{
    if (count < *capacity) return TSAR_OK;
    const size_t wider = *capacity ? *capacity * 2 : 16;
    void *copy = tsar_alloc(wider, size, what, err);
    if (!copy) return TSAR_ROOM;
    if (count) memcpy(copy, *array, count * size);
    tsar_free(*array);
    *array = copy;
    *capacity = wider;
    return TSAR_OK;
}

/* Elements of a shape and their bytes; 0 if either overflows 64 bits. */
static int measure(size_t rank, const size_t *shape, size_t size, uint64_t *count, uint64_t *bytes)
{
    uint64_t product = 1;
    int empty = 0;
    for (size_t i = 0; i < rank; i++) empty |= shape[i] == 0;
    for (size_t i = 0; i < rank && !empty; i++) {
        if (product > UINT64_MAX / shape[i]) return 0;
        product *= shape[i];
    }
    *count = empty ? 0 : product;
    if (*count > UINT64_MAX / size) return 0;
    *bytes = *count * size;
    return 1;
}

/* ------------------------------------------------------------------------------------------------------------ reader */

struct tsar_file {
    FILE *stream;
    char *path;
    char *header;                /* the text of the names and of the metadata */
    tsar_tensor *tensors;        /* [n_tensors], in the order of the data */
    const tsar_tensor **by_name; /* [n_tensors], sorted */
    size_t n_tensors, tensors_room;
    meta_pair *meta; /* [n_meta], sorted by key */
    size_t n_meta, meta_room;
    uint64_t position; /* of the stream; UINT64_MAX if unknown */
    tsar_file *lender; /* whose tokenizer this file shares; NULL: none */
    size_t n_own;      /* tensors before those of the lender */
};

/* Whether the file has at least `size` bytes; then the stream stands behind the last of them. */
static int has_bytes(FILE *stream, uint64_t size) { return tsar_system_seek(stream, size - 1) && getc(stream) != EOF; }

static int compare_meta(const void *a, const void *b)
{
    const meta_pair *x = a, *y = b;
    return strcmp(x->key, y->key);
}

static int compare_names(const void *a, const void *b)
{
    const tsar_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* By offset; an empty tensor before the one that begins at the same place; else as in the header. */
static int compare_offsets(const void *a, const void *b)
{
    const tsar_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if ((x->count == 0) != (y->count == 0)) return x->count == 0 ? -1 : 1;
    return x->name < y->name ? -1 : x->name > y->name;
}

/* A list of integers, at most `room` of them. */
static tsar_status read_list(tsar_json *json, size_t room, size_t *count, uint64_t *values)
{
    int more = 1;
    tsar_status status = tsar_json_list(json);
    for (*count = 0; status == TSAR_OK; ++*count) {
        status = tsar_json_item(json, &more);
        if (status != TSAR_OK || !more) return status;
        if (*count == room) return tsar_json_refuse(json, "the end of the list (tsar reads at most 8 dimensions and exactly 2 offsets)");
        status = tsar_json_u64(json, &values[*count]);
    }
    return status;
}

static tsar_status read_dtype(tsar_json *json, tsar_tensor *tensor)
{
    const char *name = NULL;
    const tsar_status status = tsar_json_string(json, &name, NULL);
    if (status != TSAR_OK) return status;
    for (tensor->dtype = TSAR_F64; tensor->dtype < TSAR_DTYPES; tensor->dtype = (tsar_dtype)(tensor->dtype + 1))
        if (strcmp(name, tsar_dtype_name(tensor->dtype)) == 0) return TSAR_OK;
    return tsar_fail(json->err, TSAR_INPUT,
                     "%s: tensor %.100s has the unknown dtype \"%.60s\" (tsar knows F64, F32, F16, BF16, BOOL and the integers I64 ... U8)", json->path,
                     tensor->name, name);
}

/* What the header claims of one tensor. */
enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
typedef struct {
    unsigned seen; /* a mask of the three fields */
    uint64_t shape[TSAR_MAX_RANK], offsets[2];
} tensor_claim;

/* The claim holds together: a shape that can be counted, and offsets that are as far apart as it takes. */
static tsar_status check_claim(const tsar_json *json, const tensor_claim *claim, tsar_tensor *tensor)
{
    uint64_t bytes = 0;
    int fits = 1;
    if (claim->seen != (DTYPE | SHAPE | OFFSETS))
        return tsar_fail(json->err, TSAR_INPUT, "%s: tensor %.100s has no %s in the header", json->path, tensor->name,
                         !(claim->seen & DTYPE)   ? "dtype"
                         : !(claim->seen & SHAPE) ? "shape"
                                                  : "data_offsets");
    for (size_t i = 0; i < tensor->rank; i++) {
        fits &= claim->shape[i] <= SIZE_MAX;
        tensor->shape[i] = (size_t)claim->shape[i];
    }
    if (!fits || !measure(tensor->rank, tensor->shape, tsar_dtype_size(tensor->dtype), &tensor->count, &bytes))
        return tsar_fail(json->err, TSAR_INPUT, "%s: the shape of tensor %.100s is too large for %s", json->path, tensor->name,
                         fits ? "any file" : "this machine");
    if (claim->offsets[1] < claim->offsets[0] || claim->offsets[1] - claim->offsets[0] != bytes)
        return tsar_fail(json->err, TSAR_INPUT, "%s: tensor %.100s has data_offsets [%" PRIu64 ", %" PRIu64 "], but its shape takes %" PRIu64 " bytes",
                         json->path, tensor->name, claim->offsets[0], claim->offsets[1], bytes);
    tensor->offset = claim->offsets[0];
    return TSAR_OK;
}

/* {"dtype": ..., "shape": [...], "data_offsets": [begin, end]} of `tensor`, whose name is known. */
static tsar_status parse_tensor(tsar_json *json, tsar_tensor *tensor)
{
    tensor_claim claim = { 0 };
    tsar_status status = tsar_json_object(json);
    while (status == TSAR_OK) {
        const char *key;
        size_t n = 2;
        status = tsar_json_member(json, &key, NULL);
        if (status == TSAR_OK && !key) return check_claim(json, &claim, tensor);
        if (status != TSAR_OK) break;
        const unsigned field = (!strcmp(key, "dtype") ? DTYPE : 0) | (!strcmp(key, "shape") ? SHAPE : 0) | (!strcmp(key, "data_offsets") ? OFFSETS : 0);
        if (field == 0 || (claim.seen & field))
            return tsar_fail(json->err, TSAR_INPUT,
                             "%s: tensor %.100s has %s key \"%.60s\" in the header (each of dtype, shape and data_offsets belongs there once)", json->path,
                             tensor->name, field ? "a second" : "an unknown", key);
        claim.seen |= field;
        if (field == DTYPE) status = read_dtype(json, tensor);
        if (field == SHAPE) status = read_list(json, TSAR_MAX_RANK, &tensor->rank, claim.shape);
        if (field == OFFSETS) status = read_list(json, 2, &n, claim.offsets);
        if (status == TSAR_OK && n != 2) status = tsar_json_refuse(json, "behind two offsets");
    }
    return status;
}

/* Room for one tensor, one key more. */
static tsar_status grow_tensors(tsar_file *file, tsar_error *err)
{
    void *tensors = file->tensors;
    const tsar_status status = grow(&tensors, file->n_tensors, &file->tensors_room, sizeof *file->tensors, "the list of tensors", err);
    file->tensors = tensors;
    return status;
}

static tsar_status grow_meta(tsar_file *file, tsar_error *err)
{
    void *meta = file->meta;
    const tsar_status status = grow(&meta, file->n_meta, &file->meta_room, sizeof *file->meta, "the metadata", err);
    file->meta = meta;
    return status;
}

static tsar_status parse_metadata(tsar_json *json, tsar_file *file)
{
    tsar_status status = tsar_json_object(json);
    while (status == TSAR_OK) {
        const char *key;
        status = tsar_json_member(json, &key, NULL);
        if (status != TSAR_OK || !key) return status;
        status = grow_meta(file, json->err);
        if (status != TSAR_OK) return status;
        file->meta[file->n_meta].key = key;
        status = tsar_json_string(json, &file->meta[file->n_meta].value, NULL);
        if (status == TSAR_OK) file->n_meta++;
    }
    return status;
}

/* The whole header: a JSON object from its first byte on, then nothing but spaces. */
static tsar_status parse_header(tsar_json *json, tsar_file *file)
{
    int has_meta = 0;
    if (json->at == json->end || *json->at != '{') return tsar_json_refuse(json, "'{'");
    tsar_status status = tsar_json_object(json);
    while (status == TSAR_OK) {
        const char *key;
        status = tsar_json_member(json, &key, NULL);
        if (status != TSAR_OK || !key) break;
        if (strcmp(key, "__metadata__") == 0) {
            if (has_meta++) return tsar_fail(json->err, TSAR_INPUT, "%s: the header has the key __metadata__ twice", json->path);
            status = parse_metadata(json, file);
        } else {
            status = grow_tensors(file, json->err);
            if (status != TSAR_OK) break;
            file->tensors[file->n_tensors].name = key;
            status = parse_tensor(json, &file->tensors[file->n_tensors++]);
        }
    }
    if (status != TSAR_OK) return status;
    while (json->at < json->end && *json->at == ' ') json->at++;
    return json->at == json->end ? TSAR_OK : tsar_json_refuse(json, "a space, behind the JSON object");
}

/* Sorts names and keys and refuses duplicates. */
static tsar_status index_names(tsar_file *file, tsar_error *err)
{
    file->by_name = tsar_alloc(file->n_tensors, sizeof *file->by_name, "the list of tensors", err);
    if (!file->by_name) return TSAR_ROOM;
    for (size_t i = 0; i < file->n_tensors; i++) file->by_name[i] = &file->tensors[i];
    if (file->n_tensors) qsort(file->by_name, file->n_tensors, sizeof *file->by_name, compare_names);
    if (file->n_meta) qsort(file->meta, file->n_meta, sizeof *file->meta, compare_meta);
    for (size_t i = 1; i < file->n_tensors; i++)
        if (!strcmp(file->by_name[i - 1]->name, file->by_name[i]->name))
            return tsar_fail(err, TSAR_INPUT, "%s: the header names tensor %.100s twice", file->path, file->by_name[i]->name);
    for (size_t i = 1; i < file->n_meta; i++)
        if (!strcmp(file->meta[i - 1].key, file->meta[i].key))
            return tsar_fail(err, TSAR_INPUT, "%s: the metadata has the key %.100s twice", file->path, file->meta[i].key);
    return TSAR_OK;
}

/* The data must follow one another, in the order of the tensors, from 0 to the end of the file. */
static tsar_status check_layout(tsar_file *file, uint64_t data, tsar_error *err)
{
    uint64_t end = 0;
    for (size_t i = 0; i < file->n_tensors; i++) {
        tsar_tensor *tensor = &file->tensors[i];
        if (tensor->offset != end)
            return tsar_fail(err, TSAR_INPUT, "%s: the data of tensor %.100s begin at %" PRIu64 " and %s (those before end at %" PRIu64 ")", file->path,
                             tensor->name, tensor->offset, tensor->offset < end ? "overlap others" : "leave a gap", end);
        end += tensor->count * tsar_dtype_size(tensor->dtype); /* offset + bytes, which parse_tensor has shown to fit */
        tensor->offset += data;
    }
    if (end > UINT64_MAX - data || !has_bytes(file->stream, data + end)) {
        size_t i = 0; /* the first tensor that is cut */
        while (i + 1 < file->n_tensors && (file->tensors[i].count == 0 || has_bytes(file->stream, file->tensors[i + 1].offset))) i++;
        return tsar_fail(err, TSAR_INPUT, "%s: the data of tensor %.100s reach beyond the end of the file (it was cut short: copy it again)", file->path,
                         file->n_tensors ? file->tensors[i].name : "(none)");
    }
    if (getc(file->stream) != EOF)
        return tsar_fail(err, TSAR_INPUT, "%s: there are bytes behind the data of the last tensor (is it one file, and no other appended?)", file->path);
    return TSAR_OK;
}

/* What a file is that begins with these 8 bytes and is none of safetensors, of which the 9th is a '{'; NULL if that is not known. */
static const char *kind_of(FILE *stream, const unsigned char *prefix)
{
    uint8_t head[TSAR_KIND];
    memcpy(head, prefix, 8);
    const size_t n = 8 + fread(head + 8, 1, sizeof head - 8, stream);
    return n > 8 && head[8] == '{' ? NULL : tsar_file_kind(head, n);
}

/* Reads the header of an open stream into file->header, parses and checks it. */
static tsar_status read_header(tsar_file *file, tsar_error *err)
{
    unsigned char prefix[8];
    uint64_t length = 0;
    errno = 0;
    if (fread(prefix, 1, 8, file->stream) != 8)
        return ferror(file->stream) ? tsar_fail(err, TSAR_INPUT, "cannot read %s: %s", file->path, strerror(errno))
                                    : tsar_fail(err, TSAR_INPUT, "%s has fewer than 8 bytes: it is no safetensors file", file->path);
    for (int i = 7; i >= 0; i--) length = length << 8 | prefix[i];
    const char *kind = kind_of(file->stream, prefix);
    if (kind) return tsar_fail(err, TSAR_INPUT, "%s: %s", file->path, kind);
    if (length > MAX_HEADER)
        return tsar_fail(err, TSAR_INPUT,
                         "%s claims a header of %" PRIu64 " bytes, more than 100 MB: it is no safetensors file (tsar import "
                         "reads PyTorch checkpoints)",
                         file->path, length);
    if (!has_bytes(file->stream, 8 + length))
        return tsar_fail(err, TSAR_INPUT, "%s ends within its header of %" PRIu64 " bytes: it was cut short, or is no safetensors file", file->path, length);
    file->header = tsar_alloc((size_t)length + 1, 1, "the header of a file", err);
    if (!file->header) return TSAR_ROOM;
    if (!tsar_system_seek(file->stream, 8) || fread(file->header, 1, (size_t)length, file->stream) != length)
        return tsar_fail(err, TSAR_INPUT, "cannot read the header of %s", file->path);

    tsar_json json;
    tsar_json_open(&json, file->header, (size_t)length, file->path, "the header", "the file is damaged or no safetensors file", err);
    tsar_status status = parse_header(&json, file);
    if (status == TSAR_OK && file->n_tensors) qsort(file->tensors, file->n_tensors, sizeof *file->tensors, compare_offsets);
    if (status == TSAR_OK) status = index_names(file, err);
    return status == TSAR_OK ? check_layout(file, 8 + length, err) : status;
}

/* The file at `path` and no other. */
tsar_status tsar_file_open_alone(tsar_file **file, const char *path, tsar_error *err)
{
    *file = NULL;
    tsar_file *opened = tsar_alloc(1, sizeof *opened, "a file", err);
    if (!opened) return TSAR_ROOM;
    tsar_status status = TSAR_ROOM;
    opened->position = UINT64_MAX;
    opened->path = tsar_copy_string(path, err);
    if (opened->path) status = tsar_system_open_read(&opened->stream, path, err);
    if (status == TSAR_OK) status = read_header(opened, err);
    if (status != TSAR_OK)
        tsar_file_close(opened);
    else
        *file = opened;
    return status;
}

/* The path of file `name` in the directory of `path`. */
static char *neighbour(const char *path, const char *name, tsar_error *err)
{
    const size_t directory = tsar_path_folder(path);
    char *joined = tsar_alloc(directory + strlen(name) + 1, 1, "a path", err);
    if (!joined) return NULL;
    memcpy(joined, path, directory);
    strcpy(joined + directory, name);
    return joined;
}

static tsar_status append_tokenizer(tsar_file *file, tsar_error *err)
{
    const tsar_file *from = file->lender;
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < from->n_tensors && status == TSAR_OK; i++) {
        if (strncmp(from->tensors[i].name, "vq.", 3)) continue;
        status = grow_tensors(file, err);
        if (status == TSAR_OK) file->tensors[file->n_tensors++] = from->tensors[i];
    }
    for (size_t i = 0; i < from->n_meta && status == TSAR_OK; i++) {
        if (strncmp(from->meta[i].key, "vq_", 3)) continue;
        status = grow_meta(file, err);
        if (status == TSAR_OK) file->meta[file->n_meta++] = from->meta[i];
    }
    return status;
}

/* Models that share a tokenizer need not each hold it: the key vq_file names the file beside this one that does (ours). Its
 * tensors vq.* and keys vq_* appear behind those of this file, as if they stood here. */
static tsar_status borrow_tokenizer(tsar_file *file, tsar_error *err)
{
    const char *name = tsar_file_meta(file, "vq_file");
    file->n_own = file->n_tensors;
    if (!name) return TSAR_OK;
    if (!*name || strpbrk(name, "/\\"))
        return tsar_fail(err, TSAR_INPUT, "%s: its key vq_file is '%.100s', which must be the name of a file beside it, without a directory", file->path, name);
    char *path = neighbour(file->path, name, err);
    if (!path) return TSAR_ROOM;
    tsar_error reason = { "" };
    tsar_status status = tsar_file_open_alone(&file->lender, path, &reason);
    if (status != TSAR_OK)
        status = tsar_fail(err, status, "%s takes its tokenizer from another file: %s", file->path, reason.text);
    else if (tsar_file_meta(file->lender, "vq_file") || !tsar_file_meta(file->lender, "vq_ch"))
        status = tsar_fail(err, TSAR_INPUT, "%s takes its tokenizer (vq_file) from %s, which has none itself", file->path, path);
    tsar_free(path);
    if (status != TSAR_OK) return status;
    meta_pair *key = file->meta; /* it is not shown: whoever copies the file copies the tokenizer */
    while (strcmp(key->key, "vq_file")) key++;
    memmove(key, key + 1, (size_t)(file->meta + --file->n_meta - key) * sizeof *key);
    status = append_tokenizer(file, err);
    tsar_free(file->by_name);
    file->by_name = NULL;
    return status == TSAR_OK ? index_names(file, err) : status;
}

tsar_status tsar_file_open(tsar_file **file, const char *path, tsar_error *err)
{
    tsar_status status = tsar_file_open_alone(file, path, err);
    if (status == TSAR_OK) status = borrow_tokenizer(*file, err);
    if (status == TSAR_OK) return TSAR_OK;
    tsar_file_close(*file);
    *file = NULL;
    return status;
}

void tsar_file_close(tsar_file *file)
{
    if (!file) return;
    tsar_file_close(file->lender);
    if (file->stream) fclose(file->stream);
    tsar_free(file->path);
    tsar_free(file->header);
    tsar_free(file->tensors);
    tsar_free(file->by_name);
    tsar_free(file->meta);
    tsar_free(file);
}

const char *tsar_file_path(const tsar_file *file) { return file->path; }

const char *tsar_file_lender(const tsar_file *file) { return file->lender ? file->lender->path : NULL; }

size_t tsar_file_count(const tsar_file *file) { return file->n_tensors; }

const tsar_tensor *tsar_file_at(const tsar_file *file, size_t index) { return &file->tensors[index]; }

const tsar_tensor *tsar_file_find(const tsar_file *file, const char *name)
{
    tsar_tensor wanted = { 0 };
    const tsar_tensor *key = &wanted;
    wanted.name = name;
    const tsar_tensor **found = file->n_tensors ? bsearch(&key, file->by_name, file->n_tensors, sizeof *file->by_name, compare_names) : NULL;
    return found ? *found : NULL;
}

size_t tsar_file_meta_count(const tsar_file *file) { return file->n_meta; }

void tsar_file_meta_at(const tsar_file *file, size_t index, const char **key, const char **value)
{
    *key = file->meta[index].key;
    *value = file->meta[index].value;
}

const char *tsar_file_meta(const tsar_file *file, const char *key)
{
    const meta_pair wanted = { key, NULL, 0 };
    const meta_pair *found = file->n_meta ? bsearch(&wanted, file->meta, file->n_meta, sizeof *file->meta, compare_meta) : NULL;
    return found ? found->value : NULL;
}

tsar_status tsar_file_read(tsar_file *file, const tsar_tensor *tensor, uint64_t first, uint64_t count, void *out, tsar_error *err)
{
    const size_t size = tsar_dtype_size(tensor->dtype);
    if (file->lender && (size_t)(tensor - file->tensors) >= file->n_own) file = file->lender;
    if (first > tensor->count || count > tensor->count - first || count > SIZE_MAX / size)
        return tsar_fail(err, TSAR_INPUT, "%s: elements %" PRIu64 " ... %" PRIu64 " + %" PRIu64 " were asked of tensor %.100s, which has %" PRIu64, file->path,
                         first, first, count, tensor->name, tensor->count);
    if (count == 0) return TSAR_OK;
    const uint64_t offset = tensor->offset + first * size;
    const size_t bytes = (size_t)count * size;
    if ((file->position != offset && !tsar_system_seek(file->stream, offset)) || fread(out, 1, bytes, file->stream) != bytes) {
        file->position = UINT64_MAX;
        return tsar_fail(err, TSAR_INPUT, "%s: cannot read the data of tensor %.100s (the file changed meanwhile, or its disk is failing)", file->path,
                         tensor->name);
    }
    file->position = offset + bytes;
    swap_to_little_endian(out, (size_t)count, size);
    return TSAR_OK;
}

/* Element i of values in a floating-point dtype, exactly. */
static double float_at(const void *values, tsar_dtype dtype, size_t i)
{
    const unsigned char *at = (const unsigned char *)values + i * tsar_dtype_size(dtype);
    double wide;
    float single;
    uint16_t half;
    switch (dtype) {
    case TSAR_F64: memcpy(&wide, at, 8); return wide;
    case TSAR_F32: memcpy(&single, at, 4); return (double)single;
    default: memcpy(&half, at, 2); return dtype == TSAR_F16 ? tsar_widen_f16(half) : tsar_widen_bf16(half);
    }
}

/* Element i of values in an integer dtype; a U64 above 2^63 - 1 comes out negative. */
static int64_t integer_at(const void *values, tsar_dtype dtype, size_t i)
{
    const unsigned char *at = (const unsigned char *)values + i * tsar_dtype_size(dtype);
    int64_t wide;
    int32_t i32;
    int16_t i16;
    uint32_t u32;
    uint16_t u16;
    switch (dtype) {
    case TSAR_I64:
    case TSAR_U64: memcpy(&wide, at, 8); return wide;
    case TSAR_I32: memcpy(&i32, at, 4); return i32;
    case TSAR_U32: memcpy(&u32, at, 4); return u32;
    case TSAR_I16: memcpy(&i16, at, 2); return i16;
    case TSAR_U16: memcpy(&u16, at, 2); return u16;
    case TSAR_I8: return *at < 128 ? *at : *at - 256;
    default: return *at;
    }
}

tsar_status tsar_file_read_f64(tsar_file *file, const tsar_tensor *tensor, uint64_t first, uint64_t count, double *out, tsar_error *err)
{
    const int64_t limit = (int64_t)1 << 53;
    const tsar_dtype dtype = tensor->dtype;
    if (dtype >= TSAR_FOREIGN)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.100s has dtype %s, which is not read as numbers", file->path, tensor->name, tsar_dtype_name(dtype));
    double converted[CONVERTED]; /* large enough for CONVERTED elements of any dtype */
    if (dtype == TSAR_F64) return tsar_file_read(file, tensor, first, count, out, err);
    for (uint64_t done = 0; done < count;) {
        const size_t n = count - done < CONVERTED ? (size_t)(count - done) : CONVERTED;
        const tsar_status status = tsar_file_read(file, tensor, first + done, n, converted, err);
        if (status != TSAR_OK) return status;
        for (size_t i = 0; i < n; i++) {
            if (tsar_dtype_is_float(dtype)) {
                out[done + i] = float_at(converted, dtype, i);
                continue;
            }
            const int64_t value = integer_at(converted, dtype, i);
            if (value > limit || value < -limit || (dtype == TSAR_U64 && value < 0))
                return tsar_fail(err, TSAR_INPUT, "%s: element %" PRIu64 " of tensor %.100s is an integer beyond 2^53, which double cannot hold", file->path,
                                 first + done + i, tensor->name);
            out[done + i] = (double)value;
        }
        done += n;
    }
    return TSAR_OK;
}

tsar_status tsar_file_read_i64(tsar_file *file, const tsar_tensor *tensor, uint64_t first, uint64_t count, int64_t *out, tsar_error *err)
{
    const tsar_dtype dtype = tensor->dtype;
    int64_t converted[CONVERTED];
    if (tsar_dtype_is_float(dtype) || dtype >= TSAR_FOREIGN)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.100s has dtype %s, integers are needed (I64)", file->path, tensor->name, tsar_dtype_name(dtype));
    for (uint64_t done = 0; done < count;) {
        const size_t n = count - done < CONVERTED ? (size_t)(count - done) : CONVERTED;
        const tsar_status status = tsar_file_read(file, tensor, first + done, n, converted, err);
        if (status != TSAR_OK) return status;
        for (size_t i = 0; i < n; i++) {
            out[done + i] = integer_at(converted, dtype, i);
            if (dtype == TSAR_U64 && out[done + i] < 0)
                return tsar_fail(err, TSAR_INPUT, "%s: element %" PRIu64 " of tensor %.100s is above 2^63 - 1", file->path, first + done + i, tensor->name);
        }
        done += n;
    }
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------------------ writer */

struct tsar_writer {
    tsar_output *output;
    char *path;
    tsar_tensor *tensors; /* as declared; in the order of their data once that is fixed. Names are owned. */
    size_t n_tensors, tensors_room;
    meta_pair *meta; /* owned strings */
    size_t n_meta, meta_room;
    int begun;          /* the header is written, the order fixed */
    size_t current;     /* 1 + index of the tensor under way; 0: none yet */
    uint64_t written;   /* of its elements */
    tsar_status status; /* of tsar_writer_next, which cannot return it: told by the next put or commit */
    tsar_error error;
};

/* The text of the header goes through here twice: to be counted, then to be written. */
typedef struct {
    tsar_output *output; /* NULL: count only */
    uint64_t bytes;
    tsar_status status;
    tsar_error *err;
} emitter;

static void emit(emitter *e, const char *text, size_t length)
{
    e->bytes += length;
    if (e->output && e->status == TSAR_OK) e->status = tsar_output_write(e->output, text, length, e->err);
}

static void emit_text(emitter *e, const char *text) { emit(e, text, strlen(text)); }

static void emit_u64(emitter *e, uint64_t value)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, value);
    emit_text(e, digits);
}

/* A JSON string: UTF-8 as it is, quotes, backslashes and control characters escaped. */
static void emit_string(emitter *e, const char *string)
{
    emit_text(e, "\"");
    for (; *string; string++) {
        char escape[8];
        const unsigned char c = (unsigned char)*string;
        if (c < 0x20)
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)c);
        else
            snprintf(escape, sizeof escape, c == '"' || c == '\\' ? "\\%c" : "%c", c);
        emit_text(e, escape);
    }
    emit_text(e, "\"");
}

/* The header; tensors' offsets count from the first byte of the data. */
static void emit_header(emitter *e, const tsar_writer *writer)
{
    emit_text(e, "{");
    for (size_t i = 0; i < writer->n_meta; i++) {
        emit_text(e, i == 0 ? "\"__metadata__\":{" : ",");
        emit_string(e, writer->meta[i].key);
        emit_text(e, ":");
        emit_string(e, writer->meta[i].value);
    }
    if (writer->n_meta) emit_text(e, "}");
    for (size_t i = 0; i < writer->n_tensors; i++) {
        const tsar_tensor *tensor = &writer->tensors[i];
        emit_text(e, i || writer->n_meta ? "," : "");
        emit_string(e, tensor->name);
        emit_text(e, ":{\"dtype\":");
        emit_string(e, tsar_dtype_name(tensor->dtype));
        emit_text(e, ",\"shape\":[");
        for (size_t r = 0; r < tensor->rank; r++) {
            emit_text(e, r ? "," : "");
            emit_u64(e, tensor->shape[r]);
        }
        emit_text(e, "],\"data_offsets\":[");
        emit_u64(e, tensor->offset);
        emit_text(e, ",");
        emit_u64(e, tensor->offset + tensor->count * tsar_dtype_size(tensor->dtype));
        emit_text(e, "]}");
    }
    emit_text(e, "}");
}

/* Orders the tensors by descending element size, so that each is aligned to its own, and gives them their offsets; *data is their bytes. */
static tsar_status lay_out(tsar_writer *writer, uint64_t *data, tsar_error *err)
{
    tsar_tensor *ordered = tsar_alloc(writer->n_tensors, sizeof *ordered, "the list of tensors", err);
    const tsar_tensor **sorted = tsar_alloc(writer->n_tensors, sizeof *sorted, "the list of tensors", err);
    tsar_status status = ordered && sorted ? TSAR_OK : TSAR_ROOM;
    size_t n = 0;
    uint64_t end = 0;
    for (size_t size = 8; size > 0 && status == TSAR_OK; size /= 2)
        for (size_t i = 0; i < writer->n_tensors && status == TSAR_OK; i++) {
            if (tsar_dtype_size(writer->tensors[i].dtype) != size) continue;
            ordered[n] = writer->tensors[i];
            sorted[n] = &ordered[n];
            ordered[n].offset = end;
            if (ordered[n].count * size > UINT64_MAX - MAX_HEADER - 16 - end)
                status = tsar_fail(err, TSAR_INPUT, "%s: tensor %.100s does not fit into any file", writer->path, ordered[n].name);
            end += ordered[n++].count * size;
        }
    if (status == TSAR_OK && n) qsort(sorted, n, sizeof *sorted, compare_names);
    for (size_t i = 1; i < n && status == TSAR_OK; i++)
        if (!strcmp(sorted[i - 1]->name, sorted[i]->name))
            status = tsar_fail(err, TSAR_INPUT, "%s: tensor %.100s would be written twice", writer->path, sorted[i]->name);
    if (status == TSAR_OK) {
        tsar_free(writer->tensors);
        writer->tensors = ordered;
        ordered = NULL;
    }
    *data = end;
    tsar_free(ordered);
    tsar_free(sorted);
    return status;
}

static int compare_given(const void *a, const void *b)
{
    const meta_pair *x = a, *y = b;
    const int order = strcmp(x->key, y->key);
    return order != 0 ? order : x->place < y->place ? -1 : 1;
}

/* Sorts the metadata by key; of values that were given for the same key the last one stays. */
static void keep_last_values(tsar_writer *writer)
{
    size_t kept = 0;
    if (writer->n_meta) qsort(writer->meta, writer->n_meta, sizeof *writer->meta, compare_given);
    for (size_t i = 0; i < writer->n_meta; i++) {
        if (kept > 0 && strcmp(writer->meta[kept - 1].key, writer->meta[i].key) == 0) {
            kept--;
            tsar_free((void *)writer->meta[kept].key);
            tsar_free((void *)writer->meta[kept].value);
        }
        writer->meta[kept++] = writer->meta[i];
    }
    writer->n_meta = kept;
}

/* Fixes the order and writes everything in front of the data. */
static tsar_status begin(tsar_writer *writer, tsar_error *err)
{
    writer->begun = 1;
    keep_last_values(writer);
    uint64_t end = 0;
    tsar_status status = lay_out(writer, &end, err);
    if (status != TSAR_OK) return status;
    emitter count = { NULL, 0, TSAR_OK, err }, text = { writer->output, 0, TSAR_OK, err };
    emit_header(&count, writer);
    const uint64_t length = (count.bytes + 7) / 8 * 8;
    if (length > MAX_HEADER)
        return tsar_fail(err, TSAR_INPUT, "%s: names and metadata would take %" PRIu64 " bytes, more than safetensors allows (100 MB)", writer->path, length);
    status = tsar_output_reserve(writer->output, 8 + length + end, err); /* lay_out has left room for the header */
    if (status != TSAR_OK) return status;
    for (int i = 0; i < 8; i++) {
        const char byte = (char)(length >> (8 * i) & 0xFF);
        emit(&text, &byte, 1);
    }
    emit_header(&text, writer);
    while (text.bytes < 8 + length) emit(&text, " ", 1);
    for (size_t i = 0; i < writer->n_tensors; i++) writer->tensors[i].offset += 8 + length;
    return text.status;
}

tsar_status tsar_writer_open(tsar_writer **writer, const char *path, tsar_error *err)
{
    *writer = NULL;
    tsar_writer *opened = tsar_alloc(1, sizeof *opened, "a writer", err);
    if (!opened) return TSAR_ROOM;
    opened->path = tsar_copy_string(path, err);
    const tsar_status status = opened->path ? tsar_output_open(&opened->output, path, err) : TSAR_ROOM;
    if (status != TSAR_OK)
        tsar_writer_abandon(opened);
    else
        *writer = opened;
    return status;
}

/* Releases the writer but not its output. */
static void writer_release(tsar_writer *writer)
{
    for (size_t i = 0; i < writer->n_tensors; i++) tsar_free((void *)writer->tensors[i].name);
    for (size_t i = 0; i < writer->n_meta; i++) {
        tsar_free((void *)writer->meta[i].key);
        tsar_free((void *)writer->meta[i].value);
    }
    tsar_free(writer->tensors);
    tsar_free(writer->meta);
    tsar_free(writer->path);
    tsar_free(writer);
}

void tsar_writer_abandon(tsar_writer *writer)
{
    if (!writer) return;
    tsar_output_abandon(writer->output);
    writer_release(writer);
}

tsar_status tsar_writer_meta(tsar_writer *writer, const char *key, const char *value, tsar_error *err)
{
    if (writer->begun) return tsar_fail(err, TSAR_INPUT, "%s: metadata %.100s comes too late, behind the header", writer->path, key);
    if (!tsar_is_utf8(key) || !tsar_is_utf8(value))
        return tsar_fail(err, TSAR_INPUT, "%s: the metadata key %.60s or its value is not UTF-8 text", writer->path, tsar_is_utf8(key) ? key : "");
    void *meta = writer->meta;
    const tsar_status status = grow(&meta, writer->n_meta, &writer->meta_room, sizeof *writer->meta, "the metadata", err);
    writer->meta = meta;
    if (status != TSAR_OK) return status;
    meta_pair *pair = &writer->meta[writer->n_meta];
    pair->place = writer->n_meta++;
    pair->key = tsar_copy_string(key, err);
    pair->value = tsar_copy_string(value, err);
    return pair->key && pair->value ? TSAR_OK : TSAR_ROOM;
}

tsar_status tsar_writer_declare(tsar_writer *writer, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, tsar_error *err)
{
    tsar_tensor tensor = { 0 };
    uint64_t bytes;
    if (writer->begun) return tsar_fail(err, TSAR_INPUT, "%s: tensor %.100s is declared too late, behind the header", writer->path, name);
    if (!tsar_is_utf8(name) || !strcmp(name, "__metadata__"))
        return tsar_fail(err, TSAR_INPUT, "%s: a tensor cannot be named %.100s", writer->path, tsar_is_utf8(name) ? name : "by bytes that are not UTF-8");
    if (rank > TSAR_MAX_RANK || !measure(rank, shape, tsar_dtype_size(dtype), &tensor.count, &bytes))
        return tsar_fail(err, TSAR_INPUT, "%s: the shape of tensor %.100s is too large for any file", writer->path, name);
    tensor.dtype = dtype;
    tensor.rank = rank;
    for (size_t i = 0; i < rank; i++) tensor.shape[i] = shape[i];
    void *tensors = writer->tensors;
    const tsar_status status = grow(&tensors, writer->n_tensors, &writer->tensors_room, sizeof *writer->tensors, "the list of tensors", err);
    writer->tensors = tensors;
    if (status != TSAR_OK) return status;
    tensor.name = tsar_copy_string(name, err);
    if (!tensor.name) return TSAR_ROOM;
    writer->tensors[writer->n_tensors++] = tensor;
    return TSAR_OK;
}

/* The tensor under way must be complete. */
static tsar_status check_complete(const tsar_writer *writer, tsar_error *err)
{
    const tsar_tensor *tensor = writer->current ? &writer->tensors[writer->current - 1] : NULL;
    if (tensor && writer->written < tensor->count)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.100s got %" PRIu64 " of its %" PRIu64 " elements", writer->path, tensor->name, writer->written,
                         tensor->count);
    return TSAR_OK;
}

const tsar_tensor *tsar_writer_next(tsar_writer *writer)
{
    if (writer->status == TSAR_OK) writer->status = writer->begun ? check_complete(writer, &writer->error) : begin(writer, &writer->error);
    if (writer->status != TSAR_OK || writer->current == writer->n_tensors) return NULL;
    writer->written = 0;
    return &writer->tensors[writer->current++];
}

tsar_status tsar_writer_put(tsar_writer *writer, const void *values, uint64_t count, tsar_error *err)
{
    if (writer->status) return tsar_fail(err, writer->status, "%s", writer->error.text);
    const tsar_tensor *tensor = writer->current ? &writer->tensors[writer->current - 1] : NULL;
    if (!tensor || count > tensor->count - writer->written)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %.100s got more elements than it was declared with", writer->path, tensor ? tensor->name : "");
    const size_t size = tsar_dtype_size(tensor->dtype);
    if (count > SIZE_MAX / size) return tsar_fail(err, TSAR_INPUT, "%s: tensor %.100s is given in too large a piece", writer->path, tensor->name);
    writer->written += count;
    if (host_is_little_endian()) return tsar_output_write(writer->output, values, (size_t)count * size, err);
    double converted[CONVERTED];
    const unsigned char *from = values;
    tsar_status status = TSAR_OK;
    for (size_t left = (size_t)count; left > 0 && status == TSAR_OK;) {
        const size_t n = left < CONVERTED ? left : CONVERTED;
        memcpy(converted, from, n * size);
        swap_to_little_endian(converted, n, size);
        status = tsar_output_write(writer->output, converted, n * size, err);
        from += n * size;
        left -= n;
    }
    return status;
}

tsar_status tsar_writer_copy(tsar_writer *writer, tsar_file *from, const tsar_tensor *tensor, tsar_error *err)
{
    double converted[CONVERTED]; /* aligned for elements of any type */
    tsar_status status = TSAR_OK;
    for (uint64_t first = 0; status == TSAR_OK && first < tensor->count; first += CONVERTED) {
        const uint64_t count = tensor->count - first < CONVERTED ? tensor->count - first : CONVERTED;
        status = tsar_file_read(from, tensor, first, count, converted, err);
        if (status == TSAR_OK) status = tsar_writer_put(writer, converted, count, err);
    }
    return status;
}

tsar_status tsar_writer_commit(tsar_writer *writer, tsar_error *err)
{
    tsar_status status = writer->status;
    if (status != TSAR_OK)
        tsar_fail(err, status, "%s", writer->error.text);
    else
        status = writer->begun ? check_complete(writer, err) : begin(writer, err);
    if (status == TSAR_OK && writer->current < writer->n_tensors) {
        while (writer->current < writer->n_tensors && writer->tensors[writer->current].count == 0) writer->current++;
        if (writer->current < writer->n_tensors)
            status = tsar_fail(err, TSAR_INPUT, "%s: tensor %.100s got none of its elements", writer->path, writer->tensors[writer->current].name);
    }
    if (status != TSAR_OK)
        tsar_output_abandon(writer->output);
    else
        status = tsar_output_commit(writer->output, err);
    writer_release(writer);
    return status;
}

tsar_status tsar_values_write(tsar_writer *writer, const tsar_values *values, size_t n, tsar_error *err)
{
    const tsar_tensor *next;
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < n; i++)
        if (values[i].data) status = tsar_writer_declare(writer, values[i].name, values[i].dtype, values[i].rank, values[i].shape, err);
    while (status == TSAR_OK && (next = tsar_writer_next(writer)) != NULL) {
        size_t i = 0;
        while (!values[i].data || strcmp(values[i].name, next->name) != 0) i++;
        status = tsar_writer_put(writer, values[i].data, next->count, err);
    }
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}
