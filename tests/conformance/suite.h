/* What the files of the conformance suite's writer share. */
#ifndef TSAR_SUITE_H
#define TSAR_SUITE_H

#include "../verify.h"

enum { SUITE_TENSORS = 2000, SUITE_NAME = 128, SUITE_PRECISIONS = 3 };

extern const struct suite_precision {
    tsar_dtype p;
    const char *name;
} suite_precisions[SUITE_PRECISIONS]; /* F32 "f32", F16 "f16", BF16 "bf16" */

/* A case on its way into its file. */
typedef struct {
    tsar_values values[SUITE_TENSORS]; /* name and data owned */
    size_t n;
} tensor_list;

typedef struct {
    const char *model_path;
    tsar_model *model;
    tsar_inputs inputs;
    tsar_settings settings;
    int n_arguments;
    char **arguments;   /* key=value */
    const char *prefix; /* of the part whose longest sum is K */
    size_t K;
    tsar_dtype p;
} suite_job;

/* Appends a tensor; its data, which may be filled in if `data` is NULL; NULL when there is no room. `format` has one %s, for name. */
void *suite_put(tensor_list *list, tsar_dtype dtype, size_t rank, const size_t *shape, const void *data, const char *format, const char *name, tsar_error *err);
/* The same of doubles, rounded to F32. */
tsar_status suite_put_f32(tensor_list *list, size_t rank, const size_t *shape, const double *x, const char *format, const char *name, tsar_error *err);
const tsar_values *suite_find(const tensor_list *list, const char *format, const char *name);
void suite_free(tensor_list *list);

double suite_given(double x);
uint8_t suite_byte(double x, int down); /* SPEC 4's rule for bytes; down: vq_pixels=down */
tsar_status suite_longest(suite_job *job, const char *prefix, tsar_error *err);

/* The cases: trace.c, decode.c, rules.c. */
tsar_status suite_trace(suite_job *job, tensor_list *list, tsar_error *err);
tsar_status suite_decode(suite_job *job, tensor_list *list, tsar_error *err);
tsar_status suite_rules(tensor_list *list, tsar_error *err);
tsar_status suite_text(tensor_list *list, const char *tokenizer, const char *texts, tsar_error *err);

#endif
