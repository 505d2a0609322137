/* test_verify.c - trace and verify: the golden vectors, and damage of every kind, each reported under the name of the right tensor. */
#include "../tsar.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const model_path = "test_verify.model.tmp", *const trace_path = "test_verify.trace.tmp", *const damaged_path = "test_verify.damaged.tmp",
                         *const twins_path = "test_verify.twins.tmp";

/* ------------------------------------------------------------------------------------------------- what verify reports */

typedef struct {
    size_t counts[TSAR_VERDICTS], compared, ignored; /* by verdict */
    char first[128], last_bad[128], words[256];      /* words of the first */
    double worst, margin;                            /* largest error; margin of a near-tie */
    tsar_status status;
    tsar_error err;
} outcome;

static tsar_status record(void *context, const tsar_comparison *r, tsar_error *err)
{
    outcome *o = context;
    char text[1024];
    (void)err;
    o->counts[r->verdict]++;
    if (r->max > o->worst) o->worst = r->max;
    if (r->first) CHECK(o->first[0] == 0, "a second tensor is marked as the first: %s", r->name), snprintf(o->first, sizeof o->first, "%s", r->name);
    if (r->first) memcpy(o->words, r->words, sizeof o->words);
    if (r->verdict != TSAR_SAME && r->verdict != TSAR_IDENTICAL) snprintf(o->last_bad, sizeof o->last_bad, "%s", r->name);
    if (r->verdict == TSAR_NEAR_TIE) o->margin = r->margin;
    tsar_comparison_json(text, sizeof text, r);
    CHECK(!strstr(text, "inf") && !strstr(text, "nan"), "%s is no JSON: %s", r->name, text);
    tsar_comparison_text(text, 40, r);
    CHECK(strlen(text) < 40, "text of %s is cut to its size", r->name);
    return TSAR_OK;
}

static outcome verify_as(const tsar_model *model, const char *path, const tsar_verify_options *options)
{
    outcome o = { .status = TSAR_OK };
    tsar_verify_counts counts;
    o.status = tsar_verify(model, path, options, record, &o, &counts, &o.err);
    o.compared = counts.compared, o.ignored = counts.ignored;
    return o;
}

static outcome verify(const tsar_model *model, const char *path, double rtol)
{
    const tsar_verify_options options = { .rtol = rtol, .precision = TSAR_DTYPES };
    return verify_as(model, path, &options);
}

/* ------------------------------------------------------------------------------------------------------- golden vectors */

static void test_vectors(void)
{
    static const struct {
        const char *name;
        size_t tensors;
        double rtol;
    } vectors[] = { /* tensors of the whole trace */
                    { "c2i", 7, 1e-11 },          { "c2i_odd", 8, 1e-11 },     { "t2i", 8, 1e-11 },
                    { "shuffle_s1", 7, 1e-11 },   { "shuffle_s2", 14, 1e-11 }, { "shuffle_s4_gqa", 15, 1e-11 },
                    { "vq_mini", 19, 1e-11 },     { "vq_f8", 23, 1e-11 },      { "vq_f16", 25, 1e-11 },
                    { "fine", 7, 1e-11 },         { "c2i.float32", 7, -1 },    { "t2i.float32", 8, -1 },
                    { "vq_mini.float32", 19, -1 }
    };
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        char path[128];
        tsar_error err = { "" };
        tsar_model *model = NULL;
        snprintf(path, sizeof path, "tests/vectors/%s.safetensors", vectors[i].name);
        tsar_status status = test_synth_like(model_path, path, TSAR_F32, &err);
        if (status == TSAR_OK) status = tsar_model_open(&model, model_path, TSAR_PART_ALL, 1, &err);
        if (!CHECK(status == TSAR_OK, "%s: %s", vectors[i].name, err.text)) continue;
        outcome o = verify(model, path, vectors[i].rtol);
        CHECK(o.status == TSAR_OK, "%s: status %d, first %s, %s", vectors[i].name, o.status, o.first, o.err.text);
        CHECK(o.compared + o.counts[TSAR_MISSING] == vectors[i].tensors && o.counts[TSAR_SAME] + o.counts[TSAR_IDENTICAL] == o.compared,
              "%s: %zu tensors compared, %zu missing", vectors[i].name, o.compared, o.counts[TSAR_MISSING]);
        tsar_model_close(model);
    }
}

