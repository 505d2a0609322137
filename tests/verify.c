/* Verify: is another implementation right, and if not, which tensor went wrong first? Every tensor is compared with the other file as it
 * passes, and nothing of it is kept but the latent, which tells a near-tie between two codes from an error. */
#include "verify.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------------- verify */

enum { CHUNK = 4096 }; /* elements of the other file in memory at a time */

typedef struct {
    const tsar_model *model;
    tsar_file *file;
    double rtol;
    tsar_comparison_fn report;
    void *context;
    unsigned char *seen; /* [tensors of the file]: 1 once the trace has produced it */
    size_t compared;
    int different;
    union {
        double real[CHUNK];
        int64_t integer[CHUNK];
    } theirs;
    double *latent; /* tsar's vq.latent [embed][h*w]; NULL until it has passed */
    double latent_rms;
    int64_t *near_codes; /* [h][w]: the other file's codes, when all mismatches are near-ties */
} verifier;

static double tolerance_of(double rtol, tsar_dtype dtype)
{
    if (!tsar_dtype_is_float(dtype)) return 0;
    if (rtol >= 0) return rtol;
    return dtype == TSAR_F64 ? 1e-10 : dtype == TSAR_F32 ? 1e-4 : 5e-2;
}

static double value_at(const void *data, tsar_dtype dtype, size_t i)
{
    if (dtype == TSAR_F64) return ((const double *)data)[i];
    return dtype == TSAR_I64 ? (double)((const int64_t *)data)[i] : (double)((const uint8_t *)data)[i];
}

/* sqrt(mean(x^2)), scaled by the largest element so that no square overflows. Not finite if an element is not. */
static double rms_of(const void *data, tsar_dtype dtype, size_t n)
{
    double largest = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double x = fabs(value_at(data, dtype, i));
        if (!(x < INFINITY)) return INFINITY;
        if (x > largest) largest = x;
    }
    if (largest == 0) return 0;
    for (size_t i = 0; i < n; i++) {
        const double x = value_at(data, dtype, i) / largest;
        sum += x * x;
    }
    return largest * sqrt(sum / (double)n);
}

/* Element i: |a - b| against the RMS (against 1 where tsar's tensor is all zero). NaN on either side is a difference, and
 * an infinity agrees with its like only. */
static void compare_element(tsar_comparison *result, size_t i, int equal, double ours, double theirs, double rms)
{
    if (equal) return;
    double difference = fabs(ours - theirs), relative = difference / (rms > 0 ? rms : 1);
    if (!(difference < INFINITY)) difference = INFINITY;
    if (!(difference < INFINITY && rms < INFINITY)) relative = INFINITY;
    if (difference > result->max_abs) result->max_abs = difference;
    if (relative > result->max_rel) result->max_rel = relative;
    if (relative <= result->tolerance && relative < INFINITY) return;
    if (result->bad++) return;
    result->first_bad = i, result->ours = ours, result->theirs = theirs;
}

static tsar_status compare_elements(verifier *v, const tsar_tensor *theirs, tsar_dtype dtype, const void *ours, tsar_comparison *result,
                                    tsar_error *err)
{
    const size_t count = (size_t)theirs->count;
    const double rms = rms_of(ours, dtype, count);
    for (size_t first = 0; first < count; first += CHUNK) {
        const size_t n = count - first < CHUNK ? count - first : CHUNK;
        tsar_status status = dtype == TSAR_F64 ? tsar_file_read_f64(v->file, theirs, first, n, v->theirs.real, err)
                                               : tsar_file_read_i64(v->file, theirs, first, n, v->theirs.integer, err);
        if (status != TSAR_OK) return status;
        for (size_t k = 0; k < n; k++) {
            const size_t i = first + k;
            const double a = value_at(ours, dtype, i);
            if (dtype == TSAR_F64)
                compare_element(result, i, a == v->theirs.real[k], a, v->theirs.real[k], rms);
            else if (dtype == TSAR_U8)
                compare_element(result, i, ((const uint8_t *)ours)[i] == v->theirs.integer[k], a, (double)v->theirs.integer[k], rms);
            else
                compare_element(result, i, ((const int64_t *)ours)[i] == v->theirs.integer[k], a, (double)v->theirs.integer[k], rms);
        }
    }
    return TSAR_OK;
}

/* The unit roundoff of the other implementation's arithmetic on the latent. It is that of the file's type; an --rtol as wide as that of
 * a narrower type says that the numbers were computed in this one, however they are stored. */
