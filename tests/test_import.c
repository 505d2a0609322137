/* test_import.c - checkpoints of every form give one and the same model file; hostile ones are refused with a line.
 *
 *     test_import [FOLDER]        from the root of the repository; default tests/checkpoints
 *
 * 1. The files in FOLDER, which PyTorch wrote, against the golden vectors and against synthetic weights (they are those, SPEC 7).
 * 2. A tiny model in every form that the reader knows, written here byte by byte, against the same weights in safetensors.
 * 3. Questions, contradictions, missing, extra and misshapen tensors.   4. Damaged and hostile archives and pickles.
 *
 * Parts 2 to 4 share the writer of pickles and archives below: one file, though a long one. */
#include "../tsar.h"
#include "test.h"

#include <stdlib.h>
#include <string.h>

#define TMP "test_import.tmp."
#define MODEL TMP "model"
#define INPUT TMP "input"

/* ------------------------------------------------------------------------------------------------------------ a buffer */

typedef struct {
    uint8_t bytes[1 << 17];
    size_t n;
} buffer;
static buffer pickle, archive, truth, made; /* too large for a stack */

static void put(buffer *b, const void *bytes, size_t n)
{
    if (n > sizeof b->bytes - b->n) {
        printf("FAILED: a test's buffer is too small\n");
        exit(1);
    }
    memcpy(b->bytes + b->n, bytes, n);
    b->n += n;
}

static void put_text(buffer *b, const char *text) { put(b, text, strlen(text)); }

static void put_number(buffer *b, uint64_t value, size_t width) /* little-endian */
{
    uint8_t bytes[8];
    for (size_t i = 0; i < width; i++) bytes[i] = (uint8_t)(value >> 8 * i);
    put(b, bytes, width);
}

static void save(const buffer *b, const char *path)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(b->bytes, 1, b->n, file) != b->n || fclose(file) != 0) {
        printf("FAILED: cannot write %s\n", path);
        exit(1);
    }
}

static int load(buffer *b, const char *path)
{
    FILE *file = fopen(path, "rb");
    b->n = file ? fread(b->bytes, 1, sizeof b->bytes, file) : 0;
    if (file) fclose(file);
    return b->n > 0;
}

/* --------------------------------------------------------------------------------------------------------- running import */

static char notes[65536];
static size_t n_notes;

static void note(void *context, const char *line)
{
    (void)context;
    n_notes++;
    CHECK(line[0] && !strchr(line, '\n'), "a note is one line: %s", line);
    if (strlen(notes) + strlen(line) + 2 < sizeof notes) strcat(strcat(notes, line), "\n");
}

/* "n_head=4 grid_h=4": keys and values, separated by blanks. */
static tsar_status import_files(const char *const *paths, size_t n_paths, const char *settings, tsar_error *err)
{
    test_settings s;
    test_split(&s, settings);
    notes[0] = '\0';
    n_notes = 0;
    err->text[0] = '\0';
    remove(MODEL);
    return tsar_import(paths, n_paths, MODEL, s.keys, s.values, s.n, TSAR_DTYPES, note, NULL, err);
}

static tsar_status import_file(const char *path, const char *settings, tsar_error *err) { return import_files(&path, 1, settings, err); }

static void synth(const char *path, const char *like, tsar_dtype dtype)
{
    tsar_error err;
    CHECK(test_synth_like(path, like, dtype, &err) == TSAR_OK, "synth like %s: %s", like, err.text);
}

/* The two files hold the same tensors, bit for bit. */
static int same_tensors(const char *a_path, const char *b_path)
{
    tsar_error err;
    tsar_file *a = NULL, *b = NULL;
    int same = tsar_file_open(&a, a_path, &err) == TSAR_OK && tsar_file_open(&b, b_path, &err) == TSAR_OK && tsar_file_count(a) == tsar_file_count(b);
    for (size_t i = 0; same && i < tsar_file_count(a); i++) {
        const tsar_tensor *x = tsar_file_at(a, i), *y = tsar_file_find(b, x->name);
        size_t bytes = (size_t)x->count * tsar_dtype_size(x->dtype);
        same = y && y->dtype == x->dtype && y->rank == x->rank && memcmp(x->shape, y->shape, sizeof x->shape) == 0;
        void *p = malloc(bytes), *q = malloc(bytes);
        same = same && p && q && tsar_file_read(a, x, 0, x->count, p, &err) == TSAR_OK && tsar_file_read(b, y, 0, y->count, q, &err) == TSAR_OK &&
               memcmp(p, q, bytes) == 0;
        free(p);
        free(q);
    }
    tsar_file_close(a);
    tsar_file_close(b);
    return same;
}

static int same_files(const char *a, const char *b)
{
    return load(&truth, a) && load(&made, b) && truth.n == made.n && memcmp(truth.bytes, made.bytes, made.n) == 0;
}

/* ------------------------------------------------------------------------------------------- 1. what PyTorch wrote */

static const struct {
    const char *file, *vector, *settings;
    tsar_dtype dtype;
} official[] = {
    { "gpt_c2i.pt", "c2i", "n_head=4 grid_h=4 grid_w=4", TSAR_F32 },
    { "gpt_c2i.legacy.pt", "c2i", "n_head=4 grid_h=4 grid_w=4", TSAR_F32 },
    { "gpt_c2i.safetensors", "c2i", "n_head=4 grid_h=4 grid_w=4", TSAR_F32 },
    { "gpt_c2i.bf16.pt", "c2i", "n_head=4 grid_h=4 grid_w=4", TSAR_BF16 },
    { "gpt_t2i.pt", "t2i", "n_head=4 grid_h=4 grid_w=4", TSAR_F32 },
    { "gpt_t2i.bf16.pt", "t2i", "n_head=4 grid_h=4 grid_w=4", TSAR_BF16 },
    { "vq_mini.pt", "vq_mini", "", TSAR_F32 },
    { "vq_mini.safetensors", "vq_mini", "", TSAR_F32 },
    { "vq_mini.bf16.pt", "vq_mini", "", TSAR_BF16 },
};

static tsar_status ignore_comparison(void *context, const tsar_comparison *comparison, tsar_error *err)
{
    (void)context;
    (void)err;
    if (comparison->verdict > TSAR_SAME) printf("%s differs by %g\n", comparison->name, comparison->max);
    return TSAR_OK;
}

/* The official code's greedy tokens, without and with guidance. */
static void check_greedy(const tsar_model *model, const char *vector, const char *name)
{
    tsar_error err;
    tsar_file *file;
    tsar_inputs inputs;
    if (tsar_file_open(&file, vector, &err) != TSAR_OK || tsar_inputs_read(&inputs, model, file, &err) != TSAR_OK) {
        CHECK(0, "%s", err.text);
        return;
    }
    for (int guided = 0; guided < 2; guided++) {
        const tsar_tensor *expected = tsar_file_find(file, guided ? "greedy_cfg.codes" : "greedy.codes");
        int64_t wanted[64], codes[64];
        tsar_prompt prompt = { 0 };
        tsar_result result = { 0 };
        tsar_settings settings = tsar_settings_default(model);
        prompt.class_id = inputs.class_id;
        prompt.caption = inputs.caption;
        prompt.caption_mask = inputs.caption_mask;
        settings.greedy = 1;
        settings.cfg = guided ? strtod(tsar_file_meta(file, "cfg"), NULL) : 1;
        settings.schedule = TSAR_CONSTANT;
        result.codes = codes;
        if (expected && expected->count <= 64 && tsar_file_read_i64(file, expected, 0, expected->count, wanted, &err) == TSAR_OK) {
            tsar_status status = tsar_generate(model, &prompt, &settings, 1, &result, NULL, NULL, &err);
            CHECK(status == TSAR_OK && memcmp(codes, wanted, (size_t)expected->count * sizeof *codes) == 0, "%s: greedy codes, guidance %d: %s", name, guided,
                  status ? err.text : "differ");
        }
    }
    tsar_inputs_close(&inputs);
    tsar_file_close(file);
}

