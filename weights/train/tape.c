/* The tape of the trainer: values, nodes, parameters; forward, backward, AdamW. See train.h. */
#include "train.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SLACK 16 /* reals after every array that a vector may read and not use */

void train_tape_open(train_tape *tape, uint64_t seed, size_t threads)
{
    memset(tape, 0, sizeof *tape);
    tape->seed = seed;
    tape->threads = threads > 0 ? threads : 1;
}

void train_tape_close(train_tape *tape)
{
    for (size_t i = 0; i < tape->n_values; i++)
        if (tape->values[i].owner == i) {
            tsar_free(tape->values[i].x);
            tsar_free(tape->values[i].g);
        }
    for (size_t i = 0; i < tape->n_nodes; i++)
        for (size_t k = 0; k < 4; k++) tsar_free(tape->nodes[i].keep[k]);
    for (size_t i = 0; i < tape->n_params; i++) tsar_free(tape->params[i].w);
    tsar_free(tape->values);
    tsar_free(tape->nodes);
    tsar_free(tape->params);
    memset(tape, 0, sizeof *tape);
}

tsar_status train_ragged_open(train_ragged *ragged, size_t n, size_t length, tsar_error *err)
{
    ragged->n = n;
    ragged->start = tsar_alloc(n, sizeof *ragged->start, "the sequences of a batch", err);
    ragged->length = ragged->start ? tsar_alloc(n, sizeof *ragged->length, "the sequences of a batch", err) : NULL;
    if (!ragged->length) return TSAR_ROOM;
    for (size_t b = 0; b < n; b++) {
        ragged->start[b] = b * length;
        ragged->length[b] = length;
    }
    return TSAR_OK;
}

void train_ragged_close(train_ragged *ragged)
{
    tsar_free(ragged->start);
    tsar_free(ragged->length);
}

/* Room for one more element of an array that doubles when full; 0 after a failure. */
static int room_for_one(train_tape *tape, void **array, size_t n, size_t *room, size_t size)
{
    if (tape->status != TSAR_OK) return 0;
    if (n < *room) return 1;
    size_t more = *room ? 2 * *room : 64;
    void *grown = tsar_alloc(more, size, "the tape", &tape->err);
    if (!grown) {
        tape->status = TSAR_ROOM;
        return 0;
    }
    if (n > 0) memcpy(grown, *array, n * size);
    tsar_free(*array);
    *array = grown;
    *room = more;
    return 1;
}

real *train_keep(train_tape *tape, size_t n)
{
    if (tape->status != TSAR_OK) return NULL;
    real *memory = tsar_alloc(n + SLACK, sizeof(real), "the tape", &tape->err);
    if (!memory) tape->status = TSAR_ROOM;
    return memory;
}

size_t train_param_new(train_tape *tape, const char *name, size_t rank, const size_t *shape, double centre, double bound)
{
    void *array = tape->params;
    if (!room_for_one(tape, &array, tape->n_params, &tape->room_params, sizeof *tape->params)) return 0;
    tape->params = array;
    train_param *p = &tape->params[tape->n_params];
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", name);
    p->rank = rank;
    p->n = 1;
    for (size_t i = 0; i < rank; i++) {
        p->shape[i] = shape[i];
        p->n *= shape[i];
    }
    p->decay = rank > 1;
    p->w = train_keep(tape, 4 * (p->n + SLACK));
    if (!p->w) return 0;
    p->g = p->w + p->n + SLACK;
    p->m = p->g + p->n + SLACK;
    p->v = p->m + p->n + SLACK;
    uint64_t key = tsar_synth_key(name, tape->seed);
    for (size_t i = 0; i < p->n; i++) p->w[i] = (real)(float)(centre + bound * ((double)(tsar_synth_word(key, i) >> 40) * 0x1p-23 - 1.0));
    return tape->n_params++;
}

size_t train_value_new(train_tape *tape, size_t B, size_t H, size_t W, size_t C, size_t border)
{
    void *array = tape->values;
    if (!room_for_one(tape, &array, tape->n_values, &tape->room_values, sizeof *tape->values)) return 0;
    tape->values = array;
    train_value *t = &tape->values[tape->n_values];
    train_value value = { B, H, W, C, border, W, NULL, NULL, 0, tape->n_values, "", 0, NULL };
    size_t n = B * (H + 2 * border) * (W + 2 * border) * C;
    value.x = train_keep(tape, n);
    value.g = train_keep(tape, n);
    *t = value;
    tape->n_values++;
    return tape->n_values - 1;
}

