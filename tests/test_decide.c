/* The function that decides a code: what it is shown, that it has the last word, in every order and stage; and the likelihood that is built on it. */
#include "test.h"

#include <math.h>
#include <stdlib.h>

#define SYNTHETIC "test_decide.safetensors"
enum { IMAGE_CODES = 100 }; /* codes of an image here */

static const char shuffled[] = "arch=token-shuffle dim=48 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=64 norm_eps=1e-5 rope=1d text_vocab=20 "
                               "codebook_size=40 grid_h=6 grid_w=8 shuffle=2 shuffle_blocks=1 shuffle_hidden=32 seed=5";
static const char coarse[] = "arch=token-shuffle dim=48 n_layer=1 n_head=4 n_kv_head=2 ffn_hidden=64 norm_eps=1e-5 rope=1d text_vocab=20 "
                             "codebook_size=90 n_coarse=9 grid_h=6 grid_w=8 shuffle=2 shuffle_blocks=1 shuffle_hidden=32 seed=5 "
                             "fine_dim=32 fine_n_layer=1 fine_n_head=2 fine_ffn_hidden=40";
static const char *const orders[] = { "raster", "zipar:1", "zipar:2,first-row", "zipar-adaptive:1" };

static const int64_t text[] = { 0, 3, 5, 17, 1 };
static const tsar_prompt prompt = { .text = text, .n_text = 5 };

typedef struct {
    const tsar_model *model;
    const tsar_settings *settings;
    size_t calls, fine, tests, wrong;
    const int64_t *force; /* [gh][gw]: the codes to take; NULL: the rule's */
    size_t limit;         /* the call that fails, 0: none */
    size_t code;          /* that takes the place of every other where it is not SIZE_MAX */
} seen;

/* The rule of a decision written out once more: greedy, draw, or acceptance and residual. */
static size_t by_rule(const tsar_decision *d, const tsar_settings *s)
{
    static double p[IMAGE_CODES], residual[IMAGE_CODES];
    static size_t scratch[IMAGE_CODES];
    size_t index;
    memcpy(p, d->logits, d->V * sizeof *p);
    if (s->greedy) return d->codes ? d->codes[tsar_argmax(p, d->V)] : tsar_argmax(p, d->V);
    tsar_probabilities(p, d->V, s, scratch);
    if (memcmp(p, d->p, d->V * sizeof *p) != 0) return SIZE_MAX;
    if (d->purpose != TSAR_ACCEPT)
        index = tsar_draw(p, d->V, d->u);
    else {
        if (d->u * d->before[d->candidate] < p[d->candidate]) return d->candidate;
        for (size_t v = 0; v < d->V; v++) residual[v] = fmax(0, p[v] - d->before[v]);
        index = tsar_draw(residual, d->V, d->replace);
    }
    return d->codes ? d->codes[index] : index;
}

/* Guidance as it is shown: its scale is the schedule's, and the logits follow from those before it. */
static int guided_well(const tsar_decision *d, const tsar_settings *s, size_t n)
{
    static double guided[IMAGE_CODES];
    const double scale = d->purpose == TSAR_FINE ? 0 : tsar_cfg_scale(s, d->token, n);
    memcpy(guided, d->cond, d->V * sizeof *guided);
    if (d->scale > 0) tsar_guide(guided, d->uncond, d->V, d->scale);
    return d->scale == scale && (d->uncond != NULL) == (scale > 0) && memcmp(guided, d->logits, d->V * sizeof *guided) == 0;
}

