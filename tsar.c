/* tsar.c - the transformer and what is told about it: blocks, cache, token-shuffle, prompts, passes, trace (SPEC 3, 6).
 *
 * What a function computes, and in which order, is said in tsar.h. */
#include "tsar.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------- the transformer */

/* Where one row of a pass stands. */
typedef struct {
    size_t sequence, position;
    int image; /* 1: an image token, of raster index `token`; 0: a position of the prefix */
    size_t token;
    int visible; /* 0: padding, to which nobody else may attend (QUIRKS, GPT 4) */
    int keep;    /* 0: keys and values are forgotten after the pass */
} row_place;

/* Keys and values of one sequence. Keys are laid out so that the scores of TSAR_PANEL positions, values so that
 * TSAR_PANEL dimensions of the mixed vector, are computed side by side by the one matrix kernel. */
typedef struct {
    size_t prefix, positions; /* condition positions; all positions, image tokens included */
    unsigned char *fed;       /* [positions]: 1 where later rows may attend: fed, kept, not padding */
    tsar_matrix *keys;        /* [n_layer][n_kv_head] of [positions][hd] */
    tsar_matrix *values;      /* [n_layer][n_kv_head] of [hd][positions] */
} kv_cache;

struct tsar_state {
    const tsar_model *model;
    const tsar_stack *stack;
    const char *part;    /* what its tensors are called: "gpt", "fine" */
    int causal;          /* 0: every row attends to every position (CTF stage two) */
    size_t grid_columns; /* columns of the grid of image tokens, for 2d rotary positions */
    size_t sequences;
    kv_cache *cache;   /* [sequences] */
    double *frequency; /* [hd/2] for 1d, [hd/4] for 2d rotary positions */

    size_t rows;       /* rows that the following have room for */
    row_place *place;  /* [rows] */
    double *x;         /* [rows][d]  the residual stream */
    double *normed;    /* [rows][d] */
    double *qkv;       /* [rows][(n_head + 2 n_kv_head) hd] */
    double *mixed;     /* [rows][d]  attention's output */
    double *delta;     /* [rows][d]  what a branch adds to the stream */
    double *gate, *up; /* [rows][ffn] */
    double *rotation;  /* [rows][hd/2][3]  cos, sin, -sin */
    double *hidden;    /* [rows][shuffle_hidden] */
    double *code;      /* [rows][s*s][d]  one vector for every code */

    size_t logit_rows; /* rows that this one has room for */
    double *logits;    /* [logit_rows][s*s][V] */

    size_t attend_positions; /* positions that this one has room for */
    double *attend;          /* [threads] of q [QUERIES][hd], scores [QUERIES][positions], out [QUERIES][hd] */
};

enum { QUERIES = 8, PREFILL_ROWS = 64 }; /* queries attended together; prompt rows fed together */

/* f[k] = base^(-2k/width) for the width/2 pairs that share one coordinate: width = hd for 1d, hd/2 for 2d. (RoFormer; LlamaGen) */
static tsar_status rope_frequencies(tsar_state *state, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    size_t width = stack->rope_2d ? stack->head_dim / 2 : stack->head_dim;
    state->frequency = tsar_alloc(width / 2 + 1, sizeof(double), "rotary frequencies", err);
    if (!state->frequency) return TSAR_ROOM;
    for (size_t k = 0; k < width / 2; k++) state->frequency[k] = tsar_pow(stack->rope_base, -(double)(2 * k) / (double)width);
    return TSAR_OK;
}

/* cos, sin and -sin of one row's angles, [hd/2][3]. 1d: position * f[k]. 2d: the first half of the pairs takes the token's
 * row, the second its column; positions of the prefix have cos = sin = 0, as in LlamaGen (QUIRKS, GPT 2). */
static void rope_angles(double *rotation, const tsar_state *state, const row_place *place)
{
    const tsar_stack *stack = state->stack;
    size_t pairs = stack->head_dim / 2;
    size_t half = stack->rope_2d ? pairs / 2 : pairs;
    for (size_t p = 0; p < pairs; p++) {
        double *turn = rotation + 3 * p;
        if (stack->rope_2d && !place->image) {
            turn[0] = turn[1] = turn[2] = 0.0;
            continue;
        }
        size_t coordinate = place->position;
        if (stack->rope_2d) coordinate = p < half ? place->token / state->grid_columns : place->token % state->grid_columns;
        double angle = (double)coordinate * state->frequency[p % half];
        turn[0] = tsar_cos(angle);
        turn[1] = tsar_sin(angle);
        turn[2] = -turn[1];
    }
}

/* (a, b) -> (a cos - b sin, b cos + a sin) for the neighbouring pairs of `heads` heads x [heads][hd]. Adding b (-sin) has the
 * bits of subtracting b sin; written as a difference beside a sum, gcc 12.0 to 12.2 would fuse both into one
 * instruction in spite of -ffp-contract=off (tests/digests.txt shows it). */
static void rope_rotate(double *x, const double *rotation, size_t heads, size_t hd)
{
    for (size_t h = 0; h < heads; h++) {
        double *x_h = x + h * hd;
        for (size_t p = 0; p < hd / 2; p++) {
            const double a = x_h[2 * p], b = x_h[2 * p + 1], *turn = rotation + 3 * p;
            x_h[2 * p] = a * turn[0] + b * turn[2];
            x_h[2 * p + 1] = b * turn[0] + a * turn[1];
        }
    }
}

