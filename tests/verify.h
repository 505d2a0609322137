/* What trace.c and verify.c share. No part of the library's interface: other code sees tsar.h only. */
#ifndef TSAR_VERIFY_H
#define TSAR_VERIFY_H

#include "../tsar.h"

enum { PART_GPT = 1, PART_FINE = 2, PART_VQ = 4 };
enum { TSAR_PARTS = 3 };
extern const struct tsar_named_part {
    int part;
    const char *prefix; /* of its tensors */
} tsar_parts[TSAR_PARTS];

int tsar_has_prefix(const char *name, const char *prefix);

/* The parts of the model that the inputs feed. */
int tsar_parts_fed(const tsar_config *c, const tsar_inputs *inputs);
/* The inputs that a part of the model needs, in words. NULL: the model has no such part. */
const char *tsar_part_needs(const tsar_config *c, int part);
/* "SOURCE feeds no part of the model: ..." */
tsar_status tsar_fail_unfed(const tsar_config *c, const char *source, tsar_error *err);

/* input.* and the wanted parts in turn into the sink. */
tsar_status tsar_run_parts(const tsar_model *model, const tsar_inputs *inputs, int wanted, const tsar_sink *sink, int64_t *const *instead,
                           tsar_error *err);

#endif