/* Every family and part, in F64 and as the official code gives them in float32, by the rule. */
static void test_families(void)
{
    static const char *const names[] = {
        "emu3",       "emu3.float32", "emu3_wide",          "emu3_vq", "emu3_vq.float32", "chameleon_vq_mini", "chameleon_vq_mini.float32", "janus",
        "lumina_gqa", "lumina_mha",   "lumina_mha.float32", "t5",      "t5.float32",      "t5_buckets"
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[128];
        tsar_error err = { "" };
        tsar_model *model = NULL;
        snprintf(path, sizeof path, "tests/vectors/%s.safetensors", names[i]);
        tsar_status status = test_synth_like(model_path, path, TSAR_F32, &err);
        if (status == TSAR_OK) status = tsar_model_open(&model, model_path, TSAR_PART_ALL, 1, &err);
        if (!CHECK(status == TSAR_OK, "%s: %s", names[i], err.text)) continue;
        const outcome o = verify(model, path, -1);
        CHECK(o.status == TSAR_OK && o.compared > 5, "%s: status %d, %zu compared, first %s, %s", names[i], o.status, o.compared, o.first, o.err.text);
        tsar_model_close(model);
    }
}

/* --------------------------------------------------------------------------------------------------------------- damage */

typedef struct {
    tsar_values values[64];
    char names[64][64];
    size_t n;
} trace;

static tsar_values *find(trace *t, const char *name)
{
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->values[i].name, name) == 0) return &t->values[i];
    printf("FAILED: the trace has no %s\n", name);
    exit(1);
}

static size_t count_of(const tsar_values *v)
{
    size_t count = 1;
    for (size_t i = 0; i < v->rank; i++) count *= v->shape[i];
    return count;
}

static double *reals(trace *t, const char *name) { return (double *)find(t, name)->data; }

static void load(trace *t)
{
    tsar_error err = { "" };
    tsar_file *file = NULL;
    t->n = 0;
    if (tsar_file_open(&file, trace_path, &err) != TSAR_OK) exit(1);
    for (size_t i = 0; i < tsar_file_count(file); i++, t->n++) {
        const tsar_tensor *tensor = tsar_file_at(file, i);
        tsar_values *v = &t->values[i];
        void *data = tsar_alloc((size_t)tensor->count, tsar_dtype_size(tensor->dtype), "a tensor", &err);
        if (!data || tsar_file_read(file, tensor, 0, tensor->count, data, &err) != TSAR_OK) exit(1);
        snprintf(t->names[i], sizeof t->names[i], "%s", tensor->name);
        v->name = t->names[i], v->dtype = tensor->dtype, v->rank = tensor->rank, v->data = data;
        memcpy(v->shape, tensor->shape, sizeof v->shape);
    }
    tsar_file_close(file);
}

static void add(trace *t, const char *name, size_t length)
{
    tsar_values *v = &t->values[t->n];
    snprintf(t->names[t->n], sizeof t->names[t->n], "%s", name);
    v->name = t->names[t->n], v->dtype = TSAR_F64, v->rank = 1, v->shape[0] = length;
    v->data = tsar_alloc(length, sizeof(double), name, NULL);
    t->n++;
}

static void drop(trace *t, const char *name)
{
    tsar_values *v = find(t, name);
    tsar_free((void *)v->data);
    v->data = NULL;
}

static void to_f32(tsar_values *v)
{
    float *narrow = tsar_alloc(count_of(v), sizeof *narrow, "a tensor", NULL);
    for (size_t i = 0; i < count_of(v); i++) narrow[i] = (float)((const double *)v->data)[i];
    tsar_free((void *)v->data);
    v->data = narrow, v->dtype = TSAR_F32;
}