static void check_official(const char *folder)
{
    for (size_t i = 0; i < sizeof official / sizeof *official; i++) {
        char path[512], vector[128];
        tsar_error err = { "" };
        tsar_model *model;
        const tsar_verify_options exact = { .rtol = 1e-11, .precision = TSAR_DTYPES };
        tsar_verify_counts counts;
        FILE *file;
        snprintf(path, sizeof path, "%s/%s", folder, official[i].file);
        snprintf(vector, sizeof vector, "tests/vectors/%s.safetensors", official[i].vector);
        if (!(file = fopen(path, "rb"))) continue; /* the repository holds a selection */
        fclose(file);
        tsar_status status = import_file(path, official[i].settings, &err);
        if (!CHECK(status == TSAR_OK, "%s: %s", path, err.text)) continue;
        synth(TMP "synth", vector, official[i].dtype);
        CHECK(same_tensors(MODEL, TMP "synth"), "%s: its weights are those of the synthetic model", path);
        if (official[i].dtype != TSAR_F32) continue;
        status = tsar_model_open(&model, MODEL, TSAR_PART_ALL, 1, &err);
        if (!CHECK(status == TSAR_OK, "%s: %s", path, err.text)) continue;
        status = tsar_verify(model, vector, &exact, ignore_comparison, NULL, &counts, &err);
        CHECK(status == TSAR_OK && counts.compared > 5, "%s: %s verifies to 1e-11 (%zu tensors)", path, vector, counts.compared);
        if (model->config.has_gpt) check_greedy(model, vector, path);
        tsar_model_close(model);
    }
}

/* ------------------------------------------------------------------------------------------------ 2. a tiny model, by hand */

/* c2i: dim 16, one layer, 8 codes, 2 classes. Element i of tensor t is value(t, i), exact in every dtype. */
static const struct {
    const char *name;
    size_t rank, shape[2];
} TINY[] = {
    { "tok_embeddings.weight", 2, { 8, 16 } },
    { "cls_embedding.embedding_table.weight", 2, { 3, 16 } },
    { "layers.0.attention_norm.weight", 1, { 16, 1 } },
    { "layers.0.attention.wqkv.weight", 2, { 48, 16 } },
    { "layers.0.attention.wo.weight", 2, { 16, 16 } },
    { "layers.0.ffn_norm.weight", 1, { 16, 1 } },
    { "layers.0.feed_forward.w1.weight", 2, { 8, 16 } },
    { "layers.0.feed_forward.w3.weight", 2, { 8, 16 } },
    { "layers.0.feed_forward.w2.weight", 2, { 16, 8 } },
    { "norm.weight", 1, { 16, 1 } },
    { "output.weight", 2, { 8, 16 } },
};
enum { N_TINY = sizeof TINY / sizeof *TINY };
#define SETTINGS "n_head=4 grid_h=4 grid_w=4"

static double value(size_t t, size_t i) { return (double)(int)((i * 7 + t * 13) % 61) / 4 - 7; }

/* How a state dict is written; all zeros is what torch.save does. */
typedef struct {
    int legacy, strided, shared, newer, big, parameters, attributes, extras, untyped, view;
    const char *under, *prefix, *middle;
    tsar_dtype dtype;
} form;

static void p_text(buffer *b, const char *text)
{
    put_text(b, "X");
    put_number(b, strlen(text), 4);
    put_text(b, text);
}

static void p_integer(buffer *b, int64_t integer)
{
    if (integer >= -2147483647 && integer <= 2147483647) {
        put_text(b, "J");
        put_number(b, (uint64_t)integer, 4);
    } else {
        put(b, "\x8a\x08", 2);
        put_number(b, (uint64_t)integer, 8);
    }
}

static void p_integers(buffer *b, size_t n, const int64_t *integers)
{
    put_text(b, "(");
    for (size_t i = 0; i < n; i++) p_integer(b, integers[i]);
    put_text(b, "t");
}

static void p_global(buffer *b, const form *f, const char *module, const char *name)
{
    if (f->newer) {
        p_text(b, module);
        p_text(b, name);
        put(b, "\x93", 1);
    } else {
        put_text(b, "c");
        put_text(b, module);
        put_text(b, "\n");
        put_text(b, name);
        put_text(b, "\n");
    }
}

static const char *storage_class(tsar_dtype dtype)
{
    return dtype == TSAR_F64    ? "DoubleStorage"
           : dtype == TSAR_F16  ? "HalfStorage"
           : dtype == TSAR_BF16 ? "BFloat16Storage"
           : dtype == TSAR_I64  ? "LongStorage"
                                : "FloatStorage";
}

static const char *dtype_global(tsar_dtype dtype)
{
    return dtype == TSAR_F64 ? "float64" : dtype == TSAR_F16 ? "float16" : dtype == TSAR_BF16 ? "bfloat16" : "float32";
}

