/* tsar.c - the transformer and what is told about it: blocks, cache, token-shuffle, prompts, passes, trace (SPEC 3, 6).
 *
 * What a function computes, and in which order, is said in tsar.h; the tensors that it works on, with their shapes, are those of tsar_state in
 * weights/state.h. A pass takes some rows, each a place in a sequence and what is fed there, through all blocks; prompts, decoding, traces and
 * CTF's stage two are such passes. `rows` here are those of a pass. */
#include "tsar.h"
#include "weights/state.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------- the transformer */

enum { PREFILL_ROWS = 120 }; /* prompt rows fed together: whole groups of QUERIES, and of the kernel's vectors */

/* Arithmetic as the equations have it, each operation's result rounded where the model asks for a precision (tsar_round_to). */

/* y = w . x + bias for `count` vectors; bias may be NULL. */
static void product(const tsar_state *state, double *y, const double *x, const tsar_matrix *w, const double *bias, size_t count)
{
    const int exact = state->model->precision == TSAR_F64;
    tsar_matmul(y, x, w, exact ? bias : NULL, count, state->model->threads, state->scratch);
    if (exact) return;
    tsar_round_to(state->model, y, count * w->rows);
    for (size_t i = 0; i < count * w->rows && bias; i++) y[i] = y[i] + bias[i % w->rows];
    tsar_round_to(state->model, y, count * w->rows);
}

/* y = x / sqrt(mean(x^2) + eps) * g for `count` vectors; y may be x. */
static void rmsnorm(const tsar_state *state, double *y, const double *x, const double *g, size_t count)
{
    const size_t d = state->stack->dim;
    const int exact = state->model->precision == TSAR_F64;
    TSAR_PARALLEL_FOR(count > 1 ? state->model->threads : 1)
    for (size_t r = 0; r < count; r++) {
        double *y_r = y + r * d;
        tsar_rmsnorm(y_r, x + r * d, exact ? g : NULL, d, state->stack->norm_eps);
        if (exact) continue;
        tsar_round_to(state->model, y_r, d);
        for (size_t i = 0; i < d; i++) y_r[i] = y_r[i] * g[i];
        tsar_round_to(state->model, y_r, d);
    }
}

/* x = x + delta, element by element. */
static void add(const tsar_state *state, double *x, const double *delta, size_t count)
{
    for (size_t i = 0; i < count; i++) x[i] = x[i] + delta[i];
    tsar_round_to(state->model, x, count);
}

/* f[k] = base^(-2k/width) for the width/2 pairs that share one coordinate: width = hd for 1d, hd/2 for 2d. (RoFormer; LlamaGen)
 * Where a precision is asked for, the table is made as in float32 (SPEC 10). */
static void rope_frequencies(tsar_state *state)
{
    const tsar_stack *stack = state->stack;
    const size_t width = stack->rope_2d ? stack->head_dim / 2 : stack->head_dim;
    for (size_t k = 0; k < width / 2 && !state->encoder; k++) {
        const double f = tsar_pow(stack->rope_base, -(double)(2 * k) / (double)width);
        state->frequency[k] = state->model->precision == TSAR_F64 ? f : (double)(float)f;
    }
}

/* cos, sin and -sin of one row's angles, rotation [hd/2][3]: coordinate * f[k]. 1d: one coordinate for all pairs; 2d: the first half of
 * them takes one, the second half the other. */
static void rope_angles(const tsar_state *state, const pass_row *row, double *rotation)
{
    const size_t pairs = state->stack->head_dim / 2, half = state->stack->rope_2d ? pairs / 2 : pairs;
    for (size_t p = 0; p < pairs; p++) {
        double *turn = rotation + 3 * p, angle = (double)row->coordinate[p >= half] * state->frequency[p % half];
        if (state->model->precision != TSAR_F64) angle = (double)(float)angle;
        turn[0] = row->turns ? tsar_cos(angle) : 0.0;
        turn[1] = row->turns ? tsar_sin(angle) : 0.0;
        tsar_round_to(state->model, turn, 2);
        turn[2] = row->turns ? -turn[1] : 0.0;
    }
}

/* (a, b) -> (a cos - b sin, b cos + a sin) for the neighbouring pairs of `heads` heads x [heads][hd]. Adding b (-sin) has the
 * bits of subtracting b sin; written as a difference beside a sum, gcc 12.0 to 12.2 would fuse both into one
 * instruction in spite of -ffp-contract=off (tests/digests.txt shows it). */
static void rope_rotate(const tsar_state *state, double *x, const double *rotation, size_t heads)
{
    const size_t hd = state->stack->head_dim;
    for (size_t h = 0; h < heads; h++) {
        double *x_h = x + h * hd;
        for (size_t p = 0; p < hd / 2; p++) {
            const double a = x_h[2 * p], b = x_h[2 * p + 1], *turn = rotation + 3 * p;
            x_h[2 * p] = a * turn[0] + b * turn[2];
            x_h[2 * p + 1] = b * turn[0] + a * turn[1];
        }
    }
    tsar_round_to(state->model, x, heads * hd);
}

/* Each head of x [heads][hd]: (x - mean) / sqrt(var + 1e-5) * weight + bias, the mean and var = sum((x - mean)^2) / hd in two ascending
 * passes; head h takes row h * qk_norm / heads of weight and bias [qk_norm][hd]. (Chameleon; QUIRKS-lumina, Transformer 2 and 3) */
static void layernorm_heads(const tsar_state *state, double *x, size_t heads, const double *weight, const double *bias)
{
    const size_t hd = state->stack->head_dim;
    for (size_t h = 0; h < heads; h++) {
        double *x_h = x + h * hd, mean = 0, var = 0;
        const double *weight_h = weight + h * state->stack->qk_norm / heads * hd, *bias_h = bias + h * state->stack->qk_norm / heads * hd;
        for (size_t i = 0; i < hd; i++) mean += x_h[i];
        mean = mean / (double)hd;
        for (size_t i = 0; i < hd; i++) var += (x_h[i] - mean) * (x_h[i] - mean);
        const double root = sqrt(var / (double)hd + 1e-5);
        for (size_t i = 0; i < hd; i++) x_h[i] = (x_h[i] - mean) / root;
        tsar_round_to(state->model, x_h, hd);
        for (size_t i = 0; i < hd; i++) x_h[i] = x_h[i] * weight_h[i];
        tsar_round_to(state->model, x_h, hd);
        for (size_t i = 0; i < hd; i++) x_h[i] = x_h[i] + bias_h[i];
        tsar_round_to(state->model, x_h, hd);
    }
}