/* Column `position` of values [hd][positions]. */
static void set_value(tsar_matrix *values, size_t position, const double *v)
{
    double *panels = values->panels;
    for (size_t r = 0; r < values->rows; r++) panels[(r / TSAR_PANEL * values->cols + position) * TSAR_PANEL + r % TSAR_PANEL] = v[r];
}

typedef struct {
    size_t row, head;
} query;

/* Attention of up to QUERIES queries over the keys and values of one head:
 * score_j = (q . k_j) * (1 / sqrt(hd)) where allowed(i, j), p = softmax(score), out = sum over j ascending of p_j v_j. */
static void attend_queries(const tsar_state *state, const kv_cache *cache, size_t matrix, const query *queries, size_t count, double *scratch)
{
    const tsar_stack *stack = state->stack;
    const size_t hd = stack->head_dim, width = (stack->n_head + 2 * stack->n_kv_head) * hd;
    const double scale = 1.0 / sqrt((double)hd);
    size_t length = state->causal ? 0 : cache->positions;
    for (size_t c = 0; c < count; c++) {
        size_t position = state->place[queries[c].row].position;
        if (position + 1 > length) length = position + 1;
    }
    double *q = scratch, *scores = q + QUERIES * hd, *out = scores + QUERIES * state->attend_positions;

    /* 1. scores of all positions up to the last query's */
    for (size_t c = 0; c < count; c++) {
        memcpy(q + c * hd, state->qkv + queries[c].row * width + queries[c].head * hd, hd * sizeof *q);
        memset(scores + c * cache->positions, 0, cache->positions * sizeof *scores);
    }
    tsar_accumulate(scores, cache->positions, q, hd, &cache->keys[matrix], 0, hd, count, 0, tsar_panels(length));

    /* 2. mask and softmax */
    for (size_t c = 0; c < count; c++) {
        double *score = scores + c * cache->positions;
        size_t i = state->place[queries[c].row].position;
        for (size_t j = 0; j < length; j++) {
            int allowed = !state->causal || (j <= i && cache->fed[j]) || i == j;
            score[j] = allowed ? score[j] * scale : -INFINITY;
        }
        tsar_softmax(score, length);
    }

    /* 3. the mixed values */
    memset(out, 0, count * hd * sizeof *out);
    tsar_accumulate(out, hd, scores, cache->positions, &cache->values[matrix], 0, length, count, 0, tsar_panels(hd));
    for (size_t c = 0; c < count; c++)
        memcpy(state->mixed + queries[c].row * stack->n_head * hd + queries[c].head * hd, out + c * hd, hd * sizeof *out);
}

/* All rows of one sequence against one key head: query head h uses key head h / (n_head / n_kv_head). */
static void attend_head(const tsar_state *state, size_t layer, size_t sequence, size_t kv_head, size_t rows, double *scratch)
{
    const tsar_stack *stack = state->stack;
    const size_t group = stack->n_head / stack->n_kv_head, matrix = layer * stack->n_kv_head + kv_head;
    const kv_cache *cache = &state->cache[sequence];
    query queries[QUERIES];
    size_t count = 0;
    for (size_t r = 0; r < rows; r++) {
        if (state->place[r].sequence != sequence) continue;
        for (size_t g = 0; g < group; g++) {
            queries[count].row = r;
            queries[count++].head = kv_head * group + g;
            if (count == QUERIES) {
                attend_queries(state, cache, matrix, queries, count, scratch);
                count = 0;
            }
        }
    }
    if (count) attend_queries(state, cache, matrix, queries, count, scratch);
}

/* The columns of `heads` heads of qkv, from head `first` on, as a tensor of their own [rows][heads][hd]; what the sink puts there goes back. */
static tsar_status emit_heads(tsar_state *state, size_t layer, size_t rows, size_t first, size_t heads, const char *name, const tsar_sink *sink,
                              tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const size_t hd = stack->head_dim, width = (stack->n_head + 2 * stack->n_kv_head) * hd, shape[3] = { rows, heads, hd };
    double *from = state->qkv + first * hd, *tensor = state->mixed; /* which attention has not written yet */
    for (size_t r = 0; r < rows; r++) memcpy(tensor + r * heads * hd, from + r * width, heads * hd * sizeof *tensor);
    const tsar_status status = tsar_emit(sink, err, TSAR_F64, tensor, 3, shape, "%s.block.%zu.%s", state->part, layer, name);
    for (size_t r = 0; r < rows; r++) memcpy(from + r * width, tensor + r * heads * hd, heads * hd * sizeof *tensor);
    return status;
}

