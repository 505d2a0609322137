/* The transformer against itself: KV cache and full recomputation, several sequences side by side and one alone, many
 * tokens in a pass and one, long prompts in pieces and whole: all bit for bit. (Its numbers are checked against golden
 * vectors by test_verify.c and test_sampler.c.) */
#include "../tsar.h"
#include "test.h"

#include <stdlib.h>
#include <string.h>

static tsar_model *synthesise(const char *settings, tsar_dtype dtype)
{
    tsar_error err = { "" };
    tsar_model *model = NULL;
    CHECK(test_synthesise(&model, "test_gpt.tmp.safetensors", settings, dtype, 1, &err) == TSAR_OK, "%s", err.text);
    return model;
}

/* Keeps gpt.logits of a trace: the rows that predict the n fused tokens. */
typedef struct {
    const tsar_model *model;
    double *logits; /* [n][s*s][V] */
} keeper;

static tsar_status keep(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    keeper *k = context;
    const tsar_config *c = &k->model->config;
    const size_t row = c->shuffle * c->shuffle * c->vocab;
    (void)dtype, (void)rank, (void)err;
    if (strcmp(name, "gpt.logits") != 0) return TSAR_OK;
    const size_t first = c->arch == TSAR_TOKEN_SHUFFLE ? 0 : shape[0] - c->tokens - 1;
    memcpy(k->logits, (const double *)data + first * row, c->tokens * row * sizeof(double));
    return TSAR_OK;
}

typedef struct {
    tsar_model *model;
    size_t n, slots, row; /* fused tokens, codes of one, logits of one */
    int64_t *codes;       /* [n][s*s], window by window */
    int64_t *picture;     /* [gh][gw], the same */
    double *truth, *seen; /* [n][s*s][V] */
} fixture;

static void fixture_open(fixture *f, tsar_model *model)
{
    const tsar_config *c = &model->config;
    const size_t s = c->shuffle;
    tsar_error err;
    f->model = model;
    f->n = c->tokens;
    f->slots = s * s;
    f->row = f->slots * c->vocab;
    f->codes = tsar_alloc(f->n * f->slots, sizeof(int64_t), "codes", &err);
    f->picture = tsar_alloc(f->n * f->slots, sizeof(int64_t), "codes", &err);
    f->truth = tsar_alloc(f->n * f->row, sizeof(double), "logits", &err);
    f->seen = tsar_alloc(f->n * f->row, sizeof(double), "logits", &err);
    for (size_t t = 0; t < f->n; t++)
        for (size_t slot = 0; slot < f->slots; slot++) {
            const size_t y = t / c->columns * s + slot / s, x = t % c->columns * s + slot % s;
            f->codes[t * f->slots + slot] = f->picture[y * c->grid_w + x] = (int64_t)(tsar_mix(t * 97 + slot) % c->vocab);
        }
}

static void fixture_close(fixture *f)
{
    tsar_free(f->codes);
    tsar_free(f->picture);
    tsar_free(f->truth);
    tsar_free(f->seen);
    tsar_model_close(f->model);
}

/* Feeds tokens 0 ... n-2, `at_once` in a pass, to sequences 0 ... sequences-1 of different prompts; sequence `which` is the one
 * looked at and has the prompt of the trace. */
static void decode(fixture *f, const tsar_prompt *prompts, size_t sequences, size_t which, size_t at_once)
{
    tsar_error err = { "" };
    tsar_state *state;
    tsar_feed feed[64];
    CHECK(tsar_state_open(&state, f->model, sequences, &err) == TSAR_OK, "%s", err.text);
    for (size_t q = 0; q < sequences; q++) CHECK(tsar_prefill(state, q, &prompts[q], q == which ? f->seen : NULL, &err) == TSAR_OK, "%s", err.text);
    for (size_t t = 0; t + 1 < f->n; t += at_once) {
        const size_t count = f->n - 1 - t < at_once ? f->n - 1 - t : at_once;
        size_t rows = 0;
        for (size_t i = 0; i < count; i++)
            for (size_t q = 0; q < sequences; q++) {
                const tsar_feed row = { q, t + i, f->codes + (t + i) * f->slots, 1, q == which ? f->seen + (t + i + 1) * f->row : NULL };
                feed[rows++] = row;
            }
        CHECK(tsar_forward(state, feed, rows, &err) == TSAR_OK, "%s", err.text);
    }
    tsar_state_close(state);
}

static void compare(tsar_model *model, const tsar_prompt *prompts, const char *what)
{
    static const size_t passes[] = { 1, 2, 3, 5, 7, 16 };
    fixture f;
    tsar_error err = { "" };
    fixture_open(&f, model);
    keeper k = { model, f.truth };
    const tsar_sink sink = { .put = keep, .context = &k };
    CHECK(tsar_gpt_trace(model, &prompts[0], f.picture, &sink, &err) == TSAR_OK, "%s", err.text);
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++) {
        decode(&f, prompts, 1, 0, passes[i]);
        CHECK(memcmp(f.seen, f.truth, f.n * f.row * sizeof(double)) == 0, "%s: cached, %zu tokens in a pass = recomputed", what, passes[i]);
    }
    for (size_t sequences = 2; sequences <= 3; sequences++) {
        tsar_prompt shifted[3];
        for (size_t q = 0; q < sequences; q++) shifted[q] = prompts[(q + 1) % sequences]; /* the last one is prompts[0] */
        decode(&f, shifted, sequences, sequences - 1, 4);
        CHECK(memcmp(f.seen, f.truth, f.n * f.row * sizeof(double)) == 0, "%s: among %zu sequences = alone", what, sequences);
    }
    fixture_close(&f);
}