/* Queries that are attended together: rows of one sequence and heads that share a key head. */
typedef struct {
    const kv_cache *cache;
    size_t kept; /* which of the cache's matrices: kept layer * n_kv_head + key head */
    size_t count;
    const pass_row *row[QUERIES];
    size_t head[QUERIES];
    double *q[QUERIES];     /* [hd] each, in qkv */
    double *mixed[QUERIES]; /* [hd] each, in mixed: where the result goes */
    size_t length;          /* positions up to the last that one of them may see */
    double *room;           /* q [QUERIES][hd], score [QUERIES][positions], mixed [QUERIES][hd] */
    double *scratch;        /* of the kernel */
} query_group;

/* Attention (Vaswani et al. 2017), its three steps: of query i over positions j,
 *
 *     score_j = (q_i . k_j) * (1 / sqrt(hd));  encoder: q_i . k_j + bias_(j - i)       1. score
 *     p_j     = softmax_j(score_j where allowed(i, j), else -infinity)               2. mask
 *     mixed_i = sum over j ascending of p_j v_j                                      3. mix
 *
 * 1. score [count][positions] = the products with all keys up to the last one that is needed */
static void score(const tsar_state *state, const query_group *g, double *q, double *score)
{
    const size_t hd = state->stack->head_dim, positions = g->cache->positions;
    const double scale = 1.0 / sqrt((double)hd);
    for (size_t c = 0; c < g->count; c++) memcpy(q + c * hd, g->q[c], hd * sizeof *q);
    tsar_accumulate(score, positions, q, hd, &g->cache->keys[g->kept], NULL, 0, hd, g->count, 0, tsar_panels(g->length), g->scratch);
    for (size_t c = 0; c < g->count; c++) {
        double *score_c = score + c * positions;
        tsar_round_to(state->model, score_c, g->length);
        for (size_t j = 0; j < g->length && !state->encoder; j++) score_c[j] = score_c[j] * scale;
        for (size_t j = 0; j < g->length && state->encoder; j++)
            score_c[j] = score_c[j] + state->bias[(positions - 1 + j - g->row[c]->position) * state->stack->n_head + g->head[c]];
        tsar_round_to(state->model, score_c, g->length);
    }
}

/* 2. score becomes p: -infinity unless allowed(i, j) = (j <= i and j is fed and not padding) or i = j, then the softmax of each row. Where
 * nothing is causal all are allowed. */
static void mask(const tsar_state *state, const query_group *g, double *score)
{
    const size_t positions = g->cache->positions;
    const unsigned char *fed = g->cache->fed;
    for (size_t c = 0; c < g->count && state->causal; c++) {
        double *score_c = score + c * positions;
        const size_t i = g->row[c]->position;
        const unsigned char *gap = memchr(fed, 0, i); /* there is seldom one */
        for (size_t j = gap ? (size_t)(gap - fed) : i; j < i; j++) score_c[j] = fed[j] ? score_c[j] : -INFINITY;
        for (size_t j = i + 1; j < g->length; j++) score_c[j] = -INFINITY;
    }
    tsar_softmax_rows(score, positions, g->length, g->count);
    for (size_t c = 0; c < g->count; c++) tsar_round_to(state->model, score + c * positions, g->length);
}

/* 3. mixed [count][hd] from p [count][positions] */
static void mix(const tsar_state *state, const query_group *g, const double *p, double *mixed)
{
    const size_t hd = state->stack->head_dim;
    tsar_accumulate(mixed, hd, p, g->cache->positions, &g->cache->values[g->kept], NULL, 0, g->length, g->count, 0, tsar_panels(hd), g->scratch);
    tsar_round_to(state->model, mixed, g->count * hd);
    for (size_t c = 0; c < g->count; c++) memcpy(g->mixed[c], mixed + c * hd, hd * sizeof *mixed);
}

/* The three steps for a group of queries, which then begins anew. */
static void attend(const tsar_state *state, query_group *g)
{
    double *q = g->room, *scores = q + QUERIES * state->stack->head_dim, *mixed = scores + QUERIES * g->cache->positions;
    g->length = state->causal ? 0 : g->cache->positions;
    for (size_t c = 0; c < g->count; c++)
        if (g->row[c]->position + 1 > g->length) g->length = g->row[c]->position + 1;
    if (g->count == 0) return;
    score(state, g, q, scores);
    mask(state, g, scores);
    mix(state, g, scores, mixed);
    g->count = 0;
}

/* All rows of one sequence against one key head: query head h uses key head h / (n_head / n_kv_head). */
static void attend_head(const tsar_state *state, size_t kept_layer, size_t sequence, size_t kv_head, size_t rows, size_t worker)
{
    const tsar_stack *stack = state->stack;
    const size_t n_head = stack->n_head, hd = stack->head_dim, per_key = n_head / stack->n_kv_head;
    query_group g = { .cache = &state->cache[sequence], .kept = kept_layer * stack->n_kv_head + kv_head };
    g.room = state->attend + worker * QUERIES * (2 * hd + state->attend_positions);
    g.scratch = state->scratch + worker * tsar_scratch(SIZE_MAX, 1);
    for (size_t r = 0; r < rows; r++) {
        if (state->row[r].sequence != sequence) continue;
        for (size_t h = kv_head * per_key; h < (kv_head + 1) * per_key; h++) {
            g.row[g.count] = &state->row[r];
            g.head[g.count] = h;
            g.q[g.count] = state->qkv + (r * (n_head + 2 * stack->n_kv_head) + h) * hd;
            g.mixed[g.count++] = state->mixed + (r * n_head + h) * hd;
            if (g.count == QUERIES) attend(state, &g);
        }
    }
    attend(state, &g);
}