static double roundoff_of(double rtol, tsar_dtype dtype)
{
    if (dtype == TSAR_BF16 || rtol >= tolerance_of(-1, TSAR_BF16)) return ldexp(1, -8);
    if (dtype == TSAR_F16) return ldexp(1, -11);
    return dtype == TSAR_F32 || rtol >= tolerance_of(-1, TSAR_F32) ? ldexp(1, -24) : ldexp(1, -53);
}

/* The type that tells how exactly the other implementation computed: that of vq.latent, else the narrowest float among its vq.*. */
static tsar_dtype latent_dtype(const tsar_file *file)
{
    const tsar_tensor *latent = tsar_file_find(file, "vq.latent");
    tsar_dtype narrowest = TSAR_F64; /* the types stand in the order of their precision */
    if (latent && tsar_dtype_is_float(latent->dtype)) return latent->dtype;
    for (size_t i = 0; i < tsar_file_count(file); i++) {
        const tsar_tensor *t = tsar_file_at(file, i);
        if (tsar_has_prefix(t->name, "vq.") && tsar_dtype_is_float(t->dtype) && t->dtype > narrowest) narrowest = t->dtype;
    }
    return narrowest;
}

/* How far apart codes a (tsar's) and b (theirs) are at one position, in units of what their precision can decide; at most
 * 1 is a near-tie.
 *
 * The quantizer compares d(e) = |z|^2 + |e|^2 - 2 z.e, so d(b) - d(a) = |b|^2 - |a|^2 + 2 z.(a - b). Three things move this gap:
 *
 * 1. The latent. When z moves by D, the gap moves by 2 D.(a - b), at most 2 |D| |a - b|. A vq.latent that passes verification has every
 *    element within delta = tolerance x RMS of tsar's, so the latent vector moves by at most delta sqrt(E) = m, E = embed. With l2_norm
 *    it is z/|z| that counts, and unit vectors of x and y are at most 2 |x - y| / (|x| + |y|) apart (Dunkl and Williams), here
 *    2 m / (2 |z| - m), and never more than 2.
 * 2. The codewords, in a precision of unit roundoff u: an element is off by a part r = u of itself where it is only stored. With l2_norm
 *    square root, division and result round, and a norm summed over E terms is off by E t / 2 (half of its square's), so r = 3u + E t / 2 for
 *    codewords and latent alike. t is the roundoff of the sums: u, but never more than F32's 2^-24, in which half-precision products are added
 *    up. d(e) = |z - e|^2 moves by at most 2 sqrt(d(e)) r |e|; z by r |z| more, which counts as under 1.
 * 3. The distances. |e|^2 and 2 z.e round by u and, being sums of E terms, by E t; |z|^2 is the same number in both; each of the two sums that
 *    make d(e) of the three rounds by u. With 2 |z||e| <= |z|^2 + |e|^2, and d(e) <= |z|^2 + |e|^2 for codewords on the latent's side, this
 *    is at most u (3 |z|^2 + 4 |e|^2) + E t (|z|^2 + 2 |e|^2) each, for both at most (6u + 2 E t) (|z|^2 + |a|^2 + |b|^2).
 *
 * To first order in u. In F64 2. and 3. are about 1e-14 for unit vectors. */
static tsar_status code_margin(const verifier *v, size_t position, size_t positions, double tolerance, double u, const int64_t codes[2], double *z,
                               double *margin, tsar_error *err)
{
    const tsar_config *c = &v->model->config;
    const size_t embed = c->vq_embed_dim;
    const double sums = (double)embed * fmin(u, ldexp(1, -24));
    double *a = z + embed, *b = z + 2 * embed, distance[2], zz = 0, aa = 0, bb = 0, apart = 0;
    for (size_t k = 0; k < embed; k++) z[k] = v->latent[k * positions + position], zz += z[k] * z[k];
    tsar_status status = tsar_vq_distances(v->model, z, codes, 2, distance, err);
    if (status != TSAR_OK) return status;
    tsar_vq_codeword(v->model, (size_t)codes[0], a);
    tsar_vq_codeword(v->model, (size_t)codes[1], b);
    for (size_t k = 0; k < embed; k++) aa += a[k] * a[k], bb += b[k] * b[k], apart += (a[k] - b[k]) * (a[k] - b[k]);
    double move = tolerance * v->latent_rms * sqrt((double)embed), part = u;
    if (c->vq_l2_norm) {
        const double sum = 2 * sqrt(zz) - move;
        part = 3 * u + sums / 2;
        move = (sum > move ? 2 * move / sum : 2) + part;
        zz = 1; /* of z/|z| */
    }
    const double stored = 2 * part * (sqrt(fabs(distance[0]) * aa) + sqrt(fabs(distance[1]) * bb));
    const double rounded = (6 * u + 2 * sums) * (zz + aa + bb);
    const double gap = distance[1] - distance[0], decided = 2 * move * sqrt(apart) + stored + rounded;
    *margin = gap <= 0 ? 0 : decided > 0 ? gap / decided : INFINITY;
    return TSAR_OK;
}

