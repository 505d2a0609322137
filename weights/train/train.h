/* The trainer: float32 operations with their gradients, a tape that strings them together, and the stages built on it.
 *
 * Arithmetic. Everything is `real`: float in the trainer, double where the tests compile the same code a second time to
 * compare gradients with finite differences. Every output of every operation has one accumulator, takes its terms in a
 * fixed ascending order, and is never fused or reassociated; threads share out whole outputs. So a run gives the same
 * bits with one thread and with many, with gcc and with clang.
 *
 * Layout. Pictures are [B][H][W][C] (channels fastest), with a border of one zero pixel where a 3 x 3 convolution reads
 * them; sequences are rows [R][d]. Weights, gradients and moments have the layout of the model file.
 *
 * Letters: B pictures, H, W rows and columns, C channels in, O channels out, R rows of all sequences together, T rows of one, d width,
 * hd width of one head; of the models those of tsar.h: K, V, n, N, E = vq_embed_dim. A weight has `terms` = size*size*C terms of one output. */
#ifndef TRAIN_H
#define TRAIN_H

#include "../../tsar.h"

#ifndef TRAIN_REAL
#define TRAIN_REAL float
#define TRAIN_DTYPE TSAR_F32
#endif
typedef TRAIN_REAL real;

/* ------------------------------------------------------------------------------------------------------- the tape */

typedef struct {
    char name[128]; /* in the model file */
    size_t rank, shape[4], n;
    real *w, *g, *m, *v; /* value, gradient, Adam's two moments: [n] each */
    double squares[16];  /* sums of the squares of every 16th of g, see train_gradient_norm */
    int decay;           /* subject to weight decay */
} train_param;

/* A value of the tape, or a second view of another one's memory. */
typedef struct {
    size_t B, H, W, C, border;
    size_t room;         /* largest W that the memory holds */
    real *x, *g;         /* [B][H + 2 border][W + 2 border][C] */
    int has_g;           /* the gradient holds something already: add to it. Views share the owner's flag through `owner` */
    size_t owner;        /* index of the value that owns the memory */
    char name[64];       /* in a trace, or "" */
    size_t slots;        /* in a trace: rows are [W / slots][slots], those of a window together; 0: [W] */
    const size_t *order; /* in a trace: the t-th row is row order[t]; NULL: t */
} train_value;

/* Sequences of rows: the b-th is rows start[b] ... start[b]+length[b]-1. */
typedef struct {
    size_t n, *start, *length;
} train_ragged;

/* n sequences of `length` rows each, one behind the other; to be closed. */
tsar_status train_ragged_open(train_ragged *ragged, size_t n, size_t length, tsar_error *err);
void train_ragged_close(train_ragged *ragged);

struct train_tape;
typedef struct train_node {
    void (*forward)(struct train_tape *tape, struct train_node *node);
    void (*backward)(struct train_tape *tape, struct train_node *node);
    size_t in[4], out;        /* values */
    size_t param[4], n_param; /* parameters */
    size_t size, stride;      /* convolution */
    size_t first_row;         /* linear: the part of the matrix from this row on */
    size_t groups;            /* group norm; heads of attention */
    double eps;
    int flag;                   /* group norm: swish follows; attention: causal */
    const real *cosine, *sine;  /* attention: of each row, [R][hd/2]; NULL without rotation */
    const train_ragged *ragged; /* attention */
    const int64_t *index;       /* rows to gather */
    void *context;              /* of a stage's own nodes */
    real *keep[4];              /* what forward leaves for backward, and scratch; owned */
} train_node;

typedef struct train_tape {
    train_value *values;
    size_t n_values, room_values;
    train_node *nodes;
    size_t n_nodes, room_nodes;
    train_param *params;
    size_t n_params, room_params;
    size_t threads;
    uint64_t seed;      /* of the initial weights */
    tsar_status status; /* the first failure while building */
    tsar_error err;
} train_tape;

/* Building. Functions return an index; after a failure (tape->status) they return 0 and do nothing. */
void train_tape_open(train_tape *tape, uint64_t seed, size_t threads);
void train_tape_close(train_tape *tape);
/* A parameter, uniform in +-bound around `centre`, from the seed and its name. */
size_t train_param_new(train_tape *tape, const char *name, size_t rank, const size_t *shape, double centre, double bound);
size_t train_value_new(train_tape *tape, size_t B, size_t H, size_t W, size_t C, size_t border);
/* The same memory seen as rows of another width. */
size_t train_view(train_tape *tape, size_t of, size_t W, size_t C);
void train_name(train_tape *tape, size_t value, const char *format, ...) TSAR_FORMAT(3, 4);
train_node *train_node_new(train_tape *tape);
real *train_keep(train_tape *tape, size_t n);

