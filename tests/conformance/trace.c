/* A trace case: each intermediate tensor X of SPEC 8 twice.
 *
 *     whole/X     in double from the inputs on                      noise/whole/P/X     what weights and results rounded to P do to it, piled up over depth
 *     staged/X    in double from the tensors given/... before it     noise/staged/P/X    the same of this stage alone
 *     given/X     staged/X in numbers that BF16 and F16 hold: the input of the stages behind it
 *
 * A noise tensor is k, N, N_r of each row (SPEC 10). vq.codes have ties/MODE/P instead: how much farther than the nearest each codeword is, in units of
 * what P decides. */
#include "suite.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const struct suite_precision suite_precisions[SUITE_PRECISIONS] = { { TSAR_F32, "f32" }, { TSAR_F16, "f16" }, { TSAR_BF16, "bf16" } };

static const char *const y_format[2] = { "whole/%s", "staged/%s" };
static const char *const noise_format[2][SUITE_PRECISIONS] = { { "noise/whole/f32/%s", "noise/whole/f16/%s", "noise/whole/bf16/%s" },
                                                               { "noise/staged/f32/%s", "noise/staged/f16/%s", "noise/staged/bf16/%s" } };
static const char *const ties_format[2][SUITE_PRECISIONS] = { { "ties/whole/f32/%s", "ties/whole/f16/%s", "ties/whole/bf16/%s" },
                                                              { "ties/staged/f32/%s", "ties/staged/f16/%s", "ties/staged/bf16/%s" } };

typedef struct {
    suite_job *job;
    tensor_list *list;
    const tsar_model *rounded; /* NULL: the run in double */
    int staged;
    size_t precision; /* of suite_precisions */
} tracer;

/* Rows and columns as SPEC 10 has them: channels of the tokenizer's pictures, else the last axis. N_r is the quadratic mean of a row's noise and that of the
 * whole tensor, as there for channels, for every tensor (ours): rows of small models are narrow, and the noise of one run over 2 to 48 numbers may be next to
 * nothing by chance. Without it right float16 runs reach 0.98 of a row's limit, with it 0.6. */
static tsar_stage stage_of(const tracer *t, const char *name, size_t rank, const size_t *shape, const double *y)
{
    size_t count = 1;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    const int channels = tsar_has_prefix(name, "vq.");
    tsar_stage s = { .y = y, .p = suite_precisions[t->precision].p, .rtol = -1, .channels = 1, .noisy_type = TSAR_F64 };
    s.rows = channels ? shape[0] : count / shape[rank - 1];
    s.columns = count / s.rows;
    s.K = channels || s.rows < t->job->K ? t->job->K : s.rows; /* attention's positions */
    return s;
}

/* The run in double: keeps y, and goes on with given/X where stages are cut. */
static tsar_status put_exact(const tracer *t, const char *name, size_t rank, const size_t *shape, double *y, size_t count, tsar_error *err)
{
    if (!suite_put(t->list, TSAR_F64, rank, shape, y, y_format[t->staged], name, err)) return TSAR_ROOM;
    if (!t->staged) return TSAR_OK;
    uint16_t *given = suite_put(t->list, TSAR_BF16, rank, shape, NULL, "given/%s", name, err);
    if (!given) return TSAR_ROOM;
    for (size_t i = 0; i < count; i++) {
        y[i] = suite_given(y[i]);
        given[i] = tsar_round_bf16((float)y[i]);
    }
    return TSAR_OK;
}

/* A rounded run: its figures beside y. */
static tsar_status put_noise(const tracer *t, const char *name, size_t rank, const size_t *shape, double *noisy, size_t count, tsar_error *err)
{
    const double *y = suite_find(t->list, y_format[t->staged], name)->data;
    tsar_stage s = stage_of(t, name, rank, shape, y);
    const size_t n = 2 + s.rows;
    double *figures = tsar_alloc(n, sizeof *figures, name, err);
    if (!figures) return TSAR_ROOM;
    tsar_round_to(t->rounded, noisy, count);
    s.noisy = noisy;
    tsar_noise_figures(&s, figures);
    const tsar_status status = suite_put_f32(t->list, 1, &n, figures, noise_format[t->staged][t->precision], name, err);
    for (size_t i = 0; t->staged && i < count; i++) noisy[i] = suite_given(y[i]);
    tsar_free(figures);
    return status;
}