/* A call of _rebuild_tensor_v2, or v3 on bytes; a view of elements 2 ... of its storage in legacy files. */
static void p_tensor(buffer *b, const form *f, const char *key, int64_t elements, int64_t offset, size_t rank, const int64_t *shape, const int64_t *stride)
{
    int64_t size = (int64_t)tsar_dtype_size(f->dtype);
    if (f->parameters) {
        p_global(b, f, "torch._utils", "_rebuild_parameter");
        put_text(b, "(");
    }
    if (f->attributes) {
        p_global(b, f, "torch._tensor", "_rebuild_from_type_v2");
        put_text(b, "(");
    }
    p_global(b, f, "torch._utils", f->untyped ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
    if (f->attributes) p_global(b, f, "torch", "Tensor");
    put_text(b, "((");
    p_text(b, "storage");
    p_global(b, f, f->untyped ? "torch.storage" : "torch", f->untyped ? "UntypedStorage" : storage_class(f->dtype));
    p_text(b, key);
    p_text(b, "cuda:0");
    p_integer(b, f->untyped ? elements * size : elements);
    if (f->view) {
        put_text(b, "(");
        p_text(b, "view");
        p_integer(b, offset);
        p_integer(b, elements - offset);
        put_text(b, "t");
    } else if (f->legacy)
        put_text(b, "N");
    put_text(b, "tQ");
    p_integer(b, f->view ? 0 : offset);
    p_integers(b, rank, shape);
    p_integers(b, rank, stride);
    put(b, "\x89", 1);
    p_global(b, f, "collections", "OrderedDict");
    put_text(b, ")R");
    if (f->untyped) p_global(b, f, "torch", dtype_global(f->dtype));
    put_text(b, f->attributes ? "t}tR" : "tR");
    if (f->parameters) {
        put(b, "\x88", 1);
        p_global(b, f, "collections", "OrderedDict");
        put_text(b, ")RtR");
    }
}

static void put_element(buffer *b, const form *f, double x)
{
    uint8_t bytes[8];
    size_t size = tsar_dtype_size(f->dtype);
    uint64_t bits = 0;
    float single = (float)x;
    uint32_t word;
    memcpy(&word, &single, 4);
    if (f->dtype == TSAR_F64)
        memcpy(&bits, &x, 8);
    else
        bits = f->dtype == TSAR_F16 ? tsar_round_f16(single) : f->dtype == TSAR_BF16 ? tsar_round_bf16(single) : word;
    for (size_t i = 0; i < size; i++) bytes[f->big ? size - 1 - i : i] = (uint8_t)(bits >> 8 * i);
    put(b, bytes, size);
}

/* Where tensor t lies in its storage. Strided: [rows][cols] is kept column by column, 3 elements apart, from element 5 on. */
static void geometry(const form *f, size_t t, int64_t *offset, int64_t *shape, int64_t *stride, int64_t *elements)
{
    int64_t rows = (int64_t)TINY[t].shape[0], cols = TINY[t].rank == 2 ? (int64_t)TINY[t].shape[1] : 1;
    shape[0] = rows;
    shape[1] = cols;
    *offset = f->strided ? 5 : f->view ? 2 : 0;
    stride[0] = f->strided ? 3 : TINY[t].rank == 2 ? cols : 1;
    stride[1] = f->strided ? 3 * rows : 1;
    *elements = *offset + (f->strided ? 3 * rows * cols : rows * cols);
}

static void put_storage(buffer *b, const form *f, size_t t)
{
    int64_t offset, shape[2], stride[2], elements;
    size_t rows = TINY[t].shape[0], cols = TINY[t].rank == 2 ? TINY[t].shape[1] : 1;
    geometry(f, t, &offset, shape, stride, &elements);
    for (int64_t at = 0; at < elements; at++) {
        size_t i = (size_t)(at - offset);
        double x = at < offset ? 1000 : value(t, i);
        if (f->strided && at >= offset) x = i % 3 ? 1000 : value(t, i / 3 % rows * cols + i / 3 / rows);
        put_element(b, f, x);
    }
}

static void key_of(char *key, const form *f, size_t t) { snprintf(key, 16, "%d", f->shared ? 0 : (int)t); }

/* The object: {"model": OrderedDict(...), "steps": ..., "args": Namespace(...)} or the state dict alone. */
static void p_object(buffer *b, const form *f)
{
    int64_t shared_offset = 0, total = 0;
    put(b, f->newer ? "\x80\x04" : "\x80\x02", 2);
    if (f->under) {
        put_text(b, "}(");
        p_text(b, f->under);
    }
    p_global(b, f, "collections", "OrderedDict");
    put_text(b, ")R(");
    for (size_t t = 0; t < N_TINY; t++) {
        int64_t offset, shape[2], stride[2], elements;
        geometry(f, t, &offset, shape, stride, &elements);
        total += elements;
    }
    for (size_t t = 0; t < N_TINY; t++) {
        char key[16], name[128];
        int64_t offset, shape[2], stride[2], elements;
        const char *dot = strchr(TINY[t].name, '.');
        geometry(f, t, &offset, shape, stride, &elements);
        key_of(key, f, t);
        snprintf(name, sizeof name, "%s%.*s%s%s", f->prefix ? f->prefix : "", (int)(dot - TINY[t].name) + 1, TINY[t].name, f->middle ? f->middle : "", dot + 1);
        p_text(b, name);
        p_tensor(b, f, key, f->shared ? total : elements, f->shared ? shared_offset + offset : offset, TINY[t].rank, shape, stride);
        shared_offset += elements;
    }
    put_text(b, "u");
    if (f->extras) { /* an attribute dict, as nn.Module.state_dict gives it */
        put_text(b, "}");
        p_text(b, "_metadata");
        put_text(b, "}sb");
    }
    if (f->under && f->extras) {
        p_text(b, "steps");
        put(b, "M\x39\x30", 3);
        p_text(b, "lr");
        put(b, "G\x3f\x1a\x36\xe2\xeb\x1c\x43\x2d", 9);
        p_text(b, "betas");
        put(b, "\x88N\x86", 3);
        p_text(b, "args");
        p_global(b, f, "argparse", "Namespace");
        put(b, ")\x81}", 3);
        p_text(b, "dim");
        put_text(b, "K\x10sb");
    }
    put_text(b, f->under ? "u." : ".");
}

static void put_legacy(buffer *b, const form *f)
{
    static const uint8_t head[] = { 0x80, 2,   0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50,
                                    0x19, '.', 0x80, 2,  'M',  0xe9, 3,    '.',  0x80, 2,    '}',  '.' };
    size_t n = f->shared ? 1 : N_TINY;
    put(b, head, sizeof head);
    p_object(b, f);
    put(b, "\x80\x02](", 4);
    for (size_t t = 0; t < n; t++) {
        char key[16];
        key_of(key, f, n - 1 - t);
        p_text(b, key);
    }
    put_text(b, "e.");
    for (size_t t = 0; t < n; t++) {
        size_t start = b->n, size = tsar_dtype_size(f->dtype);
        put_number(b, 0, 8);
        for (size_t s = f->shared ? 0 : n - 1 - t; s < N_TINY; s++) {
            put_storage(b, f, s);
            if (!f->shared) break;
        }
        uint64_t count = (b->n - start - 8) / size;
        for (size_t i = 0; i < 8; i++) b->bytes[start + i] = (uint8_t)(count >> 8 * i);
    }
}

/* ------------------------------------------------------------------------------------------------------------ an archive */

enum { MAX_ENTRIES = 40 };
static struct {
    char name[64];
    size_t local, data, size, central;
} entries[MAX_ENTRIES];
static size_t n_entries;

static void zip_start(void)
{
    archive.n = 0;
    n_entries = 0;
}

/* A local header as torch writes it: sizes in the directory only. Data on multiples of 64. */
static void zip_add(const char *name, const void *bytes, size_t size)
{
    static const uint8_t zeros[64];
    size_t pad = (64 - (archive.n + 30 + strlen(name) + 4) % 64) % 64;
    snprintf(entries[n_entries].name, sizeof entries->name, "%s", name);
    entries[n_entries].local = archive.n;
    put(&archive, "PK\3\4\0\0\x08\x08\0\0\0\0\0\0", 14);
    put(&archive, zeros, 12);
    put_number(&archive, strlen(name), 2);
    put_number(&archive, pad + 4, 2);
    put_text(&archive, name);
    put_text(&archive, "FB");
    put_number(&archive, pad, 2);
    put(&archive, zeros, pad);
    entries[n_entries].data = archive.n;
    put(&archive, bytes, size);
    entries[n_entries++].size = size;
}

/* The directory; with zip64 every size and place in 64-bit fields, as for files over 4 GB. */
static void zip_end(int zip64)
{
    size_t start = archive.n;
    for (size_t i = 0; i < n_entries; i++) {
        entries[i].central = archive.n;
        put(&archive, "PK\1\2\0\0\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0", 20);
        put_number(&archive, zip64 ? 0xFFFFFFFF : entries[i].size, 4);
        put_number(&archive, zip64 ? 0xFFFFFFFF : entries[i].size, 4);
        put_number(&archive, strlen(entries[i].name), 2);
        put_number(&archive, zip64 ? 28 : 0, 2);
        put(&archive, "\0\0\0\0\0\0\0\0\0\0", 10);
        put_number(&archive, zip64 ? 0xFFFFFFFF : entries[i].local, 4);
        put_text(&archive, entries[i].name);
        if (zip64) {
            put(&archive, "\1\0\x18\0", 4);
            put_number(&archive, entries[i].size, 8);
            put_number(&archive, entries[i].size, 8);
            put_number(&archive, entries[i].local, 8);
        }
    }
    size_t end = archive.n;
    if (zip64) {
        put(&archive, "PK\6\6\x2c\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
        put_number(&archive, n_entries, 8);
        put_number(&archive, n_entries, 8);
        put_number(&archive, end - start, 8);
        put_number(&archive, start, 8);
        put(&archive, "PK\6\7\0\0\0\0", 8);
        put_number(&archive, end, 8);
        put_number(&archive, 1, 4);
    }
    put(&archive, "PK\5\6\0\0\0\0", 8);
    put_number(&archive, zip64 ? 0xFFFF : n_entries, 2);
    put_number(&archive, zip64 ? 0xFFFF : n_entries, 2);
    put_number(&archive, zip64 ? 0xFFFFFFFF : end - start, 4);
    put_number(&archive, zip64 ? 0xFFFFFFFF : start, 4);
    put_number(&archive, 0, 2);
}

/* The archive of the object in `pickle` and the tiny model's storages. */
static void zip_model(const form *f, int zip64)
{
    size_t n = f->shared ? 1 : N_TINY;
    zip_start();
    zip_add("tiny/data.pkl", pickle.bytes, pickle.n);
    if (f->newer) {
        zip_add("tiny/.format_version", "1", 1);
        zip_add("tiny/byteorder", f->big ? "big" : "little", f->big ? 3 : 6);
    }
    for (size_t t = 0; t < n; t++) {
        char name[64], key[16];
        key_of(key, f, t);
        snprintf(name, sizeof name, "tiny/data/%s", key);
        made.n = 0;
        for (size_t s = t; s < N_TINY; s++) {
            put_storage(&made, f, s);
            if (!f->shared) break;
        }
        zip_add(name, made.bytes, made.n);
    }
    zip_add("tiny/version", "3\n", 2);
    if (f->newer) zip_add("tiny/.data/serialization_id", "0123456789", 10);
    zip_end(zip64);
}

static void write_form(const form *f, int zip64, const char *path)
{
    pickle.n = 0;
    if (f->legacy)
        put_legacy(&pickle, f);
    else {
        p_object(&pickle, f);
        zip_model(f, zip64);
    }
    save(f->legacy ? &pickle : &archive, path);
}

/* The same weights as safetensors: all, or (shard 1 and 2) every second tensor. */
static void write_safetensors(const char *path, tsar_dtype dtype, int shard)
{
    tsar_error err;
    tsar_writer *writer;
    const tsar_tensor *next;
    tsar_status status = tsar_writer_open(&writer, path, &err);
    for (size_t t = 0; status == TSAR_OK && t < N_TINY; t++)
        if (!shard || t % 2 == (size_t)shard - 1) status = tsar_writer_declare(writer, TINY[t].name, dtype, TINY[t].rank, TINY[t].shape, &err);
    while (status == TSAR_OK && (next = tsar_writer_next(writer)))
        for (size_t t = 0; t < N_TINY; t++)
            for (size_t i = 0; status == TSAR_OK && strcmp(TINY[t].name, next->name) == 0 && i < next->count; i++) {
                double x = value(t, i);
                float single = (float)x;
                uint16_t half = dtype == TSAR_F16 ? tsar_round_f16(single) : tsar_round_bf16(single);
                status = tsar_writer_put(writer, dtype == TSAR_F64 ? (void *)&x : dtype == TSAR_F32 ? (void *)&single : (void *)&half, 1, &err);
            }
    if (status == TSAR_OK) status = tsar_writer_commit(writer, &err);
    CHECK(status == TSAR_OK, "%s: %s", path, err.text);
}

static void check_forms(void)
{
    static const struct {
        const char *what;
        form how;
        int zip64;
    } forms[] = {
        { "zip", { .dtype = TSAR_F32 }, 0 },
        { "zip64", { .dtype = TSAR_F32, .under = "model" }, 1 },
        { "under model, with optimizer state and arguments", { .dtype = TSAR_F32, .under = "model", .extras = 1 }, 0 },
        { "under module", { .dtype = TSAR_F32, .under = "module" }, 0 },
        { "under state_dict", { .dtype = TSAR_F32, .under = "state_dict", .prefix = "module." }, 0 },
        { "under ema", { .dtype = TSAR_F32, .under = "ema" }, 0 },
        { "compiled", { .dtype = TSAR_F32, .prefix = "_orig_mod." }, 0 },
        { "compiled and distributed", { .dtype = TSAR_F32, .prefix = "module._orig_mod.", .middle = "_orig_mod." }, 0 },
        { "strided", { .dtype = TSAR_F32, .strided = 1 }, 0 },
        { "one storage", { .dtype = TSAR_F32, .shared = 1 }, 0 },
        { "one storage, strided", { .dtype = TSAR_F32, .shared = 1, .strided = 1 }, 0 },
        { "parameters", { .dtype = TSAR_F32, .parameters = 1, .extras = 1 }, 0 },
        { "tensors with attributes", { .dtype = TSAR_F32, .attributes = 1 }, 0 },
        { "newer entries and protocol 4", { .dtype = TSAR_F32, .newer = 1, .under = "model", .extras = 1 }, 0 },
        { "big-endian", { .dtype = TSAR_F32, .newer = 1, .big = 1 }, 0 },
        { "big-endian, strided", { .dtype = TSAR_F64, .newer = 1, .big = 1, .strided = 1 }, 0 },
        { "untyped storages", { .dtype = TSAR_F32, .untyped = 1, .strided = 1 }, 0 },
        { "legacy", { .dtype = TSAR_F32, .legacy = 1 }, 0 },
        { "legacy under model", { .dtype = TSAR_F32, .legacy = 1, .under = "model", .extras = 1 }, 0 },
        { "legacy, views of storages", { .dtype = TSAR_F32, .legacy = 1, .view = 1 }, 0 },
        { "legacy, one storage, strided", { .dtype = TSAR_F32, .legacy = 1, .shared = 1, .strided = 1 }, 0 },
        { "F64", { .dtype = TSAR_F64 }, 0 },
        { "F16", { .dtype = TSAR_F16 }, 0 },
        { "BF16", { .dtype = TSAR_BF16, .strided = 1 }, 0 },
        { "legacy BF16", { .dtype = TSAR_BF16, .legacy = 1 }, 0 },
    };
    tsar_error err;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        write_safetensors(INPUT, forms[i].how.dtype, 0);
        if (!CHECK(import_file(INPUT, SETTINGS, &err) == TSAR_OK, "%s", err.text)) continue;
        remove(TMP "truth");
        if (rename(MODEL, TMP "truth") != 0) exit(1);
        write_form(&forms[i].how, forms[i].zip64, INPUT);
        tsar_status status = import_file(INPUT, SETTINGS, &err);
        CHECK(status == TSAR_OK && same_files(TMP "truth", MODEL), "%s: the same model file: %s", forms[i].what, status ? err.text : "differs");
    }
}

static void check_shards(void)
{
    static const char *const bad[] = { "",
                                       "{",
                                       "[]",
                                       "{}",
                                       "{\"weight_map\": {}}",
                                       "{\"weight_map\": {\"a\": 1}}",
                                       "{\"weight_map\": {\"a\": \"../x\"}}",
                                       "{\"weight_map\": {\"a\": \"/etc/passwd\"}}",
                                       "{\"weight_map\": {\"a\": \"" TMP "shard1\"}}",
                                       "{\"weight_map\": {\"a\": \"b\"}} x",
                                       "{\"metadata\": [[[[",
                                       "{\"weight_map\": {\"norm.weight\": \"" TMP "shard2\", \"norm.weight\": \"" TMP "shard2\"}}",
                                       "{\"weight_map\": {\"norm.weight\": \"" TMP "shard2\"}}" };
    tsar_error err;
    buffer *text = &pickle;
    write_safetensors(INPUT, TSAR_F32, 0);
    CHECK(import_file(INPUT, SETTINGS, &err) == TSAR_OK, "%s", err.text);
    remove(TMP "truth");
    if (rename(MODEL, TMP "truth") != 0) exit(1);
    write_safetensors(TMP "shard1", TSAR_F32, 1);
    write_safetensors(TMP "shard2", TSAR_F32, 2);
    text->n = 0;
    put_text(text, "{\n  \"metadata\": {\"total_size\": 12.5e3, \"list\": [1, {\"a\\\"\": null}], \"format\": \"pt\"},\n  \"weight_map\": {");
    for (size_t t = 0; t < N_TINY; t++) {
        char line[128];
        snprintf(line, sizeof line, "%s\n    \"%s\": \"%s\"", t ? "," : "", TINY[t].name, t % 2 ? TMP "shard2" : TMP "shard1");
        put_text(text, line);
    }
    put_text(text, "\n  }\n}\n");
    save(text, TMP "index.json");
    tsar_status status = import_file(TMP "index.json", SETTINGS, &err);
    CHECK(status == TSAR_OK && same_files(TMP "truth", MODEL), "shards: %s", err.text);
    const char *both[2] = { TMP "shard1", TMP "shard2" };
    status = import_files(both, 2, SETTINGS, &err);
    CHECK(status == TSAR_OK && same_files(TMP "truth", MODEL), "shards without an index: %s", err.text);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        text->n = 0;
        put_text(text, bad[i]);
        save(text, TMP "index.json");
        status = import_file(TMP "index.json", SETTINGS, &err);
        CHECK(status == TSAR_INPUT && err.text[0] && !strchr(err.text, '\n'), "index %s: %s", bad[i], err.text);
    }
}

