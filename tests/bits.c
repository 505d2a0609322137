/* The same bits everywhere (SPEC 1): runs small synthetic models through every part of tsar and prints one digest for
 * each tensor. With a file of expected digests (tests/digests.txt) it compares instead, so that any compiler, flag and
 * CPU can be checked in a minute:
 *
 *     bits > tests/digests.txt             records
 *     bits tests/digests.txt [THREADS]     compares; prints what differs and `N passed, N failed`
 *
 * A digest is FNV-1a-64 over the little-endian bytes of the elements. */
#include "../tsar.h"
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    FILE *expected; /* NULL: print */
    size_t passed, failed;
    char group[32];
} run;

static uint64_t fnv(uint64_t hash, uint64_t word, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ (word >> 8 * i & 0xFF)) * 0x100000001B3u;
    return hash;
}

static uint64_t digest(tsar_dtype dtype, size_t count, const void *data)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < count; i++) {
        uint64_t word = 0;
        if (dtype == TSAR_U8) word = ((const uint8_t *)data)[i];
        else if (dtype == TSAR_I64) word = (uint64_t)((const int64_t *)data)[i];
        else memcpy(&word, (const double *)data + i, 8);
        hash = fnv(hash, word, tsar_dtype_size(dtype));
    }
    return hash;
}

static void record(const char *name, uint64_t value)
{
    char line[256], wanted[256];
    snprintf(line, sizeof line, "%s %s %08lx%08lx\n", run.group, name, (unsigned long)(value >> 32), (unsigned long)(value & 0xFFFFFFFF));
    if (!run.expected) {
        fputs(line, stdout);
        return;
    }
    if (!fgets(wanted, sizeof wanted, run.expected)) wanted[0] = '\0';
    if (strcmp(line, wanted) == 0) run.passed++;
    else if (run.failed++ < 10) printf("FAILED here %sexpected    %s", line, wanted[0] ? wanted : "(nothing)\n");
}

static tsar_status put(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    size_t count = 1;
    (void)context, (void)err;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    record(name, digest(dtype, count, data));
    return TSAR_OK;
}

static void require(tsar_status status, const tsar_error *err)
{
    if (status == TSAR_OK) return;
    fprintf(stderr, "bits: %s\n", err->text);
    exit(1);
}

static tsar_model *synthesise(const char *settings, tsar_dtype dtype, size_t threads)
{
    tsar_error err = { "" };
    tsar_model *model;
    char path[40]; /* of its own for each number of threads: tests/run.sh runs them at a time */
    snprintf(path, sizeof path, "bits.%lu.tmp.safetensors", (unsigned long)threads);
    require(test_synthesise(&model, path, settings, dtype, threads, &err), &err);
    return model;
}

/* Codes, labels, pixels: any fixed numbers below n. */
static int64_t pick(size_t i, size_t n) { return (int64_t)(tsar_mix(i + 1) % n); }

static void trace_gpt(const tsar_model *m, const tsar_prompt *prompt)
{
    const size_t N = m->config.grid_h * m->config.grid_w;
    const tsar_sink sink = { .put = put };
    tsar_error err = { "" };
    int64_t *codes = tsar_alloc(N, sizeof *codes, "codes", &err);
    for (size_t i = 0; i < N; i++) codes[i] = pick(i, m->config.vocab);
    require(tsar_gpt_trace(m, prompt, codes, &sink, &err), &err);
    tsar_free(codes);
}

static void generate(const tsar_model *m, const tsar_prompt *prompt, const char *order, tsar_schedule schedule, size_t images)
{
    const size_t N = m->config.grid_h * m->config.grid_w, n = m->config.tokens;
    const size_t V = m->config.vocab, s2 = m->config.shuffle * m->config.shuffle;
    tsar_error err = { "" };
    tsar_result result = { NULL, NULL, NULL, NULL, NULL };
    tsar_settings settings = tsar_settings_default(m);
    settings.seed = 42;
    settings.temperature = 0.9;
    settings.top_k = 40;
    settings.top_p = 0.95;
    settings.cfg = 3.0;
    settings.schedule = schedule;
    require(tsar_order_parse(&settings, order, &err), &err);
    result.codes = tsar_alloc(images * N, sizeof(int64_t), "codes", &err);
    result.step_of = tsar_alloc(images * n, sizeof(int64_t), "steps", &err);
    result.logits = tsar_alloc(images * n * s2 * V, sizeof(double), "logits", &err);
    if (m->config.n_coarse) result.coarse = tsar_alloc(images * N, sizeof(int64_t), "labels", &err);
    require(tsar_generate(m, prompt, &settings, images, &result, NULL, NULL, &err), &err);
    if (result.coarse) record("coarse", digest(TSAR_I64, images * N, result.coarse));
    record("codes", digest(TSAR_I64, images * N, result.codes));
    record("step_of", digest(TSAR_I64, images * n, result.step_of));
    record("logits", digest(TSAR_F64, images * n * s2 * V, result.logits));
    tsar_free(result.codes);
    tsar_free(result.coarse);
    tsar_free(result.step_of);
    tsar_free(result.logits);
}

