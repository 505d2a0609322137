/* test_tokenizers.c - Chameleon's and Emu3's tokenizers against the official code's tensors and bytes; what a sink replaces takes effect;
 * what is rounded for verify. (The bits of all that is LlamaGen's: test_vq.c.) */
#include "../tsar.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const model_path = "test_tokenizers.tmp.safetensors";

/* Every tensor of a run, in order; released together. */
typedef struct {
    size_t n;
    struct {
        char name[64];
        tsar_dtype dtype;
        size_t count;
        void *data;
    } all[96];
} run;

static size_t elements(size_t rank, const size_t *shape)
{
    size_t count = 1;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    return count;
}

static tsar_status keep(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    run *r = context;
    const size_t bytes = elements(rank, shape) * 8;
    (void)err;
    snprintf(r->all[r->n].name, sizeof r->all[r->n].name, "%s", name);
    r->all[r->n].dtype = dtype;
    r->all[r->n].count = elements(rank, shape);
    r->all[r->n].data = malloc(bytes);
    memcpy(r->all[r->n++].data, data, bytes);
    return TSAR_OK;
}

static void release(run *r)
{
    while (r->n > 0) free(r->all[--r->n].data);
}

static tsar_model *open_like(const char *vector, tsar_dtype dtype, size_t threads)
{
    tsar_error err = { "" };
    tsar_model *model = NULL;
    if (test_synth_like(model_path, vector, dtype, &err) != TSAR_OK || tsar_model_open(&model, model_path, TSAR_PART_ALL, threads, &err) != TSAR_OK) {
        CHECK(0, "%s: %s", vector, err.text);
        exit(test_end());
    }
    remove(model_path);
    return model;
}

/* ------------------------------------------------------------------------------------------------------- golden vectors */

/* The tensor `name` of a file as doubles (free), its elements in *count; NULL if there is none. */
static double *golden(tsar_file *file, const char *name, size_t *count)
{
    const tsar_tensor *tensor = tsar_file_find(file, name);
    if (tensor == NULL) return NULL;
    double *values = malloc((size_t)tensor->count * sizeof *values);
    int64_t *integers = malloc((size_t)tensor->count * sizeof *integers);
    tsar_error err = { "" };
    *count = (size_t)tensor->count;
    if (tsar_dtype_is_float(tensor->dtype)) {
        CHECK(tsar_file_read_f64(file, tensor, 0, tensor->count, values, &err) == TSAR_OK, "%s", err.text);
    } else {
        CHECK(tsar_file_read_i64(file, tensor, 0, tensor->count, integers, &err) == TSAR_OK, "%s", err.text);
        for (size_t i = 0; i < *count; i++) values[i] = (double)integers[i];
    }
    free(integers);
    return values;
}

/* Every tensor that the file holds was traced, each element within tolerance * RMS. */
static size_t compare(tsar_file *file, const run *r, double tolerance)
{
    size_t compared = 0;
    for (size_t i = 0; i < r->n; i++) {
        size_t count = 0;
        double *theirs = golden(file, r->all[i].name, &count), square = 0, worst = 0;
        if (!CHECK(theirs != NULL && count == r->all[i].count, "%s: %s is missing or misshapen", tsar_file_path(file), r->all[i].name)) continue;
        for (size_t k = 0; k < count; k++) {
            const double ours = r->all[i].dtype == TSAR_I64 ? (double)((int64_t *)r->all[i].data)[k] : ((double *)r->all[i].data)[k];
            square += theirs[k] * theirs[k];
            worst = fmax(worst, fabs(ours - theirs[k]));
        }
        const double limit = r->all[i].dtype == TSAR_I64 ? 0 : tolerance * sqrt(square / (double)count);
        CHECK(worst <= limit, "%s: %s is %g apart, more than %g", tsar_file_path(file), r->all[i].name, worst, limit);
        compared++;
        free(theirs);
    }
    return compared;
}