/* ------------------------------------------------------------------------------------- 3. questions and contradictions */

static void expect(const char *path, const char *settings, tsar_status wanted, const char *sentence)
{
    tsar_error err;
    tsar_status status = import_file(path, settings, &err);
    FILE *left = fopen(MODEL, "rb");
    CHECK(status == wanted && strstr(err.text, sentence) && !strchr(err.text, '\n'), "%s: expected \"%s\", got %d: %s", settings, sentence, (int)status,
          err.text);
    CHECK(!left, "%s: no model file is left behind", settings);
    if (left) fclose(left);
}

/* One tensor more in a state dict: `dtype` elements of shape [n]; or, with n = 0, the first tensor left out. */
static void write_changed(const char *name, tsar_dtype dtype, int64_t n)
{
    form f = { .dtype = TSAR_F32 }, other = { 0 };
    const int64_t one = 1;
    other.dtype = dtype;
    pickle.n = 0;
    p_object(&pickle, &f);
    if (n > 0) {
        pickle.n -= 2; /* SETITEMS and STOP */
        p_text(&pickle, name);
        p_tensor(&pickle, &other, "99", n, 0, 1, &n, &one);
        put_text(&pickle, "u.");
    } else { /* spoil its name */
        for (size_t i = 0; i + strlen(name) < pickle.n; i++)
            if (memcmp(pickle.bytes + i, name, strlen(name)) == 0) pickle.bytes[i] = 'x';
    }
    zip_model(&f, 0);
    archive.n = entries[n_entries - 1].local; /* the version goes, a storage comes */
    n_entries--;
    made.n = 0;
    for (int64_t i = 0; i < n; i++) put_number(&made, 0, tsar_dtype_size(dtype));
    zip_add("tiny/data/99", made.bytes, made.n);
    zip_end(0);
    save(&archive, INPUT);
}