/* A 3 x 3 convolution has a border always, a 1 x 1 one if asked. */
size_t train_conv(train_tape *tape, size_t in, const char *name, size_t out_channels, size_t size, size_t stride, size_t border);
/* out = in . w[first_row ... first_row+rows]^T, no bias */
size_t train_linear(train_tape *tape, size_t in, size_t param, size_t first_row, size_t rows);
size_t train_group_norm(train_tape *tape, size_t in, const char *name, size_t groups, int swish);
size_t train_rms_norm(train_tape *tape, size_t in, size_t param, double eps);
size_t train_add(train_tape *tape, size_t a, size_t b);
size_t train_upsample(train_tape *tape, size_t in);
size_t train_gelu(train_tape *tape, size_t in);
size_t train_swiglu(train_tape *tape, size_t gate, size_t up);
/* Multi-head attention softmax(q k^T / sqrt(hd)) v; q, k, v: three values, or one of 3 d channels given three times. */
size_t train_attention(train_tape *tape, size_t q, size_t k, size_t v, size_t heads, const train_ragged *ragged, int causal, const real *cosine,
                       const real *sine);
/* Rows index[0 ... W-1] of the table (a parameter [rows][d]). */
size_t train_lookup(train_tape *tape, size_t param, const int64_t *index, size_t room);
/* Rows of two values in one: index >= 0 row of a, < 0 row -1-index of b. */
size_t train_choose(train_tape *tape, size_t a, size_t b, const int64_t *index, size_t room);

/* Running. */
void train_set_rows(train_tape *tape, size_t value, size_t rows); /* of a value made of rows, before forward */
void train_forward(train_tape *tape);
/* Gradients of the parameters (set anew) from those of the values named by seeds, which the caller has filled. */
void train_backward(train_tape *tape, const size_t *seeds, size_t n_seeds);
/* Norm of all gradients together. */
double train_gradient_norm(train_tape *tape);
/* AdamW, step counted from 1: m, v with beta2 and bias correction, gradients scaled by `scale` first. */
void train_adam(train_tape *tape, uint64_t step, double rate, double beta2, double decay, double scale);
/* Multiplications with additions of one forward and backward pass, as built. */
double train_work(const train_tape *tape);

/* The value at (y, x) of picture b; y and x from -border. */
TSAR_INLINE size_t train_at(const train_value *t, size_t b, ptrdiff_t y, ptrdiff_t x)
{
    size_t row = b * (t->H + 2 * t->border) + (size_t)(y + (ptrdiff_t)t->border);
    return (row * (t->W + 2 * t->border) + (size_t)(x + (ptrdiff_t)t->border)) * t->C;
}

/* ------------------------------------------------------------------------------------------- operations (ops.c) */

void op_conv_forward(train_tape *tape, train_node *node);
void op_conv_backward(train_tape *tape, train_node *node);
void op_group_norm_forward(train_tape *tape, train_node *node);
void op_group_norm_backward(train_tape *tape, train_node *node);
void op_rms_norm_forward(train_tape *tape, train_node *node);
void op_rms_norm_backward(train_tape *tape, train_node *node);
void op_add_forward(train_tape *tape, train_node *node);
void op_add_backward(train_tape *tape, train_node *node);
void op_upsample_forward(train_tape *tape, train_node *node);
void op_upsample_backward(train_tape *tape, train_node *node);
void op_gelu_forward(train_tape *tape, train_node *node);
void op_gelu_backward(train_tape *tape, train_node *node);
void op_swiglu_forward(train_tape *tape, train_node *node);
void op_swiglu_backward(train_tape *tape, train_node *node);
void op_attention_forward(train_tape *tape, train_node *node);
void op_attention_backward(train_tape *tape, train_node *node);
void op_lookup_forward(train_tape *tape, train_node *node);
void op_lookup_backward(train_tape *tape, train_node *node);
void op_choose_forward(train_tape *tape, train_node *node);
void op_choose_backward(train_tape *tape, train_node *node);

/* Reals of scratch that a convolution and an attention need. */
size_t op_conv_scratch(const train_value *in, const train_value *out, size_t size, size_t stride, size_t threads);
size_t op_attention_scratch(size_t T, size_t hd);

/* Cross entropy of rows of logits [R][V] against target [R], weighted by weight [R], plus z_loss * (log sum exp)^2: returns the
 * loss, writes its gradient to g [R][V], the weighted entropy alone to *entropy. *right: rows whose largest logit is the
 * target's. rows: scratch [R][3]. */
double op_cross_entropy(real *g, const real *x, const int64_t *target, const real *weight, size_t R, size_t V, double z_loss, size_t threads,
                        double *rows, double *entropy, size_t *right);

#endif