/* mixed = attention(rope(q), rope(k), v) of one layer: the pass's own keys and values enter the cache first. */
static tsar_status attention(tsar_state *state, size_t layer, size_t rows, const tsar_sink *inside, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const size_t hd = stack->head_dim, n_head = stack->n_head, n_kv = stack->n_kv_head, width = (n_head + 2 * n_kv) * hd;
    tsar_status status = TSAR_OK;
    for (size_t r = 0; r < rows; r++) rope_rotate(state->qkv + r * width, state->rotation + r * (hd / 2) * 3, n_head + n_kv, hd);
    if (inside) status = emit_heads(state, layer, rows, 0, n_head, "q", inside, err);
    if (inside && status == TSAR_OK) status = emit_heads(state, layer, rows, n_head, n_kv, "k", inside, err);
    if (inside && status == TSAR_OK) status = emit_heads(state, layer, rows, n_head + n_kv, n_kv, "v", inside, err);
    for (size_t r = 0; r < rows; r++) {
        double *k = state->qkv + r * width + n_head * hd, *v = k + n_kv * hd;
        const row_place *place = &state->place[r];
        kv_cache *cache = &state->cache[place->sequence];
        for (size_t h = 0; h < n_kv; h++) {
            tsar_matrix_set_rows(&cache->keys[layer * n_kv + h], place->position, 1, k + h * hd);
            set_value(&cache->values[layer * n_kv + h], place->position, v + h * hd);
        }
    }
    const size_t workers = state->model->threads, tasks = state->sequences * n_kv;
    const size_t scratch = QUERIES * (2 * hd + state->attend_positions);
    TSAR_PARALLEL_FOR(workers)
    for (size_t w = 0; w < workers; w++)
        for (size_t task = w; task < tasks; task += workers) attend_head(state, layer, task / n_kv, task % n_kv, rows, state->attend + w * scratch);
    const size_t shape[2] = { rows, n_head * hd };
    return status == TSAR_OK ? tsar_emit(inside, err, TSAR_F64, state->mixed, 2, shape, "%s.block.%zu.attn", state->part, layer) : status;
}

static void rmsnorm_rows(double *y, const double *x, const double *g, size_t rows, size_t d, double eps, size_t threads)
{
    TSAR_PARALLEL_FOR(rows > 1 ? threads : 1)
    for (size_t r = 0; r < rows; r++) tsar_rmsnorm(y + r * d, x + r * d, g, d, eps);
}

/* x = x + delta, element by element. */
static void add(double *x, const double *delta, size_t count)
{
    for (size_t i = 0; i < count; i++) x[i] = x[i] + delta[i];
}

/* One block (SPEC 3; Llama):  h = x + wo . attention(rope(q), rope(k), v),  q, k, v = wqkv . rmsnorm(x)
 *                             y = h + w2 . (silu(w1 . n) * (w3 . n)),       n = rmsnorm(h) */
static tsar_status block_forward(tsar_state *state, size_t layer, size_t rows, const tsar_sink *inside, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const tsar_layer *w = &stack->layers[layer];
    const size_t d = stack->dim, ffn = stack->ffn_hidden, threads = state->model->threads, stream[2] = { rows, d }, inner[2] = { rows, ffn };

    rmsnorm_rows(state->normed, state->x, w->attention_norm, rows, d, stack->norm_eps, threads);
    tsar_matmul(state->qkv, state->normed, &w->wqkv, NULL, rows, threads);
    tsar_status status = attention(state, layer, rows, inside, err);
    tsar_matmul(state->delta, state->mixed, &w->wo, NULL, rows, threads);
    add(state->x, state->delta, rows * d);
    if (status == TSAR_OK) status = tsar_emit(inside, err, TSAR_F64, state->x, 2, stream, "%s.block.%zu.h", state->part, layer);

    rmsnorm_rows(state->normed, state->x, w->ffn_norm, rows, d, stack->norm_eps, threads);
    tsar_matmul(state->gate, state->normed, &w->w1, NULL, rows, threads);
    tsar_matmul(state->up, state->normed, &w->w3, NULL, rows, threads);
    TSAR_PARALLEL_FOR(rows > 1 ? threads : 1)
    for (size_t r = 0; r < rows; r++) {
        double *gate = state->gate + r * ffn;
        const double *up = state->up + r * ffn;
        tsar_silu_n(gate, ffn);
        for (size_t i = 0; i < ffn; i++) gate[i] = gate[i] * up[i];
    }
    if (status == TSAR_OK) status = tsar_emit(inside, err, TSAR_F64, state->gate, 2, inner, "%s.block.%zu.ffn", state->part, layer);
    tsar_matmul(state->delta, state->gate, &w->w2, NULL, rows, threads);
    add(state->x, state->delta, rows * d);
    return status;
}

/* All blocks over state->x [rows][d], whose places are set. */
static tsar_status stack_forward(tsar_state *state, size_t rows, const tsar_sink *sink, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const size_t shape[2] = { rows, stack->dim };
    tsar_status status = tsar_emit(sink, err, TSAR_F64, state->x, 2, shape, "%s.embed", state->part);
    for (size_t r = 0; r < rows; r++) {
        const row_place *place = &state->place[r];
        rope_angles(state->rotation + r * (stack->head_dim / 2) * 3, state, place);
        state->cache[place->sequence].fed[place->position] = place->visible != 0;
    }
    for (size_t layer = 0; layer < stack->n_layer && status == TSAR_OK; layer++) {
        status = block_forward(state, layer, rows, sink && sink->inside ? sink : NULL, err);
        if (status == TSAR_OK) status = tsar_emit(sink, err, TSAR_F64, state->x, 2, shape, "%s.block.%zu", state->part, layer);
    }
    return status;
}

