/* What trace.c and verify.c share. No part of the library's interface: other code sees tsar.h only. */
#ifndef TSAR_VERIFY_H
#define TSAR_VERIFY_H

#include "../tsar.h"

enum { TSAR_PARTS = 4 };
extern const struct tsar_named_part {
    int part;
    const char *prefix; /* of its tensors */
} tsar_parts[TSAR_PARTS];

enum { NAMED = 6 }; /* names that a list of names spells out */

int tsar_has_prefix(const char *name, const char *prefix);

/* The prompt of a trace's inputs, and whether the model's kind of prompt is among them. */
tsar_prompt tsar_prompt_of(const tsar_inputs *inputs);
int tsar_has_prompt(const tsar_config *config, const tsar_inputs *inputs);
/* The parts of the model that the inputs feed. */
int tsar_parts_fed(const tsar_config *c, const tsar_inputs *inputs);
/* The inputs that a part of the model needs, in words. NULL: the model has no such part. */
const char *tsar_part_needs(const tsar_config *c, int part);
/* "SOURCE feeds no part of the model: ..." */
tsar_status tsar_fail_unfed(const tsar_config *c, const char *source, tsar_error *err);

/* input.* into the sink; one part of the model. */
tsar_status tsar_emit_inputs(const tsar_model *model, const tsar_inputs *inputs, const tsar_sink *sink, tsar_error *err);
tsar_status tsar_run_part(const tsar_model *model, const tsar_inputs *inputs, int part, const tsar_sink *sink, tsar_error *err);

/* ------------------------------------------------------------------------------------------------------ the rule (judge.c) */

/* A tensor of the other file beside what its own predecessors give. */
typedef struct {
    size_t rows, columns; /* a row is `columns` numbers that follow one another */
    int channels;         /* rows are channels of a picture */
    const double *y, *x;  /* [rows][columns]: in double; theirs */
    const void *noisy;    /* [rows][columns] of type noisy_type: y with every operation rounded to p; not looked at where p is F64 or rtol >= 0 */
    tsar_dtype noisy_type, p;
    size_t heads;        /* of attention, where the stage is a block or what attention gives; else 0 */
    double *wo;          /* [heads*hd][columns]: the columns of a block's wo, one after the other, or NULL; tsar_suggest changes them */
    size_t K;            /* the longest sum of the stage */
    const double *share; /* [columns]: how much more noise than the whole each column has, at least 1; NULL: none has */
    double rtol; /* >= 0: max |d| <= rtol RMS(y) instead of the rule */
} tsar_stage;

double tsar_unit_roundoff(tsar_dtype p); /* u of SPEC 10 */
int tsar_holds(tsar_dtype p, double x);  /* whether x is a number of p, or not finite */
double tsar_noisy_at(const void *noisy, tsar_dtype type, size_t i);
double tsar_rms(const double *x, size_t n); /* sqrt(mean(x^2)); infinite if an element is not finite */
void tsar_column_shares(const tsar_stage *stage, double *share); /* [columns]; the stage's noise must be there */
/* SPEC 10's rule: verdict, errors, limit and places of *r. */
void tsar_judge(const tsar_stage *stage, tsar_comparison *r);
/* What the rule judges a stage by, whatever theirs is (stage->x is not looked at): k, N, N_r of each row.   figures [2 + rows] */
void tsar_noise_figures(const tsar_stage *stage, double *figures);
/* The words for a tensor that differs, where the pattern of its errors suggests something. */
void tsar_suggest(const tsar_stage *stage, tsar_comparison *r);
double tsar_error_of(const tsar_stage *stage); /* RMS(x - y) / RMS(y) */
/* What the rule lets each element of a row be off by.   limit [columns] */
void tsar_limits(const tsar_stage *row, double *limit);
/* SPEC 10, vq.codes: how much farther from the latent than the best codeword a code may be, from |z|^2 and |e|^2 of the best. */
double tsar_code_slack(tsar_dtype p, double zz, double ee);
/* What the rule lets the RMS of a tensor be off by. */
double tsar_slack_of(const tsar_stage *stage);

/* ------------------------------------------------------------------------------------------- a model of fewer bits (rounded.c) */

/* The weights of some parts (TSAR_PART_*) of a model, rounded once to p, in a model of its own whose operations round to p. Where rounding
 * changes none, they are those of `model`. */
double tsar_matrix_element(const tsar_matrix *w, size_t r, size_t k); /* [r][k] of a packed matrix, widened (tsar.h, tsar_matrix) */
tsar_status tsar_rounded_open(tsar_model **rounded, const tsar_model *model, unsigned parts, tsar_dtype p, tsar_error *err);
void tsar_rounded_close(tsar_model *rounded, const tsar_model *model); /* accepts NULL */

/* ------------------------------------------------------------------------------------------------ decoding (decisions.c) */

/* Whether the file holds codes that were decided one after the other. */
int tsar_has_decisions(const tsar_model *model, const tsar_file *file);
/* Decides them once more, in precision p; each tensor of the decoding goes through keep, each decision that is not the file's into counts. K: the
 * longest sum. */
typedef tsar_status (*tsar_keep_fn)(void *context, const tsar_comparison *comparison, tsar_error *err);
tsar_status tsar_judge_decisions(const tsar_model *model, tsar_file *file, const tsar_verify_options *options, const tsar_prompt *prompt, tsar_dtype p,
                                 size_t K, tsar_verify_counts *counts, tsar_keep_fn keep, void *context, tsar_error *err);

#endif