/* Codes that differ: near-ties if every mismatch is one. Then the other file's codes are kept for the decoder. */
static tsar_status judge_codes(verifier *v, const tsar_tensor *theirs, const int64_t *ours, tsar_comparison *result, tsar_error *err)
{
    const tsar_config *c = &v->model->config;
    const size_t positions = (size_t)theirs->count;
    const tsar_dtype dtype = latent_dtype(v->file);
    const double tolerance = tolerance_of(v->rtol, dtype), roundoff = roundoff_of(v->rtol, dtype);
    int64_t *codes = tsar_alloc(positions, sizeof *codes, "vq.codes", err);
    double *scratch = tsar_alloc(3, c->vq_embed_dim * sizeof *scratch, "a latent", err);
    tsar_status status = codes && scratch ? tsar_file_read_i64(v->file, theirs, 0, positions, codes, err) : TSAR_ROOM;
    result->margin = 0;
    for (size_t i = 0; status == TSAR_OK && i < positions; i++) {
        const int64_t pair[2] = { ours[i], codes[i] };
        double margin = INFINITY;
        if (pair[0] == pair[1]) continue;
        if (pair[1] >= 0 && (uint64_t)pair[1] < c->codebook_size)
            status = code_margin(v, i, positions, tolerance, roundoff, pair, scratch, &margin, err);
        if (margin > result->margin) result->margin = margin;
    }
    tsar_free(scratch);
    if (status == TSAR_OK && result->margin <= 1) {
        result->verdict = TSAR_NEAR_TIE;
        v->near_codes = codes;
        return TSAR_OK;
    }
    tsar_free(codes);
    return status;
}

static tsar_status report(verifier *v, tsar_comparison *result, tsar_error *err)
{
    if (result->verdict != TSAR_SAME && result->verdict != TSAR_MISSING) {
        result->first = !v->different;
        v->different = 1;
    }
    if (result->verdict != TSAR_MISSING) v->compared++;
    return v->report ? v->report(v->context, result, err) : TSAR_OK;
}

/* tsar's latent, for the near-ties. */
static tsar_status keep_latent(verifier *v, const size_t *shape, const double *data, tsar_error *err)
{
    const size_t count = shape[0] * shape[1] * shape[2];
    v->latent = tsar_alloc(count, sizeof *v->latent, "vq.latent", err);
    if (!v->latent) return TSAR_ROOM;
    memcpy(v->latent, data, count * sizeof *v->latent);
    v->latent_rms = rms_of(data, TSAR_F64, count);
    return TSAR_OK;
}

static tsar_status compare_tensor(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data,
                                  tsar_error *err)
{
    verifier *v = context;
    const tsar_tensor *theirs = tsar_file_find(v->file, name);
    tsar_comparison result = { .name = name,
                               .verdict = TSAR_SAME,
                               .dtype = theirs ? theirs->dtype : dtype,
                               .rank = theirs ? theirs->rank : rank,
                               .our_dtype = dtype,
                               .our_rank = rank };
    tsar_status status = strcmp(name, "vq.latent") == 0 ? keep_latent(v, shape, data, err) : TSAR_OK;
    if (status != TSAR_OK) return status;
    memcpy(result.shape, theirs ? theirs->shape : shape, result.rank * sizeof *shape);
    memcpy(result.our_shape, shape, rank * sizeof *shape);
    if (!theirs) {
        result.verdict = TSAR_MISSING;
        return strcmp(name, "ctf.cluster_of") == 0 ? TSAR_OK : report(v, &result, err);
    }
    v->seen[theirs - tsar_file_at(v->file, 0)] = 1;
    result.tolerance = tolerance_of(v->rtol, theirs->dtype);
    const int is_mask = strcmp(name, "input.caption_mask") == 0; /* 0 and 1 in any type */
    int fits = theirs->rank == rank && (is_mask || (dtype == TSAR_F64) == tsar_dtype_is_float(theirs->dtype));
    for (size_t i = 0; fits && i < rank; i++) fits = theirs->shape[i] == shape[i];
    if (fits) {
        status = compare_elements(v, theirs, dtype, data, &result, err);
        if (result.bad) result.verdict = TSAR_DIFFERS;
        if (status == TSAR_OK && result.bad && v->latent && strcmp(name, "vq.codes") == 0) status = judge_codes(v, theirs, data, &result, err);
    } else {
        result.verdict = TSAR_MISSHAPEN;
    }
    return status == TSAR_OK ? report(v, &result, err) : status;
}