/* A stand-in leaves no trace: fed and forgotten before the real token comes, the rest is as if it had never been. */
static void stand_in(tsar_model *model, const tsar_prompt *prompt)
{
    fixture f;
    tsar_error err = { "" };
    tsar_state *state;
    fixture_open(&f, model);
    decode(&f, prompt, 1, 0, 1);
    memcpy(f.truth, f.seen, f.n * f.row * sizeof(double));
    CHECK(tsar_state_open(&state, model, 1, &err) == TSAR_OK && tsar_prefill(state, 0, prompt, f.seen, &err) == TSAR_OK, "%s", err.text);
    for (size_t t = 0; t + 1 < f.n; t++) {
        const tsar_feed early = { 0, f.n - 1, f.codes + t * f.slots, 0, NULL }, wrong = { 0, t, f.codes + (t + 1) * f.slots, 0, NULL };
        const tsar_feed right = { 0, t, f.codes + t * f.slots, 1, f.seen + (t + 1) * f.row };
        CHECK(tsar_forward(state, &early, 1, &err) == TSAR_OK && tsar_forward(state, &wrong, 1, &err) == TSAR_OK &&
                  tsar_forward(state, &right, 1, &err) == TSAR_OK,
              "%s", err.text);
    }
    CHECK(memcmp(f.seen, f.truth, f.n * f.row * sizeof(double)) == 0, "stand-ins are forgotten");
    tsar_state_close(state);
    fixture_close(&f);
}

int main(void)
{
    static int64_t text[3][150];
    double caption[6 * 20], masks[3][6] = { { 0, 0, 1, 1, 1, 1 }, { 1, 1, 0, 1, 1, 0 }, { 1, 1, 1, 1, 1, 1 } };
    tsar_prompt prompts[3];
    for (size_t q = 0; q < 3; q++)
        for (size_t i = 0; i < 150; i++) text[q][i] = i == 0 ? 0 : (int64_t)(tsar_mix(q * 1000 + i) % 40);
    for (size_t i = 0; i < sizeof caption / sizeof *caption; i++) caption[i] = (double)(tsar_mix(i) % 101) / 50.0 - 1.0;
    for (size_t q = 0; q < 3; q++) {
        const tsar_prompt p = { .text = text[q],
                                .n_text = q == 0   ? 150
                                          : q == 1 ? 6
                                                   : 65,
                                .class_id = q,
                                .caption = caption,
                                .caption_mask = masks[q],
                                .unconditional = q == 1 };
        prompts[q] = p;
    }
    static const char shuffle[] = "arch=token-shuffle dim=72 n_layer=2 n_head=6 n_kv_head=2 ffn_hidden=100 norm_eps=1e-5 rope=1d text_vocab=40 "
                                  "codebook_size=90 grid_h=9 grid_w=12 shuffle=3 shuffle_blocks=2 shuffle_hidden=50 seed=3";
    static const char plain[] = "arch=token-shuffle dim=40 n_layer=2 n_head=4 n_kv_head=1 ffn_hidden=33 norm_eps=1e-5 rope=1d text_vocab=40 "
                                "codebook_size=37 grid_h=5 grid_w=7 shuffle=1 seed=4";
    static const char c2i[] = "arch=llamagen-c2i dim=48 n_layer=2 n_head=4 n_kv_head=4 ffn_hidden=130 norm_eps=1e-5 rope=2d codebook_size=70 "
                              "grid_h=4 grid_w=5 cond_tokens=1 num_classes=7 seed=5";
    static const char t2i[] = "arch=llamagen-t2i dim=48 n_layer=3 n_head=3 n_kv_head=3 ffn_hidden=64 norm_eps=1e-5 rope=2d codebook_size=31 "
                              "grid_h=5 grid_w=4 cond_tokens=6 caption_dim=20 seed=6";
    compare(synthesise(shuffle, TSAR_F32), prompts, "token-shuffle, s = 3, GQA");
    compare(synthesise(shuffle, TSAR_BF16), prompts, "token-shuffle, BF16");
    compare(synthesise(plain, TSAR_F32), prompts, "token-shuffle, s = 1");
    compare(synthesise(c2i, TSAR_F16), prompts, "c2i");
    compare(synthesise(t2i, TSAR_F32), prompts, "t2i");
    stand_in(synthesise(shuffle, TSAR_F32), prompts);
    stand_in(synthesise(c2i, TSAR_F32), prompts);
    return test_end();
}