/* Writes the trace, verifies it, releases it. */
static outcome judge(trace *t, const tsar_model *model, double rtol)
{
    tsar_error err = { "" };
    tsar_writer *writer = NULL;
    tsar_status status = tsar_writer_open(&writer, damaged_path, &err);
    if (status == TSAR_OK) status = tsar_writer_meta(writer, "vq_file", "absent.safetensors", &err); /* as copied from the model: a trace borrows nothing */
    if (status == TSAR_OK) status = tsar_values_write(writer, t->values, t->n, &err);
    CHECK(status == TSAR_OK, "damaged file: %s", err.text);
    for (size_t i = 0; i < t->n; i++) tsar_free((void *)t->values[i].data);
    return verify(model, damaged_path, rtol);
}

static double rms(const tsar_values *v)
{
    double sum = 0;
    for (size_t i = 0; i < count_of(v); i++) sum += ((const double *)v->data)[i] * ((const double *)v->data)[i];
    return sqrt(sum / (double)count_of(v));
}

static tsar_status put_back(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    tsar_values *v = find(context, name);
    (void)rank, (void)shape, (void)err;
    memcpy((void *)v->data, data, count_of(v) * tsar_dtype_size(dtype));
    return TSAR_OK;
}

/* A value that was changed where it was written alone is wrong where it stands, and what the run went on with is no longer what follows from it. */
enum { NEXT_TOO = 2 };

static void test_values(const tsar_model *model)
{
    static const char *const names[] = { "gpt.embed",        "gpt.shuffle.block.0", "gpt.unshuffle.expand", "gpt.logits",
                                         "vq.encoder.mid.1", "vq.latent",           "vq.decoder.conv_out" };
    trace t;
    outcome o = verify(model, trace_path, -1);
    CHECK(o.status == TSAR_OK && o.worst == 0 && o.counts[TSAR_MISSING] == 0 && o.ignored == 0, "own trace: status %d, error %g %s", o.status, o.worst,
          o.err.text);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        load(&t);
        tsar_values *v = find(&t, names[i]);
        reals(&t, names[i])[count_of(v) / 2] += 1e-9 * rms(v);
        o = judge(&t, model, -1);
        CHECK(o.status == TSAR_DIFFERENT && o.counts[TSAR_DIFFERS] <= NEXT_TOO && strcmp(o.first, names[i]) == 0, "1e-9 of the RMS in %s: first %s", names[i],
              o.first);
        load(&t);
        reals(&t, names[i])[0] = i % 2 ? NAN : INFINITY;
        o = judge(&t, model, -1);
        CHECK(o.status == TSAR_DIFFERENT && strcmp(o.first, names[i]) == 0 && o.worst == INFINITY, "NaN or infinity in %s: first %s", names[i], o.first);
    }
    load(&t);
    reals(&t, "gpt.norm")[3] += 1;
    reals(&t, "gpt.block.0")[5] += 1;
    reals(&t, "vq.latent")[7] += 1;
    o = judge(&t, model, -1);
    CHECK(o.counts[TSAR_DIFFERS] == 5 && strcmp(o.first, "gpt.block.0") == 0, "three tensors: %zu differ, first %s", o.counts[TSAR_DIFFERS], o.first);
    load(&t);
    for (size_t i = 0; i < t.n; i++)
        if (t.values[i].dtype == TSAR_F64) to_f32(&t.values[i]);
    o = judge(&t, model, -1);
    CHECK(o.status == TSAR_OK && o.worst > 0, "the trace in F32: %d, first %s", o.status, o.first);
    load(&t);
    to_f32(find(&t, "gpt.logits"));
    o = judge(&t, model, 1e-12);
    CHECK(o.status == TSAR_DIFFERENT && strcmp(o.first, "gpt.logits") == 0, "rtol holds for F32, too: %s", o.first);
}

/* The first divergence is the first in the order of computation, whatever the order of names. */
static void test_order(const tsar_model *model)
{
    static const char *const pairs[][2] = { { "gpt.embed", "gpt.block.0" },
                                            { "gpt.unshuffle.expand", "gpt.norm" },
                                            { "vq.encoder.conv_in", "vq.encoder.block.0" },
                                            { "vq.quantized", "vq.decoder.conv_in" } };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        trace t;
        load(&t);
        reals(&t, pairs[i][0])[0] += 1;
        reals(&t, pairs[i][1])[0] += 1;
        const outcome o = judge(&t, model, -1);
        CHECK(o.counts[TSAR_DIFFERS] >= 2 && strcmp(o.first, pairs[i][0]) == 0, "%s is computed before %s: first %s", pairs[i][0], pairs[i][1], o.first);
    }
}