size_t train_view(train_tape *tape, size_t of, size_t W, size_t C)
{
    void *array = tape->values;
    if (!room_for_one(tape, &array, tape->n_values, &tape->room_values, sizeof *tape->values)) return 0;
    tape->values = array;
    train_value view = tape->values[of];
    view.B = view.H = 1;
    view.W = view.room = W;
    view.C = C;
    view.name[0] = '\0';
    view.slots = 0;
    view.order = NULL;
    tape->values[tape->n_values] = view;
    return tape->n_values++;
}

void train_name(train_tape *tape, size_t value, const char *format, ...)
{
    va_list arguments;
    if (tape->status != TSAR_OK) return;
    va_start(arguments, format);
    vsnprintf(tape->values[value].name, sizeof tape->values[value].name, format, arguments);
    va_end(arguments);
}

train_node *train_node_new(train_tape *tape)
{
    void *array = tape->nodes;
    if (!room_for_one(tape, &array, tape->n_nodes, &tape->room_nodes, sizeof *tape->nodes)) return NULL;
    tape->nodes = array;
    train_node *node = &tape->nodes[tape->n_nodes++];
    memset(node, 0, sizeof *node);
    return node;
}

/* A node of one or two inputs whose output has the given shape; returns its output. */
static train_node *node_of(train_tape *tape, size_t a, size_t b, size_t out)
{
    train_node *node = train_node_new(tape);
    if (!node) return NULL;
    node->in[0] = a;
    node->in[1] = b;
    node->out = out;
    return node;
}

static size_t value_like(train_tape *tape, size_t value)
{
    if (tape->status != TSAR_OK) return 0;
    train_value t = tape->values[value];
    return train_value_new(tape, t.B, t.H, t.W, t.C, t.border);
}

/* ------------------------------------------------------------------------------------------------------- operations */

size_t train_conv(train_tape *tape, size_t in, const char *name, size_t out_channels, size_t size, size_t stride, size_t border)
{
    char text[128];
    if (tape->status != TSAR_OK) return 0;
    train_value t = tape->values[in];
    const size_t shape[4] = { out_channels, t.C, size, size };
    double bound = 1.0 / sqrt((double)(t.C * size * size));
    size_t out = train_value_new(tape, t.B, t.H / stride, t.W / stride, out_channels, size == 3 ? 1 : border); /* backward reads the border */
    snprintf(text, sizeof text, "%s.weight", name);
    size_t weight = train_param_new(tape, text, 4, shape, 0.0, bound);
    snprintf(text, sizeof text, "%s.bias", name);
    size_t bias = train_param_new(tape, text, 1, shape, 0.0, bound);
    train_node *node = node_of(tape, in, in, out);
    if (!node) return 0;
    node->forward = op_conv_forward;
    node->backward = op_conv_backward;
    node->size = size;
    node->stride = stride;
    node->param[0] = weight;
    node->param[1] = bias;
    node->n_param = 2;
    node->keep[0] = train_keep(tape, op_conv_scratch(&tape->values[in], &tape->values[out], size, stride, tape->threads));
    return out;
}

size_t train_linear(train_tape *tape, size_t in, size_t param, size_t first_row, size_t rows)
{
    if (tape->status != TSAR_OK) return 0;
    train_value t = tape->values[in];
    size_t out = train_value_new(tape, t.B, t.H, t.W, rows, 0);
    train_node *node = node_of(tape, in, in, out);
    if (!node) return 0;
    node->forward = op_conv_forward;
    node->backward = op_conv_backward;
    node->size = node->stride = 1;
    node->param[0] = param;
    node->n_param = 1;
    node->first_row = first_row;
    node->keep[0] = train_keep(tape, op_conv_scratch(&tape->values[in], &tape->values[out], 1, 1, tape->threads));
    return out;
}