/* After a pass: stand-ins lose their keys and values (zero values, so that a weight of 0 meets no stale number). */
static void forget_stand_ins(tsar_state *state, size_t rows)
{
    const tsar_stack *stack = state->stack;
    memset(state->delta, 0, stack->dim * sizeof *state->delta);
    for (size_t r = 0; r < rows; r++) {
        const row_place *place = &state->place[r];
        if (place->keep) continue;
        kv_cache *cache = &state->cache[place->sequence];
        cache->fed[place->position] = 0;
        for (size_t m = 0; m < stack->n_layer * stack->n_kv_head; m++) set_value(&cache->values[m], place->position, state->delta);
    }
}

/* ------------------------------------------------------------------------------------------------- state: open and close */

static void cache_close(kv_cache *cache, const tsar_stack *stack)
{
    for (size_t m = 0; cache->keys && cache->values && m < stack->n_layer * stack->n_kv_head; m++) {
        tsar_matrix_close(&cache->keys[m]);
        tsar_matrix_close(&cache->values[m]);
    }
    tsar_free(cache->keys);
    tsar_free(cache->values);
    tsar_free(cache->fed);
    memset(cache, 0, sizeof *cache);
}

/* An empty cache for `prefix` condition positions and `tokens` image tokens, and attention scratch for as many positions. */
static tsar_status cache_open(tsar_state *state, size_t sequence, size_t prefix, size_t tokens, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const size_t matrices = stack->n_layer * stack->n_kv_head, hd = stack->head_dim;
    kv_cache *cache = &state->cache[sequence];
    cache_close(cache, stack);
    if (prefix > SIZE_MAX / 2 - tokens)
        return tsar_fail(err, TSAR_ROOM, "a sequence of %zu + %zu positions is too long for this machine", prefix, tokens);
    cache->prefix = prefix;
    cache->positions = prefix + tokens;
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
        if (!state->attend)
            status = TSAR_ROOM;
        else
            state->attend_positions = cache->positions;
    }
    if (status != TSAR_OK) cache_close(cache, stack);
    return status;
}

/* Makes room for passes of `rows` rows. */
static tsar_status reserve_rows(tsar_state *state, size_t rows, tsar_error *err)
{
    if (rows <= state->rows) return TSAR_OK;
    const tsar_stack *stack = state->stack;
    const tsar_config *c = &state->model->config;
    const size_t d = stack->dim, hd = stack->head_dim;
    const int shuffled = stack == &state->model->gpt && c->shuffle > 1;
    const struct {
        double **buffer;
        size_t width;
        const char *what;
    } table[] = {
        { &state->x, d, "the residual stream" },
        { &state->normed, d, "normalised rows" },
        { &state->qkv, (stack->n_head + 2 * stack->n_kv_head) * hd, "queries, keys and values" },
        { &state->mixed, d, "attention's output" },
        { &state->delta, d, "a block's branch" },
        { &state->gate, stack->ffn_hidden, "the feed-forward gate" },
        { &state->up, stack->ffn_hidden, "the feed-forward input" },
        { &state->rotation, 3 * hd / 2, "rotary angles" },
        { &state->hidden, shuffled ? c->shuffle_hidden : 1, "shuffle blocks" },
        { &state->code, shuffled ? c->shuffle * c->shuffle * d : d, "code vectors" },
    };
    state->rows = 0;
    tsar_free(state->place);
    state->place = tsar_alloc(rows, sizeof *state->place, "a pass", err);
    if (!state->place) return TSAR_ROOM;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        tsar_free(*table[i].buffer);
        *table[i].buffer = tsar_alloc(rows, table[i].width * sizeof(double), table[i].what, err);
        if (!*table[i].buffer) return TSAR_ROOM;
    }
    state->rows = rows;
    return TSAR_OK;
}

static tsar_status reserve_logits(tsar_state *state, size_t rows, tsar_error *err)
{
    if (rows <= state->logit_rows) return TSAR_OK;
    const size_t slots = state->model->config.shuffle * state->model->config.shuffle;
    state->logit_rows = 0;
    tsar_free(state->logits);
    state->logits = tsar_alloc(rows, slots * state->stack->output.rows * sizeof(double), "logits", err);
    if (!state->logits) return TSAR_ROOM;
    state->logit_rows = rows;
    return TSAR_OK;
}

static tsar_status state_open(tsar_state **out, const tsar_model *model, const tsar_stack *stack, size_t sequences, tsar_error *err)
{
    *out = NULL;
    tsar_state *state = tsar_alloc(1, sizeof *state, "the state of a generation", err);
    if (!state) return TSAR_ROOM;
    state->model = model;
    state->stack = stack;
    state->causal = stack == &model->gpt;
    state->part = state->causal ? "gpt" : "fine";
    state->grid_columns = state->causal ? model->config.columns : model->config.grid_w;
    state->sequences = sequences;
    state->cache = tsar_alloc(sequences, sizeof *state->cache, "the KV caches", err);
    tsar_status status = state->cache ? rope_frequencies(state, err) : TSAR_ROOM;
    if (status != TSAR_OK) {
        tsar_state_close(state);
        return status;
    }
    *out = state;
    return TSAR_OK;
}