/* v [hd] becomes column `position` of values [hd][positions], which are F64: a row of the panels at once. */
static void set_value(tsar_matrix *values, size_t position, const double *v)
{
    double *panels = values->panels;
    for (size_t r = 0; r < values->rows; r++) panels[(r / TSAR_PANEL * values->cols + position) * TSAR_PANEL + r % TSAR_PANEL] = v[r];
}

/* The columns of `heads` heads of qkv, from head `first` on, as a tensor of their own [rows][heads][hd]; what the sink puts there goes back. */
static tsar_status emit_heads(tsar_state *state, size_t layer, size_t rows, size_t first, size_t heads, const char *name, const tsar_sink *sink,
                              tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const size_t hd = stack->head_dim, width = (stack->n_head + 2 * stack->n_kv_head) * hd, shape[3] = { rows, heads, hd };
    double *from = state->qkv + first * hd, *tensor = state->mixed; /* which attention has not written yet */
    for (size_t r = 0; r < rows; r++) memcpy(tensor + r * heads * hd, from + r * width, heads * hd * sizeof *tensor);
    const tsar_status status = tsar_emit(sink, err, TSAR_F64, tensor, 3, shape, "%s.block.%lu.%s", state->part, (unsigned long)layer, name);
    for (size_t r = 0; r < rows; r++) memcpy(from + r * width, tensor + r * heads * hd, heads * hd * sizeof *tensor);
    return status;
}

/* q and k normed and turned, k and v put into the cache. */
static tsar_status remember(tsar_state *state, size_t layer, size_t rows, const tsar_sink *inside, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const size_t hd = stack->head_dim, n_head = stack->n_head, n_kv = stack->n_kv_head, width = (n_head + 2 * n_kv) * hd;
    tsar_status status = TSAR_OK;
    const tsar_layer *w = &stack->layers[layer];
    for (size_t r = 0; r < rows; r++) {
        double *q = state->qkv + r * width, *k = q + n_head * hd;
        if (stack->qk_norm) layernorm_heads(state, q, n_head, w->q_norm, w->q_norm_bias);
        if (stack->qk_norm) layernorm_heads(state, k, n_kv, w->k_norm, w->k_norm_bias);
        if (!state->encoder) rope_rotate(state, q, state->rotation + r * (hd / 2) * 3, n_head + n_kv);
    }
    if (inside) status = emit_heads(state, layer, rows, 0, n_head, "q", inside, err);
    if (inside && status == TSAR_OK) status = emit_heads(state, layer, rows, n_head, n_kv, "k", inside, err);
    if (inside && status == TSAR_OK) status = emit_heads(state, layer, rows, n_head + n_kv, n_kv, "v", inside, err);
    for (size_t r = 0; r < rows; r++) {
        const double *k = state->qkv + r * width + n_head * hd, *v = k + n_kv * hd;
        const kv_cache *cache = &state->cache[state->row[r].sequence];
        for (size_t h = 0; h < n_kv; h++) {
            const size_t kept = layer % state->kept_layers * n_kv + h;
            tsar_matrix_set_rows(&cache->keys[kept], state->row[r].position, 1, k + h * hd);
            set_value(&cache->values[kept], state->row[r].position, v + h * hd);
        }
    }
    return status;
}

/* mixed = attention(rope(q), rope(k), v) of one layer: the pass's own keys and values enter the cache first. */
static tsar_status attention(tsar_state *state, size_t layer, size_t rows, const tsar_sink *inside, tsar_error *err)
{
    const size_t n_kv = state->stack->n_kv_head, workers = state->model->threads, tasks = state->sequences * n_kv;
    const size_t shape[2] = { rows, state->stack->n_head * state->stack->head_dim };
    const tsar_status status = remember(state, layer, rows, inside, err);
    if (status != TSAR_OK) return status;
    TSAR_PARALLEL_FOR(workers)
    for (size_t w = 0; w < workers; w++)
        for (size_t task = w; task < tasks; task += workers) attend_head(state, layer % state->kept_layers, task / n_kv, task % n_kv, rows, w);
    return tsar_emit(inside, err, TSAR_F64, state->mixed, 2, shape, "%s.block.%lu.attn", state->part, (unsigned long)layer);
}

/* gate = silu(w1 . n) * (w3 . n); gelu in the text encoder */
static void feed_forward(tsar_state *state, const tsar_layer *w, const double *n, size_t rows)
{
    const size_t ffn = state->stack->ffn_hidden;
    product(state, state->gate, n, &w->w1, NULL, rows);
    product(state, state->up, n, &w->w3, NULL, rows);
    TSAR_PARALLEL_FOR(rows > 1 ? state->model->threads : 1)
    for (size_t r = 0; r < rows; r++) {
        double *gate = state->gate + r * ffn;
        const double *up = state->up + r * ffn;
        (state->encoder ? tsar_gelu_n : tsar_silu_n)(gate, ffn);
        tsar_round_to(state->model, gate, ffn);
        for (size_t i = 0; i < ffn; i++) gate[i] = gate[i] * up[i];
        tsar_round_to(state->model, gate, ffn);
    }
}

/* What a branch of a block takes: rmsnorm(x), or with norm_post x itself; then it is the branch that is normed, when it joins the stream. */
static const double *branch_input(tsar_state *state, const double *norm, size_t rows)
{
    if (state->stack->norm_post) return state->x;
    rmsnorm(state, state->normed, state->x, norm, rows);
    return state->normed;
}

/* x = x + delta, or x = x + rmsnorm(delta) */
static void add_branch(tsar_state *state, const double *norm, size_t rows)
{
    if (state->stack->norm_post) rmsnorm(state, state->delta, state->delta, norm, rows);
    add(state, state->x, state->delta, rows * state->stack->dim);
}