static void same_bytes(tsar_file *file, const char *name, const uint8_t *rgb, size_t n)
{
    size_t count = 0, wrong = 0;
    double *theirs = golden(file, name, &count);
    if (CHECK(theirs != NULL && count == n, "%s has no %s", tsar_file_path(file), name))
        for (size_t i = 0; i < n; i++) wrong += rgb[i] != theirs[i];
    CHECK(wrong == 0, "%s: %u of %u bytes of %s differ", tsar_file_path(file), (unsigned)wrong, (unsigned)n, name);
    free(theirs);
}

/* Encode and decode the vector's picture, and decode its other codes where it has them. */
static void check_vector(const char *path, size_t tensors, double tolerance, const char *bytes)
{
    tsar_error err = { "" };
    tsar_file *file = NULL;
    if (!CHECK(tsar_file_open(&file, path, &err) == TSAR_OK, "%s", err.text)) return;
    for (size_t threads = 1; threads <= 3; threads += 2) {
        tsar_model *model = open_like(path, TSAR_F32, threads);
        const size_t *shape = tsar_file_find(file, "input.image")->shape, f = model->config.vq_factor, h = shape[0] / f, w = shape[1] / f;
        size_t n = 0;
        double *image = golden(file, "input.image", &n), *others = golden(file, "decode.codes", &n);
        uint8_t *rgb = malloc(3 * h * f * w * f);
        int64_t *codes = malloc(h * w * sizeof *codes);
        run r = { 0 };
        const tsar_sink sink = { .put = keep, .context = &r };
        for (size_t i = 0; i < 3 * h * f * w * f; i++) rgb[i] = (uint8_t)image[i];
        CHECK(tsar_vq_encode(model, rgb, h * f, w * f, codes, &sink, &err) == TSAR_OK, "%s: %s", path, err.text);
        CHECK(tsar_vq_decode(model, codes, h, w, rgb, &sink, &err) == TSAR_OK, "%s: %s", path, err.text);
        CHECK(compare(file, &r, tolerance) == tensors, "%s: not %u tensors", path, (unsigned)tensors);
        if (tolerance < 1e-9) same_bytes(file, bytes, rgb, 3 * h * f * w * f);
        if (others != NULL && tolerance < 1e-9) {
            for (size_t i = 0; i < h * w; i++) codes[i] = (int64_t)others[i];
            CHECK(tsar_vq_decode(model, codes, h, w, rgb, NULL, &err) == TSAR_OK, "%s: %s", path, err.text);
            same_bytes(file, "decode.bytes", rgb, 3 * h * f * w * f);
        }
        release(&r);
        free(image), free(others), free(rgb), free(codes);
        tsar_model_close(model);
    }
    tsar_file_close(file);
}

static void test_vectors(void)
{
    check_vector("tests/vectors/chameleon_vq_mini.safetensors", 18, 1e-11, "decoded.image");
    check_vector("tests/vectors/chameleon_vq_mini.float32.safetensors", 18, 2e-5, "decoded.image");
    check_vector("tests/vectors/emu3_vq.safetensors", 30, 1e-11, "official.bytes");
    check_vector("tests/vectors/emu3_vq.float32.safetensors", 30, 2e-5, "official.bytes");
    check_vector("tests/vectors/emu3_vq_deep.safetensors", 26, 1e-11, "official.bytes");
}

/* ------------------------------------------------------------------------------------------------------- replaced tensors */

/* Puts the tensors of another run in place of those whose names begin with one of two words; keeps what comes. */
typedef struct {
    const run *other;
    const char *word, *twin;
    run seen;
} replacement;

static int begins(const char *name, const char *word) { return strncmp(name, word, strlen(word)) == 0; }

static tsar_status replace(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    replacement *r = context;
    for (size_t i = 0; i < r->other->n; i++)
        if (strcmp(r->other->all[i].name, name) == 0 && (begins(name, r->word) || begins(name, r->twin)))
            memcpy(data, r->other->all[i].data, elements(rank, shape) * 8);
    return keep(&r->seen, name, dtype, rank, shape, data, err);
}

static void picture(uint8_t *rgb, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) rgb[i] = (uint8_t)(tsar_mix(i + seed) >> 56);
}

