/* test_captions.c - caption features for t2i models: numpy's files and safetensors, and damaged ones. */
#include "../tsar.h"
#include "test.h"

#include <stdlib.h>
#include <string.h>

#define MODEL "test_captions.tmp.model"
#define INPUT "test_captions.tmp.input"

typedef struct {
    uint8_t bytes[1024];
    size_t n;
} buffer;
static buffer made;

static void put(buffer *b, const void *bytes, size_t n)
{
    memcpy(b->bytes + b->n, bytes, n);
    b->n += n;
}

static void put_number(buffer *b, uint64_t value, size_t width) /* little-endian */
{
    for (size_t i = 0; i < width; i++) b->bytes[b->n++] = (uint8_t)(value >> 8 * i);
}

static void save(const buffer *b, const char *path)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(b->bytes, 1, b->n, file) != b->n || fclose(file) != 0) {
        printf("FAILED: cannot write %s\n", path);
        exit(1);
    }
}

/* Exact in every dtype. */
static double feature(size_t i) { return (double)(int)(i * 7 % 61) / 4 - 7; }

static void put_element(buffer *b, tsar_dtype dtype, int big, double x)
{
    size_t size = tsar_dtype_size(dtype);
    uint64_t bits = 0;
    float single = (float)x;
    uint32_t word;
    memcpy(&word, &single, 4);
    if (dtype == TSAR_F64)
        memcpy(&bits, &x, 8);
    else
        bits = dtype == TSAR_F16 ? tsar_round_f16(single) : word;
    for (size_t i = 0; i < size; i++) put_number(b, bits >> 8 * (big ? size - 1 - i : i) & 0xFF, 1);
}

static void npy_start(buffer *b, uint8_t version, const char *dictionary)
{
    b->n = 0;
    put(b, "\x93NUMPY", 6);
    put_number(b, version, 2);
    put_number(b, strlen(dictionary), version == 1 ? 2 : 4);
    put(b, dictionary, strlen(dictionary));
}