/* One block (SPEC 3; Llama):  h = x + wo . attention(rope(q), rope(k), v),  q, k, v = wqkv . rmsnorm(x)
 *                             y = h + w2 . (silu(w1 . n) * (w3 . n)),       n = rmsnorm(h)
 * With norm_post the norms stand behind the branches: h = x + rmsnorm(wo . ...) with q, k, v = wqkv . x, and the same of n = h. */
static tsar_status block_forward(tsar_state *state, size_t layer, size_t rows, const tsar_sink *sink, tsar_error *err)
{
    const tsar_layer *w = &state->stack->layers[layer];
    const tsar_sink *inside = sink && sink->inside && !state->encoder ? sink : NULL;
    const size_t stream[2] = { rows, state->stack->dim }, inner[2] = { rows, state->stack->ffn_hidden };

    product(state, state->qkv, branch_input(state, w->attention_norm, rows), &w->wqkv, NULL, rows);
    tsar_status status = attention(state, layer, rows, inside, err);
    product(state, state->delta, state->mixed, &w->wo, NULL, rows);
    add_branch(state, w->attention_norm, rows);
    if (status == TSAR_OK && state->encoder) status = tsar_emit(sink, err, TSAR_F64, state->x, 2, stream, "t5.attn.%lu", (unsigned long)layer);
    if (status == TSAR_OK) status = tsar_emit(inside, err, TSAR_F64, state->x, 2, stream, "%s.block.%lu.h", state->part, (unsigned long)layer);

    feed_forward(state, w, branch_input(state, w->ffn_norm, rows), rows);
    if (status == TSAR_OK) status = tsar_emit(inside, err, TSAR_F64, state->gate, 2, inner, "%s.block.%lu.ffn", state->part, (unsigned long)layer);
    product(state, state->delta, state->gate, &w->w2, NULL, rows);
    add_branch(state, w->ffn_norm, rows);
    return status;
}

/* Tells the model's watch that a layer is done, where much is fed in one go. */
static void tell_layer(const tsar_state *state, size_t layer, size_t rows)
{
    const tsar_model *m = state->model;
    const double done = (double)state->watched_before + (double)rows * ((double)(layer + 1) / (double)state->stack->n_layer);
    if (m->watch && state->watched) m->watch(m->watch_context, state->watched, done / (double)state->watched_rows);
}

/* All blocks over state->x [rows][d], of the rows state->row [rows]. */
static tsar_status stack_forward(tsar_state *state, size_t rows, const tsar_sink *sink, tsar_error *err)
{
    const tsar_stack *stack = state->stack;
    const size_t shape[2] = { rows, stack->dim };
    tsar_status status = tsar_emit(sink, err, TSAR_F64, state->x, 2, shape, "%s.embed", state->part);
    for (size_t r = 0; r < rows; r++) {
        const pass_row *row = &state->row[r];
        if (!state->encoder) rope_angles(state, row, state->rotation + r * (stack->head_dim / 2) * 3);
        state->cache[row->sequence].fed[row->position] = row->visible != 0;
    }
    for (size_t layer = 0; layer < stack->n_layer && status == TSAR_OK; layer++) {
        status = block_forward(state, layer, rows, sink, err);
        if (status == TSAR_OK) status = tsar_emit(sink, err, TSAR_F64, state->x, 2, shape, "%s.block.%lu", state->part, (unsigned long)layer);
        if (status == TSAR_OK) tell_layer(state, layer, rows);
    }
    return status;
}

/* After a pass: stand-ins lose their keys and values (zero values, so that a weight of 0 meets no stale number). */
static void forget_stand_ins(tsar_state *state, size_t rows)
{
    const tsar_stack *stack = state->stack;
    memset(state->delta, 0, stack->dim * sizeof *state->delta);
    for (size_t r = 0; r < rows; r++) {
        const pass_row *row = &state->row[r];
        if (row->keep) continue;
        kv_cache *cache = &state->cache[row->sequence];
        cache->fed[row->position] = 0;
        for (size_t m = 0; m < state->kept_layers * stack->n_kv_head; m++) set_value(&cache->values[m], row->position, state->delta);
    }
}

/* ------------------------------------------------------------------------------------- in front of the blocks and behind */

/* y = fc2 . gelu(fc1 . x + b1) + b2 for `count` vectors, with gelu's tanh form, or erf form. */
static void mlp(tsar_state *state, double *y, const double *x, const tsar_code_mlp *w, void (*gelu)(double *, size_t), size_t count)
{
    const size_t hidden = w->fc1.rows;
    product(state, state->hidden, x, &w->fc1, w->b1, count);
    TSAR_PARALLEL_FOR(count > 1 ? state->model->threads : 1)
    for (size_t r = 0; r < count; r++) gelu(state->hidden + r * hidden, hidden);
    tsar_round_to(state->model, state->hidden, count * hidden);
    product(state, y, state->hidden, &w->fc2, w->b2, count);
}