static tsar_status look(void *context, const tsar_decision *d, size_t *code, tsar_error *err)
{
    seen *w = context;
    const tsar_config *c = &w->model->config;
    const uint64_t seed = w->settings->seed, purpose = (uint64_t)d->purpose;
    w->calls++;
    w->fine += d->purpose == TSAR_FINE;
    w->tests += d->purpose == TSAR_ACCEPT;
    w->wrong += !guided_well(d, w->settings, c->tokens);
    w->wrong += *code != by_rule(d, w->settings);
    w->wrong += d->u != tsar_uniform(seed, d->image, d->row, d->column, d->slot, purpose, d->attempt);
    w->wrong += d->y != d->row * c->shuffle + d->slot / c->shuffle || d->x != d->column * c->shuffle + d->slot % c->shuffle;
    w->wrong += d->token != d->row * c->columns + d->column || (d->purpose == TSAR_DRAW && d->V != c->vocab);
    if (w->calls == w->limit) return tsar_fail(err, TSAR_DIFFERENT, "enough");
    if (w->force != NULL) *code = (size_t)w->force[d->y * c->grid_w + d->x];
    if (w->force != NULL && c->n_coarse > 0 && d->purpose != TSAR_FINE) *code = (size_t)w->model->cluster_of[*code];
    if (w->code != SIZE_MAX) *code = w->code;
    return TSAR_OK;
}

static tsar_settings settings_of(const tsar_model *m, const char *order, int greedy, seen *w)
{
    tsar_settings s = tsar_settings_default(m);
    s.seed = 11;
    s.greedy = greedy;
    s.cfg = 2;
    s.temperature = 0.8;
    s.top_k = 25;
    CHECK(tsar_order_parse(&s, order, NULL) == TSAR_OK, "%s", order);
    memset(w, 0, sizeof *w);
    w->model = m;
    w->code = SIZE_MAX;
    return s;
}

/* Looking on changes nothing; forcing a run's own codes gives its logits again in every order but the adaptive one, whose first
 * tokens are then kept at once. */
static void test_orders(const char *description)
{
    tsar_model *m = NULL;
    tsar_error err = { "" };
    if (!CHECK(test_synthesise(&m, SYNTHETIC, description, TSAR_F32, 1, &err) == TSAR_OK, "%s", err.text)) return;
    const tsar_config *c = &m->config;
    const size_t N = c->grid_h * c->grid_w, size = N * c->vocab;
    double *logits[2] = { calloc(size, sizeof(double)), calloc(size, sizeof(double)) };
    for (size_t i = 0; i < 8; i++) {
        int64_t codes[2][IMAGE_CODES], steps[2][IMAGE_CODES];
        seen w;
        tsar_settings s = settings_of(m, orders[i / 2], i % 2 == 1, &w);
        tsar_result plain = { codes[0], NULL, steps[0], logits[0], NULL }, watched = { codes[1], NULL, steps[1], logits[1], NULL };
        const int adaptive = s.order == TSAR_ZIPAR_ADAPTIVE;
        CHECK(tsar_generate(m, &prompt, &s, 1, &plain, NULL, NULL, &err) == TSAR_OK, "%s", err.text);
        s.decide = look;
        s.decide_context = &w;
        w.settings = &s;
        CHECK(tsar_generate(m, &prompt, &s, 1, &watched, NULL, NULL, &err) == TSAR_OK, "%s", err.text);
        CHECK(memcmp(codes[0], codes[1], N * sizeof **codes) == 0 && memcmp(logits[0], logits[1], size * sizeof(double)) == 0, "%s: looking on", orders[i / 2]);
        CHECK(w.wrong == 0 && (w.tests > 0) == adaptive && w.fine == (c->n_coarse > 0 ? N : 0), "%s: %zu of %zu decisions are wrong", orders[i / 2],
              w.wrong, w.calls);
        CHECK(adaptive || w.calls - w.fine == N, "%s: %zu decisions", orders[i / 2], w.calls);
        s.seed = 12; /* the codes are forced, whatever is drawn */
        w.force = codes[0];
        w.wrong = 0;
        CHECK(tsar_generate(m, &prompt, &s, 1, &watched, NULL, NULL, &err) == TSAR_OK, "%s", err.text);
        CHECK(memcmp(codes[0], codes[1], N * sizeof **codes) == 0 && w.wrong == 0, "%s: forced codes", orders[i / 2]);
        CHECK(adaptive || memcmp(logits[0], logits[1], size * sizeof(double)) == 0, "%s: logits of forced codes", orders[i / 2]);
        for (size_t row = 1; adaptive && row < c->rows; row++)
            CHECK(steps[1][row * c->columns] == steps[1][(row - 1) * c->columns] + 2, "a forced candidate outlives its first test");
        w.calls = 0, w.limit = 5;
        CHECK(tsar_generate(m, &prompt, &s, 1, &watched, NULL, NULL, &err) == TSAR_DIFFERENT && w.calls == 5 && !strcmp(err.text, "enough"),
              "it can stop: %s", err.text);
        w.limit = 0, w.code = c->vocab;
        CHECK(tsar_generate(m, &prompt, &s, 1, &watched, NULL, NULL, &err) == TSAR_USAGE && strstr(err.text, "it must be below"), "out of range: %s", err.text);
    }
    free(logits[0]);
    free(logits[1]);
    tsar_model_close(m);
}