int main(void)
{
    static const struct {
        const char *what, *dictionary;
        uint8_t version;
        size_t n;
        tsar_dtype dtype;
        int big;
    } good[] = {
        { "float32 [1, 2, 4]", "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 4), }   \n", 1, 2, TSAR_F32, 0 },
        { "float16 [3, 4]", "{'descr': '<f2', 'fortran_order': False, 'shape': (3, 4), }\n", 1, 3, TSAR_F16, 0 },
        { "float64 [1, 4]", "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 4), }\n", 2, 1, TSAR_F64, 0 },
        { "big-endian", "{'descr': '>f4', 'fortran_order': False, 'shape': (2, 4), }\n", 3, 2, TSAR_F32, 1 },
        { "Fortran order", "{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }\n", 1, 3, TSAR_F32, 0 },
        { "Fortran order [1, 2, 4]", "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2, 4), }\n", 1, 2, TSAR_F32, 0 },
    };
    static const struct {
        const char *dictionary, *sentence;
    } bad[] = {
        { "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 4), }\n", "no floating-point" },
        { "{'descr': '|O', 'fortran_order': False, 'shape': (1, 4), }\n", "no floating-point" },
        { "{'descr': '<f4', 'fortran_order': Maybe, 'shape': (1, 4), }\n", "order of its elements" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }\n", "two or three dimensions" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 4), }\n", "two or three dimensions" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 4), }\n", "several captions" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 5), }\n", "caption_dim is 4" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4), }\n", "the model takes 1 to 3" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4), }\n", "the model takes 1 to 3" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 4), }\n", "two or three dimensions" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }\n", "bytes of data" },
        { "{'descr': '<f4', 'fortran_order': False, }\n", "two or three dimensions" },
        { "", "no floating-point" },
    };
    static const char *const keys[] = { "arch", "dim",           "n_layer", "n_head", "n_kv_head",   "ffn_hidden", "norm_eps",
                                        "rope", "codebook_size", "grid_h",  "grid_w", "cond_tokens", "caption_dim" };
    static const char *const values[] = { "llamagen-t2i", "16", "1", "2", "2", "8", "1e-5", "2d", "16", "4", "4", "3", "4" };
    tsar_error err;
    tsar_model *model;
    double *caption, *mask;
    tsar_status status = tsar_synth(MODEL, keys, values, 13, TSAR_F32, &err);
    if (!CHECK(status == TSAR_OK && tsar_model_open(&model, MODEL, TSAR_PART_ALL, 1, &err) == TSAR_OK, "%s", err.text)) return test_end();
    for (size_t c = 0; c < sizeof good / sizeof *good; c++) {
        npy_start(&made, good[c].version, good[c].dictionary);
        const int fortran = strstr(good[c].dictionary, "True") != NULL; /* features of one column behind one another */
        for (size_t i = 0; i < good[c].n * 4; i++)
            put_element(&made, good[c].dtype, good[c].big, feature(fortran ? i % good[c].n * 4 + i / good[c].n : i));
        save(&made, INPUT);
        status = tsar_caption_read(model, INPUT, &caption, &mask, &err);
        if (!CHECK(status == TSAR_OK, "%s: %s", good[c].what, err.text)) continue;
        int right = 1;
        for (size_t t = 0; t < 3; t++) {
            size_t padding = 3 - good[c].n;
            right &= mask[t] == (t >= padding);
            for (size_t i = 0; i < 4; i++) right &= caption[t * 4 + i] == (t < padding ? 0 : feature((t - padding) * 4 + i));
        }
        CHECK(right, "%s: padded on the left", good[c].what);
        tsar_free(caption);
        tsar_free(mask);
    }
    for (size_t c = 0; c < sizeof bad / sizeof *bad; c++) {
        npy_start(&made, 1, bad[c].dictionary);
        put_number(&made, 0, 8), put_number(&made, 0, 8);
        save(&made, INPUT);
        status = tsar_caption_read(model, INPUT, &caption, &mask, &err);
        CHECK(status == TSAR_INPUT && !caption && strstr(err.text, bad[c].sentence) && !strchr(err.text, '\n'), "%s: %s", bad[c].dictionary,
              err.text);
    }
    npy_start(&made, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), }\n");
    for (size_t n = 0; n < made.n; n++) {
        buffer cut = made;
        cut.n = n;
        save(&cut, INPUT);
        status = tsar_caption_read(model, INPUT, &caption, &mask, &err);
        CHECK(status == TSAR_INPUT, "npy cut at %lu", (unsigned long)n);
    }
    put_number(&made, 0x7F800000, 4), put_number(&made, 0, 8), put_number(&made, 0, 4), save(&made, INPUT);
    CHECK(tsar_caption_read(model, INPUT, &caption, &mask, &err) == TSAR_INPUT && strstr(err.text, "position 2 is NaN or infinite"), "%s", err.text);

    for (int wrong = 0; wrong < 4; wrong++) {
        tsar_writer *writer;
        const size_t shape[2] = { 3, wrong == 1 ? 5 : 4 };
        const float features[15] = { 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8 }, real[3] = { 0, 1, wrong == 2 ? 0.5f : 1.0f };
        status = tsar_writer_open(&writer, INPUT, &err);
        if (status == TSAR_OK) status = tsar_writer_declare(writer, "caption", TSAR_F32, 2, shape, &err);
        if (status == TSAR_OK) status = tsar_writer_declare(writer, wrong == 3 ? "masks" : "mask", TSAR_F32, 1, shape, &err);
        if (status == TSAR_OK && tsar_writer_next(writer)) status = tsar_writer_put(writer, features, 3 * shape[1], &err);
        if (status == TSAR_OK && tsar_writer_next(writer)) status = tsar_writer_put(writer, real, 3, &err);
        if (status == TSAR_OK) status = tsar_writer_commit(writer, &err);
        CHECK(status == TSAR_OK, "%s", err.text);
        status = tsar_caption_read(model, INPUT, &caption, &mask, &err);
        CHECK(status == (wrong ? TSAR_INPUT : TSAR_OK), "safetensors caption %d: %s", wrong, err.text);
        if (status == TSAR_OK) CHECK(caption[5] == 2 && mask[0] == 0 && mask[2] == 1, "caption and mask are as they were");
        if (status == TSAR_OK) tsar_free(caption), tsar_free(mask);
    }
    tsar_model_close(model);
    remove(INPUT);
    remove(MODEL);
    return test_end();
}
