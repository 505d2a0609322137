/* Captions for a t2i model: the T5 features that LlamaGen's extractor saves with numpy.save (the format is described in numpy's
 * documentation, numpy.lib.format), or a safetensors file with features and mask. */
#include "files.h"

#include <inttypes.h>
#include <string.h>

enum { MAX_NPY_HEADER = 1 << 16 };

typedef struct {
    size_t size; /* bytes of one element: 2, 4 or 8 */
    int big;     /* most significant byte first */
    int fortran; /* the first index runs fastest */
    size_t rank, shape[3];
    uint64_t data; /* of its first element in the file */
} npy;

static tsar_status bad_npy(const tsar_source *source, tsar_error *err, const char *what)
{
    return tsar_fail(err, TSAR_INPUT,
                     "%s: %s; save the features as numpy.save writes a float32 or float16 array of [n, caption_dim] or [1, n, caption_dim]",
                     source->path, what);
}

/* The text after 'key': in the header, a Python dictionary literal; NULL if the key is not there. */
static const char *value_of(const char *header, const char *key)
{
    const char *at = strstr(header, key);
    if (!at) return NULL;
    at += strlen(key);
    while (*at == ' ' || *at == ':') at++;
    return at;
}

/* 'shape': (1, 77, 2048), */
static int read_shape(const char *at, npy *array)
{
    if (!at || *at++ != '(') return 0;
    while (*at != ')') {
        size_t extent = 0, digits = 0;
        if (array->rank == 3) return 0;
        while (*at == ' ') at++;
        for (; *at >= '0' && *at <= '9'; at++, digits++) extent = extent * 10 + (size_t)(*at - '0');
        if (digits == 0 || digits > 9 || (*at != ',' && *at != ')')) return 0;
        at += *at == ',';
        while (*at == ' ') at++;
        array->shape[array->rank++] = extent;
    }
    return 1;
}

/* Magic, version, length of the header, header; the elements follow to the end of the file. */
static tsar_status read_header(tsar_source *source, npy *array, tsar_error *err)
{
    uint8_t head[12] = { 0 };
    tsar_status status = tsar_source_read(source, 0, head, source->size < 12 ? (size_t)source->size : 12, err);
    if (status != TSAR_OK) return status;
    size_t fixed = head[6] == 1 ? 10 : 12, length = head[6] == 1 ? tsar_get_u16(head + 8) : tsar_get_u32(head + 8);
    if (head[6] < 1 || head[6] > 3 || head[7] != 0) return bad_npy(source, err, "its npy version is not 1.0, 2.0 or 3.0");
    if (length > MAX_NPY_HEADER) return bad_npy(source, err, "its npy header is longer than any array's");
    char *header = tsar_alloc(length + 1, 1, "an npy header", err);
    if (!header) return TSAR_ROOM;
    status = tsar_source_read(source, fixed, header, length, err);
    if (status == TSAR_OK) {
        const char *descr = value_of(header, "'descr'"), *order = value_of(header, "'fortran_order'");
        array->data = fixed + length;
        if (!descr || descr[0] != '\'' || (descr[1] != '<' && descr[1] != '>') || descr[2] != 'f' || !strchr("248", descr[3]) || descr[3] == '\0' ||
            descr[4] != '\'')
            status = bad_npy(source, err, "its elements are no floating-point numbers");
        else if (!order || (strncmp(order, "False", 5) != 0 && strncmp(order, "True", 4) != 0))
            status = bad_npy(source, err, "its header does not tell the order of its elements");
        else if (!read_shape(value_of(header, "'shape'"), array))
            status = bad_npy(source, err, "its shape has not two or three dimensions");
        else {
            array->big = descr[1] == '>';
            array->fortran = order[0] == 'T';
            array->size = (size_t)(descr[3] - '0');
        }
    }
    tsar_free(header);
    return status;
}