static void check_questions(void)
{
    static const form plain = { .dtype = TSAR_F32 };
    tsar_error err;
    write_form(&plain, 0, INPUT);
    expect(INPUT, "", TSAR_USAGE, "add n_head=1, 2 or 4; and grid_h=16 grid_w=16 (256 pixels) or grid_h=24 grid_w=24 (384 pixels)");
    expect(INPUT, "n_head=2", TSAR_USAGE, "add grid_h=16 grid_w=16");
    expect(INPUT, "n_head=2 grid_h=4", TSAR_USAGE, "grid_w");
    expect(INPUT, "grid_h=4 grid_w=4", TSAR_USAGE, "add n_head=1, 2 or 4");
    expect(INPUT, "n_head=3 grid_h=4 grid_w=4", TSAR_USAGE, "n_head=3 does not fit");
    expect(INPUT, "n_head=8 grid_h=4 grid_w=4", TSAR_USAGE, "possible: 1, 2 or 4");
    expect(INPUT, "n_head=-1 grid_h=4 grid_w=4", TSAR_USAGE, "n_head=-1 does not fit");
    expect(INPUT, SETTINGS " dim=32", TSAR_USAGE, "tensor gpt.norm.weight makes dim=16, but the command line says dim=32");
    expect(INPUT, SETTINGS " arch=llamagen-t2i", TSAR_USAGE, "arch=llamagen-c2i");
    expect(INPUT, SETTINGS " n_heads=4", TSAR_USAGE, "no such key");
    expect(INPUT, SETTINGS " grid_h=5", TSAR_USAGE, "contradicts");
    expect(INPUT, "n_head=4 grid_h=four grid_w=4", TSAR_USAGE, "the command line: grid_h=four");
    CHECK(import_file(INPUT, SETTINGS " rope_base=500 dim=16", &err) == TSAR_OK, "%s", err.text);
    tsar_model *model;
    if (CHECK(tsar_model_open(&model, MODEL, TSAR_PART_ALL, 1, &err) == TSAR_OK, "%s", err.text)) {
        CHECK(model->config.rope_base == 500 && model->config.num_classes == 2 && model->config.codebook_size == 8,
              "the configuration is as given and inferred");
        tsar_model_close(model);
    }
    CHECK(import_file(MODEL "none", SETTINGS, &err) == TSAR_INPUT && strstr(err.text, "cannot open"), "%s", err.text);
    const char *twice[2] = { INPUT, INPUT };
    CHECK(import_files(twice, 2, SETTINGS, &err) == TSAR_INPUT && strstr(err.text, "give each part of the model once"), "%s", err.text);

    write_changed("layers.0.attention.kv_cache.k_cache", TSAR_F32, 4);
    CHECK(import_file(INPUT, SETTINGS, &err) == TSAR_OK && strstr(notes, "left out 1 buffer"), "kv cache: %s %s", err.text, notes);
    write_changed("freqs_cis", TSAR_F32, 4);
    CHECK(import_file(INPUT, SETTINGS, &err) == TSAR_OK && strstr(notes, "freqs_cis"), "freqs_cis: %s %s", err.text, notes);
    write_changed("position_ids", TSAR_I64, 4);
    CHECK(import_file(INPUT, SETTINGS, &err) == TSAR_OK && strstr(notes, "position_ids"), "integers: %s %s", err.text, notes);
    write_changed("layers.0.attention.bias", TSAR_F32, 4);
    expect(INPUT, SETTINGS, TSAR_INPUT, "tensor gpt.layers.0.attention.bias of shape [4] belongs to no part of this model");
    write_changed("layers.1.ffn_norm.weight", TSAR_F32, 16);
    expect(INPUT, SETTINGS, TSAR_INPUT, "tensor gpt.layers.1.attention_norm.weight is missing; expected shape [16] (the first of several)");
    CHECK(n_notes == 8 && strstr(notes, "gpt.layers.1.attention.wqkv.weight is missing; expected shape [48, 16]"), "all are told: %s", notes);
    write_changed("layers.99999999999999999999.x", TSAR_F32, 16);
    expect(INPUT, SETTINGS, TSAR_INPUT, "belongs to no part");
    write_changed("ffn_norm.weight", TSAR_F32, 0);
    expect(INPUT, SETTINGS, TSAR_INPUT, "tensor gpt.layers.0.ffn_norm.weight is missing; expected shape [16]");
    write_changed("tok_embeddings.weight", TSAR_F32, 0);
    expect(INPUT, SETTINGS, TSAR_INPUT, "tensor gpt.tok_embeddings.weight is missing; expected shape [8, 16]");
    write_changed("vq.codebook", TSAR_F32, 4);
    expect(INPUT, SETTINGS, TSAR_INPUT, "vq.encoder.conv_in.weight is missing");
}

/* The tiny model in safetensors with one tensor of another shape, or, with rank 0, left out. */
static void write_misshapen(const char *name, size_t rank, size_t rows, size_t columns)
{
    static const double zeros[4096];
    const size_t shape[2] = { rows, columns };
    tsar_error err;
    tsar_writer *writer;
    const tsar_tensor *next;
    tsar_status status = tsar_writer_open(&writer, INPUT, &err);
    for (size_t t = 0; status == TSAR_OK && t < N_TINY; t++) {
        const int changed = strcmp(TINY[t].name, name) == 0;
        if (!changed || rank)
            status = tsar_writer_declare(writer, TINY[t].name, TSAR_F32, changed ? rank : TINY[t].rank, changed ? shape : TINY[t].shape, &err);
    }
    while (status == TSAR_OK && (next = tsar_writer_next(writer))) status = tsar_writer_put(writer, zeros, next->count, &err);
    if (status == TSAR_OK) status = tsar_writer_commit(writer, &err);
    CHECK(status == TSAR_OK, "%s", err.text);
}

/* Whatever tensor is wrong, it is the one that is named, with the shape that it should have. */
static void check_misshapen(void)
{
    static const struct {
        const char *name;
        size_t rank, rows, columns;
        const char *sentence;
    } cases[] = {
        { "norm.weight", 1, 15, 1, "tensor gpt.norm.weight has shape [15], expected [16]" },
        { "norm.weight", 0, 0, 0, "tensor gpt.norm.weight is missing; expected shape [16]" },
        { "norm.weight", 2, 16, 1, "tensor gpt.norm.weight has shape [16, 1], expected [16]" },
        { "tok_embeddings.weight", 2, 3, 16, "tensor gpt.tok_embeddings.weight has shape [3, 16], expected [8, 16]" },
        { "tok_embeddings.weight", 2, 8, 15, "tensor gpt.tok_embeddings.weight has shape [8, 15], expected [8, 16]" },
        { "tok_embeddings.weight", 1, 128, 1, "tensor gpt.tok_embeddings.weight has shape [128], expected [8, 16]" },
        { "output.weight", 2, 3, 16, "tensor gpt.output.weight has shape [3, 16], expected [8, 16]" },
        { "output.weight", 0, 0, 0, "tensor gpt.output.weight is missing; expected shape [8, 16]" },
        { "cls_embedding.embedding_table.weight", 0, 0, 0, "tensor gpt.cls_embedding.embedding_table.weight is missing; expected shape [num_classes + 1, 16]" },
        { "cls_embedding.embedding_table.weight", 2, 3, 15, "tensor gpt.cls_embedding.embedding_table.weight has shape [3, 15], expected [3, 16]" },
        { "cls_embedding.embedding_table.weight", 1, 48, 1, "tensor gpt.cls_embedding.embedding_table.weight has shape [48], expected [num_classes + 1, 16]" },
        { "layers.0.attention.wqkv.weight", 2, 3, 16,
          "tensor gpt.layers.0.attention.wqkv.weight has 3 rows, which fit no number of heads; expected shape [48, 16]" },
        { "layers.0.attention.wqkv.weight", 0, 0, 0, "tensor gpt.layers.0.attention.wqkv.weight is missing; expected shape [48, 16]" },
        { "layers.0.attention.wqkv.weight", 2, 48, 15, "tensor gpt.layers.0.attention.wqkv.weight has shape [48, 15], expected [48, 16]" },
        { "layers.0.attention.wo.weight", 2, 15, 16, "tensor gpt.layers.0.attention.wo.weight has shape [15, 16], expected [16, 16]" },
        { "layers.0.feed_forward.w1.weight", 2, 3, 16, "tensor gpt.layers.0.feed_forward.w1.weight has shape [3, 16], expected [8, 16]" },
        { "layers.0.feed_forward.w2.weight", 2, 16, 9, "tensor gpt.layers.0.feed_forward.w2.weight has shape [16, 9], expected [16, 8]" },
    };
    tsar_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_misshapen(cases[i].name, cases[i].rank, cases[i].rows, cases[i].columns);
        expect(INPUT, SETTINGS, TSAR_INPUT, cases[i].sentence);
        expect(INPUT, SETTINGS " arch=llamagen-c2i", TSAR_INPUT, cases[i].sentence);
    }
    write_misshapen("", 0, 0, 0);
    CHECK(import_file(INPUT, SETTINGS, &err) == TSAR_OK, "%s", err.text);
    expect(INPUT, SETTINGS " dim=15", TSAR_USAGE, "dim=15");
    expect(INPUT, SETTINGS " codebook_size=9", TSAR_USAGE, "codebook_size=9");
    expect(INPUT, SETTINGS " ffn_hidden=9", TSAR_USAGE, "ffn_hidden=9");
    expect(INPUT, SETTINGS " arch=token-shuffle", TSAR_USAGE, "arch=token-shuffle");
}

