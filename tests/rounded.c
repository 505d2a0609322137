/* A model as an implementation of fewer bits has it: every weight rounded once to BF16, F16 or F32. */
#include "verify.h"

#include <string.h>

/* The homes of a model's weights in the order of tsar_weights. */
typedef struct {
    unsigned parts;            /* TSAR_PART_* whose weights count */
    const tsar_model *rounded; /* whose precision the weights take */
    void **homes;              /* [n], of the model that is read; NULL while they are counted */
    size_t n, at;
} home_list;

static tsar_status keep_home(void *context, const tsar_weight *weight, tsar_error *err)
{
    home_list *list = context;
    (void)err;
    if (list->homes) list->homes[list->n] = weight->home;
    list->n++;
    return TSAR_OK;
}

double tsar_matrix_element(const tsar_matrix *w, size_t r, size_t k)
{
    const size_t panel = r / TSAR_PANEL, lane = r % TSAR_PANEL;
    if (w->dtype == TSAR_F64) return ((const double *)w->panels)[(panel * w->cols + k) * TSAR_PANEL + lane];
    if (w->dtype == TSAR_F32) return (double)((const float *)w->panels)[(panel * w->cols + k) * TSAR_PANEL + lane];
    const uint32_t word = ((const uint32_t *)w->panels)[(panel * ((w->cols + 1) / 2) + k / 2) * TSAR_PANEL + lane];
    const uint16_t half = (uint16_t)(k % 2 ? word >> 16 : word & 0xffff);
    return w->dtype == TSAR_BF16 ? tsar_widen_bf16(half) : tsar_widen_f16(half);
}

/* x, which is a number of p, as element i of `out`. */
static void store(void *out, tsar_dtype p, size_t i, double x)
{
    const float f = (float)x;
    if (p == TSAR_F32) ((float *)out)[i] = f;
    if (p == TSAR_BF16) ((uint16_t *)out)[i] = tsar_round_bf16(f);
    if (p == TSAR_F16) ((uint16_t *)out)[i] = tsar_round_f16(f);
}

static tsar_status round_matrix(tsar_matrix *to, const tsar_matrix *from, const tsar_model *rounded, const char *name, tsar_error *err)
{
    const tsar_dtype p = rounded->precision;
    if (from->rows == 0) return TSAR_OK;
    double *row = tsar_alloc(from->cols, sizeof *row, name, err);
    void *rows = tsar_alloc(tsar_product(TSAR_PANEL, from->cols), tsar_dtype_size(p), name, err);
    tsar_status status = row && rows ? tsar_matrix_open(to, from->rows, from->cols, p, name, err) : TSAR_ROOM;
    for (size_t r0 = 0; status == TSAR_OK && r0 < from->rows; r0 += TSAR_PANEL) {
        const size_t count = from->rows - r0 < TSAR_PANEL ? from->rows - r0 : TSAR_PANEL;
        for (size_t r = 0; r < count; r++) {
            for (size_t k = 0; k < from->cols; k++) row[k] = tsar_matrix_element(from, r0 + r, k);
            tsar_round_to(rounded, row, from->cols);
            for (size_t k = 0; k < from->cols; k++) store(rows, p, r * from->cols + k, row[k]);
        }
        tsar_matrix_set_rows(to, r0, count, rows);
    }
    tsar_free(row);
    tsar_free(rows);
    return status;
}

static tsar_status round_table(tsar_table *to, const tsar_table *from, const tsar_model *rounded, const char *name, tsar_error *err)
{
    const tsar_dtype p = rounded->precision;
    if (!from->values) return TSAR_OK;
    double *row = tsar_alloc(from->cols, sizeof *row, name, err);
    void *values = tsar_alloc(tsar_product(from->rows, from->cols), tsar_dtype_size(p), name, err);
    if (row && values) {
        *to = (tsar_table){ from->rows, from->cols, p, values };
        for (size_t r = 0; r < from->rows; r++) {
            tsar_table_row(row, from, r);
            tsar_round_to(rounded, row, from->cols);
            for (size_t k = 0; k < from->cols; k++) store(values, p, r * from->cols + k, row[k]);
        }
    } else {
        tsar_free(values);
    }
    tsar_free(row);
    return row && values ? TSAR_OK : TSAR_ROOM;
}