/* Every tensor of one part as numbers of a narrower type, stored in it or in F64. */
static void narrow(trace *t, const char *prefix, tsar_dtype dtype, int stored)
{
    for (size_t i = 0; i < t->n; i++) {
        tsar_values *v = &t->values[i];
        if (v->dtype != TSAR_F64 || strncmp(v->name, prefix, strlen(prefix)) != 0) continue;
        const size_t count = count_of(v);
        double *x = (double *)v->data;
        void *out = tsar_alloc(count, tsar_dtype_size(dtype), "a tensor", NULL);
        for (size_t k = 0; k < count; k++) {
            const float f = (float)x[k];
            const uint16_t half = dtype == TSAR_F16 ? tsar_round_f16(f) : tsar_round_bf16(f);
            if (dtype == TSAR_F32) ((float *)out)[k] = f, x[k] = (double)f;
            if (dtype != TSAR_F32) ((uint16_t *)out)[k] = half, x[k] = dtype == TSAR_F16 ? tsar_widen_f16(half) : tsar_widen_bf16(half);
        }
        if (stored) {
            tsar_free(x);
            v->data = out, v->dtype = dtype;
        } else {
            tsar_free(out);
        }
    }
}

/* The file's numbers tell its precision, part by part, however they are stored. Rounded at the traced tensors alone they pass, and a value that is
 * off by much more than the precision does not. */
static void test_precisions(const tsar_model *model)
{
    static const struct {
        tsar_dtype dtype;
        double off; /* of the RMS */
    } types[] = { { TSAR_F32, 1e-5 }, { TSAR_F16, 5e-2 }, { TSAR_BF16, 5e-1 } };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        for (int stored = 0; stored < 2; stored++)
            for (int off = 0; off < 2; off++) {
                trace t;
                load(&t);
                tsar_values *v = find(&t, "gpt.unshuffle.expand");
                if (off) reals(&t, "gpt.unshuffle.expand")[7] += types[i].off * rms(v);
                narrow(&t, "gpt.", types[i].dtype, stored);
                const outcome o = judge(&t, model, -1);
                CHECK(o.status == (off ? TSAR_DIFFERENT : TSAR_OK) && (!off || strcmp(o.first, "gpt.unshuffle.expand") == 0),
                      "%s%s, %g off: status %d, first %s", tsar_dtype_name(types[i].dtype), stored ? "" : " in F64", off ? types[i].off : 0, o.status, o.first);
            }
}

/* A file in F32 that is as exact as F32 can be is judged so unless --precision says otherwise; and near-ties count only where they are to. */
static void test_options(const tsar_model *model)
{
    trace t;
    load(&t);
    reals(&t, "gpt.logits")[5] += 2e-2 * rms(find(&t, "gpt.logits"));
    narrow(&t, "gpt.", TSAR_F32, 1);
    tsar_verify_options options = { .rtol = -1, .precision = TSAR_DTYPES };
    outcome o = judge(&t, model, -1);
    CHECK(o.status == TSAR_DIFFERENT && strcmp(o.first, "gpt.logits") == 0, "2e-2 of the RMS in F32: %d", o.status);
    options.precision = TSAR_BF16;
    o = verify_as(model, damaged_path, &options);
    CHECK(o.status == TSAR_OK, "2e-2 of the RMS in F32 that was computed in BF16: %d, first %s", o.status, o.first);
}