/* Token-Shuffle and CTF models under SPEC's own names, without their metadata: what shapes tell, and what is asked. */
static void check_other_archs(void)
{
    static const struct {
        const char *vector, *settings, *question;
    } cases[] = {
        { "shuffle_s2", "n_head=4 grid_h=8 grid_w=8 rope=1d text_vocab=40",
          "add text_vocab=N or codebook_size=N, whose sum is 136; and rope=1d (Llama) or rope=2d (LlamaGen); and grid_h" },
        { "shuffle_s4_gqa", "n_head=8 grid_h=8 grid_w=16 rope=1d codebook_size=64", "whose sum is 114" },
        { "shuffle_s1", "arch=token-shuffle n_head=4 grid_h=4 grid_w=4 rope=1d codebook_size=96", NULL },
        { "shuffle_s1", "n_head=4 grid_h=4 grid_w=4 rope=1d text_vocab=40", NULL },
        { "fine", "fine_n_head=4 grid_h=6 grid_w=5", "add fine_n_head=1, 2, 4, 8 or 16; and grid_h and grid_w" },
        { "c2i_odd", "n_head=6 grid_h=6 grid_w=6", "add n_head=" },
        { "vq_f8", "", NULL },
        { "vq_f16", "", NULL },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char vector[128];
        tsar_error err;
        tsar_file *file;
        tsar_writer *writer;
        const tsar_tensor *next;
        snprintf(vector, sizeof vector, "tests/vectors/%s.safetensors", cases[i].vector);
        synth(TMP "synth", vector, TSAR_F32);
        tsar_status status = tsar_file_open(&file, TMP "synth", &err);
        if (status == TSAR_OK) status = tsar_writer_open(&writer, INPUT, &err);
        for (size_t t = 0; status == TSAR_OK && t < tsar_file_count(file); t++) {
            const tsar_tensor *tensor = tsar_file_at(file, t);
            status = tsar_writer_declare(writer, tensor->name, tensor->dtype, tensor->rank, tensor->shape, &err);
        }
        while (status == TSAR_OK && (next = tsar_writer_next(writer))) {
            const tsar_tensor *tensor = tsar_file_find(file, next->name);
            void *values = malloc((size_t)tensor->count * 8);
            status = tsar_file_read(file, tensor, 0, tensor->count, values, &err);
            if (status == TSAR_OK) status = tsar_writer_put(writer, values, tensor->count, &err);
            free(values);
        }
        if (status == TSAR_OK) status = tsar_writer_commit(writer, &err);
        tsar_file_close(file);
        if (!CHECK(status == TSAR_OK, "%s: %s", vector, err.text)) continue;
        if (cases[i].question) expect(INPUT, "", TSAR_USAGE, cases[i].question);
        status = import_file(INPUT, cases[i].settings, &err);
        if (!CHECK(status == TSAR_OK && same_tensors(MODEL, TMP "synth"), "%s: %s", vector, err.text)) continue;
        tsar_model *a, *b;
        if (CHECK(tsar_model_open(&a, MODEL, TSAR_PART_ALL, 1, &err) == TSAR_OK, "%s: %s", vector, err.text)) {
            if (CHECK(tsar_model_open(&b, TMP "synth", TSAR_PART_ALL, 1, &err) == TSAR_OK, "%s: %s", vector, err.text)) {
                b->config.seed = 0;
                CHECK(a->config.n_kv_head == b->config.n_kv_head && a->config.vq_levels == b->config.vq_levels && a->config.shuffle == b->config.shuffle &&
                          a->config.text_vocab == b->config.text_vocab && a->config.n_coarse == b->config.n_coarse &&
                          a->config.codebook_size == b->config.codebook_size &&
                          memcmp(a->config.vq_ch_mult, b->config.vq_ch_mult, sizeof a->config.vq_ch_mult) == 0 &&
                          a->config.vq_z_channels == b->config.vq_z_channels,
                      "%s: the configuration comes back", vector);
                tsar_model_close(b);
            }
            tsar_model_close(a);
        }
        status = import_file(TMP "synth", "", &err); /* a model file's own metadata answers everything */
        CHECK(status == TSAR_OK && same_tensors(MODEL, TMP "synth"), "%s: %s", vector, err.text);
    }
}

/* --------------------------------------------------------------------------------------------------------- 4. hostile files */

static void refuse(const char *what, const buffer *b, const char *sentence)
{
    tsar_error err;
    save(b, INPUT);
    tsar_status status = import_file(INPUT, SETTINGS, &err);
    CHECK(status == TSAR_INPUT && strstr(err.text, sentence) && !strchr(err.text, '\n'), "%s: expected \"%s\", got %d: %s", what, sentence, (int)status,
          err.text);
}

static void patch(size_t at, uint64_t number, size_t width)
{
    for (size_t i = 0; i < width; i++) archive.bytes[at + i] = (uint8_t)(number >> 8 * i);
}

static void fresh(int zip64)
{
    static const form plain = { .dtype = TSAR_F32 };
    write_form(&plain, zip64, INPUT);
}

static void check_archives(void)
{
    static const char *const names[] = { "../tiny/data.pkl", "/tiny/data.pkl", "tiny/../data", "tiny//data", "C:/tiny/x", "tiny\\data\\0", "./tiny", ".",
                                         "tiny/\ndata" };
    static const uint64_t large[] = { 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF };
    static const uint64_t larger[] = { 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x100000000, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF };
    fresh(0), patch(entries[2].central + 8, 0x0809, 2), refuse("encrypted", &archive, "is encrypted");
    fresh(0), patch(entries[2].local + 6, 0x0809, 2), refuse("encrypted, local header only", &archive, "another header");
    fresh(0), patch(entries[2].central + 10, 8, 2), refuse("compressed", &archive, "is compressed");
    fresh(0), patch(entries[2].local + 8, 8, 2), refuse("compressed, local header only", &archive, "another header");
    fresh(0), patch(entries[2].central + 20, 3, 4), refuse("two sizes", &archive, "two different sizes");
    fresh(0), patch(entries[2].central + 20, 1 << 20, 4), patch(entries[2].central + 24, 1 << 20, 4), refuse("too long", &archive, "lies outside the file");
    fresh(0), patch(entries[2].central + 20, 1000, 4), patch(entries[2].central + 24, 1000, 4), refuse("overlap", &archive, "overlap");
    fresh(0), patch(entries[2].central + 20, 8, 4), patch(entries[2].central + 24, 8, 4), refuse("shorter storage", &archive, "has 8 bytes, its tensors claim");
    fresh(0), patch(entries[2].local + 18, 8, 4), refuse("local size", &archive, "two different sizes");
    fresh(0), patch(entries[2].central + 42, entries[3].local, 4), refuse("same place", &archive, "another header");
    fresh(0), patch(entries[2].central + 34, 1, 2), refuse("other disk", &archive, "several");
    fresh(0), patch(entries[2].local, 0, 1), refuse("no local header", &archive, "another header");
    fresh(0), patch(entries[0].central, 0, 1), refuse("no central header", &archive, "directory");
    fresh(0), patch(entries[0].central + 28, 0xFFFF, 2), refuse("name beyond the directory", &archive, "directory ends");
    fresh(0), patch(entries[0].central + 28, 0, 2), refuse("no name", &archive, "relative path");
    fresh(0), patch(entries[0].central + 46 + 3, 0, 1), refuse("zero in a name", &archive, "relative path");
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        fresh(0), patch(entries[2].central + 42, large[i], 4), refuse("place", &archive, "damaged zip");
        fresh(0), patch(entries[2].central + 20, large[i], 4), patch(entries[2].central + 24, large[i], 4), refuse("size", &archive, "damaged zip");
        fresh(0), patch(archive.n - 6, large[i], 4), refuse("place of the directory", &archive, "damaged zip");
        fresh(0), patch(archive.n - 10, large[i], 4), refuse("size of the directory", &archive, "damaged zip");
        fresh(0), patch(archive.n - 14, large[i], 2), patch(archive.n - 12, large[i], 2), refuse("entries", &archive, "damaged zip");
    }
    for (size_t i = 0; i < sizeof larger / sizeof *larger; i++)
        for (size_t at = 50; at <= 66; at += 8) { /* size, stored size and place in the zip64 field of an entry */
            size_t field = at + strlen(entries[2].name);
            fresh(1), patch(entries[2].central + field, larger[i], 8), refuse("zip64 entry", &archive, entries[2].name);
        }
    for (size_t i = 0; i < sizeof larger / sizeof *larger; i++) {
        fresh(1), patch(archive.n - 22 - 20 - 56 + 32, larger[i], 8), refuse("zip64 count", &archive, "damaged zip");
        fresh(1), patch(archive.n - 22 - 20 - 56 + 40, larger[i], 8), refuse("zip64 directory size", &archive, "damaged zip");
        fresh(1), patch(archive.n - 22 - 20 - 56 + 48, larger[i], 8), refuse("zip64 directory place", &archive, "damaged zip");
        fresh(1), patch(archive.n - 22 - 20 + 8, larger[i], 8), refuse("zip64 locator", &archive, "damaged zip");
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fresh(0);
        archive.n = entries[n_entries - 1].local;
        n_entries--;
        zip_add(names[i], "3\n", 2);
        zip_end(0);
        refuse(names[i], &archive, "relative path");
    }
    fresh(0), archive.n = entries[n_entries - 1].local, n_entries--, zip_add("tiny/data/0", "x", 1), zip_end(0),
              refuse("duplicate", &archive, "two entries are called");
    fresh(0), archive.n = entries[n_entries - 1].local, n_entries--, zip_add("other/data.pkl", "x", 1), zip_end(0),
              refuse("two pickles", &archive, "two data.pkl");
    fresh(0), archive.n = entries[n_entries - 1].local, n_entries--, zip_add("tiny/byteorder", "middle", 6), zip_end(0),
              refuse("byteorder", &archive, "neither little nor big");
    zip_start(), zip_add("tiny/data.txt", "x", 1), zip_end(0), refuse("no pickle", &archive, "without data.pkl");
    zip_start(), zip_end(0), archive.bytes[2] = 3, archive.bytes[3] = 4, refuse("empty", &archive, "zip");
}

