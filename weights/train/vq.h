/* The image tokenizer as a tape (SPEC 4), and its training. */
#ifndef TRAIN_VQ_H
#define TRAIN_VQ_H

#include "run.h"

typedef struct {
    size_t side, ch, levels, mult[TSAR_MAX_LEVELS], res_blocks, z, K, embed, groups;
} vq_shape;

/* A tape of B pictures: picture -> latent -> quantized -> reconstruction. */
typedef struct {
    train_tape tape;
    vq_shape shape;
    size_t B, n_codes;                           /* pictures; codes of all of them */
    size_t image, latent, quantized, output;     /* values */
    size_t first_decoder_node, codebook;         /* node; parameter */
    train_ragged ragged;                         /* [B] the positions of each picture at the lowest resolution, for attention */
    int64_t *codes;                              /* [n_codes] */
    int64_t *used;                               /* [K]: how often each code was chosen since the counters were cleared */
    real *unit, *words;                          /* [n_codes][embed] latents, [K][embed] codewords, both of length 1 */
    real *norms;                                 /* [n_codes + K] their lengths before */
    real *held_words, *held_unit;                /* [n_codes][embed] see `frozen` */
    int frozen;                                  /* 1: keep codes, and the constants behind stop-gradients, of the last pass (to check gradients) */
    int open;                                    /* 1: latents pass as they are, the codebook rests (the start of a training) */
    double loss_square, loss_abs, loss_codebook; /* means, of the last pass */
} vq_net;

/* Standard shape of the shipped tokenizer. */
vq_shape vq_standard(void);
tsar_status vq_open(vq_net *net, const vq_shape *shape, size_t B, uint64_t seed, size_t threads, tsar_error *err);
void vq_close(vq_net *net);

void vq_set_image(vq_net *net, size_t b, const uint8_t *rgb); /* byte / 127.5 - 1 */
/* Draws scenes first ... first+B-1 of a world, or of its wide variant (scenes.h), on which the tokenizer is trained. */
void vq_draw(vq_net *net, uint64_t seed, uint64_t first, int wide);
void vq_forward(vq_net *net);
/* Codes only: the encoder and the quantizer. */
void vq_encode(vq_net *net);
/* loss = mean (x - y)^2 + 0.3 mean |x - y| + mean |e - sg z|^2 + 0.25 mean |z - sg e|^2; the gradients. */
double vq_loss(vq_net *net);
void vq_backward(vq_net *net);
/* Replaces codewords that were not used (or all of them) by latents of the last batch, clears the counters; how many. */
size_t vq_revive(vq_net *net, uint64_t seed, uint64_t step, int all);

typedef struct {
    const char *output, *checkpoint;
    uint64_t seed, steps, stop_after;
    uint64_t rate_steps, finish_from, open_until; /* 0: steps, none, none */
    size_t batch, threads;
    double rate, rate_end, minutes;
    tsar_dtype dtype;
    vq_shape shape;
} vq_plan;
tsar_status train_vq(const vq_plan *plan, tsar_error *err);
/* A trace of one picture (scene `index` of `seed`) through the tokenizer in `model`, to be verified by the oracle. */
tsar_status train_vq_trace(const char *model, uint64_t seed, uint64_t index, const char *path, size_t threads, tsar_error *err);
/* Reads the shape of a tokenizer from a model file, and its weights into a tape of B pictures. */
tsar_status vq_open_file(vq_net *net, const char *path, size_t B, size_t threads, tsar_error *err);

#endif
