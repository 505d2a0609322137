/* Synthetic models (SPEC 7): weights of any configuration from a seed, the same bits everywhere. */
#include "../tsar.h"

#include <math.h>
#include <string.h>

#define GOLDEN UINT64_C(0x9E3779B97F4A7C15)
#define SYNTH_CHUNK ((size_t)1024)

/* key = FNV-1a-64(name) xor (seed * G) */
uint64_t tsar_synth_key(const char *name, uint64_t seed)
{
    uint64_t hash = UINT64_C(0xCBF29CE484222325);
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * UINT64_C(0x100000001B3);
    return hash ^ seed * GOLDEN;
}

/* z = finaliser of splitmix64 at key + (i + 1) G */
uint64_t tsar_synth_word(uint64_t key, uint64_t index) { return tsar_mix(key + (index + 1) * GOLDEN); }

static int ends_in(const char *name, const char *ending)
{
    const size_t n = strlen(name), e = strlen(ending);
    return n >= e && !strcmp(name + n - e, ending);
}

/* A value is float32(offset + scale * u): 0.1 + 0.09 u for a running variance, 1 + 0.1 u for the gain of a norm, 0.1 u for a bias, u for an embedding, and
 * sqrt(3 / fan_in) u, of variance 1 / fan_in, for any other weight. */
static void synth_law(const tsar_weight *weight, double *offset, double *scale)
{
    static const char *const embeddings[] = { "tok_embeddings.weight", "embedding_table.weight", "quantize.embedding.weight", "uncond_embedding",
                                              "coarse_embeddings.weight" };
    double fan_in = 1;
    for (size_t i = 1; i < weight->rank; i++) fan_in *= (double)weight->shape[i];
    const int variance = weight->rank == 1 && ends_in(weight->name, "running_var");
    *offset = variance ? 0.1 : weight->rank == 1 && strstr(weight->name, "norm") && ends_in(weight->name, "weight") ? 1 : 0;
    *scale = variance ? 0.09 : weight->rank == 1 ? 0.1 : sqrt(3 / fan_in);
    for (size_t i = 0; i < sizeof embeddings / sizeof *embeddings && weight->rank > 1; i++)
        if (ends_in(weight->name, embeddings[i])) *scale = 1;
}

typedef struct {
    tsar_writer *writer;
    tsar_dtype dtype;
    const tsar_config *config;
    const tsar_tensor *due; /* the tensor whose data the writer awaits */
} synthesis;

static tsar_status declare_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    synthesis *s = context;
    return tsar_writer_declare(s->writer, weight->name, weight->use == TSAR_AS_INTEGERS ? TSAR_I64 : s->dtype, weight->rank, weight->shape, err);
}

/* The n values from flat index `first` on. out [n] of the dtype asked for. */
static void synth_values(void *out, tsar_dtype dtype, uint64_t key, uint64_t first, size_t n, double offset, double scale)
{
    float values[SYNTH_CHUNK];
    uint16_t *halves = out;
    for (size_t i = 0; i < n; i++) {
        const double u = (double)(int32_t)(tsar_synth_word(key, first + i) >> 40) * 0x1p-23 - 1;
        values[i] = (float)(offset + scale * u);
    }
    if (dtype == TSAR_F32)
        memcpy(out, values, n * sizeof *values);
    else
        for (size_t i = 0; i < n; i++) halves[i] = dtype == TSAR_F16 ? tsar_round_f16(values[i]) : tsar_round_bf16(values[i]);
}

/* Writes the data of a weight if it is the one that is due. */
static tsar_status write_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    synthesis *s = context;
    const tsar_tensor *tensor = s->due;
    double offset, scale;
    int64_t chunk[SYNTH_CHUNK];
    if (!tensor || strcmp(tensor->name, weight->name)) return TSAR_OK;
    const uint64_t key = tsar_synth_key(weight->name, s->config->seed);
    tsar_status status = TSAR_OK;
    synth_law(weight, &offset, &scale);
    for (uint64_t first = 0; first < tensor->count && status == TSAR_OK; first += SYNTH_CHUNK) {
        const size_t n = tensor->count - first < SYNTH_CHUNK ? (size_t)(tensor->count - first) : SYNTH_CHUNK;
        if (weight->use != TSAR_AS_INTEGERS)
            synth_values(chunk, tensor->dtype, key, first, n, offset, scale);
        else
            for (size_t i = 0; i < n; i++) /* ctf.cluster_of */
                chunk[i] = (int64_t)((tsar_synth_word(key, first + i) >> 33) % s->config->n_coarse);
        status = tsar_writer_put(s->writer, chunk, n, err);
    }
    s->due = tsar_writer_next(s->writer);
    return status;
}

/* Arguments key=value as a source of configuration strings: a later value replaces an earlier one. */
typedef struct {
    const char *const *keys, *const *values;
    size_t n;
} given_keys;

static const char *lookup_arguments(const void *source, const char *key)
{
    const given_keys *a = source;
    for (size_t i = a->n; i > 0; i--)
        if (!strcmp(a->keys[i - 1], key)) return a->values[i - 1];
    return NULL;
}

tsar_status tsar_synth(const char *path, const char *const *keys, const char *const *values, size_t n, tsar_dtype dtype, tsar_error *err)
{
    const given_keys source = { keys, values, n };
    tsar_config config;
    if (dtype != TSAR_F32 && dtype != TSAR_BF16 && dtype != TSAR_F16)
        return tsar_fail(err, TSAR_USAGE, "synthetic weights have the dtype f32, bf16 or f16");
    tsar_status status = tsar_config_read(&config, lookup_arguments, &source, "the command line", err);
    if (status == TSAR_INPUT) status = TSAR_USAGE;
    if (status != TSAR_OK) return status;
    synthesis s = { NULL, dtype, &config, NULL };
    status = tsar_writer_open(&s.writer, path, err);
    if (status != TSAR_OK) return status;
    status = tsar_writer_meta(s.writer, "seed", "0", err);
    for (size_t i = 0; i < n && status == TSAR_OK; i++) status = tsar_writer_meta(s.writer, keys[i], values[i], err);
    if (status == TSAR_OK) status = tsar_weights(&config, NULL, declare_weight, &s, err);
    if (status == TSAR_OK) s.due = tsar_writer_next(s.writer);
    for (const tsar_tensor *before = NULL; status == TSAR_OK && s.due && s.due != before;) {
        before = s.due; /* integers come first in the file, so a second pass reaches what the first one passed */
        status = tsar_weights(&config, NULL, write_weight, &s, err);
    }
    if (status != TSAR_OK) {
        tsar_writer_abandon(s.writer);
        return status;
    }
    return tsar_writer_commit(s.writer, err);
}