/* A wrong shape is told as such, and what is wrong with it where the values tell it. */
static void test_shapes(const tsar_model *model)
{
    trace t;
    outcome o;
    load(&t);
    tsar_values *v = find(&t, "gpt.block.0");
    v->rank = 3, v->shape[2] = v->shape[1], v->shape[1] = v->shape[0], v->shape[0] = 1;
    o = judge(&t, model, -1);
    CHECK(o.counts[TSAR_MISSHAPEN] == 1 && o.counts[TSAR_DIFFERS] == 0 && strstr(o.words, "batch axis"), "a batch axis: %s", o.words);
    load(&t);
    v = find(&t, "gpt.block.0");
    const size_t rows = v->shape[0], columns = v->shape[1];
    double *turned = tsar_alloc(rows, columns * sizeof *turned, "a tensor", NULL);
    for (size_t i = 0; i < rows * columns; i++) turned[i % columns * rows + i / columns] = ((const double *)v->data)[i];
    tsar_free((void *)v->data);
    v->data = turned, v->shape[0] = columns, v->shape[1] = rows;
    o = judge(&t, model, -1);
    CHECK(o.counts[TSAR_MISSHAPEN] == 1 && strstr(o.words, "transposed"), "transposed: %s", o.words);
    load(&t);
    v = find(&t, "gpt.block.0");
    v->shape[0] = columns, v->shape[1] = rows;
    o = judge(&t, model, -1);
    CHECK(o.counts[TSAR_MISSHAPEN] == 1 && !strstr(o.words, "transposed") && strstr(o.words, "reshape"), "not transposed: %s", o.words);
}

static void test_names(const tsar_model *model)
{
    static const char *const names[][2] = { { "block.0", "gpt.block.0" }, { "decoder.mid.1", "vq.decoder.mid.1" }, { "gpt.blocks.0", "gpt.block.0" } };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        trace t;
        load(&t);
        tsar_values *v = find(&t, names[i][1]);
        v->name = names[i][0];
        const outcome o = judge(&t, model, -1);
        CHECK(o.status == TSAR_DIFFERENT && o.counts[TSAR_UNKNOWN] == 1 && strcmp(o.first, names[i][0]) == 0 && strstr(o.words, names[i][1]),
              "%s: first %s, %s", names[i][0], o.first, o.words);
    }
}

static void test_structure(const tsar_model *model)
{
    trace t;
    outcome o;
    load(&t);
    drop(&t, "gpt.block.0");
    o = judge(&t, model, -1);
    CHECK(o.status == TSAR_OK && o.counts[TSAR_MISSING] == 1 && strcmp(o.last_bad, "gpt.block.0") == 0, "missing: %s", o.last_bad);
    load(&t);
    add(&t, "gpt.extra", 5);
    add(&t, "greedy.codes", 5);
    o = judge(&t, model, -1);
    CHECK(o.status == TSAR_DIFFERENT && o.counts[TSAR_UNKNOWN] == 1 && o.ignored == 1 && strcmp(o.first, "gpt.extra") == 0, "unknown: %s, %zu ignored", o.first,
          o.ignored);
    load(&t);
    add(&t, "gpt.alpha", 5);
    add(&t, "vq.beta", 5);
    reals(&t, "vq.latent")[7] += 1;
    o = judge(&t, model, -1);
    CHECK(o.counts[TSAR_UNKNOWN] == 2 && strcmp(o.first, "vq.latent") == 0, "unknown behind a difference: first %s", o.first);
    load(&t);
    find(&t, "gpt.norm")->shape[0] /= 2, find(&t, "gpt.norm")->shape[1] *= 2;
    o = judge(&t, model, -1);
    CHECK(o.status == TSAR_DIFFERENT && o.counts[TSAR_MISSHAPEN] == 1 && strcmp(o.first, "gpt.norm") == 0, "misshapen: %s", o.first);
    load(&t);
    find(&t, "gpt.logits")->dtype = TSAR_I64;
    o = judge(&t, model, -1);
    CHECK(o.status == TSAR_DIFFERENT && o.counts[TSAR_MISSHAPEN] == 1 && strcmp(o.first, "gpt.logits") == 0, "integers: %s", o.first);
    static const char *const inputs[] = { "input.text", "input.codes" };
    for (size_t i = 0; i < 2; i++) {
        load(&t);
        drop(&t, inputs[i]);
        o = judge(&t, model, -1);
        CHECK(o.status == TSAR_INPUT && strstr(o.err.text, inputs[i]), "without %s: %s", inputs[i], o.err.text);
        load(&t);
        ((int64_t *)find(&t, inputs[i])->data)[1] = 1000000;
        o = judge(&t, model, -1);
        CHECK(o.status == TSAR_INPUT && strstr(o.err.text, "1000000"), "%s out of range: %s", inputs[i], o.err.text);
        load(&t);
        find(&t, inputs[i])->dtype = TSAR_F64;
        o = judge(&t, model, -1);
        CHECK(o.status == TSAR_INPUT && strstr(o.err.text, inputs[i]), "%s in F64: %s", inputs[i], o.err.text);
    }
    load(&t);
    for (size_t i = 0; i < t.n; i++)
        if (strncmp(t.values[i].name, "input.", 6) != 0) drop(&t, t.values[i].name);
    o = judge(&t, model, -1);
    CHECK(o.status == TSAR_INPUT, "inputs alone: %d %s", o.status, o.err.text);
}