static tsar_status put(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    const tracer *t = context;
    size_t count = 1;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    if (dtype == TSAR_F64) return t->rounded ? put_noise(t, name, rank, shape, data, count, err) : put_exact(t, name, rank, shape, data, count, err);
    if (!t->rounded) return suite_put(t->list, dtype, rank, shape, data, y_format[t->staged], name, err) ? TSAR_OK : TSAR_ROOM;
    memcpy(data, suite_find(t->list, y_format[t->staged], name)->data, count * tsar_dtype_size(dtype));
    return TSAR_OK;
}

static tsar_status put_input(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    const tracer *t = context;
    return suite_put(t->list, dtype, rank, shape, data, "%s", name, err) ? TSAR_OK : TSAR_ROOM;
}

/* ------------------------------------------------------------------------------------------------------------- codes and bytes */

/* How far code b is from what is nearest, a, in units of what p decides; verify's rule (SPEC 10): d(b) - d(a) against 32 u (|z|^2 + |e|^2), and where z
 * itself may be off by `move`, 2 move |a - b| more, of unit vectors (vq_l2_norm) 2 move / (2 |z| - move) instead of move. */
static double tie(const tsar_model *model, tsar_dtype p, const double *z, double move, const double *distance, size_t a, size_t b, double *e)
{
    const size_t E = model->config.vq_embed_dim;
    double zz = 0, aa = 0, apart = 0;
    tsar_vq_codeword(model, a, e);
    tsar_vq_codeword(model, b, e + E);
    for (size_t k = 0; k < E; k++) zz += z[k] * z[k], aa += e[k] * e[k], apart += (e[k] - e[E + k]) * (e[k] - e[E + k]);
    if (model->config.vq_l2_norm) {
        const double sum = 2 * sqrt(zz) - move;
        move = sum > move ? 2 * move / sum : 2;
        zz = 1;
    }
    const double gap = distance[b] - distance[a], decided = tsar_code_slack(p, zz, aa) + 2 * move * sqrt(apart);
    return gap <= 0 ? 0 : gap / decided;
}

/* ties/MODE/P/vq.codes [h][w][K]. */
static tsar_status put_ties(const tracer *t, size_t precision, tsar_error *err)
{
    const tsar_config *c = &t->job->model->config;
    const tsar_values *codes = suite_find(t->list, y_format[t->staged], "vq.codes"), *latent = suite_find(t->list, y_format[t->staged], "vq.latent");
    if (!codes || !latent) return TSAR_OK;
    const size_t K = c->codebook_size, E = c->vq_embed_dim, P = codes->shape[0] * codes->shape[1], shape[3] = { codes->shape[0], codes->shape[1], K };
    const float *figures = suite_find(t->list, noise_format[0][precision], "vq.latent")->data;
    const double *y = latent->data, move = t->staged ? 0 : 3 * (double)figures[0] * (double)figures[1] * sqrt((double)E);
    int64_t *all = tsar_alloc(K, sizeof *all, "codes", err);
    double *out = tsar_alloc(P * K + K, sizeof *out, "ties", err), *z = tsar_alloc(3, E * sizeof *z, "a latent", err);
    tsar_status status = all && out && z ? TSAR_OK : TSAR_ROOM;
    for (size_t j = 0; status == TSAR_OK && j < K; j++) all[j] = (int64_t)j;
    for (size_t i = 0; status == TSAR_OK && i < P; i++) {
        for (size_t k = 0; k < E; k++) z[k] = t->staged ? suite_given(y[k * P + i]) : y[k * P + i];
        status = tsar_vq_distances(t->job->model, z, all, K, out + P * K, err);
        const size_t nearest = (size_t)((const int64_t *)codes->data)[i];
        for (size_t j = 0; status == TSAR_OK && j < K; j++)
            out[i * K + j] = tie(t->job->model, suite_precisions[precision].p, z, move, out + P * K, nearest, j, z + E);
    }
    if (status == TSAR_OK) status = suite_put_f32(t->list, 3, shape, out, ties_format[t->staged][precision], "vq.codes", err);
    tsar_free(all);
    tsar_free(out);
    tsar_free(z);
    return status;
}