size_t train_group_norm(train_tape *tape, size_t in, const char *name, size_t groups, int swish)
{
    char text[128];
    if (tape->status != TSAR_OK) return 0;
    train_value t = tape->values[in];
    size_t out = value_like(tape, in);
    snprintf(text, sizeof text, "%s.weight", name);
    size_t gain = train_param_new(tape, text, 1, &t.C, 1.0, 0.0);
    snprintf(text, sizeof text, "%s.bias", name);
    size_t bias = train_param_new(tape, text, 1, &t.C, 0.0, 0.0);
    train_node *node = node_of(tape, in, in, out);
    if (!node) return 0;
    node->forward = op_group_norm_forward;
    node->backward = op_group_norm_backward;
    node->groups = groups;
    node->flag = swish;
    node->eps = 1e-6;
    node->param[0] = gain;
    node->param[1] = bias;
    node->n_param = 2;
    node->keep[0] = train_keep(tape, t.B * 2 * t.C);
    node->keep[1] = train_keep(tape, t.B * 2 * t.C);
    return out;
}

size_t train_rms_norm(train_tape *tape, size_t in, size_t param, double eps)
{
    size_t out = value_like(tape, in);
    train_node *node = node_of(tape, in, in, out);
    if (!node) return 0;
    node->forward = op_rms_norm_forward;
    node->backward = op_rms_norm_backward;
    node->eps = eps;
    node->param[0] = param;
    node->n_param = 1;
    node->keep[0] = train_keep(tape, tape->values[in].room);
    return out;
}

size_t train_add(train_tape *tape, size_t a, size_t b)
{
    size_t out = value_like(tape, a);
    train_node *node = node_of(tape, a, b, out);
    if (!node) return 0;
    node->forward = op_add_forward;
    node->backward = op_add_backward;
    return out;
}

size_t train_upsample(train_tape *tape, size_t in)
{
    if (tape->status != TSAR_OK) return 0;
    train_value t = tape->values[in];
    size_t out = train_value_new(tape, t.B, 2 * t.H, 2 * t.W, t.C, t.border);
    train_node *node = node_of(tape, in, in, out);
    if (!node) return 0;
    node->forward = op_upsample_forward;
    node->backward = op_upsample_backward;
    return out;
}

size_t train_gelu(train_tape *tape, size_t in)
{
    size_t out = value_like(tape, in);
    train_node *node = node_of(tape, in, in, out);
    if (!node) return 0;
    node->forward = op_gelu_forward;
    node->backward = op_gelu_backward;
    return out;
}

size_t train_swiglu(train_tape *tape, size_t gate, size_t up)
{
    size_t out = value_like(tape, gate);
    train_node *node = node_of(tape, gate, up, out);
    if (!node) return 0;
    node->forward = op_swiglu_forward;
    node->backward = op_swiglu_backward;
    return out;
}

size_t train_attention(train_tape *tape, size_t q, size_t k, size_t v, size_t heads, const train_ragged *ragged, int causal, const real *cosine,
                       const real *sine)
{
    if (tape->status != TSAR_OK) return 0;
    train_value t = tape->values[q];
    size_t d = q == k ? t.C / 3 : t.C, T = 0, out = train_value_new(tape, t.B, t.H, t.W, d, 0);
    for (size_t i = 0; i < ragged->n; i++) T = ragged->length[i] > T ? ragged->length[i] : T;
    train_node *node = node_of(tape, q, k, out);
    if (!node) return 0;
    node->forward = op_attention_forward;
    node->backward = op_attention_backward;
    node->in[2] = v;
    node->groups = heads;
    node->flag = causal;
    node->ragged = ragged;
    node->cosine = cosine;
    node->sine = sine;
    node->size = op_attention_scratch(T, d / heads);
    node->keep[0] = train_keep(tape, tape->threads * node->size);
    return out;
}

size_t train_lookup(train_tape *tape, size_t param, const int64_t *index, size_t room)
{
    if (tape->status != TSAR_OK) return 0;
    size_t out = train_value_new(tape, 1, 1, room, tape->params[param].shape[1], 0);
    train_node *node = node_of(tape, 0, 0, out);
    if (!node) return 0;
    node->forward = op_lookup_forward;
    node->backward = op_lookup_backward;
    node->param[0] = param;
    node->n_param = 1;
    node->index = index;
    return out;
}