static double element(const uint8_t *bytes, const npy *array)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < array->size; i++) bits |= (uint64_t)bytes[array->big ? array->size - 1 - i : i] << (8 * i);
    if (array->size == 2) return tsar_widen_f16((uint16_t)bits);
    if (array->size == 4) {
        uint32_t low = (uint32_t)bits;
        float single;
        memcpy(&single, &low, sizeof single);
        return single;
    }
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* n features into the last n of T rows; mask 1 there and 0 in front (QUIRKS, GPT 5: padding on the left). caption [T][C], mask [T]. */
static tsar_status read_npy(tsar_source *source, double *caption, double *mask, size_t T, size_t C, tsar_error *err)
{
    npy array = { 0 };
    uint8_t read[4096];
    tsar_status status = read_header(source, &array, err);
    if (status != TSAR_OK) return status;
    if (array.rank == 3 && array.shape[0] == 1) { /* [1, n, C] */
        array.shape[0] = array.shape[1];
        array.shape[1] = array.shape[2];
        array.rank = 2;
    }
    if (array.rank != 2) return bad_npy(source, err, array.rank == 3 ? "it holds several captions" : "its shape has not two or three dimensions");
    if (array.shape[1] != C)
        return tsar_fail(err, TSAR_INPUT, "%s: its features have width %zu, the model's caption_dim is %zu", source->path, array.shape[1], C);
    if (array.shape[0] == 0 || array.shape[0] > T)
        return tsar_fail(err, TSAR_INPUT, "%s: holds %zu features, the model takes 1 to %zu (cond_tokens); cut the caption as T5's tokenizer does",
                         source->path, array.shape[0], T);
    uint64_t count = (uint64_t)array.shape[0] * C, bytes = count * array.size;
    if (source->size - array.data != bytes)
        return tsar_fail(err, TSAR_INPUT, "%s: holds %" PRIu64 " bytes of data, its shape needs %" PRIu64, source->path, source->size - array.data,
                         bytes);
    double *out = caption + (T - array.shape[0]) * C; /* [n][C] */
    size_t at = 0;
    for (uint64_t done = 0; status == TSAR_OK && done < bytes;) {
        size_t part = bytes - done < sizeof read ? (size_t)(bytes - done) : sizeof read;
        status = tsar_source_read(source, array.data + done, read, part, err);
        for (size_t i = 0; status == TSAR_OK && i < part; i += array.size, at++)
            out[array.fortran ? at % array.shape[0] * C + at / array.shape[0] : at] = element(read + i, &array);
        done += part;
    }
    for (size_t t = 0; t < T; t++) mask[t] = t >= T - array.shape[0];
    return status;
}

/* `caption` [T][C] and `mask` [T] with 1 for real positions, as they are. */
static tsar_status read_safetensors(const char *path, double *caption, double *mask, size_t T, size_t C, tsar_error *err)
{
    tsar_file *file;
    tsar_status status = tsar_file_open_alone(&file, path, err);
    if (status != TSAR_OK) return status;
    const tsar_tensor *features = tsar_file_find(file, "caption"), *real = tsar_file_find(file, "mask");
    if (!features || !real)
        status = tsar_fail(err, TSAR_INPUT, "%s: lacks tensor %s; a caption file holds caption [%zu, %zu] and mask [%zu]", path,
                           features ? "mask" : "caption", T, C, T);
    else if (features->rank != 2 || features->shape[0] != T || features->shape[1] != C || real->rank != 1 || real->shape[0] != T)
        status = tsar_fail(err, TSAR_INPUT, "%s: tensor %s has another shape than the model needs: caption [%zu, %zu] and mask [%zu]", path,
                           real->rank == 1 && real->shape[0] == T ? "caption" : "mask", T, C, T);
    if (status == TSAR_OK) status = tsar_file_read_f64(file, features, 0, features->count, caption, err);
    if (status == TSAR_OK) status = tsar_file_read_f64(file, real, 0, real->count, mask, err);
    tsar_file_close(file);
    for (size_t t = 0; status == TSAR_OK && t < T; t++)
        if (mask[t] != 0 && mask[t] != 1)
            return tsar_fail(err, TSAR_INPUT, "%s: mask holds %g at position %zu; 1 is a real position, 0 padding", path, mask[t], t);
    return status;
}

tsar_status tsar_caption_read(const tsar_model *model, const char *path, double **caption, double **mask, tsar_error *err)
{
    const size_t T = model->config.cond_tokens, C = model->config.caption_dim;
    uint8_t magic[6] = { 0 };
    tsar_source source;
    *caption = *mask = NULL;
    if (tsar_family_of(&model->config)->prefix != TSAR_PREFIX_CAPTION)
        return tsar_fail(err, TSAR_INPUT, "%s: the model takes no captions; only llamagen-t2i does", path);
    tsar_status status = tsar_source_open(&source, path, err);
    if (status != TSAR_OK) return status;
    *caption = tsar_alloc(T, C * sizeof **caption, "a caption", err); /* caption_dim is at most 2^24 */
    *mask = tsar_alloc(T, sizeof **mask, "a caption's mask", err);
    status =
        *caption && *mask ? tsar_source_read(&source, 0, magic, source.size < sizeof magic ? (size_t)source.size : sizeof magic, err) : TSAR_ROOM;
    if (status == TSAR_OK)
        status =
            memcmp(magic, "\x93NUMPY", 6) == 0 ? read_npy(&source, *caption, *mask, T, C, err) : read_safetensors(path, *caption, *mask, T, C, err);
    tsar_source_close(&source);
    for (size_t i = 0; status == TSAR_OK && i < T * C; i++)
        if (!((*caption)[i] - (*caption)[i] == 0)) /* NaN or infinite */
            status = tsar_fail(err, TSAR_INPUT, "%s: feature %zu of position %zu is NaN or infinite", path, i % C, i / C);
    if (status != TSAR_OK) {
        tsar_free(*caption);
        tsar_free(*mask);
        *caption = *mask = NULL;
    }
    return status;
}
