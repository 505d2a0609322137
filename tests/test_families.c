/* test_families.c - the families of ids (lumina-mgpt, emu3, janus) and the text encoder against golden vectors: every tensor of the trace,
 * what an exchanged tensor does, and greedy decoding with and without guidance, eol after every row, prefixes of any length. */
#include "test.h"

#include <math.h>
#include <stdlib.h>

static const char MODEL[] = "test_families.safetensors";

/* An open vector and its model. */
typedef struct {
    tsar_file *file;
    tsar_model *model;
    double tolerance; /* of an element, in units of the tensor's RMS */
    size_t compared;
    double worst;
} golden;

static void *read_tensor(const golden *g, const char *name, int floats, size_t *count)
{
    const tsar_tensor *tensor = tsar_file_find(g->file, name);
    *count = tensor ? (size_t)tensor->count : 0;
    if (!tensor) return NULL;
    void *values = malloc(*count * sizeof(double));
    tsar_error err = { "" };
    const tsar_status status = floats ? tsar_file_read_f64(g->file, tensor, 0, tensor->count, values, &err)
                                      : tsar_file_read_i64(g->file, tensor, 0, tensor->count, values, &err);
    CHECK(status == TSAR_OK, "%s: %s", name, err.text);
    return values;
}

/* The largest difference in units of the RMS of `right`. */
static double difference(const double *got, const double *right, size_t n)
{
    double most = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        squares += right[i] * right[i];
        if (!(fabs(got[i] - right[i]) <= most)) most = fabs(got[i] - right[i]);
    }
    return most / sqrt(squares / (double)n);
}

static tsar_status compare(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    golden *g = context;
    size_t count = 1, n;
    (void)err;
    double *right = dtype == TSAR_F64 ? read_tensor(g, name, 1, &n) : NULL;
    const tsar_tensor *tensor = tsar_file_find(g->file, name);
    if (!right) return TSAR_OK;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    const int shaped = tensor->rank == rank && memcmp(tensor->shape, shape, rank * sizeof *shape) == 0;
    CHECK(shaped && count == n, "%s: the shape", name);
    const double error = shaped ? difference(data, right, n) : HUGE_VAL;
    CHECK(error <= g->tolerance, "%s: %g of its RMS, at most %g", name, error, g->tolerance);
    if (!(error <= g->worst)) g->worst = error;
    g->compared++;
    free(right);
    return TSAR_OK;
}

static int open_golden(golden *g, const char *name, double tolerance)
{
    char path[256];
    tsar_error err = { "" };
    memset(g, 0, sizeof *g);
    g->tolerance = tolerance;
    snprintf(path, sizeof path, "tests/vectors/%s.safetensors", name);
    if (!CHECK(test_synth_like(MODEL, path, TSAR_F32, &err) == TSAR_OK && tsar_file_open(&g->file, path, &err) == TSAR_OK, "%s: %s", name, err.text)) return 0;
    const int opened = CHECK(tsar_model_open(&g->model, MODEL, TSAR_PART_ALL, 1, &err) == TSAR_OK, "%s: %s", name, err.text);
    remove(MODEL);
    return opened;
}

static void close_golden(golden *g)
{
    tsar_model_close(g->model);
    tsar_file_close(g->file);
}

/* Greedy decoding through tsar_forward, one token a pass: an eol where a row ends, then the row's last code in the same pass; scale 1: no
 * guidance. The codes must be those of the file, the logits within the tolerance. */
static void decode(golden *g, const tsar_prompt *prompt, const char *prefix, double scale)
{
    const tsar_config *c = &g->model->config;
    const size_t n = c->tokens, V = c->vocab;
    char name[64];
    size_t count, wrong = 0;
    tsar_error err = { "" };
    tsar_state *state = NULL;
    tsar_prompt both[2] = { *prompt, *prompt };
    double *logits = malloc(2 * V * sizeof *logits), worst = 0;
    snprintf(name, sizeof name, "%s.codes", prefix);
    int64_t *codes = read_tensor(g, name, 0, &count);
    snprintf(name, sizeof name, "%s.logits", prefix);
    double *right = read_tensor(g, name, 1, &count);
    both[1].unconditional = 1;
    tsar_status status = tsar_state_open(&state, g->model, 2, &err);
    for (size_t b = 0; b < 2 && status == TSAR_OK; b++) status = tsar_prefill(state, b, &both[b], logits + b * V, &err);
    for (size_t t = 0; t < n && status == TSAR_OK; t++) {
        if (scale > 1) tsar_guide(logits, logits + V, V, scale);
        wrong += tsar_argmax(logits, V) != (size_t)codes[t];
        const double error = difference(logits, right + t * V, V);
        if (!(error <= worst)) worst = error;
        tsar_feed feed[4];
        size_t rows = 0;
        const int ends = c->eol >= 0 && (t + 1) % c->columns == 0;
        for (size_t b = 0; b < 2; b++) {
            feed[rows++] = (tsar_feed){ b, t, &codes[t], 1, ends ? NULL : logits + b * V };
            if (ends) feed[rows++] = (tsar_feed){ b, t, NULL, 1, logits + b * V };
        }
        if (t + 1 < n) status = tsar_forward(state, feed, rows, &err);
    }
    CHECK(status == TSAR_OK, "%s: %s", prefix, err.text);
    CHECK(wrong == 0 && worst <= g->tolerance * 10 && codes && right, "%s: %d codes differ, logits %g of their RMS", prefix, (int)wrong, worst);
    tsar_state_close(state);
    free(logits), free(codes), free(right);
}

