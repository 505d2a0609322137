/* Decode orders against golden vectors: every case that a file holds, by the names of its tensors,
 *
 *     greedy, greedy_cfg, raster.cfgA, zipar.W.cfgA, zipar_pad.W.cfgA (the ZipAR authors' prefix for Lumina-mGPT's unconditional sequence),
 *     zipar_authors.W.cfgA[.intervalK]                        .codes, and where they are there .step_of, .steps, .logits
 *
 * codes, steps and passes exactly, logits to 1e-11 of their RMS; W = C equals raster, a batch a single image, a pair two sequences, to the bit. */
#include "test.h"

#include <math.h>
#include <stdlib.h>

#define SYNTHETIC "test_orders.safetensors"

static void *need(size_t count, size_t size)
{
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL) exit(1);
    return memory;
}

/* A tensor of 8-byte elements, or NULL if the file has none of this name. */
static void *golden(tsar_file *file, const char *prefix, const char *name, int integers, size_t *count)
{
    char full[100];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const tsar_tensor *t = tsar_file_find(file, full);
    if (t == NULL) return NULL;
    void *data = need((size_t)t->count, 8);
    const tsar_status status = integers ? tsar_file_read_i64(file, t, 0, t->count, data, NULL) : tsar_file_read_f64(file, t, 0, t->count, data, NULL);
    CHECK(status == TSAR_OK, "%s is read", full);
    if (count != NULL) *count = (size_t)t->count;
    return data;
}

/* What a file's cases are decoded from. */
typedef struct {
    tsar_file *file;
    tsar_model *model;
    tsar_prompt prompt;
    int64_t *text, *uncond, *pad, *class_id; /* pad: every id of text but the first and the last three replaced by 1 */
    double *caption, *mask;
} source;

static int source_open(source *s, const char *name)
{
    const char *folder = getenv("TSAR_VECTORS");
    char path[1000];
    tsar_error err = { "" };
    memset(s, 0, sizeof *s);
    snprintf(path, sizeof path, "%s/%s.safetensors", folder != NULL ? folder : "tests/vectors", name);
    tsar_status status = tsar_file_open(&s->file, path, &err);
    if (status == TSAR_OK) status = test_synth_like(SYNTHETIC, path, TSAR_F32, &err);
    if (status == TSAR_OK) status = tsar_model_open(&s->model, SYNTHETIC, TSAR_PART_ALL, 1, &err);
    remove(SYNTHETIC);
    if (!CHECK(status == TSAR_OK, "%s: %s", name, err.text)) return 0;
    s->prompt.text = s->text = golden(s->file, "input.text", "", 1, &s->prompt.n_text);
    s->pad = golden(s->file, "input.text", "", 1, NULL);
    for (size_t i = 1; i + 3 < s->prompt.n_text; i++) s->pad[i] = 1;
    s->prompt.text_uncond = s->uncond = golden(s->file, "input.text_uncond", "", 1, &s->prompt.n_text_uncond);
    s->class_id = golden(s->file, "input.class", "", 1, NULL);
    if (s->class_id != NULL) s->prompt.class_id = (size_t)s->class_id[0];
    s->prompt.caption = s->caption = golden(s->file, "input.caption", "", 0, NULL);
    s->prompt.caption_mask = s->mask = golden(s->file, "input.caption_mask", "", 0, NULL);
    return 1;
}

static void source_close(source *s)
{
    tsar_file_close(s->file);
    tsar_model_close(s->model);
    free(s->text);
    free(s->uncond);
    free(s->pad);
    free(s->class_id);
    free(s->caption);
    free(s->mask);
}

/* A generation of one image (or of the first of several), its arrays owned. */
typedef struct {
    size_t N, n, logits;
    tsar_result result;
} run;

static run generate(const source *s, const tsar_prompt *prompt, const tsar_settings *settings, size_t images)
{
    const tsar_config *c = &s->model->config;
    tsar_error err = { "" };
    run r = { c->grid_h * c->grid_w, c->tokens, c->tokens * c->shuffle * c->shuffle * c->vocab, { 0 } };
    r.result.codes = need(images * r.N, sizeof(int64_t));
    r.result.coarse = need(images * r.N, sizeof(int64_t));
    r.result.step_of = need(images * r.n, sizeof(int64_t));
    r.result.logits = need(images * r.logits, sizeof(double));
    r.result.passes = need(images, sizeof(size_t));
    CHECK(tsar_generate(s->model, prompt, settings, images, &r.result, NULL, NULL, &err) == TSAR_OK, "generation: %s", err.text);
    return r;
}