size_t train_choose(train_tape *tape, size_t a, size_t b, const int64_t *index, size_t room)
{
    if (tape->status != TSAR_OK) return 0;
    size_t out = train_value_new(tape, 1, 1, room, tape->values[a].C, 0);
    train_node *node = node_of(tape, a, b, out);
    if (!node) return 0;
    node->forward = op_choose_forward;
    node->backward = op_choose_backward;
    node->index = index;
    return out;
}

/* --------------------------------------------------------------------------------------------------------- running */

void train_set_rows(train_tape *tape, size_t value, size_t rows) { tape->values[value].W = rows; }

void train_forward(train_tape *tape)
{
    for (size_t i = 0; i < tape->n_nodes; i++) tape->nodes[i].forward(tape, &tape->nodes[i]);
}

void train_backward(train_tape *tape, const size_t *seeds, size_t n_seeds)
{
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t i = 0; i < (ptrdiff_t)tape->n_params; i++) memset(tape->params[i].g, 0, tape->params[i].n * sizeof(real));
    for (size_t i = 0; i < tape->n_values; i++) tape->values[i].has_g = 0;
    for (size_t i = 0; i < n_seeds; i++) tape->values[tape->values[seeds[i]].owner].has_g = 1;
    for (size_t i = tape->n_nodes; i > 0; i--) tape->nodes[i - 1].backward(tape, &tape->nodes[i - 1]);
}

double train_gradient_norm(train_tape *tape)
{
    double total = 0.0;
    TSAR_PARALLEL_FOR(tape->threads)
    for (ptrdiff_t i = 0; i < (ptrdiff_t)tape->n_params; i++) {
        double part[16] = { 0.0 };
        train_param *p = &tape->params[i];
        for (size_t k = 0; k < p->n; k++) part[k % 16] += (double)p->g[k] * (double)p->g[k];
        memcpy(p->squares, part, sizeof part);
    }
    for (size_t i = 0; i < tape->n_params; i++)
        for (size_t l = 0; l < 16; l++) total += tape->params[i].squares[l];
    return sqrt(total);
}

/* m = 0.9 m + 0.1 g, v = beta2 v + (1 - beta2) g^2; w -= rate (m / (1 - 0.9^step) / (sqrt(v / (1 - beta2^step)) + 1e-8) +
 * decay w). (arXiv 1711.05101) */
void train_adam(train_tape *tape, uint64_t step, double rate, double beta2, double decay, double scale)
{
    const real b1 = (real)0.9, b2 = (real)beta2, a1 = 1 - b1, a2 = 1 - b2, s = (real)scale;
    const real unbias1 = (real)(rate / (1.0 - tsar_pow(0.9, (double)step))), unbias2 = (real)(1.0 / (1.0 - tsar_pow(beta2, (double)step)));
    for (size_t i = 0; i < tape->n_params; i++) {
        train_param *p = &tape->params[i];
        const real shrink = p->decay ? (real)(1.0 - rate * decay) : 1;
        ptrdiff_t pieces = (ptrdiff_t)((p->n + 4095) / 4096);
        TSAR_PARALLEL_FOR(tape->threads)
        for (ptrdiff_t piece = 0; piece < pieces; piece++)
            for (size_t k = (size_t)piece * 4096; k < p->n && k < ((size_t)piece + 1) * 4096; k++) {
                real g = p->g[k] * s;
                p->m[k] = b1 * p->m[k] + a1 * g;
                p->v[k] = b2 * p->v[k] + a2 * (g * g);
                p->w[k] = shrink * p->w[k] - unbias1 * p->m[k] / ((real)sqrt((double)(p->v[k] * unbias2)) + (real)1e-8);
            }
    }
}

double train_work(const train_tape *tape)
{
    double work = 0.0;
    for (size_t i = 0; i < tape->n_nodes; i++) {
        const train_node *node = &tape->nodes[i];
        const train_value *in = &tape->values[node->in[0]], *out = &tape->values[node->out];
        if (node->forward == op_conv_forward)
            work += (in->g ? 3.0 : 2.0) * (double)(out->B * out->H * out->W * out->C) * (double)(node->size * node->size * in->C);
        if (node->forward == op_attention_forward)
            for (size_t b = 0; b < node->ragged->n; b++)
                work += (node->flag ? 3.0 : 6.0) * (double)node->ragged->length[b] * (double)node->ragged->length[b] * (double)out->C;
    }
    return work;
}