/* vectors and integers of a weight: as many as its shape says. */
static tsar_status round_vector(void *to_home, void *from_home, const tsar_weight *weight, const tsar_model *rounded, tsar_error *err)
{
    size_t count = weight->rows;
    for (size_t i = 1; i < weight->rank; i++) count *= weight->shape[i];
    if (weight->use == TSAR_AS_INTEGERS) {
        int64_t **to = to_home, *const *from = from_home;
        if (!*from) return TSAR_OK;
        if (!(*to = tsar_alloc(count, sizeof **to, weight->name, err))) return TSAR_ROOM;
        memcpy(*to, *from, count * sizeof **to);
        return TSAR_OK;
    }
    double **to = to_home, *const *from = from_home;
    if (!*from) return TSAR_OK;
    if (!(*to = tsar_alloc(count, sizeof **to, weight->name, err))) return TSAR_ROOM;
    memcpy(*to, *from, count * sizeof **to);
    tsar_round_to(rounded, *to, count);
    return TSAR_OK;
}

static tsar_status round_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    home_list *list = context;
    void *from = list->homes[list->at++];
    if (weight->use != TSAR_AS_INTEGERS && !(weight->part & list->parts)) return TSAR_OK;
    if (weight->use == TSAR_AS_MATRIX) return round_matrix(weight->home, from, list->rounded, weight->name, err);
    if (weight->use == TSAR_AS_TABLE) return round_table(weight->home, from, list->rounded, weight->name, err);
    return round_vector(weight->home, from, weight, list->rounded, err);
}

/* Whether rounding to p changes no weight: then the weights are shared. */
static tsar_status find_wider(void *context, const tsar_weight *weight, tsar_error *err)
{
    home_list *list = context;
    const tsar_dtype p = list->rounded->precision;
    (void)err;
    const tsar_matrix *matrix = weight->use == TSAR_AS_MATRIX ? weight->home : NULL;
    const tsar_table *table = weight->use == TSAR_AS_TABLE ? weight->home : NULL;
    const tsar_dtype dtype = matrix && matrix->rows ? matrix->dtype : table && table->values ? table->dtype : p; /* p: not in memory */
    if (!(weight->part & list->parts) || weight->use == TSAR_AS_INTEGERS) return TSAR_OK;
    list->n += dtype != p && (p != TSAR_F32 || dtype == TSAR_F64);
    double *const *vector = weight->home;
    size_t count = weight->rows;
    for (size_t i = 1; i < weight->rank; i++) count *= weight->shape[i];
    for (size_t i = 0; weight->use == TSAR_AS_VECTOR && *vector && i < count; i++) list->n += !tsar_holds(p, (*vector)[i]);
    return TSAR_OK;
}

static int shares(const tsar_model *rounded, const tsar_model *model)
{
    return rounded->gpt.layers == model->gpt.layers && rounded->fine.layers == model->fine.layers && rounded->t5.layers == model->t5.layers &&
           rounded->vq.encoder.levels == model->vq.encoder.levels;
}

void tsar_rounded_close(tsar_model *rounded, const tsar_model *model)
{
    if (rounded && shares(rounded, model))
        tsar_free(rounded);
    else
        tsar_model_close(rounded);
}

tsar_status tsar_rounded_open(tsar_model **rounded, const tsar_model *model, unsigned parts, tsar_dtype p, tsar_error *err)
{
    tsar_model from = *model, *to = tsar_alloc(1, sizeof *to, "the rounded weights", err);
    home_list list = { parts, to, NULL, 0, 0 };
    *rounded = to;
    if (!to) return TSAR_ROOM;
    to->config = model->config, to->threads = model->threads, to->precision = p, to->watch = model->watch, to->watch_context = model->watch_context;
    tsar_status status = tsar_weights(&from.config, &from, find_wider, &list, err);
    if (status == TSAR_OK && list.n == 0) {
        *to = from, to->precision = p;
        return TSAR_OK;
    }
    list.n = 0;
    if (status == TSAR_OK) status = tsar_model_allocate(to, err);
    if (status == TSAR_OK) status = tsar_weights(&from.config, &from, keep_home, &list, err);
    if (status == TSAR_OK && !(list.homes = tsar_alloc(list.n, sizeof *list.homes, "the rounded weights", err))) status = TSAR_ROOM;
    list.n = 0;
    if (status == TSAR_OK) status = tsar_weights(&from.config, &from, keep_home, &list, err);
    if (status == TSAR_OK) status = tsar_weights(&to->config, to, round_weight, &list, err);
    tsar_free(list.homes);
    if (status == TSAR_OK) return TSAR_OK;
    tsar_model_close(to);
    *rounded = NULL;
    return status;
}