tsar_status tsar_state_open(tsar_state **out, const tsar_model *model, size_t sequences, tsar_error *err)
{
    *out = NULL;
    if (!model->config.has_gpt) return tsar_fail(err, TSAR_INPUT, "the model has no transformer (no key arch): it can only encode and decode images");
    return state_open(out, model, &model->gpt, sequences, err);
}

void tsar_state_close(tsar_state *state)
{
    if (!state) return;
    for (size_t s = 0; state->cache && s < state->sequences; s++) cache_close(&state->cache[s], state->stack);
    void *owned[] = { state->cache, state->frequency, state->place,    state->x,      state->normed, state->qkv,    state->mixed, state->delta,
                      state->gate,  state->up,        state->rotation, state->hidden, state->code,   state->logits, state->attend };
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) tsar_free(owned[i]);
    tsar_free(state);
}

/* --------------------------------------------------------------------------------------------------------- token-shuffle */

/* x = x + fc2 . gelu(fc1 . rmsnorm(x)): a block of token-shuffle or token-unshuffle, x [rows][d]. (paper, section 3; pre-norm is ours) */
static void mlp_forward(tsar_state *state, double *x, const tsar_mlp *mlp, size_t rows)
{
    const size_t d = state->stack->dim, hidden = mlp->fc1.rows, threads = state->model->threads;
    rmsnorm_rows(state->normed, x, mlp->norm, rows, d, state->stack->norm_eps, threads);
    tsar_matmul(state->hidden, state->normed, &mlp->fc1, NULL, rows, threads);
    TSAR_PARALLEL_FOR(rows > 1 ? threads : 1)
    for (size_t r = 0; r < rows; r++) tsar_gelu_n(state->hidden + r * hidden, hidden);
    tsar_matmul(state->delta, state->hidden, &mlp->fc2, NULL, rows, threads);
    add(x, state->delta, rows * d);
}

/* compressed [n][s*s][d/s^2], window by window, in the trace's raster order of codes [gh*gw][d/s^2]; what the sink puts there goes back. */
static tsar_status emit_compressed(const tsar_state *state, double *compressed, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t s = c->shuffle, width = c->dim / (s * s), shape[2] = { c->grid_h * c->grid_w, width };
    if (!sink) return TSAR_OK;
    double *raster = tsar_alloc(shape[0], width * sizeof *raster, "gpt.shuffle.compress", err);
    if (!raster) return TSAR_ROOM;
    tsar_status status = TSAR_OK;
    for (int back = 0; back <= 1; back++) {
        for (size_t i = 0; i < c->grid_h; i++)
            for (size_t j = 0; j < c->grid_w; j++) {
                const size_t token = i / s * c->columns + j / s, slot = i % s * s + j % s;
                double *in_raster = raster + (i * c->grid_w + j) * width, *in_window = compressed + (token * s * s + slot) * width;
                memcpy(back ? in_window : in_raster, back ? in_raster : in_window, width * sizeof *raster);
            }
        if (!back) status = tsar_emit(sink, err, TSAR_F64, raster, 2, shape, "gpt.shuffle.compress");
    }
    tsar_free(raster);
    return status;
}

/* token-shuffle, the input: z [count][d] of count fused tokens, codes[r] their s*s codes (SPEC 3; paper, section 3):
 *     y_c = compress . e_c,  z = concat(y_0 ... y_{s*s-1}),  then shuffle_blocks times z = z + fc2 . gelu(fc1 . rmsnorm(z)).
 * With s = 1, and in LlamaGen, z is the code's embedding. */
static tsar_status fuse_tokens(tsar_state *state, double *z, const int64_t *const *codes, size_t count, const tsar_sink *sink, tsar_error *err)
{
    const tsar_model *m = state->model;
    const tsar_config *c = &m->config;
    const size_t slots = c->shuffle * c->shuffle, d = c->dim, shape[2] = { count, d };
    double *e = slots == 1 ? z : state->code;
    for (size_t r = 0; r < count; r++)
        for (size_t slot = 0; slot < slots; slot++)
            tsar_table_row(e + (r * slots + slot) * d, &m->tok_embeddings, c->text_vocab + (size_t)codes[r][slot]);
    if (slots == 1) return TSAR_OK;
    tsar_matmul(z, e, &m->compress, NULL, count * slots, m->threads);
    tsar_status status = emit_compressed(state, z, sink, err);
    if (status == TSAR_OK) status = tsar_emit(sink, err, TSAR_F64, z, 2, shape, "gpt.shuffle.merge");
    for (size_t b = 0; b < c->shuffle_blocks && status == TSAR_OK; b++) {
        mlp_forward(state, z, &m->shuffle_mlp[b], count);
        status = tsar_emit(sink, err, TSAR_F64, z, 2, shape, "gpt.shuffle.block.%zu", b);
    }
    return status;
}

/* token-unshuffle and the head: state->logits [count][s*s][V] from the residual stream h [count][d], which it changes:
 *     shuffle_blocks times h = h + fc2 . gelu(fc1 . rmsnorm(h)),  x_c = expand . h_c,  logits_c = output . rmsnorm(x_c).
 * With s = 1, and in LlamaGen, x is h. */