/* The first tensor of the file whose name begins with `prefix`, or NULL. */
static const char *held_name(const tsar_file *file, const char *prefix)
{
    for (size_t i = 0; i < tsar_file_count(file); i++)
        if (tsar_has_prefix(tsar_file_at(file, i)->name, prefix)) return tsar_file_at(file, i)->name;
    return NULL;
}

/* Which parts to recompute: those that the file holds tensors of. It must hold what they need, too; the encoder needs a picture. */
static tsar_status choose_parts(const tsar_config *c, const tsar_inputs *inputs, const tsar_file *file, int *wanted, tsar_error *err)
{
    const int fed = tsar_parts_fed(c, inputs);
    *wanted = 0;
    if (!fed) return tsar_fail_unfed(c, tsar_file_path(file), err);
    for (int p = 0; p < TSAR_PARTS; p++) {
        const char *needs = tsar_part_needs(c, tsar_parts[p].part), *held = needs ? held_name(file, tsar_parts[p].prefix) : NULL;
        if (held && !(fed & tsar_parts[p].part))
            return tsar_fail(err, TSAR_INPUT, "%s: holds %s, but not the %s that it is recomputed from", tsar_file_path(file), held, needs);
        if (held) *wanted |= tsar_parts[p].part;
    }
    if ((*wanted & PART_VQ) && !inputs->image) {
        const char *encoder = held_name(file, "vq.encoder."), *latent = held_name(file, "vq.latent");
        if (encoder || latent)
            return tsar_fail(err, TSAR_INPUT, "%s: holds %s, but not the input.image that it is recomputed from", tsar_file_path(file),
                             encoder ? encoder : latent);
    }
    if (!*wanted)
        return tsar_fail(err, TSAR_INPUT, "%s: holds inputs, but no tensor of the model's parts (gpt.*, fine.*, vq.*) to compare",
                         tsar_file_path(file));
    return TSAR_OK;
}

/* Everything else in the file: gpt.*, fine.* and vq.* that the trace did not produce are differences, the rest is left alone. */
static tsar_status report_rest(verifier *v, size_t *ignored, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    *ignored = 0;
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_count(v->file); i++) {
        const tsar_tensor *tensor = tsar_file_at(v->file, i);
        int known = 0;
        for (int p = 0; p < TSAR_PARTS; p++) known |= tsar_has_prefix(tensor->name, tsar_parts[p].prefix);
        if (v->seen[i]) continue;
        if (!known) {
            ++*ignored;
            continue;
        }
        tsar_comparison result = { .name = tensor->name, .verdict = TSAR_UNKNOWN, .dtype = tensor->dtype, .rank = tensor->rank };
        memcpy(result.shape, tensor->shape, sizeof result.shape);
        status = report(v, &result, err);
    }
    return status;
}