/* The archive of a pickle given as its bytes, with one storage "0" of 16 elements. */
static void refuse_pickle(const char *what, const void *bytes, size_t n, const char *sentence)
{
    static const uint8_t zeros[64];
    zip_start();
    zip_add("tiny/data.pkl", bytes, n);
    zip_add("tiny/data/0", zeros, sizeof zeros);
    zip_end(0);
    refuse(what, &archive, sentence);
}

#define REFUSE(what, literal, sentence) refuse_pickle(what, literal, sizeof(literal) - 1, sentence)

/* A state dict with the one tensor norm.weight, as given. */
static void refuse_tensor(const char *what, int64_t elements, int64_t offset, size_t rank, const int64_t *shape, const int64_t *stride, const char *sentence)
{
    form f = { .dtype = TSAR_F32 };
    pickle.n = 0;
    put(&pickle, "\x80\x02}", 3);
    p_text(&pickle, "norm.weight");
    p_tensor(&pickle, &f, "0", elements, offset, rank, shape, stride);
    put_text(&pickle, "s.");
    refuse_pickle(what, pickle.bytes, pickle.n, sentence);
}

static void check_pickles(void)
{
    const int64_t big = INT64_MAX;
    REFUSE("os.system",
           "\x80\x02"
           "cos\nsystem\nX\4\0\0\0echo\x85R.",
           "an object of class os.system");
    REFUSE("posix.system", "\x80\x04\x8c\5posix\x8c\6system\x93.", "an object of class posix.system");
    REFUSE("builtins.eval",
           "\x80\x02"
           "cbuiltins\neval\n.",
           "an object of class builtins.eval");
    REFUSE("__builtin__.exec",
           "\x80\x02"
           "c__builtin__\nexec\n.",
           "an object of class __builtin__.exec");
    REFUSE("a name with dots", "\x80\x04\x8c\5torch\x8c\x10_utils.os.system\x93.", "an object of class torch._utils.os.system");
    REFUSE("an unknown class",
           "\x80\x02"
           "ctorch.nn.modules.linear\nLinear\n.",
           "an object of class torch.nn.modules.linear.Linear");
    REFUSE("control characters",
           "\x80\x02"
           "co\x1b[31ms\nsystem\n.",
           "class o?[31ms.system");
    REFUSE("protocol 0", "(dp0\nS'model'\n.", "which torch.save never writes");
    REFUSE("INST", "\x80\x02(ios\nsystem\n.", "opcode 0x69");
    REFUSE("EXT1", "\x80\x02\x82\1.", "opcode 0x82");
    REFUSE("empty", "", "ends before its last opcode");
    REFUSE("no value", "\x80\x02.", "too few values");
    REFUSE("a mark as value", "\x80\x02(.", "too few values");
    REFUSE("no mark", "\x80\x02Kat.", "no mark");
    REFUSE("calls a string", "\x80\x02X\1\0\0\0a)R.", "no function");
    REFUSE("calls a storage class",
           "\x80\x02"
           "ctorch\nFloatStorage\n)R.",
           "no function");
    REFUSE("tensor of nothing",
           "\x80\x02"
           "ctorch._utils\n_rebuild_tensor_v2\n)R.",
           "storage, offset, shape");
    REFUSE("attributes of nothing", "\x80\x02}b.", "no object");
    REFUSE("items into a string", "\x80\x02X\1\0\0\0aNNs.", "cannot hold");
    REFUSE("items into a tuple", "\x80\x02)Na.", "cannot hold");
    REFUSE("half a pair", "\x80\x02}(Nu.", "cannot hold");
    REFUSE("unknown memo", "\x80\x02h\7.", "never remembered");
    REFUSE("memo bomb", "\x80\x02Nr\xff\xff\xff\x7f.", "memo index");
    REFUSE("string bomb",
           "\x80\x02X\xff\xff\xff\xff"
           "a",
           "a string is longer");
    REFUSE("string of 2^63",
           "\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f"
           "a",
           "a string is longer");
    REFUSE("bytes of 2^63",
           "\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f"
           "a",
           "ends before");
    REFUSE("number bomb",
           "\x80\x02\x8b\xff\xff\xff\x7f"
           "a",
           "a number is longer");
    REFUSE("no storage", "\x80\x02(X\6\0\0\0moduleNNNNtQ.", "no storage of a known type");
    REFUSE("a key that is no string", "\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nK\0X\3\0\0\0cpuK\x10tQ.", "no storage of a known type");
    REFUSE("negative storage",
           "\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
           "0X\3\0\0\0cpuJ\xff\xff\xff\xfftQ.",
           "negative size");
    REFUSE("a line in a key", "\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\3\0\0\0a\nbX\3\0\0\0cpuK\x10tQ.", "no storage of a known type");
    REFUSE("itself in a list", "\x80\x02]q\0h\0ah\0ah\0a.", "holds no state dict");
    REFUSE("itself in a dictionary", "\x80\x02}q\0(X\5\0\0\0modelh\0h\0h\0u.", "holds no state dict");
    REFUSE("no dictionary", "\x80\x02K\1.", "holds no state dict");
    REFUSE("no tensors", "\x80\x02}X\5\0\0\0modelK\1s.", "holds no state dict");

    pickle.n = 0; /* laughs: ten lists, each ten times the one before it */
    put(&pickle, "\x80\x02]q\0", 5);
    for (uint8_t i = 0; i < 100; i++) {
        uint8_t line[] = { ']', 'q', (uint8_t)(i + 1), '(', 'h', i, 'h', i, 'h', i, 'h', i, 'h', i, 'h', i, 'h', i, 'h', i, 'h', i, 'h', i, 'e' };
        put(&pickle, line, sizeof line);
    }
    put_text(&pickle, ".");
    refuse_pickle("laughs", pickle.bytes, pickle.n, "holds no state dict");
    pickle.n = 0; /* 100,000 deep */
    put(&pickle, "\x80\x02", 2);
    for (size_t i = 0; i < 50000; i++) put_text(&pickle, "]");
    for (size_t i = 0; i < 49999; i++) put_text(&pickle, "a");
    put_text(&pickle, ".");
    refuse_pickle("depth", pickle.bytes, pickle.n, "holds no state dict");

    refuse_tensor("negative stride", 16, 15, 1, (const int64_t[]){ 16 }, (const int64_t[]){ -1 }, "tensor norm.weight has size 16 and stride -1");
    refuse_tensor("negative size", 16, 0, 1, (const int64_t[]){ -16 }, (const int64_t[]){ 1 }, "size -16");
    refuse_tensor("negative offset", 16, -1, 1, (const int64_t[]){ 16 }, (const int64_t[]){ 1 }, "negative offset");
    refuse_tensor("offset", 16, 1, 1, (const int64_t[]){ 16 }, (const int64_t[]){ 1 }, "reaches beyond its storage of 16 elements");
    refuse_tensor("huge offset", 16, big, 1, (const int64_t[]){ 16 }, (const int64_t[]){ 1 }, "reaches beyond");
    refuse_tensor("stride", 16, 0, 1, (const int64_t[]){ 16 }, (const int64_t[]){ 2 }, "reaches beyond");
    refuse_tensor("overflowing stride", 16, 0, 2, (const int64_t[]){ 3, 3 }, (const int64_t[]){ big, big }, "reaches beyond");
    refuse_tensor("wrapping stride", 16, 0, 2, (const int64_t[]){ 3, 5 }, (const int64_t[]){ big / 2 + 1, 1 }, "reaches beyond");
    refuse_tensor("overflowing size", 16, 0, 3, (const int64_t[]){ big, big, 4 }, (const int64_t[]){ 0, 0, 1 }, "reaches beyond");
    refuse_tensor("rank", 16, 0, 9, (const int64_t[]){ 1, 1, 1, 1, 1, 1, 1, 1, 1 }, (const int64_t[]){ 1, 1, 1, 1, 1, 1, 1, 1, 1 }, "9 dimensions");
    refuse_tensor("short storage", 17, 0, 1, (const int64_t[]){ 17 }, (const int64_t[]){ 1 }, "has 64 bytes, its tensors claim 68");
    refuse_tensor("long storage", 15, 0, 1, (const int64_t[]){ 15 }, (const int64_t[]){ 1 }, "has 64 bytes, its tensors claim 60");
    refuse_tensor("huge storage", big, 0, 1, (const int64_t[]){ 15 }, (const int64_t[]){ 1 }, "more than the file holds");
    refuse_tensor("a repeated element", 16, 0, 1, (const int64_t[]){ 1 << 30 }, (const int64_t[]){ 0 }, "missing");
}