static tsar_status predict(tsar_state *state, double *h, size_t count, const tsar_sink *sink, tsar_error *err)
{
    const tsar_model *m = state->model;
    const tsar_config *c = &m->config;
    const size_t slots = c->shuffle * c->shuffle, d = c->dim, flat[2] = { count, d };
    const size_t codes[3] = { count, slots, d }, logits[3] = { count, slots, c->vocab };
    const size_t flat_logits[2] = { count, c->vocab };
    tsar_status status = reserve_logits(state, count, err);
    double *x = h;
    if (slots > 1 && status == TSAR_OK) {
        for (size_t b = 0; b < c->shuffle_blocks && status == TSAR_OK; b++) {
            mlp_forward(state, h, &m->unshuffle_mlp[b], count);
            status = tsar_emit(sink, err, TSAR_F64, h, 2, flat, "gpt.unshuffle.block.%zu", b);
        }
        x = state->code;
        tsar_matmul(x, h, &m->expand, NULL, count * slots, m->threads);
        if (status == TSAR_OK) status = tsar_emit(sink, err, TSAR_F64, x, 3, codes, "gpt.unshuffle.expand");
    }
    if (status != TSAR_OK) return status;
    const int shuffled = c->arch == TSAR_TOKEN_SHUFFLE; /* LlamaGen's tensors have no axis of slots */
    rmsnorm_rows(x, x, m->gpt.norm, count * slots, d, m->gpt.norm_eps, m->threads);
    status = tsar_emit(sink, err, TSAR_F64, x, shuffled ? 3 : 2, shuffled ? codes : flat, "gpt.norm");
    if (status != TSAR_OK) return status;
    tsar_matmul(state->logits, x, &m->gpt.output, NULL, count * slots, m->threads);
    return tsar_emit(sink, err, TSAR_F64, state->logits, shuffled ? 3 : 2, shuffled ? logits : flat_logits, "gpt.logits");
}

/* ---------------------------------------------------------------------------------------------------- prompts and passes */

size_t tsar_prompt_length(const tsar_model *model, const tsar_prompt *prompt)
{
    if (model->config.arch != TSAR_TOKEN_SHUFFLE) return model->config.cond_tokens;
    return prompt->unconditional ? 2 : prompt->n_text;
}

tsar_status tsar_prompt_check(const tsar_model *model, const tsar_prompt *prompt, tsar_error *err)
{
    const tsar_config *c = &model->config;
    switch (tsar_family_of(c)->prefix) {
    case TSAR_PREFIX_NONE: return tsar_fail(err, TSAR_INPUT, "the model has no transformer (no key arch): it takes no prompt");
    case TSAR_PREFIX_IDS:
        if (!prompt->text || prompt->n_text == 0) return tsar_fail(err, TSAR_INPUT, "the model needs a text prompt (at least <bos> and <soi>)");
        for (size_t i = 0; i < prompt->n_text; i++)
            if (prompt->text[i] < 0 || (uint64_t)prompt->text[i] >= c->text_vocab)
                return tsar_fail(err, TSAR_INPUT, "text id %lld at place %zu of the prompt is outside 0 ... %zu (the model's text_vocab - 1)",
                                 (long long)prompt->text[i], i, c->text_vocab - 1);
        return TSAR_OK;
    case TSAR_PREFIX_CLASS:
        if (prompt->class_id > c->num_classes)
            return tsar_fail(err, TSAR_INPUT, "class %zu is outside 0 ... %zu (class %zu is the unconditional one)", prompt->class_id, c->num_classes,
                             c->num_classes);
        return TSAR_OK;
    case TSAR_PREFIX_CAPTION:
        if (!prompt->caption || !prompt->caption_mask) return tsar_fail(err, TSAR_INPUT, "the model needs caption features and their mask");
        for (size_t i = 0; i < c->cond_tokens * c->caption_dim; i++)
            if (!(fabs(prompt->caption[i]) < INFINITY)) return tsar_fail(err, TSAR_INPUT, "caption feature %zu is not finite", i);
        for (size_t i = 0; i < c->cond_tokens; i++)
            if (prompt->caption_mask[i] != 0.0 && prompt->caption_mask[i] != 1.0)
                return tsar_fail(err, TSAR_INPUT, "caption mask %zu is neither 0 nor 1", i);
    }
    return TSAR_OK;
}

/* t2i: x[T][d] = fc2 . gelu(fc1 . feature), the caption's features times its mask, or the unconditional ones (QUIRKS, GPT 5 and 6). */
static tsar_status embed_caption(tsar_state *state, const tsar_prompt *prompt, size_t first, size_t rows, tsar_error *err)
{
    const tsar_model *m = state->model;
    const size_t width = m->config.caption_dim;
    double *features = tsar_alloc(rows, width * sizeof(double), "caption features", err);
    if (!features) return TSAR_ROOM;
    for (size_t r = 0; r < rows; r++) {
        double *f = features + r * width;
        const size_t position = first + r;
        if (prompt->unconditional)
            tsar_table_row(f, &m->uncond_embedding, position);
        else
            for (size_t i = 0; i < width; i++) f[i] = prompt->caption[position * width + i] * prompt->caption_mask[position];
    }
    tsar_matmul(state->normed, features, &m->cap_fc1, NULL, rows, m->threads);
    tsar_gelu_n(state->normed, rows * m->config.dim);
    tsar_matmul(state->x, state->normed, &m->cap_fc2, NULL, rows, m->threads);
    tsar_free(features);
    return TSAR_OK;
}