/* CTF's stage two. */
static void trace_fine(const tsar_model *m)
{
    const size_t N = m->config.grid_h * m->config.grid_w, K = m->config.codebook_size;
    const tsar_sink sink = { .put = put };
    tsar_error err = { "" };
    int64_t *labels = tsar_alloc(N, sizeof *labels, "labels", &err);
    double *hidden = tsar_alloc(N * m->config.fine_dim, sizeof *hidden, "fine.norm", &err), *logits = tsar_alloc(N * K, sizeof *logits, "fine.logits", &err);
    for (size_t i = 0; i < N; i++) labels[i] = pick(i, m->config.n_coarse);
    require(tsar_fine_hidden(m, labels, hidden, &sink, &err), &err);
    require(tsar_fine_logits(m, hidden, 0, N, logits, &err), &err);
    record("fine.logits", digest(TSAR_F64, N * K, logits));
    tsar_free(labels);
    tsar_free(hidden);
    tsar_free(logits);
}

static void token_shuffle(size_t threads)
{
    static const int64_t text[] = { 0, 7, 12, 30, 5, 1 };
    const tsar_prompt prompt = { .text = text, .n_text = 6 };
    tsar_model *m = synthesise("arch=token-shuffle dim=72 n_layer=2 n_head=6 n_kv_head=2 ffn_hidden=100 norm_eps=1e-5 rope=1d "
                               "text_vocab=40 codebook_size=90 grid_h=9 grid_w=12 shuffle=3 shuffle_blocks=2 shuffle_hidden=50 seed=3", TSAR_F32, threads);
    strcpy(run.group, "token-shuffle-s3");
    trace_gpt(m, &prompt);
    generate(m, &prompt, "raster", TSAR_HALF_LINEAR, 2);
    generate(m, &prompt, "zipar:2", TSAR_HALF_LINEAR, 1);
    generate(m, &prompt, "zipar-adaptive:1", TSAR_HALF_LINEAR, 2);
    tsar_model_close(m);
    m = synthesise("arch=token-shuffle dim=64 n_layer=2 n_head=4 n_kv_head=4 ffn_hidden=96 norm_eps=1e-5 rope=1d "
                   "text_vocab=40 codebook_size=90 n_coarse=12 grid_h=4 grid_w=6 shuffle=1 seed=4 "
                   "fine_dim=48 fine_n_layer=2 fine_n_head=4 fine_ffn_hidden=80", TSAR_BF16, threads);
    strcpy(run.group, "coarse-to-fine");
    trace_gpt(m, &prompt);
    trace_fine(m);
    generate(m, &prompt, "zipar:2,first-row", TSAR_HALF_LINEAR, 1);
    generate(m, &prompt, "raster", TSAR_COSINE, 1);
    tsar_model_close(m);
}

static void llamagen(size_t threads)
{
    double caption[5 * 20], mask[5] = { 0, 1, 1, 1, 0 };
    tsar_prompt prompt = { .class_id = 3, .caption = caption, .caption_mask = mask };
    tsar_model *m = synthesise("arch=llamagen-c2i dim=48 n_layer=2 n_head=4 n_kv_head=4 ffn_hidden=130 norm_eps=1e-5 rope=2d "
                               "codebook_size=70 grid_h=4 grid_w=5 cond_tokens=1 num_classes=7 seed=5", TSAR_F16, threads);
    strcpy(run.group, "llamagen-c2i");
    trace_gpt(m, &prompt);
    generate(m, &prompt, "raster", TSAR_CONSTANT, 1);
    tsar_model_close(m);
    for (size_t i = 0; i < sizeof caption / sizeof *caption; i++) caption[i] = (double)pick(i, 201) / 100.0 - 1.0;
    m = synthesise("arch=llamagen-t2i dim=48 n_layer=2 n_head=4 n_kv_head=4 ffn_hidden=130 norm_eps=1e-5 rope=2d "
                   "codebook_size=70 grid_h=4 grid_w=5 cond_tokens=5 caption_dim=20 seed=6", TSAR_F32, threads);
    strcpy(run.group, "llamagen-t2i");
    trace_gpt(m, &prompt);
    generate(m, &prompt, "raster", TSAR_CONSTANT, 1);
    tsar_model_close(m);
}