/* Logits of forced codes, one pass a token, are those of one pass over the whole picture: gpt.logits of the trace. */
static double traced[IMAGE_CODES * IMAGE_CODES];
static tsar_status keep_logits(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    (void)context, (void)dtype, (void)err;
    size_t count = 1;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    if (strcmp(name, "gpt.logits") == 0) memcpy(traced, data, count * sizeof *traced);
    return TSAR_OK;
}

static double log_softmax(const double *x, size_t V, size_t c)
{
    double total = 0;
    for (size_t v = 0; v < V; v++) total += exp(x[v] - x[c]);
    return -log(total);
}

static void test_score(void)
{
    tsar_model *m = NULL;
    tsar_error err = { "" };
    int64_t codes[IMAGE_CODES];
    double nats[IMAGE_CODES], worst = 0, all = 0;
    seen w;
    if (!CHECK(test_synthesise(&m, SYNTHETIC, shuffled, TSAR_F32, 1, &err) == TSAR_OK, "%s", err.text)) return;
    const tsar_config *c = &m->config;
    const size_t N = c->grid_h * c->grid_w, s2 = c->shuffle * c->shuffle, V = c->vocab;
    const tsar_sink sink = { keep_logits, NULL, 0 };
    tsar_settings s = settings_of(m, "raster", 0, &w);
    s.cfg = 1;
    for (size_t i = 0; i < N; i++) codes[i] = (int64_t)(i * 7 % V);
    CHECK(tsar_score(m, &prompt, &s, codes, nats, &err) == TSAR_OK, "%s", err.text);
    CHECK(tsar_gpt_trace(m, &prompt, codes, &sink, &err) == TSAR_OK, "%s", err.text);
    for (size_t i = 0; i < N; i++) {
        const size_t y = i / c->grid_w, x = i % c->grid_w, t = y / c->shuffle * c->columns + x / c->shuffle;
        const size_t slot = y % c->shuffle * c->shuffle + x % c->shuffle;
        worst = fmax(worst, fabs(nats[i] - log_softmax(traced + (t * s2 + slot) * V, V, (size_t)codes[i])));
        all += nats[i];
    }
    CHECK(worst < 1e-13 && all < 0, "the likelihood of a traced picture differs by %g", worst);
    double other[IMAGE_CODES], guided[IMAGE_CODES];
    s.cfg = 3;
    CHECK(tsar_score(m, &prompt, &s, codes, guided, &err) == TSAR_OK && memcmp(guided, nats, N * sizeof *nats) != 0, "guided");
    s.temperature = 0.3, s.top_k = 1, s.seed = 5, s.greedy = 1;
    CHECK(tsar_score(m, &prompt, &s, codes, other, &err) == TSAR_OK && memcmp(guided, other, N * sizeof *nats) == 0, "sampling has no say");
    tsar_order_parse(&s, "zipar:8", NULL);
    CHECK(tsar_score(m, &prompt, &s, codes, other, &err) == TSAR_OK && memcmp(guided, other, N * sizeof *nats) == 0, "W = C is raster");
    tsar_order_parse(&s, "zipar:1", NULL);
    CHECK(tsar_score(m, &prompt, &s, codes, other, &err) == TSAR_OK && memcmp(guided, other, N * sizeof *nats) != 0, "an order has a likelihood of its own");
    tsar_order_parse(&s, "zipar-adaptive:1", NULL);
    CHECK(tsar_score(m, &prompt, &s, codes, other, &err) == TSAR_USAGE, "the adaptive order has none");
    codes[3] = (int64_t)V;
    tsar_order_parse(&s, "raster", NULL);
    CHECK(tsar_score(m, &prompt, &s, codes, other, &err) == TSAR_INPUT && strstr(err.text, "code 40 at place 3"), "%s", err.text);
    tsar_model_close(m);
}