/* Rows 0 ... rows-1 of the pass become positions first ... of the prompt. */
static tsar_status embed_prompt(tsar_state *state, size_t sequence, const tsar_prompt *prompt, size_t first, size_t rows, tsar_error *err)
{
    const tsar_model *m = state->model;
    const size_t d = m->config.dim;
    static const int64_t unconditional[2] = { TSAR_BOS, TSAR_SOI };
    const int64_t *text = prompt->unconditional ? unconditional : prompt->text;
    for (size_t r = 0; r < rows; r++) {
        const int padding = m->config.arch == TSAR_LLAMAGEN_T2I && prompt->caption_mask[first + r] == 0.0;
        const row_place place = { sequence, first + r, 0, 0, !padding, 1 };
        state->place[r] = place;
        if (m->config.arch == TSAR_TOKEN_SHUFFLE) tsar_table_row(state->x + r * d, &m->tok_embeddings, (size_t)text[first + r]);
        if (m->config.arch == TSAR_LLAMAGEN_C2I)
            tsar_table_row(state->x + r * d, &m->class_embeddings, prompt->unconditional ? m->config.num_classes : prompt->class_id);
    }
    return m->config.arch == TSAR_LLAMAGEN_T2I ? embed_caption(state, prompt, first, rows, err) : TSAR_OK;
}

tsar_status tsar_prefill(tsar_state *state, size_t sequence, const tsar_prompt *prompt, double *logits, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t length = tsar_prompt_length(state->model, prompt), d = c->dim;
    const size_t room = length < PREFILL_ROWS ? length : PREFILL_ROWS;
    tsar_status status = tsar_prompt_check(state->model, prompt, err);
    if (status == TSAR_OK) status = cache_open(state, sequence, length, c->tokens, err);
    if (status == TSAR_OK) status = reserve_rows(state, room, err);
    size_t rows = 0;
    for (size_t first = 0; first < length && status == TSAR_OK; first += rows) {
        rows = length - first < room ? length - first : room;
        status = embed_prompt(state, sequence, prompt, first, rows, err);
        if (status == TSAR_OK) status = stack_forward(state, rows, NULL, err);
    }
    if (status != TSAR_OK || !logits) return status;
    status = predict(state, state->x + (rows - 1) * d, 1, NULL, err);
    if (status == TSAR_OK) memcpy(logits, state->logits, c->shuffle * c->shuffle * c->vocab * sizeof *logits);
    return status;
}

static tsar_status check_codes(const tsar_config *c, const int64_t *codes, size_t count, tsar_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (codes[i] < 0 || (uint64_t)codes[i] >= c->vocab)
            return tsar_fail(err, TSAR_INPUT, "code %lld at place %zu is outside 0 ... %zu", (long long)codes[i], i, c->vocab - 1);
    return TSAR_OK;
}