/* The rule for bytes (SPEC 4; QUIRKS, VQ 8): floor(127.5 x + 128), or of x clamped to -1 ... 1 (x + 1) / 2 * 255 truncated; clamped to 0 ... 255. */
uint8_t suite_byte(double x, int down)
{
    const double y = down ? (fmin(fmax(x, -1), 1) + 1) / 2 * 255 : 127.5 * x + 128;
    return (uint8_t)(y >= 255 ? 255 : y > 0 ? (int)floor(y) : 0);
}

/* pixels [H][W][3] of whole/vq.decoder.conv_out, and what each byte may be in a precision: pixels.low/P ... pixels.high/P, those of conv_out at its limits. */
static tsar_status put_pixels(const tracer *t, tsar_error *err)
{
    static const char *const low_format[SUITE_PRECISIONS] = { "low/f32/%s", "low/f16/%s", "low/bf16/%s" };
    static const char *const high_format[SUITE_PRECISIONS] = { "high/f32/%s", "high/f16/%s", "high/bf16/%s" };
    const tsar_values *out = suite_find(t->list, "whole/%s", "vq.decoder.conv_out");
    const int down = t->job->model->config.vq_pixels_down;
    if (!out) return TSAR_OK;
    const size_t P = out->shape[1] * out->shape[2], shape[3] = { out->shape[1], out->shape[2], 3 };
    uint8_t *pixels = suite_put(t->list, TSAR_U8, 3, shape, NULL, "whole/%s", "pixels", err);
    for (size_t p = 0; pixels && p < SUITE_PRECISIONS; p++) {
        uint8_t *low = suite_put(t->list, TSAR_U8, 3, shape, NULL, low_format[p], "pixels", err);
        uint8_t *high = low ? suite_put(t->list, TSAR_U8, 3, shape, NULL, high_format[p], "pixels", err) : NULL;
        const float *figures = suite_find(t->list, noise_format[0][p], "vq.decoder.conv_out")->data;
        if (!high) return TSAR_ROOM;
        for (size_t i = 0; i < 3 * P; i++) {
            const size_t channel = i % 3, at = channel * P + i / 3;
            const double y = ((const double *)out->data)[at], u = tsar_unit_roundoff(suite_precisions[p].p);
            const double limit = 12 * (double)figures[0] * ((double)figures[2 + channel] + u * fabs(y));
            pixels[i] = suite_byte(y, down), low[i] = suite_byte(y - limit, down), high[i] = suite_byte(y + limit, down);
        }
    }
    return pixels ? TSAR_OK : TSAR_ROOM;
}

/* -------------------------------------------------------------------------------------------------------------------- all runs */

static tsar_status run_part(tracer *t, const struct tsar_named_part *part, tsar_error *err)
{
    const tsar_sink sink = { .put = put, .context = t, .inside = 1 };
    tsar_status status = suite_longest(t->job, part->prefix, err);
    for (t->staged = 0; status == TSAR_OK && t->staged < 2; t->staged++) {
        t->rounded = NULL;
        status = tsar_run_part(t->job->model, &t->job->inputs, part->part, &sink, err);
        for (t->precision = 0; status == TSAR_OK && t->precision < SUITE_PRECISIONS; t->precision++) {
            tsar_model *rounded = NULL;
            status = tsar_rounded_open(&rounded, t->job->model, (unsigned)part->part, suite_precisions[t->precision].p, err);
            t->rounded = rounded;
            if (status == TSAR_OK) status = tsar_run_part(rounded, &t->job->inputs, part->part, &sink, err);
            tsar_rounded_close(rounded, t->job->model);
            if (status == TSAR_OK && part->part == TSAR_PART_VQ) status = put_ties(t, t->precision, err);
        }
    }
    return status == TSAR_OK && part->part == TSAR_PART_VQ ? put_pixels(t, err) : status;
}

tsar_status suite_trace(suite_job *job, tensor_list *list, tsar_error *err)
{
    tracer t = { .job = job, .list = list };
    const tsar_sink inputs = { .put = put_input, .context = &t };
    const int fed = tsar_parts_fed(&job->model->config, &job->inputs);
    tsar_status status = fed ? tsar_emit_inputs(job->model, &job->inputs, &inputs, err) : tsar_fail_unfed(&job->model->config, "the case", err);
    for (size_t i = 0; status == TSAR_OK && i < TSAR_PARTS; i++)
        if (fed & tsar_parts[i].part) status = run_part(&t, &tsar_parts[i], err);
    return status;
}