tsar_status tsar_verify(const tsar_model *model, const char *path, double rtol, tsar_comparison_fn report_fn, void *context, size_t *compared,
                        size_t *ignored, tsar_error *err)
{
    tsar_inputs inputs = { 0 };
    tsar_file *file = NULL;
    int wanted = 0;
    *compared = *ignored = 0;
    tsar_status status = tsar_file_open(&file, path, err);
    if (status != TSAR_OK) return status;
    verifier *v = tsar_alloc(1, sizeof *v, "the comparison", err);
    if (!v || !(v->seen = tsar_alloc(tsar_file_count(file), 1, "the list of tensors", err))) status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_inputs_read(&inputs, model, file, err);
    if (status == TSAR_OK) status = choose_parts(&model->config, &inputs, file, &wanted, err);
    if (status == TSAR_OK) {
        const tsar_sink sink = { .put = compare_tensor, .context = v };
        v->model = model, v->file = file, v->rtol = rtol, v->report = report_fn, v->context = context;
        status = tsar_run_parts(model, &inputs, wanted, &sink, &v->near_codes, err);
    }
    if (status == TSAR_OK) status = report_rest(v, ignored, err);
    if (status == TSAR_OK && v->different) status = TSAR_DIFFERENT;
    if (v) {
        *compared = v->compared;
        tsar_free(v->seen);
        tsar_free(v->latent);
        tsar_free(v->near_codes);
    }
    tsar_free(v);
    tsar_inputs_close(&inputs);
    tsar_file_close(file);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------- reports */

/* Text that grows in a buffer and is cut at its end. */
typedef struct {
    char *text;
    size_t size, used;
} line;

TSAR_FORMAT(2, 3) static void add(line *out, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    const int length = vsnprintf(out->text + out->used, out->size - out->used, format, values);
    va_end(values);
    if (length > 0) out->used += (size_t)length < out->size - out->used ? (size_t)length : out->size - out->used - 1;
}

/* "[3,64]" */
static void add_shape(line *out, size_t rank, const size_t *shape)
{
    add(out, "[");
    for (size_t i = 0; i < rank; i++) add(out, i ? ",%zu" : "%zu", shape[i]);
    add(out, "]");
}

/* Flat index `flat` in a tensor of this shape. */
static void add_index(line *out, size_t rank, const size_t *shape, size_t flat)
{
    size_t index[TSAR_MAX_RANK] = { 0 };
    for (size_t i = rank; i-- > 0; flat /= shape[i]) index[i] = flat % shape[i];
    add_shape(out, rank, index);
}

void tsar_comparison_text(char *text, size_t size, const tsar_comparison *r)
{
    line out = { text, size, 0 };
    add_shape(&out, r->rank, r->shape);
    add(&out, "%*s ", out.used < 16 ? (int)(16 - out.used) : 0, "");
    if (r->verdict <= TSAR_NEAR_TIE)
        add(&out, "%10.3g %10.3g  ", r->max_abs, r->max_rel);
    else
        add(&out, "%10s %10s  ", "-", "-");
    switch (r->verdict) {
    case TSAR_SAME:
        add(&out, "same");
        break;
    case TSAR_DIFFERS:
        add(&out, "DIFFERS: %zu beyond %.3g, first at ", r->bad, r->tolerance);
        add_index(&out, r->rank, r->shape, r->first_bad);
        add(&out, ": %.9g here, %.9g there", r->ours, r->theirs);
        break;
    case TSAR_NEAR_TIE:
        add(&out, "NEAR-TIE: %zu, first at ", r->bad);
        add_index(&out, r->rank, r->shape, r->first_bad);
        add(&out, ": %.0f here, %.0f there; gaps up to %.3g of what the precision can decide", r->ours, r->theirs, r->margin);
        break;
    case TSAR_MISSHAPEN:
        add(&out, "MISSHAPEN: %s, it must be %s of shape ", tsar_dtype_name(r->dtype), tsar_dtype_name(r->our_dtype));
        add_shape(&out, r->our_rank, r->our_shape);
        break;
    case TSAR_UNKNOWN:
        add(&out, "UNKNOWN: the model's trace has no tensor of this name");
        break;
    case TSAR_MISSING:
        add(&out, "missing: the file does not hold it");
        break;
    }
    if (r->first) add(&out, "  <== first divergence");
}

/* ,"key":number; JSON knows no infinity: null. */
static void add_number(line *out, const char *key, double value)
{
    if (fabs(value) < INFINITY)
        add(out, ",\"%s\":%.17g", key, value);
    else
        add(out, ",\"%s\":null", key);
}

void tsar_comparison_json(char *text, size_t size, const tsar_comparison *r)
{
    static const char *const verdicts[] = { "same", "differs", "near-tie", "misshapen", "unknown", "missing" };
    line out = { text, size, 0 };
    add(&out, "\"verdict\":\"%s\",\"dtype\":\"%s\",\"shape\":", verdicts[r->verdict], tsar_dtype_name(r->dtype));
    add_shape(&out, r->rank, r->shape);
    if (r->verdict == TSAR_MISSHAPEN) {
        add(&out, ",\"expected_shape\":");
        add_shape(&out, r->our_rank, r->our_shape);
    }
    if (r->verdict <= TSAR_NEAR_TIE) {
        add_number(&out, "max_abs", r->max_abs);
        add_number(&out, "max_rel", r->max_rel);
        add_number(&out, "tolerance", r->tolerance);
        add(&out, ",\"bad\":%zu", r->bad);
    }
    if (r->bad) {
        add(&out, ",\"first_bad\":%zu", r->first_bad);
        add_number(&out, "ours", r->ours);
        add_number(&out, "theirs", r->theirs);
    }
    if (r->verdict == TSAR_NEAR_TIE) add_number(&out, "margin", r->margin);
    add(&out, ",\"first\":%s", r->first ? "true" : "false");
}