/* Decode orders of families of ids, whose rows may end by a token and whose unconditional prefixes have a length of their own; and the authors' ZipAR. */
static void sequences(size_t threads)
{
    static const int64_t text[] = { 3, 11, 25, 2, 8, 9 }, negative[] = { 3, 2, 8, 9 };
    const tsar_prompt prompt = { .text = text, .n_text = 6 }, own = { .text = text, .n_text = 6, .text_uncond = negative, .n_text_uncond = 4 };
    const tsar_prompt of_class = { .class_id = 2 };
    tsar_model *m = synthesise("arch=lumina-mgpt dim=48 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=70 norm_eps=1e-5 rope=1d vocab_size=110 image_base=30 "
                               "codebook_size=70 eol=7 boi=2 qk_norm=2 norm_order=post grid_h=4 grid_w=5 seed=8", TSAR_BF16, threads);
    strcpy(run.group, "orders-eol");
    generate(m, &prompt, "raster", TSAR_CONSTANT, 1);
    generate(m, &own, "zipar:2", TSAR_CONSTANT, 2);
    generate(m, &own, "zipar-adaptive:1", TSAR_CONSTANT, 1);
    tsar_model_close(m);
    m = synthesise("arch=janus dim=48 n_layer=1 n_head=4 n_kv_head=4 ffn_hidden=70 norm_eps=1e-6 rope=1d vocab_size=40 image_embed=8 image_head=52 "
                   "codebook_size=70 boi=9 pad=1 grid_h=4 grid_w=4 seed=9", TSAR_F32, threads);
    strcpy(run.group, "orders-janus");
    generate(m, &prompt, "zipar:3", TSAR_CONSTANT, 1);
    tsar_model_close(m);
    m = synthesise("arch=llamagen-c2i dim=48 n_layer=1 n_head=4 n_kv_head=4 ffn_hidden=60 norm_eps=1e-5 rope=2d codebook_size=70 grid_h=5 grid_w=5 "
                   "cond_tokens=1 num_classes=7 seed=10", TSAR_F32, threads);
    strcpy(run.group, "zipar-authors");
    generate(m, &of_class, "zipar:2,authors", TSAR_CONSTANT, 1);
    tsar_model_close(m);
}

static void tokenizer(size_t threads)
{
    const size_t H = 24, W = 16;
    const tsar_sink sink = { .put = put };
    uint8_t picture[24 * 16 * 3];
    int64_t codes[6 * 4], cluster_of[50];
    tsar_error err = { "" };
    tsar_model *m = synthesise("vq_ch=24 vq_ch_mult=1,2,2 vq_res_blocks=1 vq_z_channels=20 vq_embed_dim=6 vq_l2_norm=1 vq_groups=12 "
                               "codebook_size=50 grid_h=6 grid_w=4 seed=7", TSAR_F32, threads);
    strcpy(run.group, "tokenizer");
    for (size_t i = 0; i < sizeof picture; i++) picture[i] = (uint8_t)pick(i, 256);
    require(tsar_vq_encode(m, picture, H, W, codes, &sink, &err), &err);
    require(tsar_vq_decode(m, codes, H / 4, W / 4, picture, &sink, &err), &err);
    record("pixels", digest(TSAR_U8, sizeof picture, picture));
    require(tsar_cluster(m, 7, 5, cluster_of, &err), &err);
    record("ctf.cluster_of", digest(TSAR_I64, 50, cluster_of));
    tsar_model_close(m);
}

/* Chameleon's and Emu3's. */
static void other_tokenizers(size_t threads)
{
    static const char *const settings[3] = {
        "vq_ch=24 vq_ch_mult=1,2,2 vq_res_blocks=1 vq_z_channels=20 vq_embed_dim=18 vq_l2_norm=0 vq_groups=12 vq_attn=mid vq_pixels=down "
        "codebook_size=50 seed=8",
        "vq_ch=24 vq_ch_mult=2,1,2 vq_res_blocks=1 vq_z_channels=6 vq_embed_dim=6 vq_l2_norm=0 vq_groups=12 vq_temporal=4 vq_pixels=down "
        "codebook_size=50 seed=9",
        "vq_ch=12 vq_ch_mult=1,1,2 vq_res_blocks=2 vq_z_channels=5 vq_embed_dim=5 vq_l2_norm=0 vq_groups=4 vq_temporal=2 vq_pixels=down "
        "codebook_size=50 seed=10",
    };
    static const char *const groups[3] = { "tokenizer-mid", "tokenizer-time", "tokenizer-time-2" };
    static const tsar_dtype dtypes[3] = { TSAR_F32, TSAR_F32, TSAR_BF16 };
    const size_t H = 12, W = 20;
    const tsar_sink sink = { .put = put, .context = NULL };
    for (size_t i = 0; i < 3; i++) {
        uint8_t picture[12 * 20 * 3];
        int64_t codes[3 * 5];
        tsar_error err = { "" };
        tsar_model *m = synthesise(settings[i], dtypes[i], threads);
        strcpy(run.group, groups[i]);
        for (size_t k = 0; k < sizeof picture; k++) picture[k] = (uint8_t)pick(k, 256);
        require(tsar_vq_encode(m, picture, H, W, codes, &sink, &err), &err);
        require(tsar_vq_decode(m, codes, H / 4, W / 4, picture, &sink, &err), &err);
        record("pixels", digest(TSAR_U8, sizeof picture, picture));
        tsar_model_close(m);
    }
}