tsar_status tsar_forward(tsar_state *state, const tsar_feed *feed, size_t rows, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t slots = c->shuffle * c->shuffle, d = c->dim;
    tsar_status status = reserve_rows(state, rows, err);
    if (status != TSAR_OK) return status;
    const int64_t **codes = tsar_alloc(rows, sizeof *codes, "a pass", err);
    if (!codes) return TSAR_ROOM;
    for (size_t r = 0; r < rows && status == TSAR_OK; r++) {
        if (feed[r].sequence >= state->sequences || !state->cache[feed[r].sequence].fed || feed[r].token >= c->tokens)
            status = tsar_fail(err, TSAR_USAGE, "row %zu of a pass feeds token %zu of sequence %zu, which has no prompt or no such token", r,
                               feed[r].token, feed[r].sequence);
        else
            status = check_codes(c, feed[r].codes, slots, err);
        if (status != TSAR_OK) break;
        const row_place place = { feed[r].sequence, state->cache[feed[r].sequence].prefix + feed[r].token, 1, feed[r].token, 1, feed[r].keep };
        state->place[r] = place;
        codes[r] = feed[r].codes;
    }
    if (status == TSAR_OK) status = fuse_tokens(state, state->x, codes, rows, NULL, err);
    tsar_free(codes);
    if (status == TSAR_OK) status = stack_forward(state, rows, NULL, err);
    if (status != TSAR_OK) return status;
    forget_stand_ins(state, rows);

    size_t wanted = 0; /* the rows whose prediction is wanted move to the front */
    for (size_t r = 0; r < rows; r++)
        if (feed[r].logits) memmove(state->x + d * wanted++, state->x + d * r, d * sizeof *state->x);
    if (wanted == 0) return TSAR_OK;
    status = predict(state, state->x, wanted, NULL, err);
    if (status != TSAR_OK) return status;
    const double *logits = state->logits;
    for (size_t r = 0; r < rows; r++) {
        if (!feed[r].logits) continue;
        memcpy(feed[r].logits, logits, slots * c->vocab * sizeof *logits);
        logits += slots * c->vocab;
    }
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------- trace; CTF stage two */

/* Prompt and all n fused tokens in one pass: places, and x [T][d]. */
static tsar_status embed_all(tsar_state *state, const tsar_prompt *prompt, const int64_t *codes, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t s = c->shuffle, prefix = state->cache[0].prefix;
    int64_t *window = tsar_alloc(c->tokens, s * s * sizeof *window, "codes", err);
    const int64_t **windows = tsar_alloc(c->tokens, sizeof *windows, "codes", err);
    tsar_status status = window && windows ? embed_prompt(state, 0, prompt, 0, prefix, err) : TSAR_ROOM;
    for (size_t t = 0; t < c->tokens && status == TSAR_OK; t++) {
        const row_place place = { 0, prefix + t, 1, t, 1, 1 };
        state->place[prefix + t] = place;
        windows[t] = window + t * s * s;
        for (size_t slot = 0; slot < s * s; slot++)
            window[t * s * s + slot] = codes[(t / c->columns * s + slot / s) * c->grid_w + t % c->columns * s + slot % s];
    }
    if (status == TSAR_OK) status = fuse_tokens(state, state->x + prefix * c->dim, windows, c->tokens, sink, err);
    tsar_free(window);
    tsar_free(windows);
    return status;
}

tsar_status tsar_gpt_trace(const tsar_model *model, const tsar_prompt *prompt, const int64_t *codes, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    tsar_state *state;
    tsar_status status = tsar_state_open(&state, model, 1, err);
    if (status != TSAR_OK) return status;
    status = tsar_prompt_check(model, prompt, err);
    if (status == TSAR_OK) status = check_codes(c, codes, c->grid_h * c->grid_w, err);
    const size_t prefix = status == TSAR_OK ? tsar_prompt_length(model, prompt) : 0;
    if (status == TSAR_OK) status = cache_open(state, 0, prefix, c->tokens, err);
    if (status == TSAR_OK) status = reserve_rows(state, prefix + c->tokens, err);
    if (status == TSAR_OK) status = embed_all(state, prompt, codes, sink, err);
    if (status == TSAR_OK) status = stack_forward(state, prefix + c->tokens, sink, err);
    /* Token-Shuffle: the n outputs from <soi> on; LlamaGen: all T, as the official forward returns (QUIRKS, GPT 1). */
    if (status == TSAR_OK && c->arch == TSAR_TOKEN_SHUFFLE)
        status = predict(state, state->x + (prefix - 1) * c->dim, c->tokens, sink, err);
    else if (status == TSAR_OK)
        status = predict(state, state->x, prefix + c->tokens, sink, err);
    tsar_state_close(state);
    return status;
}

tsar_status tsar_fine_hidden(const tsar_model *model, const int64_t *labels, double *hidden, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    if (!c->has_fine) return tsar_fail(err, TSAR_INPUT, "the model has no fine stage (no key fine_dim): coarse labels cannot become codes");
    const size_t N = c->grid_h * c->grid_w, d = c->fine_dim;
    for (size_t i = 0; i < N; i++)
        if (labels[i] < 0 || (uint64_t)labels[i] >= c->n_coarse)
            return tsar_fail(err, TSAR_INPUT, "coarse label %lld at place %zu is outside 0 ... %zu", (long long)labels[i], i, c->n_coarse - 1);
    tsar_state *state;
    tsar_status status = state_open(&state, model, &model->fine, 1, err);
    if (status != TSAR_OK) return status;
    status = cache_open(state, 0, 0, N, err);
    if (status == TSAR_OK) status = reserve_rows(state, N, err);
    for (size_t t = 0; t < N && status == TSAR_OK; t++) {
        const row_place place = { 0, t, 1, t, 1, 1 };
        state->place[t] = place;
        tsar_table_row(state->x + t * d, &model->coarse_embeddings, (size_t)labels[t]);
    }
    if (status == TSAR_OK) status = stack_forward(state, N, sink, err);
    if (status == TSAR_OK) {
        const size_t shape[2] = { N, d };
        rmsnorm_rows(hidden, state->x, model->fine.norm, N, d, model->fine.norm_eps, model->threads);
        status = tsar_emit(sink, err, TSAR_F64, hidden, 2, shape, "fine.norm");
    }
    tsar_state_close(state);
    return status;
}

tsar_status tsar_fine_logits(const tsar_model *model, const double *hidden, size_t first, size_t count, double *logits, tsar_error *err)
{
    if (!model->config.has_fine) return tsar_fail(err, TSAR_INPUT, "the model has no fine stage (no key fine_dim)");
    tsar_matmul(logits, hidden + first * model->config.fine_dim, &model->fine.output, NULL, count, model->threads);
    return TSAR_OK;
}

/* ----------------------------------------------------------------------------------------------- intermediates */

tsar_status tsar_emit(const tsar_sink *sink, tsar_error *err, tsar_dtype dtype, void *data, size_t rank, const size_t *shape,
                      const char *format, ...)
{
    if (sink == NULL) return TSAR_OK;
    char name[128];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    return sink->put(sink->context, name, dtype, rank, shape, data, err);
}