/* One run after another tensor: from it on, all is as in the other run, bit for bit, and so are codes and bytes. */
static void test_replacing(const char *vector, size_t h, size_t w)
{
    tsar_model *model = open_like(vector, TSAR_BF16, 1);
    const size_t f = model->config.vq_factor, n = 3 * h * f * w * f;
    uint8_t *rgb = malloc(n), *theirs = malloc(n), *mine = malloc(n);
    int64_t *codes = malloc(h * w * sizeof *codes), *their_codes = malloc(h * w * sizeof *codes);
    tsar_error err = { "" };
    run other = { 0 };
    const tsar_sink keeping = { .put = keep, .context = &other };
    picture(rgb, n, 1), picture(theirs, n, 7000);
    CHECK(tsar_vq_encode(model, theirs, h * f, w * f, their_codes, &keeping, &err) == TSAR_OK, "%s", err.text);
    CHECK(tsar_vq_decode(model, their_codes, h, w, theirs, &keeping, &err) == TSAR_OK, "%s", err.text);
    for (size_t i = 0; i < other.n; i++) {
        char word[64], twin[96];
        snprintf(word, sizeof word, "%s", other.all[i].name);
        snprintf(twin, sizeof twin, "%s", word);
        if (begins(word, "vq.decoder.guide")) continue;
        if (begins(word, "vq.decoder.time")) snprintf(twin, sizeof twin, "vq.decoder.guide%s", word + strlen("vq.decoder.time"));
        if (begins(word, "vq.decoder.post_quant")) snprintf(twin, sizeof twin, "vq.quantized"); /* the guide is the codeword */
        if (begins(word, "vq.decoder.conv_in") || begins(word, "vq.decoder.mid") || begins(word, "vq.decoder.block"))
            snprintf(twin, sizeof twin, "vq.decoder.guide_");
        replacement r = { .other = &other, .word = word, .twin = twin };
        const tsar_sink replacing = { .put = replace, .context = &r };
        CHECK(tsar_vq_encode(model, rgb, h * f, w * f, codes, &replacing, &err) == TSAR_OK, "%s", err.text);
        CHECK(tsar_vq_decode(model, codes, h, w, mine, &replacing, &err) == TSAR_OK, "%s", err.text);
        size_t wrong = 0;
        for (size_t k = i; k < other.n; k++) wrong += memcmp(r.seen.all[k].data, other.all[k].data, other.all[k].count * 8) != 0;
        CHECK(wrong == 0, "%s replaced: %u tensors behind it are not the other run's", word, (unsigned)wrong);
        CHECK(memcmp(mine, theirs, n) == 0, "%s replaced: bytes are not the other run's", word);
        CHECK(begins(word, "vq.quantized") || begins(word, "vq.decoder") || memcmp(codes, their_codes, h * w * sizeof *codes) == 0, "%s replaced: codes", word);
        CHECK(i == 0 || memcmp(r.seen.all[0].data, other.all[0].data, other.all[0].count * 8) != 0, "%s: both runs are the same", word);
        release(&r.seen);
    }
    release(&other);
    free(rgb), free(theirs), free(mine), free(codes), free(their_codes);
    tsar_model_close(model);
}

/* The official byte rule, number by number, in place of vq.decoder.conv_out. */
typedef struct {
    const double *x;
    size_t n;
} numbers;

static tsar_status give_numbers(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    const numbers *given = context;
    (void)dtype, (void)err;
    if (strcmp(name, "vq.decoder.conv_out") == 0) memcpy(data, given->x, elements(rank, shape) * sizeof *given->x);
    return TSAR_OK;
}

