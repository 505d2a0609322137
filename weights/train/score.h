/* Scores of finished models, computed by tsar itself (tsar_generate, tsar_vq_*) and judged by the referee. */
#ifndef TRAIN_SCORE_H
#define TRAIN_SCORE_H

#include "../../tsar.h"

typedef struct {
    const char *model, *decode, *schedule;
    const char *markdown;  /* name of the row, which is printed as a line of a Markdown table; NULL: plain text */
    const char *output;    /* where the codes of all pictures go; NULL: nowhere */
    const char *agreement; /* such a file of another decode order, to be compared with; NULL: none */
    size_t n, threads;     /* pictures of each category */
    uint64_t seed;         /* of the captions and of the draws; training uses other captions */
    int held_out, greedy, each; /* each: print a line for each picture in place of the shares */
    double cfg, temperature, top_p, top_k; /* below 0: the model's own */
} score_plan;

/* Mini-GenEval: for each category the share of pictures that the referee finds right, with its 95 % interval, passes and processor
 * seconds a picture, and the share of codes that another decode order chose too. To stdout. */
tsar_status score_generation(const score_plan *plan, tsar_error *err);
/* The tokenizer on scenes that training did not show: PSNR, codes in use, share judged like the original. */
tsar_status score_tokenizer(const score_plan *plan, tsar_error *err);
/* The heads of the tables whose lines they print with plan->markdown. */
void score_generation_header(void);
void score_tokenizer_header(void);
/* Speed of a step of each stage against a loop that only multiplies and adds in registers, measured in the same run. */
tsar_status train_bench(size_t threads, tsar_error *err);

#endif
