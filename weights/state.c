/* The memory of tsar.c: caches, and the scratch of a pass in one table. */
#include "state.h"

#include <string.h>

static void cache_close(kv_cache *cache, size_t matrices)
{
    for (size_t m = 0; cache->keys && cache->values && m < matrices; m++) {
        tsar_matrix_close(&cache->keys[m]);
        tsar_matrix_close(&cache->values[m]);
    }
    tsar_free(cache->keys);
    tsar_free(cache->values);
    tsar_free(cache->fed);
    memset(cache, 0, sizeof *cache);
}

tsar_status tsar_cache_open(tsar_state *state, size_t sequence, size_t prefix, size_t more, tsar_error *err)
{
    const size_t matrices = state->kept_layers * state->stack->n_kv_head, hd = state->stack->head_dim;
    kv_cache *cache = &state->cache[sequence];
    cache_close(cache, matrices);
    if (prefix > SIZE_MAX / 2 - more) return tsar_fail(err, TSAR_ROOM, "a sequence of %zu + %zu positions is too long for this machine", prefix, more);
    cache->prefix = prefix;
    cache->positions = prefix + more;
    cache->keys = tsar_alloc(matrices, sizeof *cache->keys, "the KV cache", err);
    cache->values = tsar_alloc(matrices, sizeof *cache->values, "the KV cache", err);
    cache->fed = tsar_alloc(cache->positions, 1, "the KV cache", err);
    tsar_status status = cache->keys && cache->values && cache->fed ? TSAR_OK : TSAR_ROOM;
    for (size_t m = 0; m < matrices && status == TSAR_OK; m++) {
        status = tsar_matrix_open(&cache->keys[m], cache->positions, hd, TSAR_F64, "the KV cache", err);
        if (status == TSAR_OK) status = tsar_matrix_open(&cache->values[m], hd, cache->positions, TSAR_F64, "the KV cache", err);
    }
    if (status == TSAR_OK && cache->positions > state->attend_positions) {
        tsar_free(state->attend);
        state->attend_positions = 0;
        state->attend = tsar_alloc(cache->positions + 2 * hd, state->model->threads * QUERIES * sizeof(double), "attention scores", err);
        if (state->attend) state->attend_positions = cache->positions;
        if (!state->attend) status = TSAR_ROOM;
    }
    if (status != TSAR_OK) cache_close(cache, matrices);
    return status;
}

size_t tsar_input_width(const tsar_config *c)
{
    if (tsar_family_of(c)->prefix == TSAR_PREFIX_CAPTION) return c->caption_dim;
    return c->shuffle > 1 ? c->shuffle * c->shuffle * c->dim : c->image_embed;
}

/* The scratch of a pass: a row a buffer, its doubles for each row of the pass, or for each row that is predicted from. */
typedef struct {
    double **at;
    size_t width;
    const char *what;
    int predicted; /* PASS or PREDICTION */
} buffer;
enum { STATE_BUFFERS = 12, PASS = 0, PREDICTION = 1 };

static void buffers(tsar_state *state, buffer table[STATE_BUFFERS])
{
    const tsar_stack *stack = state->stack;
    const tsar_config *c = &state->model->config;
    const int gpt = stack == &state->model->gpt, modules = gpt && tsar_input_width(c) > 0;
    const size_t d = stack->dim, slots = c->shuffle * c->shuffle;
    const size_t widths[] = { tsar_family_of(c)->prefix == TSAR_PREFIX_CAPTION || c->image_embed ? d : 0, c->shuffle_hidden, c->image_head };
    size_t hidden = widths[0];
    for (size_t i = 1; i < 3; i++) hidden = widths[i] > hidden ? widths[i] : hidden;
    const buffer all[STATE_BUFFERS] = {
        { &state->x, d, "the residual stream", PASS },
        { &state->normed, d, "normalised rows", PASS },
        { &state->qkv, (stack->n_head + 2 * stack->n_kv_head) * stack->head_dim, "queries, keys and values", PASS },
        { &state->mixed, stack->inner, "attention's output", PASS },
        { &state->delta, d, "a block's branch", PASS },
        { &state->gate, stack->ffn_hidden, "the feed-forward gate", PASS },
        { &state->up, stack->ffn_hidden, "the feed-forward input", PASS },
        { &state->rotation, 3 * (stack->head_dim / 2), "rotary angles", PASS },
        { &state->input, modules ? tsar_input_width(c) : 0, "vectors of codes", PASS },
        { &state->fused, modules ? d : 0, "fused tokens", PASS },
        { &state->hidden, modules ? hidden : 0, "hidden rows of small MLPs", PASS },
        { &state->logits, gpt ? slots * c->vocab : 0, "logits", PREDICTION },
    };
    memcpy(table, all, sizeof all);
}

