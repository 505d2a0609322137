/* What trace.c and verify.c share. No part of the library's interface: other code sees tsar.h only. */
#ifndef TSAR_VERIFY_H
#define TSAR_VERIFY_H

#include "../tsar.h"

enum { TSAR_PARTS = 3 };
extern const struct tsar_named_part {
    int part;
    const char *prefix; /* of its tensors */
} tsar_parts[TSAR_PARTS];

enum { NAMED = 6 }; /* names that a list of names spells out */

int tsar_has_prefix(const char *name, const char *prefix);

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
    size_t K;    /* the longest sum of the stage */
    double rtol; /* >= 0: max |d| <= rtol RMS(y) instead of the rule */
} tsar_stage;

double tsar_unit_roundoff(tsar_dtype p); /* u of SPEC 10 */
int tsar_holds(tsar_dtype p, double x);  /* whether x is a number of p, or not finite */
double tsar_noisy_at(const void *noisy, tsar_dtype type, size_t i);
double tsar_rms(const double *x, size_t n); /* sqrt(mean(x^2)); infinite if an element is not finite */
/* SPEC 10's rule: verdict, errors, limit and places of *r. */
void tsar_judge(const tsar_stage *stage, tsar_comparison *r);
double tsar_error_of(const tsar_stage *stage); /* RMS(x - y) / RMS(y) */
/* SPEC 10, vq.codes: how much farther from the latent than the best codeword a code may be, from |z|^2 and |e|^2 of the best. */
double tsar_code_slack(tsar_dtype p, double zz, double ee);
/* What the rule lets the RMS of a tensor be off by. */
double tsar_slack_of(const tsar_stage *stage);

/* ------------------------------------------------------------------------------------------- a model of fewer bits (rounded.c) */

/* The weights of one part of a model, rounded once to p, in a model of its own whose operations round to p. Where rounding
 * changes none, they are those of `model`. */
tsar_status tsar_rounded_open(tsar_model **rounded, const tsar_model *model, const char *prefix, tsar_dtype p, tsar_error *err);
void tsar_rounded_close(tsar_model *rounded, const tsar_model *model); /* accepts NULL */

#endif