/* One code of an image exchanged, and the decoder's tensors made from the new codes: an error at the usual tolerance, and a near-tie
 * where the tolerance on the latent is so wide that it decides nothing. Then everything behind it agrees. */
static void test_codes(const tsar_model *model)
{
    trace t;
    outcome o;
    load(&t);
    int64_t *codes = (int64_t *)find(&t, "vq.codes")->data, swap = codes[0];
    size_t other = 1;
    while (codes[other] == codes[0]) other++;
    codes[0] = codes[other], codes[other] = swap;
    o = judge(&t, model, -1);
    CHECK(o.status == TSAR_DIFFERENT && o.counts[TSAR_DIFFERS] == NEXT_TOO && strcmp(o.first, "vq.codes") == 0, "swapped codes: first %s", o.first);
    for (int wide = 0; wide < 2; wide++) {
        load(&t);
        codes = (int64_t *)find(&t, "vq.codes")->data;
        codes[2] = (codes[2] + 1) % (int64_t)model->config.codebook_size;
        const tsar_sink sink = { .put = put_back, .context = &t };
        tsar_error err = { "" };
        tsar_status status = tsar_vq_decode(model, codes, find(&t, "vq.codes")->shape[0], find(&t, "vq.codes")->shape[1], NULL, &sink, &err);
        CHECK(status == TSAR_OK, "decode: %s", err.text);
        o = judge(&t, model, wide ? 0.9 : -1);
        CHECK(wide ? o.status == TSAR_OK : o.status == TSAR_DIFFERENT && strcmp(o.first, "vq.codes") == 0, "another code: %d, first %s", o.status, o.first);
        const tsar_verify_options strict = { .rtol = 0.9, .precision = TSAR_DTYPES, .strict = 1 };
        if (wide) CHECK(verify_as(model, damaged_path, &strict).status == TSAR_DIFFERENT, "near-ties are differences for the strict");
        if (wide)
            CHECK(o.counts[TSAR_NEAR_TIE] == 1 && o.counts[TSAR_DIFFERS] == 0 && o.margin <= 1, "a near-tie: %zu, margin %g", o.counts[TSAR_NEAR_TIE],
                  o.margin);
        else
            CHECK(o.counts[TSAR_NEAR_TIE] == 0 && o.counts[TSAR_DIFFERS] == 1, "no near-tie, and what follows from their code agrees: %zu, %zu",
                  o.counts[TSAR_NEAR_TIE], o.counts[TSAR_DIFFERS]);
    }
    load(&t);
    ((int64_t *)find(&t, "vq.codes")->data)[0] = -7;
    o = judge(&t, model, 0.9);
    CHECK(o.status == TSAR_DIFFERENT && o.counts[TSAR_DIFFERS] == 1, "a code that does not exist is no near-tie");
}

/* The tokenizer without a picture: its decoder takes input.codes, else the file's own vq.codes, which are then what vq.codes must be. What
 * leaves the encoder is not compared without the picture. */