/* A whole model whose embedding repeats one row 2^26 times: 4 GB from a few kB. */
static void check_growth(void)
{
    form f = { .dtype = TSAR_F32 };
    static const uint8_t from[] = { '(', 'J', 8, 0, 0, 0, 'J', 16, 0, 0, 0, 't', '(', 'J', 16, 0, 0, 0 };
    pickle.n = 0;
    p_object(&pickle, &f);
    for (size_t i = 0, hits = 0; i + sizeof from < pickle.n; i++)
        if (memcmp(pickle.bytes + i, from, sizeof from) == 0) { /* tok_embeddings, w1, w3, output: [8, 16] with strides [16, 1] */
            if (hits == 0 || hits == 3) pickle.bytes[i + 2] = 0, pickle.bytes[i + 5] = 4, pickle.bytes[i + 14] = 0;
            hits++;
        }
    zip_model(&f, 0);
    refuse("growth", &archive, "beyond belief");
}

/* The model file `from` with keys and merges of its own, to `to`. */
static tsar_status write_noted(const char *from, const char *to, const int64_t *merges, size_t n, tsar_error *err)
{
    const size_t shape[2] = { n, 2 };
    const tsar_tensor *next;
    tsar_file *file = NULL;
    tsar_writer *writer = NULL;
    tsar_status status = tsar_file_open(&file, from, err);
    if (status == TSAR_OK) status = tsar_writer_open(&writer, to, err);
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_meta_count(file); i++) {
        const char *key, *value;
        tsar_file_meta_at(file, i, &key, &value);
        status = tsar_writer_meta(writer, key, value, err);
    }
    if (status == TSAR_OK) status = tsar_writer_meta(writer, "known_words", "a red ring", err);
    if (status == TSAR_OK) status = tsar_writer_meta(writer, "note", "mine", err);
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_count(file); i++) {
        const tsar_tensor *t = tsar_file_at(file, i);
        status = tsar_writer_declare(writer, t->name, t->dtype, t->rank, t->shape, err);
    }
    if (status == TSAR_OK) status = tsar_writer_declare(writer, "tokenizer.merges", TSAR_I64, 2, shape, err);
    while (status == TSAR_OK && (next = tsar_writer_next(writer)) != NULL) {
        const tsar_tensor *t = tsar_file_find(file, next->name);
        status = t ? tsar_writer_copy(writer, file, t, err) : tsar_writer_put(writer, merges, 2 * n, err);
    }
    if (status == TSAR_OK)
        status = tsar_writer_commit(writer, err);
    else
        tsar_writer_abandon(writer);
    tsar_file_close(file);
    return status;
}

/* What a model file says beside its configuration comes through; merges that no model could be opened with do not. */
static void check_notes(void)
{
    static const int64_t merges[] = { 100, 101, 259, 102, 103, 104 };
    static const char shuffle[] =
        "arch=token-shuffle dim=8 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=1d codebook_size=8 grid_h=2 grid_w=2 "
        "shuffle=1 seed=3 text_vocab=261";
    static const char c2i[] = "arch=llamagen-c2i dim=8 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=8 grid_h=2 grid_w=2 "
                              "cond_tokens=1 num_classes=2 seed=3";
    static const struct {
        const char *keys;
        size_t merges;
        const char *refused;
    } cases[] = { { shuffle, 2, NULL }, { shuffle, 3, "3 merges" }, { c2i, 2, "token-shuffle only" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_settings s;
        tsar_error err = { "" };
        tsar_file *file = NULL;
        int64_t back[4] = { 0 };
        test_split(&s, cases[i].keys);
        remove(MODEL);
        tsar_status status = tsar_synth(TMP "synth", s.keys, s.values, s.n, TSAR_F32, &err);
        if (status == TSAR_OK) status = write_noted(TMP "synth", INPUT, merges, cases[i].merges, &err);
        CHECK(status == TSAR_OK, "%s", err.text);
        status = import_file(INPUT, "", &err);
        if (cases[i].refused) {
            CHECK(status == TSAR_INPUT && strstr(err.text, cases[i].refused) && tsar_file_open(&file, MODEL, NULL) == TSAR_INPUT, "merges, case %zu: %s", i,
                  err.text);
            continue;
        }
        if (!CHECK(status == TSAR_OK && tsar_file_open(&file, MODEL, &err) == TSAR_OK, "%s", err.text)) continue;
        const char *words = tsar_file_meta(file, "known_words"), *mine = tsar_file_meta(file, "note");
        const tsar_tensor *t = tsar_file_find(file, "tokenizer.merges");
        CHECK(words && mine && strcmp(words, "a red ring") == 0 && strcmp(mine, "mine") == 0, "notes of a model file");
        CHECK(t && t->count == 4 && tsar_file_read_i64(file, t, 0, 4, back, &err) == TSAR_OK && memcmp(back, merges, sizeof back) == 0,
              "merges of a model file");
        tsar_file_close(file);
    }
}

/* Cut at every byte, and with bytes changed at random: an error or a model, never anything else. */
static void check_damage(int legacy)
{
    form f = { .dtype = TSAR_F32, .legacy = legacy, .under = "model", .extras = 1 };
    buffer *file = legacy ? &pickle : &archive;
    static buffer whole;
    tsar_error err;
    size_t bad = 0, clean = 0;
    write_form(&f, 0, INPUT);
    whole = *file;
    for (size_t n = 0; n < whole.n; n += 1 + n / 512) {
        made = whole;
        made.n = n;
        save(&made, INPUT);
        bad += import_file(INPUT, SETTINGS, &err) != TSAR_INPUT || !err.text[0] || strchr(err.text, '\n') != NULL;
    }
    CHECK(bad == 0, "%lu cut files were not refused with a line", (unsigned long)bad);
    uint64_t state = 20240511 + (uint64_t)legacy;
    for (size_t i = 0; i < 1500; i++) {
        made = whole;
        for (int j = 0; j < 3; j++) {
            state = tsar_mix(state + 1);
            size_t at = (size_t)(state >> 8) % (legacy ? 3000 : whole.n);
            made.bytes[j == 0 || at < 3000 ? at : whole.n - 1 - at % 1200] = (uint8_t)state;
        }
        save(&made, INPUT);
        tsar_status status = import_file(INPUT, SETTINGS, &err);
        clean += status == TSAR_OK;
        bad += status != TSAR_OK && ((status != TSAR_INPUT && status != TSAR_USAGE) || !err.text[0] || strchr(err.text, '\n') != NULL);
    }
    CHECK(bad == 0 && clean < 1500, "%lu damaged files were not refused with a line", (unsigned long)bad);
}

int main(int argc, char **argv)
{
    static const char *const left[] = { MODEL, INPUT, TMP "truth", TMP "synth", TMP "shard1", TMP "shard2", TMP "index.json" };
    check_official(argc > 1 ? argv[1] : "tests/checkpoints");
    check_forms();
    check_shards();
    check_questions();
    check_misshapen();
    check_other_archs();
    check_archives();
    check_pickles();
    check_growth();
    check_notes();
    check_damage(0);
    check_damage(1);
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) remove(left[i]);
    return test_end();
}