/* What the families of ids add: eol, norms of queries and keys, post norm, grouped heads, Janus's MLPs, 2d positions behind text; the text encoder. */
static void families(size_t threads)
{
    static const struct {
        const char *group, *keys;
        tsar_dtype dtype;
    } models[] = {
        { "lumina-mgpt", "arch=lumina-mgpt dim=48 n_layer=2 n_head=8 n_kv_head=4 ffn_hidden=70 norm_eps=1e-5 rope=1d vocab_size=90 image_base=4 "
                         "codebook_size=60 qk_norm=2 norm_order=post eol=70 grid_h=3 grid_w=5 seed=11", TSAR_BF16 },
        { "emu3", "arch=emu3 dim=64 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=80 norm_eps=1e-5 rope=1d rope_base=1000000 vocab_size=100 image_base=40 "
                  "codebook_size=60 eol=33 grid_h=3 grid_w=4 seed=12", TSAR_F32 },
        { "janus", "arch=janus dim=40 n_layer=2 n_head=4 n_kv_head=4 ffn_hidden=90 norm_eps=1e-6 rope=1d vocab_size=50 codebook_size=64 image_embed=8 "
                   "image_head=52 pad=3 grid_h=4 grid_w=4 seed=13", TSAR_F16 },
        { "token-shuffle-eol", "arch=token-shuffle dim=64 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=80 norm_eps=1e-5 rope=2d text_vocab=40 codebook_size=50 "
                               "eol=9 shuffle=2 shuffle_blocks=1 shuffle_hidden=44 grid_h=6 grid_w=8 seed=14", TSAR_F32 },
    };
    static const int64_t text[] = { 0, 7, 12, 30, 5, 1 }, ids[] = { 5, 17, 2, 17, 30, 8, 8, 21, 1 };
    const tsar_prompt prompt = { .text = text, .n_text = 6 };
    const tsar_sink sink = { .put = put };
    tsar_error err = { "" };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        tsar_model *m = synthesise(models[i].keys, models[i].dtype, threads);
        strcpy(run.group, models[i].group);
        trace_gpt(m, &prompt);
        tsar_model_close(m);
    }
    double out[9 * 24];
    tsar_model *m = synthesise("t5_vocab=40 t5_dim=24 t5_n_layer=2 t5_n_head=3 t5_head_dim=6 t5_ffn_hidden=50 t5_buckets=8 t5_max_distance=6 seed=15", TSAR_F32,
                               threads);
    strcpy(run.group, "t5");
    require(tsar_t5_encode(m, ids, 9, out, &sink, &err), &err);
    tsar_model_close(m);
}

static void functions(void)
{
    uint64_t hash[7] = { 0 };
    for (size_t i = 0; i < 20000; i++) {
        double u = tsar_uniform(1, i, 0, 0, 0, 0, 0);
        double y[7] = { tsar_exp(1500.0 * u - 760.0), tsar_log(u * 1e3), tsar_sin(u * 1e4 - 5e3), tsar_cos(u * 1e6),
                        tsar_pow(10000.0, -u), tsar_erf(14.0 * u - 7.0), 20.0 * u - 10.0 };
        tsar_gelu_erf_n(&y[6], 1);
        for (size_t f = 0; f < 7; f++) {
            uint64_t word;
            memcpy(&word, &y[f], 8);
            hash[f] = fnv(hash[f], word, 8);
        }
    }
    strcpy(run.group, "functions");
    record("exp", hash[0]);
    record("log", hash[1]);
    record("sin", hash[2]);
    record("cos", hash[3]);
    record("pow", hash[4]);
    record("erf", hash[5]);
    record("gelu_erf", hash[6]);
}

int main(int argc, char **argv)
{
    const size_t threads = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 1;
    tsar_error err = { "" };
    require(tsar_self_check(&err), &err);
    if (argc > 1 && !(run.expected = fopen(argv[1], "r"))) {
        fprintf(stderr, "bits: cannot open %s\n", argv[1]);
        return 1;
    }
    functions();
    tokenizer(threads);
    llamagen(threads);
    token_shuffle(threads);
    other_tokenizers(threads);
    families(threads);
    sequences(threads);
    if (!run.expected) return 0;
    if (fgetc(run.expected) != EOF && ++run.failed) puts("FAILED more digests are expected than were made");
    fclose(run.expected);
    printf("%lu passed, %lu failed\n", (unsigned long)run.passed, (unsigned long)run.failed);
    return run.failed != 0;
}