static void test_decoder(const tsar_model *model)
{
    enum { CODES_ALONE, SAME_CODES, OTHER_CODES, LATENT, TRACES };
    for (int which = 0; which < TRACES; which++) {
        trace t;
        load(&t);
        const tsar_values codes = *find(&t, "vq.codes");
        int64_t *input = (int64_t *)find(&t, "input.codes")->data;
        for (size_t i = 0; i < t.n; i++) {
            const char *name = t.values[i].name;
            const int kept = strncmp(name, "vq.decoder.", 11) == 0 || strcmp(name, "vq.quantized") == 0 || strcmp(name, "vq.codes") == 0 ||
                             (which == LATENT && strcmp(name, "vq.latent") == 0) || (which != CODES_ALONE && strcmp(name, "input.codes") == 0);
            if (!kept) drop(&t, name);
        }
        if (which != CODES_ALONE && CHECK(count_of(find(&t, "input.codes")) == count_of(&codes), "codes of the grid"))
            memcpy(input, codes.data, count_of(&codes) * sizeof *input);
        if (which == OTHER_CODES) ((int64_t *)codes.data)[1] ^= 1;
        const outcome o = judge(&t, model, -1);
        if (which == LATENT)
            CHECK(o.status == TSAR_INPUT && strstr(o.err.text, "vq.latent") && strstr(o.err.text, "input.image"), "a latent without picture: %s", o.err.text);
        else if (which == OTHER_CODES)
            CHECK(o.status == TSAR_DIFFERENT && o.counts[TSAR_DIFFERS] == NEXT_TOO && strcmp(o.first, "vq.codes") == 0, "other codes: first %s", o.first);
        else
            CHECK(o.status == TSAR_OK && o.counts[TSAR_UNKNOWN] == 0 && o.compared >= 8, "a decoder, case %d: %d, %zu compared, %s", which, o.status,
                  o.compared, o.err.text);
    }
}

/* The model with codeword b = codeword a but for one element, one part in 2^23 of it larger: in F32 no distance tells the two apart. */
static tsar_status write_twins(size_t a, size_t b, tsar_error *err)
{
    tsar_file *file = NULL;
    tsar_writer *writer = NULL;
    const tsar_tensor *next;
    tsar_status status = tsar_file_open(&file, model_path, err);
    if (status == TSAR_OK) status = tsar_writer_open(&writer, twins_path, err);
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_meta_count(file); i++) {
        const char *key, *value;
        tsar_file_meta_at(file, i, &key, &value);
        status = tsar_writer_meta(writer, key, value, err);
    }
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_count(file); i++) {
        const tsar_tensor *tensor = tsar_file_at(file, i);
        status = tsar_writer_declare(writer, tensor->name, tensor->dtype, tensor->rank, tensor->shape, err);
    }
    while (status == TSAR_OK && (next = tsar_writer_next(writer)) != NULL) {
        const tsar_tensor *tensor = tsar_file_find(file, next->name);
        float *values = tsar_alloc((size_t)tensor->count, sizeof *values, "a tensor", err);
        if (!values) exit(1);
        status = tsar_file_read(file, tensor, 0, tensor->count, values, err);
        if (strcmp(tensor->name, "vq.quantize.embedding.weight") == 0) {
            const size_t embed = tensor->shape[1];
            memcpy(values + b * embed, values + a * embed, embed * sizeof *values);
            values[b * embed] *= 1 + ldexpf(1, -22);
        }
        if (status == TSAR_OK) status = tsar_writer_put(writer, values, tensor->count, err);
        tsar_free(values);
    }
    if (status == TSAR_OK) status = tsar_writer_commit(writer, err);
    tsar_file_close(file);
    return status;
}