static void test_pixels(void)
{
    tsar_error err = { "" };
    tsar_file *file = NULL;
    tsar_model *model = open_like("tests/vectors/chameleon_vq_mini.safetensors", TSAR_F32, 1);
    size_t n = 0, wrong = 0, P = 8 * 12;
    if (!CHECK(tsar_file_open(&file, "tests/vectors/chameleon_pixels.safetensors", &err) == TSAR_OK, "%s", err.text)) return;
    double *x = golden(file, "x", &n), *bytes = golden(file, "byte", &n), special[8 * 12 * 3] = { NAN, INFINITY, -INFINITY, 1e300, -1e300 };
    static const int special_bytes[5] = { 0, 255, 0, 255, 0 };
    const int64_t codes[4 * 6] = { 0 };
    uint8_t rgb[8 * 12 * 3];
    for (size_t first = 0; first + 3 * P <= n; first += 3 * P) {
        numbers given = { x + first, 3 * P };
        const tsar_sink sink = { .put = give_numbers, .context = &given };
        CHECK(tsar_vq_decode(model, codes, 4, 6, rgb, &sink, &err) == TSAR_OK, "%s", err.text);
        for (size_t i = 0; i < 3 * P; i++) wrong += rgb[3 * (i % P) + i / P] != bytes[first + i];
    }
    CHECK(n == 9 * P && wrong == 0, "%u of %u numbers become other bytes", (unsigned)wrong, (unsigned)n);
    numbers given = { special, 3 * P };
    const tsar_sink sink = { .put = give_numbers, .context = &given };
    CHECK(tsar_vq_decode(model, codes, 4, 6, rgb, &sink, &err) == TSAR_OK, "%s", err.text);
    for (size_t i = 0; i < 5; i++) CHECK(rgb[3 * i] == special_bytes[i], "%g becomes %d", special[i], rgb[3 * i]);
    free(x), free(bytes);
    tsar_file_close(file);
    tsar_model_close(model);
}

/* ------------------------------------------------------------------------------------------------- convolutions in time */

/* weight[r][k] of a packed convolution. */
static double weight_of(const tsar_conv *conv, size_t r, size_t k)
{
    double value;
    tsar_matrix_part(&value, 1, &conv->weight, r, 1, k, 1);
    return value;
}

/* One output of a kernel [taps][3][3] over frames [in][F][H][W], frame 2 t - 2 ... 2 t + 1, zeros outside, from the bias on. */
static double time_sum(const tsar_conv *conv, const double *x, size_t F, size_t H, size_t W, size_t r, size_t t, size_t row, size_t column)
{
    double sum = conv->bias[r];
    for (size_t k = 0; k < conv->in * 4 * 9; k++) {
        const size_t c = k / 36, tap = k / 9 % 4, y = row + k / 3 % 3, z = column + k % 3; /* one more than in the picture */
        if (2 * t + tap < 2 || y < 1 || y > H || z < 1 || z > W) continue;
        sum += weight_of(conv, r, k) * x[((c * F + 2 * t + tap - 2) * H + y - 1) * W + z - 1];
    }
    return sum;
}

/* vq_temporal equal frames, halved until there is one: each time_conv, bit for bit, from the one before it. */
static void test_time(const char *temporal, size_t steps)
{
    char settings[400];
    tsar_error err = { "" };
    tsar_model *model = NULL;
    enum { H = 6, W = 10, h = 3, w = 5, z = 5 };
    uint8_t rgb[3 * H * W];
    int64_t codes[h * w];
    run r = { 0 };
    const tsar_sink sink = { .put = keep, .context = &r };
    snprintf(settings, sizeof settings,
             "codebook_size=20 vq_ch=4 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=5 vq_embed_dim=5 vq_l2_norm=0 vq_groups=2 vq_pixels=down "
             "vq_temporal=%s seed=3",
             temporal);
    if (!CHECK(test_synthesise(&model, model_path, settings, TSAR_F16, 1, &err) == TSAR_OK, "%s", err.text)) return;
    picture(rgb, sizeof rgb, 5);
    CHECK(tsar_vq_encode(model, rgb, H, W, codes, &sink, &err) == TSAR_OK, "%s", err.text);
    size_t at = 0, wrong = 0, found = 0;
    while (at < r.n && strcmp(r.all[at].name, "vq.encoder.conv_out") != 0) at++;
    for (size_t i = 0, F = (size_t)1 << steps; i < steps; i++, F /= 2) {
        double *x = malloc(z * F * h * w * sizeof *x);
        const double *before = r.all[at + i].data, *after = r.all[at + i + 1].data;
        for (size_t k = 0; k < z * F * h * w; k++) x[k] = i == 0 ? before[k / (F * h * w) * h * w + k % (h * w)] : before[k];
        found += r.all[at + i + 1].count == z * F / 2 * h * w;
        for (size_t k = 0; k < z * F / 2 * h * w; k++) {
            double sum = time_sum(&model->vq.encoder.time_conv[i], x, F, h, w, k / (F / 2 * h * w), k / (h * w) % (F / 2), k / w % h, k % w);
            tsar_silu_n(&sum, 1);
            wrong += sum != after[k];
        }
        free(x);
    }
    CHECK(found == steps && wrong == 0, "vq_temporal=%s: %u numbers are not the loops'", temporal, (unsigned)wrong);
    CHECK(tsar_vq_decode(model, codes, h, w, rgb, NULL, &err) == TSAR_OK, "%s", err.text);
    release(&r);
    tsar_model_close(model);
}

