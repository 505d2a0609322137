/* The transformers as tapes (SPEC 3 and 6) and their training on the codes of a frozen tokenizer. */
#ifndef TRAIN_GPT_H
#define TRAIN_GPT_H

#include "run.h"

/* ------------------------------------------------------------------------------------------------- text (merges.c) */

/* Byte-pair merges learnt from the captions of a world, until every word of the grammar is one id; words take the space in
 * front of them. *merges [n][2] is the caller's to tsar_free. */
tsar_status train_merges(uint64_t seed, int64_t **merges, size_t *n, tsar_error *err);
/* The words of the captions, each once, in the order of strcmp, with a space between two. The caller's to tsar_free. */
tsar_status train_words(uint64_t seed, char **words, tsar_error *err);

/* ------------------------------------------------------------------------------------------------ codes (codes.c) */

/* Codes of pictures 0 ... count-1 of a world, made once and shared by all transformers. */
typedef struct {
    size_t count, done, grid; /* pictures; how many of them are coded; codes per row and column of each */
    uint64_t seed, tokenizer;
    int16_t *codes;
} code_set; /* codes [count][grid][grid] */
/* Encodes pictures 0 ... count-1 of a world with the tokenizer in `vq` into a file. Continues the checkpoint that an interrupted run left;
 * nothing is left to do when the file is there. */
typedef struct {
    const char *vq, *output, *checkpoint;
    size_t count, threads;
    uint64_t seed, stop_after; /* stop_after: batches of this sitting, 0: no limit */
    double minutes;            /* between checkpoints */
} codes_plan;
tsar_status train_codes(const codes_plan *plan, tsar_error *err);
/* A set as a file has it. TSAR_INPUT if it is none, or not complete. */
tsar_status code_set_read(code_set *set, const char *path, tsar_error *err);
/* TSAR_INPUT unless the set, which `path` holds, was made by the tokenizer in `vq`. */
tsar_status code_set_check(const code_set *set, const char *path, const char *vq, tsar_error *err);
void code_set_close(code_set *set);

/* ----------------------------------------------------------------------------------------------------- the transformers */

typedef struct {
    size_t dim, n_layer, n_head, ffn, s, blocks, hidden; /* shuffle s, its blocks and their width */
    size_t text_vocab, V, grid;                          /* V predicted codes or labels; codes per row and column */
    int64_t eol;                                         /* the id that ends a row of windows, where row_ends is 1 */
    double eps, rope_base;
    int rope_2d, row_ends; /* 1: rows and columns turn the two halves of a head; an eol stands behind every row of the grid */
} gpt_shape;

/* cos and sin of the angles by which rotary positions turn the pairs of a head, see gpt.c; [0] cos, [1] sin. */
typedef struct {
    size_t halves, pairs; /* parts of a head with a coordinate of their own; pairs in each */
    real *by_place[2], *by_row[2];
} rotary;

/* Sequences <bos> text <soi> z_0 ... of up to B captions, rows packed one after the other. */
typedef struct {
    train_tape tape;
    gpt_shape shape;
    size_t B, n, columns, max_text, feed; /* sequences; fused tokens of one, and of a row; longest prefix; fused tokens fed (n - 1, or n for a trace) */
    train_ragged ragged;         /* [B] */
    int64_t *text_index, *code_index, *row_index, *image_index, *next_index; /* what the lookups and choices take */
    int64_t *code_target, *text_target;
    size_t *raster; /* [grid * grid]: place of each code, in raster order, among the codes in window order */
    real *code_weight, *text_weight;
    rotary turn;
    double *row_loss;
    size_t section[7];                         /* where each section of values with one number of rows ends: see gpt.c */
    size_t logits, text_logits;                /* values */
    size_t n_text, n_next, n_rows;             /* lookups of text and eol; rows that predict text; rows of all sequences */
    double loss_image, loss_text, right_image; /* of the last pass: means, share of codes that were the likeliest */
} gpt_net;

tsar_status gpt_open(gpt_net *net, const gpt_shape *shape, size_t B, size_t max_text, uint64_t seed, size_t threads, tsar_error *err);
void gpt_close(gpt_net *net);
/* Sequence b of the next batch, in order of b: P prefix ids (<bos> ... <soi>), codes [grid][grid] in raster order; learn_text:
 * whether the prefix is to be predicted too. Call gpt_begin first, gpt_end last. */
void gpt_begin(gpt_net *net, size_t feed);
void gpt_sequence(gpt_net *net, size_t b, const int64_t *text, size_t P, const int64_t *codes, int learn_text);
void gpt_end(gpt_net *net);
/* loss = mean over codes of (cross entropy + z) + 0.1 mean over text; gradients of the logits. */
double gpt_loss(gpt_net *net, double z_loss);
void gpt_backward(gpt_net *net);

/* CTF stage two: labels in, codes of the label's cluster out. */
typedef struct {
    size_t dim, n_layer, n_head, ffn, n_coarse, K, grid;
    double eps, rope_base;
} fine_shape;
typedef struct {
    train_tape tape;
    fine_shape shape;
    size_t B;
    train_ragged ragged;
    int64_t *label_index, *target;
    const int64_t *cluster_of; /* [K] */
    real *weight;
    rotary turn;
    double *row_loss;
    size_t logits;
    double loss, right;
} fine_net;
tsar_status fine_open(fine_net *net, const fine_shape *shape, const int64_t *cluster_of, size_t B, uint64_t seed, size_t threads, tsar_error *err);
void fine_close(fine_net *net);
void fine_sequence(fine_net *net, size_t b, const int64_t *codes);
double fine_loss(fine_net *net, double z_loss);
void fine_backward(fine_net *net);

typedef struct {
    const char *vq, *codes, *output, *checkpoint;
    uint64_t seed, steps, stop_after;
    size_t batch, threads;
    double rate, rate_end, minutes;
    tsar_dtype dtype;
    const char *vq_file; /* leave the tokenizer out of the result: the file of this name beside it has it; NULL: put it in */
    /* sampling defaults of the result, as text; NULL: none */
    const char *cfg, *cfg_schedule, *temperature, *top_k, *top_p;
    size_t n_coarse;       /* > 0: predict cluster labels (CTF) */
    const char *stage_one; /* fine: the coarse model whose tensors the result joins */
    gpt_shape gpt;
    fine_shape fine;
} gpt_plan;
tsar_status train_gpt(const gpt_plan *plan, tsar_error *err);
tsar_status train_fine(const gpt_plan *plan, tsar_error *err);
/* The forward pass of the transformer (or of stage two) in a model file, as a trace to be verified by the oracle. */
tsar_status train_trace(const char *path, int fine, const char *prompt, const char *output, size_t threads, tsar_error *err);
/* Prints the cross entropy of a code of the last n pictures of plan->codes, in nats, for the transformer in a model file, and how much larger a
 * picture's is without its caption; 95 % intervals over pictures. */
tsar_status train_loss(const gpt_plan *plan, const char *path, size_t n, tsar_error *err);

#endif