/* x = x + fc2 . gelu(fc1 . rmsnorm(x)): a block of token-shuffle or token-unshuffle, x [count][d]. (paper, section 3; pre-norm is ours) */
static void shuffle_block(tsar_state *state, double *x, const tsar_mlp *block, size_t count)
{
    const tsar_code_mlp w = { .fc1 = block->fc1, .fc2 = block->fc2 };
    rmsnorm(state, state->normed, x, block->norm, count);
    mlp(state, state->delta, state->normed, &w, tsar_gelu_n, count);
    add(state, x, state->delta, count * state->stack->dim);
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

/* token-shuffle, the input: z [count][d] of the vectors e [count][s*s][d] of the codes of count windows (SPEC 3; paper, section 3):
 *     y_c = compress . e_c,  z = concat(y_0 ... y_{s*s-1}),  then shuffle_blocks times z = z + fc2 . gelu(fc1 . rmsnorm(z)). */
static tsar_status fuse(tsar_state *state, double *z, const double *e, size_t count, const tsar_sink *sink, tsar_error *err)
{
    const tsar_model *m = state->model;
    const size_t shape[2] = { count, m->config.dim };
    product(state, z, e, &m->compress, NULL, count * m->config.shuffle * m->config.shuffle);
    tsar_status status = emit_compressed(state, z, sink, err);
    if (status == TSAR_OK) status = tsar_emit(sink, err, TSAR_F64, z, 2, shape, "gpt.shuffle.merge");
    for (size_t b = 0; b < m->config.shuffle_blocks && status == TSAR_OK; b++) {
        shuffle_block(state, z, &m->shuffle_mlp[b], count);
        status = tsar_emit(sink, err, TSAR_F64, z, 2, shape, "gpt.shuffle.block.%lu", (unsigned long)b);
    }
    return status;
}

/* What one row's codes or feature are for the modules in front of the blocks. */
static void write_input(const tsar_model *m, const pass_row *row, double *to)
{
    const tsar_table *table = m->config.image_embed ? &m->image_embeddings : &m->tok_embeddings;
    if (row->feature) memcpy(to, row->feature, m->config.caption_dim * sizeof *to);
    for (size_t slot = 0; row->codes && slot < m->config.shuffle * m->config.shuffle; slot++)
        tsar_table_row(to + slot * table->cols, table, m->config.code_row + (size_t)row->codes[slot]);
}

/* x [rows][d] of what the rows of a pass are fed with: a row of a table is there at once. All others of a pass go together through what
 * the family has: windows of codes are fused; Janus's codes and a caption's features (QUIRKS, GPT 5) pass an MLP. */
static tsar_status embed(tsar_state *state, size_t rows, const tsar_sink *sink, tsar_error *err)
{
    const tsar_model *m = state->model;
    const tsar_code_mlp caption = { .fc1 = m->cap_fc1, .fc2 = m->cap_fc2 };
    const size_t d = state->stack->dim;
    size_t count = 0;
    for (size_t r = 0; r < rows; r++) {
        const pass_row *row = &state->row[r];
        if (row->table)
            tsar_table_row(state->x + r * d, row->table, row->id);
        else
            write_input(m, row, state->input + count++ * tsar_input_width(&m->config));
    }
    if (count == 0) return TSAR_OK;
    tsar_status status = TSAR_OK;
    if (m->config.shuffle > 1)
        status = fuse(state, state->fused, state->input, count, sink, err);
    else if (m->config.image_embed)
        mlp(state, state->fused, state->input, &m->image_embed, tsar_gelu_erf_n, count);
    else
        mlp(state, state->fused, state->input, &caption, tsar_gelu_n, count);
    count = 0;
    for (size_t r = 0; r < rows; r++)
        if (!state->row[r].table) memcpy(state->x + r * d, state->fused + d * count++, d * sizeof(double));
    return status;
}

/* token-unshuffle and the head: state->logits [count][s*s][V] from the residual stream h [count][d], which it changes:
 *     shuffle_blocks times h = h + fc2 . gelu(fc1 . rmsnorm(h)),  x_c = expand . h_c,  logits_c = output . rmsnorm(x_c).
 * With s = 1, x is h; Janus's head is an MLP. */
static tsar_status predict(tsar_state *state, double *h, size_t count, const tsar_sink *sink, tsar_error *err)
{
    const tsar_model *m = state->model;
    const tsar_config *c = &m->config;
    const size_t slots = c->shuffle * c->shuffle, d = c->dim, flat[2] = { count, d };
    const size_t codes[3] = { count, slots, d }, logits[3] = { count, slots, c->vocab };
    const size_t flat_logits[2] = { count, c->vocab };
    tsar_status status = tsar_reserve_logits(state, count, err);
    double *x = h;
    if (slots > 1 && status == TSAR_OK) {
        for (size_t b = 0; b < c->shuffle_blocks && status == TSAR_OK; b++) {
            shuffle_block(state, h, &m->unshuffle_mlp[b], count);
            status = tsar_emit(sink, err, TSAR_F64, h, 2, flat, "gpt.unshuffle.block.%lu", (unsigned long)b);
        }
        x = state->input;
        product(state, x, h, &m->expand, NULL, count * slots);
        if (status == TSAR_OK) status = tsar_emit(sink, err, TSAR_F64, x, 3, codes, "gpt.unshuffle.expand");
    }
    if (status != TSAR_OK) return status;
    const int by_slot = tsar_family_of(c)->rows_are_predictions; /* LlamaGen's tensors have no axis of slots */
    rmsnorm(state, x, x, m->gpt.norm, count * slots);
    status = tsar_emit(sink, err, TSAR_F64, x, by_slot ? 3 : 2, by_slot ? codes : flat, "gpt.norm");
    if (status != TSAR_OK) return status;
    if (c->image_head)
        mlp(state, state->logits, x, &m->image_head, tsar_gelu_erf_n, count);
    else
        product(state, state->logits, x, &m->gpt.output, NULL, count * slots);
    return tsar_emit(sink, err, TSAR_F64, state->logits, by_slot ? 3 : 2, by_slot ? logits : flat_logits, "gpt.logits");
}

/* ---------------------------------------------------------------------------------------------------- prompts and passes */

/* A state for one of the model's stacks, its rotary frequencies made. */
static tsar_status state_open(tsar_state **out, const tsar_model *model, const tsar_stack *stack, size_t kept_layers, size_t sequences, tsar_error *err)
{
    const tsar_status status = tsar_state_make(out, model, stack, kept_layers, sequences, err);
    if (status == TSAR_OK) rope_frequencies(*out);
    return status;
}

/* The same for the autoregressive transformer; kept_layers: n_layer, or 1 where one pass feeds everything. */
static tsar_status gpt_open(tsar_state **out, const tsar_model *model, size_t kept_layers, size_t sequences, tsar_error *err)
{
    *out = NULL;
    if (!(model->parts & TSAR_PART_GPT)) return tsar_fail(err, TSAR_INPUT, "the model has no transformer (no key arch): it can only encode and decode images");
    return state_open(out, model, &model->gpt, kept_layers, sequences, err);
}

tsar_status tsar_state_open(tsar_state **out, const tsar_model *model, size_t sequences, tsar_error *err)
{
    return gpt_open(out, model, model->gpt.n_layer, sequences, err);
}

/* A row of a pass at a place of its sequence, fed with nothing yet (SPEC 3). P = the length of the prefix, C = columns of the grid, e = 1
 * with eol, else 0; r = t / C, c = t % C:
 *     place                     position              rotary position in 1d: its position; in 2d, of the two halves of a head:
 *     p of the prefix           p                     p, p                 behind no ids: none, cos = sin = 0 (QUIRKS, GPT 2)
 *     token t                   P + r (C + e) + c     P + r, P + c         behind no ids: r, c
 *     eol of row r              P + r (C + e) + C     P + r, P + C */
typedef enum { PREFIX, TOKEN, ROW_END } place_kind;
static pass_row row_at(const tsar_state *state, size_t sequence, place_kind kind, size_t index)
{
    const int two = state->stack->rope_2d, ids = state->causal && tsar_family_of(&state->model->config)->prefix == TSAR_PREFIX_IDS;
    const size_t prefix = state->cache[sequence].prefix, C = state->columns;
    const size_t r = kind == TOKEN ? index / C : index, c = kind == TOKEN ? index % C : C;
    pass_row row = { .sequence = sequence, .visible = 1, .keep = 1 };
    row.position = kind == PREFIX ? index : prefix + r * (C + (size_t)state->eol) + c;
    row.turns = !two || ids || kind != PREFIX;
    row.coordinate[0] = row.coordinate[1] = row.position;
    if (two && kind != PREFIX) {
        row.coordinate[0] = (ids ? prefix : 0) + r;
        row.coordinate[1] = (ids ? prefix : 0) + c;
    }
    return row;
}

/* Feeds a row with s*s codes, or with eol (NULL): where it has a row of tok_embeddings of its own, with that. */
static void feed_codes(const tsar_model *model, pass_row *row, const int64_t *codes)
{
    const tsar_config *c = &model->config;
    const int direct = !codes || (c->shuffle == 1 && !c->image_embed);
    row->codes = direct ? NULL : codes;
    row->table = direct ? &model->tok_embeddings : NULL;
    row->id = codes ? c->code_row + (size_t)codes[0] : (size_t)c->eol;
}

/* state->row[r] for places first + r of the prompt, r < rows. features [rows][caption_dim] is room for a caption's: feature * mask, or the
 * unconditional ones as they are (QUIRKS, GPT 6). */
static void prompt_rows(tsar_state *state, size_t sequence, const tsar_prompt *prompt, size_t first, size_t rows, double *features)
{
    const tsar_model *m = state->model;
    const size_t width = m->config.caption_dim;
    const tsar_prefix kind = tsar_family_of(&m->config)->prefix;
    for (size_t r = 0; r < rows; r++) {
        const size_t p = first + r;
        pass_row *row = &state->row[r];
        *row = row_at(state, sequence, PREFIX, p);
        if (kind == TSAR_PREFIX_CLASS) {
            row->table = &m->class_embeddings;
            row->id = prompt->unconditional ? m->config.num_classes : prompt->class_id;
        } else if (kind == TSAR_PREFIX_CAPTION) {
            row->feature = features + r * width;
            row->visible = prompt->caption_mask[p] != 0.0;
            if (prompt->unconditional) tsar_table_row(features + r * width, &m->uncond_embedding, p);
            for (size_t i = 0; i < width && !prompt->unconditional; i++) features[r * width + i] = prompt->caption[p * width + i] * prompt->caption_mask[p];
        } else {
            row->table = &m->tok_embeddings;
            row->id = (size_t)tsar_prompt_id(m, prompt, p);
        }
    }
}

/* The rows of state->row through everything but the head. */
static tsar_status run_rows(tsar_state *state, size_t rows, const tsar_sink *sink, tsar_error *err)
{
    tsar_status status = embed(state, rows, sink, err);
    if (status == TSAR_OK) status = stack_forward(state, rows, sink, err);
    if (status == TSAR_OK) forget_stand_ins(state, rows);
    return status;
}

tsar_status tsar_prefill(tsar_state *state, size_t sequence, const tsar_prompt *prompt, double *logits, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t length = tsar_prompt_length(state->model, prompt), d = c->dim;
    const size_t room = length < PREFILL_ROWS ? length : PREFILL_ROWS;
    double *features = NULL;
    tsar_status status = tsar_prompt_check(state->model, prompt, err);
    if (status == TSAR_OK) status = tsar_cache_open(state, sequence, length, tsar_image_positions(c), err);
    if (status == TSAR_OK) status = tsar_reserve_rows(state, room, err);
    if (status == TSAR_OK && !(features = tsar_alloc(room, c->caption_dim * sizeof *features, "caption features", err))) status = TSAR_ROOM;
    size_t rows = 0;
    state->watched = "prompt", state->watched_rows = length;
    for (size_t first = 0; first < length && status == TSAR_OK; first += rows) {
        rows = length - first < room ? length - first : room;
        state->watched_before = first;
        prompt_rows(state, sequence, prompt, first, rows, features);
        status = run_rows(state, rows, NULL, err);
    }
    state->watched = NULL;
    tsar_free(features);
    if (status != TSAR_OK || !logits) return status;
    status = predict(state, state->x + (rows - 1) * d, 1, NULL, err);
    if (status == TSAR_OK) memcpy(logits, state->logits, c->shuffle * c->shuffle * c->vocab * sizeof *logits);
    return status;
}

void tsar_show_unfed(tsar_state *state, size_t sequence)
{
    kv_cache *cache = &state->cache[sequence];
    memset(cache->fed + cache->prefix, 1, cache->positions - cache->prefix);
}

static tsar_status check_codes(const tsar_config *c, const int64_t *codes, size_t count, tsar_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (codes[i] < 0 || (uint64_t)codes[i] >= c->vocab)
            return tsar_fail(err, TSAR_INPUT, "code %lld at place %zu is outside 0 ... %zu", (long long)codes[i], i, c->vocab - 1);
    return TSAR_OK;
}

/* state->row[r] for one row of a caller's pass. */
static tsar_status feed_row(tsar_state *state, size_t r, const tsar_feed *feed, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t t = feed->token;
    const int ends_row = feed->codes == NULL;
    if (feed->sequence >= state->sequences || !state->cache[feed->sequence].fed || t >= c->tokens || (ends_row && (!state->eol || (t + 1) % c->columns)))
        return tsar_fail(err, TSAR_USAGE, "row %zu of a pass feeds %s %zu of sequence %zu, which has no prompt or no such token", r,
                         ends_row ? "the eol behind token" : "token", t, feed->sequence);
    const tsar_status status = ends_row ? TSAR_OK : check_codes(c, feed->codes, c->shuffle * c->shuffle, err);
    if (status != TSAR_OK) return status;
    state->row[r] = row_at(state, feed->sequence, ends_row ? ROW_END : TOKEN, ends_row ? t / c->columns : t);
    state->row[r].keep = feed->keep;
    feed_codes(state->model, &state->row[r], feed->codes);
    return TSAR_OK;
}

tsar_status tsar_forward(tsar_state *state, const tsar_feed *feed, size_t rows, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    const size_t one = c->shuffle * c->shuffle * c->vocab, d = c->dim;
    tsar_status status = tsar_reserve_rows(state, rows, err);
    for (size_t r = 0; r < rows && status == TSAR_OK; r++) status = feed_row(state, r, &feed[r], err);
    if (status == TSAR_OK) status = run_rows(state, rows, NULL, err);
    if (status != TSAR_OK) return status;
    size_t wanted = 0; /* the rows whose prediction is wanted move to the front */
    for (size_t r = 0; r < rows; r++)
        if (feed[r].logits) memmove(state->x + d * wanted++, state->x + d * r, d * sizeof *state->x);
    if (wanted == 0) return TSAR_OK;
    status = predict(state, state->x, wanted, NULL, err);
    const double *logits = state->logits;
    for (size_t r = 0; r < rows && status == TSAR_OK; r++) {
        if (!feed[r].logits) continue;
        memcpy(feed[r].logits, logits, one * sizeof *logits);
        logits += one;
    }
    return status;
}

/* ------------------------------------------------------------------------------------------------- trace; CTF stage two */

/* Prompt, all n fused tokens and every eol in one pass, in the order of their positions: state->row.
 * Room: features [prefix][caption_dim], windows [n][s*s] */
static void trace_rows(tsar_state *state, const tsar_prompt *prompt, const int64_t *codes, double *features, int64_t *windows)
{
    const tsar_config *c = &state->model->config;
    const size_t s = c->shuffle, prefix = state->cache[0].prefix;
    prompt_rows(state, 0, prompt, 0, prefix, features);
    for (size_t t = 0; t < c->tokens; t++) {
        int64_t *window = windows + t * s * s;
        for (size_t slot = 0; slot < s * s; slot++) window[slot] = codes[(t / c->columns * s + slot / s) * c->grid_w + t % c->columns * s + slot % s];
        const pass_row row = row_at(state, 0, TOKEN, t);
        state->row[row.position] = row;
        feed_codes(state->model, &state->row[row.position], window);
    }
    for (size_t r = 0; r < c->rows && state->eol; r++) {
        const pass_row row = row_at(state, 0, ROW_END, r);
        state->row[row.position] = row;
        feed_codes(state->model, &state->row[row.position], NULL);
    }
}

/* Logits of a trace. LlamaGen: of all T rows, as the official forward returns (QUIRKS, GPT 1); else of the n rows that predict a token:
 * each the one in front of it, which is an eol where a row begins behind one. */
static tsar_status trace_logits(tsar_state *state, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &state->model->config;
    if (!tsar_family_of(c)->rows_are_predictions) return predict(state, state->x, state->cache[0].positions, sink, err);
    for (size_t t = 0; t < c->tokens; t++)
        memmove(state->x + t * c->dim, state->x + (row_at(state, 0, TOKEN, t).position - 1) * c->dim, c->dim * sizeof *state->x);
    return predict(state, state->x, c->tokens, sink, err);
}

tsar_status tsar_gpt_trace(const tsar_model *model, const tsar_prompt *prompt, const int64_t *codes, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    double *features = NULL;
    int64_t *windows = NULL;
    tsar_state *state;
    tsar_status status = gpt_open(&state, model, 1, 1, err);
    if (status != TSAR_OK) return status;
    status = tsar_prompt_check(model, prompt, err);
    if (status == TSAR_OK) status = check_codes(c, codes, c->grid_h * c->grid_w, err);
    const size_t prefix = status == TSAR_OK ? tsar_prompt_length(model, prompt) : 0;
    if (status == TSAR_OK) status = tsar_cache_open(state, 0, prefix, tsar_image_positions(c), err);
    if (status == TSAR_OK) status = tsar_reserve_rows(state, state->cache[0].positions, err);
    if (status == TSAR_OK && !(features = tsar_alloc(prefix, c->caption_dim * sizeof *features, "caption features", err))) status = TSAR_ROOM;
    if (status == TSAR_OK && !(windows = tsar_alloc(c->grid_h * c->grid_w, sizeof *windows, "codes", err))) status = TSAR_ROOM;
    if (status == TSAR_OK) trace_rows(state, prompt, codes, features, windows);
    state->watched = "transformer", state->watched_rows = state->cache[0].positions;
    if (status == TSAR_OK) status = run_rows(state, state->cache[0].positions, sink, err);
    if (status == TSAR_OK) status = trace_logits(state, sink, err);
    tsar_free(features);
    tsar_free(windows);
    tsar_state_close(state);
    return status;
}

tsar_status tsar_fine_hidden(const tsar_model *model, const int64_t *labels, double *hidden, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    if (!(model->parts & TSAR_PART_FINE)) return tsar_fail(err, TSAR_INPUT, "the model has no fine stage (no key fine_dim): coarse labels cannot become codes");
    const size_t N = c->grid_h * c->grid_w, shape[2] = { N, c->fine_dim };
    for (size_t i = 0; i < N; i++)
        if (labels[i] < 0 || (uint64_t)labels[i] >= c->n_coarse)
            return tsar_fail(err, TSAR_INPUT, "coarse label %lld at place %zu is outside 0 ... %zu", (long long)labels[i], i, c->n_coarse - 1);
    tsar_state *state;
    tsar_status status = state_open(&state, model, &model->fine, 1, 1, err);
    if (status != TSAR_OK) return status;
    status = tsar_cache_open(state, 0, 0, N, err);
    if (status == TSAR_OK) status = tsar_reserve_rows(state, N, err);
    for (size_t t = 0; t < N && status == TSAR_OK; t++) {
        state->row[t] = row_at(state, 0, TOKEN, t);
        state->row[t].table = &model->coarse_embeddings;
        state->row[t].id = (size_t)labels[t];
    }
    state->watched = "stage two", state->watched_rows = N;
    if (status == TSAR_OK) status = run_rows(state, N, sink, err);
    if (status == TSAR_OK) {
        rmsnorm(state, hidden, state->x, model->fine.norm, N);
        status = tsar_emit(sink, err, TSAR_F64, hidden, 2, shape, "fine.norm");
    }
    tsar_state_close(state);
    return status;
}

tsar_status tsar_fine_logits(const tsar_model *model, const double *hidden, size_t first, size_t count, double *logits, tsar_error *err)
{
    if (!(model->parts & TSAR_PART_FINE)) return tsar_fail(err, TSAR_INPUT, "the model has no fine stage (no key fine_dim)");
    double *scratch = tsar_alloc(tsar_scratch(count, model->threads), sizeof *scratch, "the scratch of matrix products", err);
    if (!scratch) return TSAR_ROOM;
    tsar_matmul(logits, hidden + first * model->config.fine_dim, &model->fine.output, NULL, count, model->threads, scratch);
    tsar_round_to(model, logits, count * model->fine.output.rows);
    tsar_free(scratch);
    return TSAR_OK;
}

/* ---------------------------------------------------------------------------------------------------- the text encoder */

/* The bucket of the distance r = key minus query (QUIRKS-t5, Encoder 6): with n = |r|, half = buckets / 2 and m = half / 2,
 *     half * (r > 0) + (n < m ? n : m + the largest e <= m - 1 with n^m >= m^(m - e) * max_distance^e),
 * which is floor(log(n / m) / log(max_distance / m) * m) in integers, exactly; n counts as at most max_distance. */
static size_t t5_bucket(const tsar_config *c, int64_t r)
{
    const uint64_t half = c->t5_buckets / 2, m = half / 2, far = c->t5_max_distance, size = (uint64_t)(r < 0 ? -r : r), n = size < far ? size : far;
    uint64_t bucket = n, power = 1;
    for (uint64_t i = 0; i < m && n >= m; i++) power *= n;
    for (uint64_t e = 0; e < m && n >= m; e++) {
        uint64_t least = 1;
        for (uint64_t i = 0; i < m; i++) least *= i < e ? far : m;
        if (power >= least) bucket = m + e;
    }
    return (size_t)(bucket + (r > 0 ? half : 0));
}

/* state->bias for L positions, each distance once. */
static tsar_status t5_bias(tsar_state *state, size_t L, tsar_error *err)
{
    const tsar_table *table = &state->stack->position_bias;
    state->bias = tsar_alloc(tsar_product(2, L), table->cols * sizeof *state->bias, "the bias of positions", err);
    if (!state->bias) return TSAR_ROOM;
    for (size_t i = 0; i + 1 < 2 * L; i++)
        tsar_table_row(state->bias + i * table->cols, table, t5_bucket(&state->model->config, (int64_t)i - (int64_t)(L - 1)));
    return TSAR_OK;
}

tsar_status tsar_t5_encode(const tsar_model *model, const int64_t *ids, size_t L, double *out, const tsar_sink *sink, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t shape[2] = { L, c->t5_dim };
    if (!(model->parts & TSAR_PART_T5)) return tsar_fail(err, TSAR_INPUT, "the model has no text encoder (no key t5_dim)");
    if (L == 0) return tsar_fail(err, TSAR_INPUT, "the text encoder needs at least one id, the one that ends a text");
    for (size_t i = 0; i < L; i++)
        if (ids[i] < 0 || (uint64_t)ids[i] >= c->t5_vocab)
            return tsar_fail(err, TSAR_INPUT, "id %lld at place %zu of the text is outside 0 ... %zu (t5_vocab - 1)", (long long)ids[i], i, c->t5_vocab - 1);
    tsar_state *state;
    tsar_status status = state_open(&state, model, &model->t5, 1, 1, err);
    if (status != TSAR_OK) return status;
    status = t5_bias(state, L, err);
    if (status == TSAR_OK) status = tsar_cache_open(state, 0, L, 0, err);
    if (status == TSAR_OK) status = tsar_reserve_rows(state, L, err);
    for (size_t p = 0; p < L && status == TSAR_OK; p++) {
        state->row[p] = row_at(state, 0, PREFIX, p);
        state->row[p].table = &model->t5_embeddings;
        state->row[p].id = (size_t)ids[p];
    }
    state->watched = "text encoder", state->watched_rows = L;
    if (status == TSAR_OK) status = run_rows(state, L, sink, err);
    if (status == TSAR_OK) {
        rmsnorm(state, out, state->x, model->t5.norm, L);
        status = tsar_emit(sink, err, TSAR_F64, out, 2, shape, "t5.norm");
    }
    tsar_state_close(state);
    return status;
}

/* ----------------------------------------------------------------------------------------------- intermediates */

tsar_status tsar_emit(const tsar_sink *sink, tsar_error *err, tsar_dtype dtype, void *data, size_t rank, const size_t *shape, const char *format, ...)
{
    if (sink == NULL) return TSAR_OK;
    char name[128];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    return sink->put(sink->context, name, dtype, rank, shape, data, err);
}