static tsar_status reserve(tsar_state *state, int predicted, size_t rows, tsar_error *err)
{
    buffer table[STATE_BUFFERS];
    buffers(state, table);
    for (size_t i = 0; i < STATE_BUFFERS; i++) {
        if (table[i].predicted != predicted) continue;
        tsar_free(*table[i].at);
        *table[i].at = tsar_alloc(rows, tsar_product(table[i].width, sizeof(double)), table[i].what, err);
        if (!*table[i].at) return TSAR_ROOM;
    }
    return TSAR_OK;
}

tsar_status tsar_reserve_rows(tsar_state *state, size_t rows, tsar_error *err)
{
    if (rows <= state->rows) return TSAR_OK;
    state->rows = 0;
    tsar_free(state->row);
    state->row = tsar_alloc(rows, sizeof *state->row, "a pass", err);
    const tsar_status status = state->row ? reserve(state, PASS, rows, err) : TSAR_ROOM;
    if (status == TSAR_OK) state->rows = rows;
    return status;
}

tsar_status tsar_reserve_logits(tsar_state *state, size_t rows, tsar_error *err)
{
    if (rows <= state->logit_rows) return TSAR_OK;
    state->logit_rows = 0;
    const tsar_status status = reserve(state, PREDICTION, rows, err);
    if (status == TSAR_OK) state->logit_rows = rows;
    return status;
}

tsar_status tsar_state_make(tsar_state **out, const tsar_model *model, const tsar_stack *stack, size_t kept_layers, size_t sequences, tsar_error *err)
{
    *out = NULL;
    tsar_state *state = tsar_alloc(1, sizeof *state, "the state of a generation", err);
    if (!state) return TSAR_ROOM;
    state->model = model;
    state->stack = stack;
    state->causal = stack == &model->gpt;
    state->encoder = stack == &model->t5;
    state->part = state->causal ? "gpt" : state->encoder ? "t5" : "fine";
    state->eol = state->causal && model->config.eol >= 0;
    state->columns = state->causal ? model->config.columns : model->config.grid_w;
    state->kept_layers = kept_layers;
    state->sequences = sequences;
    state->cache = tsar_alloc(sequences, sizeof *state->cache, "the KV caches", err);
    state->scratch = tsar_alloc(tsar_scratch(SIZE_MAX, model->threads), sizeof(double), "the scratch of matrix products", err);
    tsar_status status = state->cache && state->scratch ? TSAR_OK : TSAR_ROOM;
    state->frequency = tsar_alloc(stack->head_dim, sizeof(double), "rotary frequencies", err);
    if (!state->frequency) status = TSAR_ROOM;
    if (status != TSAR_OK) {
        tsar_state_close(state);
        return status;
    }
    *out = state;
    return TSAR_OK;
}

void tsar_state_close(tsar_state *state)
{
    buffer table[STATE_BUFFERS];
    if (!state) return;
    for (size_t i = 0; state->cache && i < state->sequences; i++) cache_close(&state->cache[i], state->kept_layers * state->stack->n_kv_head);
    buffers(state, table);
    for (size_t i = 0; i < STATE_BUFFERS; i++) tsar_free(*table[i].at);
    void *others[] = { state->cache, state->frequency, state->bias, state->scratch, state->row, state->attend };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) tsar_free(others[i]);
    tsar_free(state);
}
