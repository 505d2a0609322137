/* state.h - what tsar.c keeps between passes and within one, and its memory (weights/state.c). Internal: not installed. */
#ifndef TSAR_STATE_H
#define TSAR_STATE_H

#include "../tsar.h"

enum { QUERIES = 20 }; /* attended together: four times the vectors of the kernel; their scores of 8,000 positions stay in the second cache */

/* One row of a pass. */
typedef struct {
    size_t sequence, position; /* where its keys and values are kept */
    int turns;                 /* 0: no rotary position, cos = sin = 0 */
    size_t coordinate[2];      /* of the first and of the second half of the pairs that RoPE turns */
    int visible;               /* 0: padding, to which nobody else may attend (QUIRKS, GPT 4) */
    int keep;                  /* 0: keys and values are forgotten after the pass */
    const tsar_table *table;   /* what is fed: row `id` of a table, */
    size_t id;
    const int64_t *codes;  /* or s*s codes, */
    const double *feature; /* or a condition vector [caption_dim] */
} pass_row;

/* Keys and values of one sequence. Keys are laid out so that the scores of TSAR_PANEL positions, values so that
 * TSAR_PANEL dimensions of the mixed vector, are computed side by side by the one matrix kernel. */
typedef struct {
    size_t prefix, positions; /* condition positions; all positions, image tokens included */
    unsigned char *fed;       /* [positions]: 1 where later rows may attend: fed, kept, not padding */
    tsar_matrix *keys;        /* [kept_layers][n_kv_head] of [positions][hd] */
    tsar_matrix *values;      /* [kept_layers][n_kv_head] of [hd][positions] */
} kv_cache;

struct tsar_state {
    const tsar_model *model;
    const tsar_stack *stack;
    const char *part;   /* what its tensors are called: "gpt", "fine", "t5" */
    int causal;         /* 0: every row attends to every position (CTF stage two, the text encoder) */
    int encoder;        /* 1: the text encoder's blocks: a bias on scores instead of RoPE and scale, gelu instead of silu (QUIRKS-t5) */
    int eol;            /* 1: a token stands behind every row of image tokens */
    size_t columns;     /* of the grid of image tokens */
    size_t kept_layers; /* n_layer; 1 where one pass feeds everything, and a layer's keys and values are not needed again */
    const char *watched; /* what is fed in one go, for the model's watch; NULL: single tokens, of which it does not hear */
    size_t watched_rows, watched_before; /* rows of it; how many of them stand in front of this pass */
    size_t sequences;
    kv_cache *cache;   /* [sequences] */
    double *frequency; /* [hd/2] for 1d, [hd/4] for 2d rotary positions */
    double *bias;      /* encoder: [2 positions - 1][n_head], of the distances 1 - positions ... positions - 1 */
    double *scratch;   /* of the kernel, for each thread */

    size_t rows;       /* of a pass, that the following have room for */
    pass_row *row;     /* [rows] */
    double *x;         /* [rows][d]  the residual stream */
    double *normed;    /* [rows][d] */
    double *qkv;       /* [rows][(n_head + 2 n_kv_head) hd] */
    double *mixed;     /* [rows][n_head hd]  attention's output */
    double *delta;     /* [rows][d]  what a branch adds to the stream */
    double *gate, *up; /* [rows][ffn] */
    double *rotation;  /* [rows][hd/2][3]  cos, sin, -sin */
    double *input;     /* [rows][s*s][d], [rows][image_embed] or [rows][caption_dim]: vectors of codes, caption features */
    double *fused;     /* [rows][d]  what the modules in front of the blocks make of them */
    double *hidden;    /* [rows][the widest fc1 of these modules and of token-unshuffle] */

    size_t logit_rows; /* rows that this one has room for */
    double *logits;    /* [logit_rows][s*s][V] */

    size_t attend_positions; /* positions that this one has room for */
    double *attend;          /* [threads] of q [QUERIES][hd], scores [QUERIES][positions], mixed [QUERIES][hd] */
};

/* A state for one of the model's stacks. kept_layers: n_layer, or 1 for a single pass over everything. Closed by tsar_state_close. */
tsar_status tsar_state_make(tsar_state **state, const tsar_model *model, const tsar_stack *stack, size_t kept_layers, size_t sequences, tsar_error *err);

/* An empty cache for `prefix` positions and `more` behind them, in place of the sequence's old one, and attention scratch for as many. */
tsar_status tsar_cache_open(tsar_state *state, size_t sequence, size_t prefix, size_t more, tsar_error *err);

/* Makes room for passes of `rows` rows / for the logits of `rows` predictions. */
tsar_status tsar_reserve_rows(tsar_state *state, size_t rows, tsar_error *err);
tsar_status tsar_reserve_logits(tsar_state *state, size_t rows, tsar_error *err);

/* Numbers that the modules in front of the blocks take for one row: a window's codes, a code's own embedding, a caption's feature. */
size_t tsar_input_width(const tsar_config *config);

#endif