static void run_close(run *r)
{
    free(r->result.codes);
    free(r->result.coarse);
    free(r->result.step_of);
    free(r->result.logits);
    free(r->result.passes);
}

static int same_run(const run *a, const run *b)
{
    return memcmp(a->result.codes, b->result.codes, a->N * sizeof(int64_t)) == 0 && memcmp(a->result.logits, b->result.logits, a->logits * sizeof(double)) == 0;
}

/* The settings of a case from its name; 0 if it is none that is known. */
static int settings_of(tsar_settings *s, const source *from, const char *name)
{
    const char *cfg = strstr(name, ".cfg"), *interval = strstr(name, ".interval"), *dot = strchr(name, '.');
    char order[60] = "raster";
    *s = tsar_settings_default(from->model);
    s->schedule = TSAR_CONSTANT;
    s->greedy = 1;
    s->cfg = cfg != NULL ? strtod(cfg + 4, NULL) : strcmp(name, "greedy_cfg") == 0 ? strtod(tsar_file_meta(from->file, "cfg"), NULL) : 1;
    if (interval != NULL) s->cfg_interval = strtol(interval + 9, NULL, 10);
    if (strncmp(name, "zipar.", 6) == 0 || strncmp(name, "zipar_pad.", 10) == 0) snprintf(order, sizeof order, "zipar:%d", atoi(dot + 1));
    if (strncmp(name, "zipar_authors.", 14) == 0) snprintf(order, sizeof order, "zipar:%d,authors", atoi(dot + 1));
    const int known = strncmp(name, "raster.", 7) == 0 || strncmp(name, "greedy", 6) == 0 || strcmp(order, "raster") != 0;
    return known && tsar_order_parse(s, order, NULL) == TSAR_OK;
}

static double distance(const double *ours, const double *theirs, size_t n)
{
    double worst = 0, square = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs(ours[i] - theirs[i]));
        square += theirs[i] * theirs[i];
    }
    return worst / sqrt(square / (double)n);
}

/* One case against the file, and against a batch. */
static void test_case(const source *s, const char *file, const char *name)
{
    tsar_settings settings;
    size_t count = 0;
    if (!settings_of(&settings, s, name)) return;
    int64_t *codes = golden(s->file, name, ".codes", 1, NULL), *step_of = golden(s->file, name, ".step_of", 1, NULL);
    int64_t *steps = golden(s->file, name, ".steps", 1, NULL);
    double *logits = golden(s->file, name, ".logits", 0, &count);
    tsar_prompt prompt = s->prompt;
    if (strncmp(name, "zipar_pad.", 10) == 0) prompt.text_uncond = s->pad, prompt.n_text_uncond = prompt.n_text;
    run r = generate(s, &prompt, &settings, 1), three = generate(s, &prompt, &settings, 3);
    CHECK(memcmp(codes, r.result.codes, r.N * sizeof *codes) == 0, "%s, %s: codes", file, name);
    CHECK(step_of == NULL || memcmp(step_of, r.result.step_of, r.n * sizeof *step_of) == 0, "%s, %s: step_of", file, name);
    CHECK(steps == NULL || (size_t)steps[0] == r.result.passes[0], "%s, %s: %zu passes", file, name, r.result.passes[0]);
    const double worst = logits != NULL && count == r.logits ? distance(r.result.logits, logits, count) : 0;
    CHECK((logits == NULL || count == r.logits) && worst < 1e-11, "%s, %s: logits differ by %g of their RMS", file, name, worst);
    CHECK(same_run(&three, &r), "%s, %s: a batch equals a single image", file, name);
    run_close(&r);
    run_close(&three);
    free(codes);
    free(step_of);
    free(steps);
    free(logits);
}

/* The logits of a trace, the last `size` of gpt.logits but what stands behind the last token. */
typedef struct {
    double *logits;
    size_t rows, V;
} traced;

static tsar_status keep_logits(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    traced *t = context;
    (void)dtype, (void)rank, (void)err;
    if (strcmp(name, "gpt.logits") != 0) return TSAR_OK;
    const double *from = data;
    if (rank == 2) from += (shape[0] - t->rows - 1) * t->V; /* LlamaGen: every position, the last of which predicts nothing */
    memcpy(t->logits, from, t->rows * t->V * sizeof *from);
    return TSAR_OK;
}