/* Codewords that are almost the same: which one is nearer cannot be decided in F32, whether the file holds the latent or not, but in F64. */
static void test_twins(const tsar_inputs *inputs, const int64_t *codes)
{
    tsar_error err = { "" };
    tsar_model *model = NULL;
    const size_t chosen = (size_t)codes[0], twin = (chosen + 1) % 32;
    tsar_status status = write_twins(chosen, twin, &err);
    if (status == TSAR_OK) status = tsar_model_open(&model, twins_path, TSAR_PART_ALL, 1, &err);
    if (status == TSAR_OK) status = tsar_trace_write(model, inputs, NULL, 0, trace_path, &err);
    if (!CHECK(status == TSAR_OK, "twins: %s", err.text)) return;
    for (int i = 0; i < 4; i++) { /* F64; F32; F32 without the latent; F64 whose tolerance is that of F32 */
        trace t;
        load(&t);
        int64_t *theirs = (int64_t *)find(&t, "vq.codes")->data;
        const int64_t ours = theirs[0];
        theirs[0] = ours == (int64_t)chosen ? (int64_t)twin : (int64_t)chosen;
        CHECK(ours == (int64_t)chosen || ours == (int64_t)twin, "a twin is taken");
        const tsar_sink sink = { .put = put_back, .context = &t };
        status = tsar_vq_decode(model, theirs, find(&t, "vq.codes")->shape[0], find(&t, "vq.codes")->shape[1], NULL, &sink, &err);
        CHECK(status == TSAR_OK, "decode: %s", err.text);
        for (size_t k = 0; k < t.n && (i == 1 || i == 2); k++)
            if (t.values[k].dtype == TSAR_F64) to_f32(&t.values[k]);
        if (i == 2) drop(&t, "vq.latent");
        const outcome o = judge(&t, model, i == 3 ? 1e-4 : -1);
        CHECK(o.counts[TSAR_NEAR_TIE] == (i ? 1 : 0) && (i ? o.status == TSAR_OK : strcmp(o.first, "vq.codes") == 0), "twins, case %d: %d, first %s", i,
              o.status, o.first);
        if (i)
            CHECK(o.counts[TSAR_DIFFERS] == 0 && o.margin > 0 && o.margin <= 1, "twins, case %d: %zu differ, margin %g", i, o.counts[TSAR_DIFFERS], o.margin);
    }
    tsar_model_close(model);
}

static void test_damage(void)
{
    static const char *const keys[] = { "arch",           "dim",        "n_layer",       "n_head",        "n_kv_head",     "ffn_hidden",   "norm_eps",
                                        "rope",           "text_vocab", "codebook_size", "grid_h",        "grid_w",        "shuffle",      "shuffle_blocks",
                                        "shuffle_hidden", "vq_ch",      "vq_ch_mult",    "vq_res_blocks", "vq_z_channels", "vq_embed_dim", "vq_l2_norm",
                                        "vq_groups" };
    static const char *const values[] = { "token-shuffle", "16", "1", "2", "1", "24", "1e-5", "1d", "20", "32", "4", "4", "2", "1", "8", "8",
                                          "1,2",           "1",  "8", "4", "1", "4" };
    tsar_error err = { "" };
    tsar_model *model = NULL;
    int64_t text[] = { 0, 7, 9, 1 }, codes[16];
    uint8_t image[8 * 8 * 3];
    for (size_t i = 0; i < sizeof image; i++) image[i] = (uint8_t)(tsar_synth_word(1, i) >> 56);
    tsar_inputs inputs = { .text = text, .n_text = 4, .codes = codes, .h = 4, .w = 4, .image = image, .H = 8, .W = 8 };
    tsar_status status = tsar_synth(model_path, keys, values, sizeof keys / sizeof keys[0], TSAR_F32, &err);
    if (status == TSAR_OK) status = tsar_model_open(&model, model_path, TSAR_PART_ALL, 1, &err);
    if (status == TSAR_OK) status = tsar_vq_encode(model, image, 8, 8, codes, NULL, &err);
    if (status == TSAR_OK) status = tsar_trace_write(model, &inputs, NULL, 0, trace_path, &err);
    if (!CHECK(status == TSAR_OK, "trace: %s", err.text)) return;
    test_values(model);
    test_order(model);
    test_precisions(model);
    test_options(model);
    test_shapes(model);
    test_names(model);
    test_structure(model);
    test_codes(model);
    test_decoder(model);
    tsar_model_close(model);
    test_twins(&inputs, codes);
}

int main(void)
{
    test_vectors();
    test_families();
    test_damage();
    remove(model_path);
    remove(trace_path);
    remove(damaged_path);
    remove(twins_path);
    return test_end();
}