/* ------------------------------------------------------------------------------------------------------------- rounding */

static size_t not_of(tsar_dtype dtype, const run *r)
{
    size_t wrong = 0;
    for (size_t i = 0; i < r->n; i++)
        for (size_t k = 0; k < r->all[i].count && r->all[i].dtype == TSAR_F64; k++) {
            const double x = ((double *)r->all[i].data)[k];
            const float f = (float)x;
            const double rounded = dtype == TSAR_BF16 ? tsar_widen_bf16(tsar_round_bf16(f)) : dtype == TSAR_F16 ? tsar_widen_f16(tsar_round_f16(f)) : f;
            wrong += rounded != x;
        }
    return wrong;
}

/* With a precision every tensor holds numbers of it, near to those without one. */
static void test_precision(const char *vector, size_t h, size_t w)
{
    static const tsar_dtype dtypes[3] = { TSAR_F32, TSAR_F16, TSAR_BF16 };
    static const double near[3] = { 1e-5, 2e-2, 2e-1 };
    tsar_model *model = open_like(vector, TSAR_BF16, 1);
    const size_t f = model->config.vq_factor, n = 3 * h * f * w * f;
    uint8_t *rgb = malloc(n);
    int64_t *codes = malloc(h * w * sizeof *codes), *exact_codes = malloc(h * w * sizeof *codes);
    tsar_error err = { "" };
    run exact = { 0 };
    tsar_sink sink = { .put = keep, .context = &exact };
    picture(rgb, n, 3);
    CHECK(tsar_vq_encode(model, rgb, h * f, w * f, exact_codes, &sink, &err) == TSAR_OK, "%s", err.text);
    CHECK(tsar_vq_decode(model, exact_codes, h, w, NULL, &sink, &err) == TSAR_OK, "%s", err.text);
    for (size_t d = 0; d < 3; d++) {
        run r = { 0 };
        sink.context = &r;
        model->precision = dtypes[d];
        CHECK(tsar_vq_encode(model, rgb, h * f, w * f, codes, &sink, &err) == TSAR_OK, "%s", err.text);
        CHECK(tsar_vq_decode(model, exact_codes, h, w, NULL, &sink, &err) == TSAR_OK, "%s", err.text);
        CHECK(not_of(dtypes[d], &r) == 0, "%s: %u numbers are no %s", vector, (unsigned)not_of(dtypes[d], &r), tsar_dtype_name(dtypes[d]));
        for (size_t i = 0; i < r.n; i++) {
            double square = 0, gap = 0;
            for (size_t k = 0; k < r.all[i].count && r.all[i].dtype == TSAR_F64; k++) {
                const double x = ((double *)exact.all[i].data)[k], e = ((double *)r.all[i].data)[k] - x;
                square += x * x, gap += e * e;
            }
            CHECK(sqrt(gap) <= near[d] * sqrt(square), "%s in %s is %g off", r.all[i].name, tsar_dtype_name(dtypes[d]), sqrt(gap / square));
        }
        release(&r);
    }
    release(&exact);
    free(rgb), free(codes), free(exact_codes);
    tsar_model_close(model);
}

int main(void)
{
    test_vectors();
    test_pixels();
    test_replacing("tests/vectors/vq_mini.safetensors", 3, 2);
    test_replacing("tests/vectors/emu3_vq.safetensors", 2, 3);
    test_time("1", 0);
    test_time("2", 1);
    test_time("8", 3);
    test_precision("tests/vectors/vq_mini.safetensors", 3, 2);
    test_precision("tests/vectors/emu3_vq.safetensors", 2, 3);
    return test_end();
}