/* A family's trace and its decoding. */
static void test_family(const char *name, double tolerance)
{
    golden g;
    size_t n, count;
    tsar_error err = { "" };
    if (!open_golden(&g, name, tolerance)) return;
    tsar_prompt prompt = { 0 };
    int64_t *text = read_tensor(&g, "input.text", 0, &prompt.n_text), *own = read_tensor(&g, "input.text_uncond", 0, &n);
    int64_t *codes = read_tensor(&g, "input.codes", 0, &count);
    prompt.text = text;
    const tsar_sink sink = { .put = compare, .context = &g };
    if (codes) CHECK(tsar_gpt_trace(g.model, &prompt, codes, &sink, &err) == TSAR_OK, "%s: %s", name, err.text);
    if (codes) CHECK(g.compared == g.model->config.n_layer + 3, "%s: %d tensors", name, (int)g.compared);
    prompt.text_uncond = own; /* emu3: there is no rule; janus: the file's is what the rule makes too */
    prompt.n_text_uncond = n;
    const char *cfg = tsar_file_meta(g.file, "cfg");
    if (tsar_file_find(g.file, "greedy.codes")) decode(&g, &prompt, "greedy", 1);
    if (tsar_file_find(g.file, "greedy_cfg.codes")) decode(&g, &prompt, "greedy_cfg", atof(cfg));
    if (tsar_family_of(&g.model->config)->uncond != TSAR_UNCOND_NEGATIVE) {
        prompt.text_uncond = NULL;
        if (tsar_file_find(g.file, "greedy_cfg.codes")) decode(&g, &prompt, "greedy_cfg", atof(cfg));
    } else {
        prompt.text_uncond = NULL;
        prompt.unconditional = 1;
        CHECK(tsar_prompt_check(g.model, &prompt, &err) == TSAR_INPUT && strstr(err.text, "--negative-ids"), "no negative prompt: %s", err.text);
    }
    printf("%-20s %g of the RMS\n", name, g.worst);
    close_golden(&g);
    free(text), free(own), free(codes);
}

/* The text encoder. */
static void test_encoder(const char *name, double tolerance)
{
    golden g;
    size_t L;
    tsar_error err = { "" };
    if (!open_golden(&g, name, tolerance)) return;
    int64_t *ids = read_tensor(&g, "input.t5_ids", 0, &L);
    const tsar_sink sink = { .put = compare, .context = &g };
    double *out = malloc(L * g.model->config.t5_dim * sizeof *out);
    CHECK(tsar_t5_encode(g.model, ids, L, out, &sink, &err) == TSAR_OK, "%s: %s", name, err.text);
    CHECK(g.compared == 2 * g.model->config.t5_n_layer + 2, "%s: %d tensors", name, (int)g.compared);
    ids[L - 1] = (int64_t)g.model->config.t5_vocab;
    CHECK(tsar_t5_encode(g.model, ids, L, out, NULL, &err) == TSAR_INPUT && strstr(err.text, "t5_vocab"), "an id too many: %s", err.text);
    printf("%-20s %g of the RMS\n", name, g.worst);
    close_golden(&g);
    free(ids), free(out);
}

int main(void)
{
    static const char *const families[] = { "lumina_mha", "lumina_gqa", "emu3", "emu3_wide", "janus" };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) test_family(families[i], 1e-11);
    test_family("lumina_mha.float32", 2e-5);
    test_family("emu3.float32", 2e-5);
    test_encoder("t5", 1e-11);
    test_encoder("t5_buckets", 1e-11);
    test_encoder("t5.float32", 2e-5);
    return test_end();
}