/* Labels and codes together are a distribution: over the 90 codes of one place, with the others fixed, the last place's probabilities add up to 1. */
static void test_score_coarse(void)
{
    tsar_model *m = NULL;
    tsar_error err = { "" };
    int64_t codes[IMAGE_CODES];
    double nats[IMAGE_CODES], total = 0;
    seen w;
    if (!CHECK(test_synthesise(&m, SYNTHETIC, coarse, TSAR_F32, 1, &err) == TSAR_OK, "%s", err.text)) return;
    const size_t N = m->config.grid_h * m->config.grid_w, K = m->config.codebook_size;
    tsar_settings s = settings_of(m, "raster", 0, &w);
    for (size_t i = 0; i < N; i++) codes[i] = (int64_t)(i * 7 % K);
    for (size_t k = 0; k < K; k++) {
        codes[N - 1] = (int64_t)k;
        CHECK(tsar_score(m, &prompt, &s, codes, nats, &err) == TSAR_OK, "%s", err.text);
        total += exp(nats[N - 1]);
    }
    CHECK(fabs(total - 1) < 1e-12, "the likelihoods of all codes add up to %g", total);
    tsar_model_close(m);
}

/* Labels without codes: refused before anything is drawn, and where the caller decides when one is taken; codes that are given have labels with codes. */
static void test_empty_labels(void)
{
    static const char sparse[] = "arch=token-shuffle dim=48 n_layer=1 n_head=4 n_kv_head=2 ffn_hidden=64 norm_eps=1e-5 rope=1d text_vocab=20 "
                                 "codebook_size=20 n_coarse=16 grid_h=4 grid_w=4 shuffle=2 shuffle_blocks=1 shuffle_hidden=32 seed=5 "
                                 "fine_dim=32 fine_n_layer=1 fine_n_head=2 fine_ffn_hidden=40";
    int64_t given[16], codes[16];
    double nats[16];
    size_t members[16] = { 0 }, empty = 0;
    tsar_model *m = NULL;
    tsar_error err = { "" };
    if (!CHECK(test_synthesise(&m, SYNTHETIC, sparse, TSAR_F32, 1, &err) == TSAR_OK, "%s", err.text)) return;
    for (size_t k = 0; k < 20; k++) members[m->cluster_of[k]]++;
    while (empty < 16 && members[empty] > 0) empty++;
    CHECK(empty < 16, "the model has an empty label");
    for (size_t i = 0; i < 16; i++) given[i] = (int64_t)i;
    tsar_result result = { codes, NULL, NULL, NULL, NULL };
    tsar_settings plain = tsar_settings_default(m);
    CHECK(tsar_generate(m, &prompt, &plain, 1, &result, NULL, NULL, &err) == TSAR_INPUT && strstr(err.text, "has no codes"), "drawn: %s", err.text);
    CHECK(tsar_score(m, &prompt, &plain, given, nats, &err) == TSAR_OK && nats[15] < 0, "the likelihood of given codes: %s", err.text);
    seen w;
    tsar_settings forced = settings_of(m, "raster", 0, &w);
    forced.decide = look, forced.decide_context = &w;
    w.settings = &forced, w.force = given;
    CHECK(tsar_generate(m, &prompt, &forced, 1, &result, NULL, NULL, &err) == TSAR_OK && memcmp(codes, given, sizeof codes) == 0, "given codes: %s", err.text);
    w.force = NULL, w.code = empty;
    CHECK(tsar_generate(m, &prompt, &forced, 1, &result, NULL, NULL, &err) == TSAR_INPUT && strstr(err.text, "has no codes"), "a caller's: %s", err.text);
    tsar_model_close(m);
}

int main(void)
{
    test_orders(shuffled);
    test_orders(coarse);
    test_score();
    test_score_coarse();
    test_empty_labels();
    return test_end();
}