/* Raster order with keys and values that are kept, both sequences in one pass, equals two runs over the whole picture, to the bit. */
static void test_uncached(const source *s, const char *file)
{
    const tsar_config *c = &s->model->config;
    tsar_error err = { "" };
    tsar_settings settings = tsar_settings_default(s->model);
    settings.cfg = 3;
    settings.schedule = TSAR_CONSTANT;
    run r = generate(s, &s->prompt, &settings, 1);
    traced t[2];
    for (int branch = 0; branch < 2; branch++) {
        tsar_prompt prompt = s->prompt;
        const tsar_sink sink = { keep_logits, &t[branch], 0 };
        prompt.unconditional = branch;
        t[branch].rows = c->tokens * c->shuffle * c->shuffle, t[branch].V = c->vocab;
        t[branch].logits = need(r.logits, sizeof(double));
        CHECK(tsar_gpt_trace(s->model, &prompt, r.result.codes, &sink, &err) == TSAR_OK, "%s: %s", file, err.text);
    }
    tsar_guide(t[0].logits, t[1].logits, r.logits, 3);
    CHECK(memcmp(t[0].logits, r.result.logits, r.logits * sizeof(double)) == 0, "%s: a pair with a cache equals two runs without", file);
    free(t[0].logits);
    free(t[1].logits);
    run_close(&r);
}

static void test_file(const char *file, size_t expected)
{
    source s;
    size_t seen = 0;
    if (!source_open(&s, file)) return;
    for (size_t i = 0; i < tsar_file_count(s.file); i++) {
        tsar_settings settings;
        char name[100];
        snprintf(name, sizeof name, "%s", tsar_file_at(s.file, i)->name);
        char *end = strstr(name, ".codes");
        if (end == NULL) continue;
        *end = '\0';
        if (!settings_of(&settings, &s, name)) continue;
        test_case(&s, file, name);
        seen++;
    }
    CHECK(seen == expected, "%s: %zu of %zu cases", file, seen, expected);
    test_uncached(&s, file);
    source_close(&s);
}

/* What a model cannot have is refused in one sentence. */
static void refuse(const char *description, const char *order, const char *why)
{
    tsar_model *m = NULL;
    tsar_error err = { "" };
    if (!CHECK(test_synthesise(&m, SYNTHETIC, description, TSAR_F32, 1, &err) == TSAR_OK, "%s", err.text)) return;
    tsar_settings s = tsar_settings_default(m);
    CHECK(tsar_order_parse(&s, order, &err) == TSAR_OK, "%s", err.text);
    CHECK(tsar_order_check(&s, m, &err) == TSAR_USAGE && strstr(err.text, why) != NULL, "%s: %s", order, err.text);
    tsar_model_close(m);
}

#define LLAMAGEN_KEYS \
    "arch=llamagen-c2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=16 cond_tokens=1 num_classes=3 seed=1 "
static void test_refusals(void)
{
    static const char shuffled[] = "arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=6 codebook_size=12 "
                                   "grid_h=4 grid_w=4 shuffle=1 seed=3";
    refuse(shuffled, "zipar:2,authors", "LlamaGen");
    refuse(LLAMAGEN_KEYS "grid_h=4 grid_w=5", "zipar:2,authors", "square grids only and this one is 4 x 5");
    refuse(LLAMAGEN_KEYS "grid_h=4 grid_w=4", "zipar:1,authors", "windows from 2 to 3");
    refuse(LLAMAGEN_KEYS "grid_h=4 grid_w=4", "zipar:4,authors", "windows from 2 to 3");
    refuse(LLAMAGEN_KEYS "grid_h=4 grid_w=4 n_coarse=4", "zipar:2,authors", "coarse labels");
}

int main(void)
{
    test_file("zipar_authors_c2i", 15);
    test_file("zipar_authors_c2i_odd", 11);
    test_file("zipar_authors_t2i", 11);
    test_file("lumina_mha", 2);
    test_file("lumina_gqa", 2);
    test_file("lumina_ids", 2);
    test_file("lumina_zipar", 14);
    test_file("lumina_zipar_wide", 8);
    test_file("emu3", 2);
    test_file("emu3_wide", 2);
    test_file("emu3_zipar", 8);
    test_file("janus", 2);
    test_refusals();
    return test_end();
}
