/* Verify: is another implementation right, and if not, which tensors are wrong? The sink that receives a traced tensor may replace it, and the run goes on
 * with the replacement: so three ordinary runs of a part give everything.
 *
 *     noise     theirs put in the place of each tensor, every operation rounded to their precision     their stage and its noise
 *     judged    theirs put in the place of each tensor, in double                                      y: the stage of each tensor from THEIR predecessors
 *     plain     in double                                                                              the error from the inputs on, for information
 *
 * Of the first run the results are kept, in their precision, for the second; F64 files need none. */
#include "verify.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the noise run leaves of a tensor for the judged one. */
typedef struct {
    void *values; /* of dtype `type`; NULL: not in the file */
    tsar_dtype type;
} noisy_tensor;

typedef enum { NOISE, JUDGED, FROM_INPUTS, NARROWER } run_kind;

typedef struct {
    const tsar_model *model;
    const tsar_verify_options *options;
    const tsar_inputs *inputs;
    tsar_file *file;
    unsigned char *seen; /* [tensors of the file]: 1 once a run has produced it */
    int inside;          /* the file holds tensors inside of blocks */

    tsar_comparison *results; /* [n] in computation order */
    size_t n, room;

    run_kind kind;       /* of the run under way */
    tsar_dtype p;        /* the precision that it judges in */
    size_t K;            /* the longest row of a matrix of the part */
    const char *prefix;  /* of its part */
    size_t first;        /* result of the part's first tensor */
    size_t next;         /* tensors that the run has produced */
    noisy_tensor *noisy; /* [n_noisy], by their place in the run */
    size_t n_noisy, noisy_room;

    double *latent; /* [embed][h*w]: vq.latent as the quantizer takes it; NULL until it has passed */
    size_t positions;
    double latent_move; /* by how much a latent vector may be off: 0 where the file holds it */
} verifier;

static int is_inside(const char *name)
{
    static const char *const names[] = { ".q", ".k", ".v", ".attn", ".h", ".ffn" };
    const char *last = strrchr(name, '.');
    for (size_t i = 0; last && i < sizeof names / sizeof *names; i++)
        if (strcmp(last, names[i]) == 0) return 1;
    return 0;
}

/* Grows an array of *room elements of `size` bytes, whose first n are kept. */
static tsar_status widen(void *array, size_t *room, size_t n, size_t size, tsar_error *err)
{
    void *old, *wider = tsar_alloc(2 * *room + 64, size, "the list of tensors", err);
    if (!wider) return TSAR_ROOM;
    memcpy(&old, array, sizeof old);
    if (n) memcpy(wider, old, n * size);
    tsar_free(old);
    memcpy(array, &wider, sizeof wider);
    *room = 2 * *room + 64;
    return TSAR_OK;
}

/* -------------------------------------------------------------------------------------------------- what the file holds */

static int same_shape(const tsar_tensor *t, size_t rank, const size_t *shape)
{
    if (t->rank != rank) return 0;
    for (size_t i = 0; i < rank; i++)
        if (t->shape[i] != shape[i]) return 0;
    return 1;
}

/* Whether theirs is of this shape, an axis of 1 in front left aside where `batch` is set. */
static int fits(const tsar_tensor *theirs, int batch, size_t rank, const size_t *shape)
{
    tsar_tensor dropped = *theirs;
    if (!batch || theirs->rank != rank + 1 || theirs->shape[0] != 1) return same_shape(theirs, rank, shape);
    dropped.rank = rank;
    memmove(dropped.shape, theirs->shape + 1, rank * sizeof *shape);
    return same_shape(&dropped, rank, shape);
}

static size_t count_of(size_t rank, const size_t *shape)
{
    size_t count = 1;
    for (size_t i = 0; i < rank; i++) count *= shape[i];
    return count;
}

static int all_finite(const double *x, size_t n)
{
    size_t i = 0;
    while (i < n && fabs(x[i]) < INFINITY) i++;
    return i == n;
}

/* The values of the file's tensor, widened, in *x, to be freed; NULL if it has none that can stand in the place of this one. */
static tsar_status read_theirs(const verifier *v, const tsar_tensor *theirs, size_t count, double **x, tsar_error *err)
{
    *x = NULL;
    if (!theirs || theirs->count != count || !tsar_dtype_is_float(theirs->dtype)) return TSAR_OK;
    *x = tsar_alloc(count, sizeof **x, theirs->name, err);
    return *x ? tsar_file_read_f64(v->file, theirs, 0, count, *x, err) : TSAR_ROOM;
}

/* Their codes in the place of ours, where all of them are codes. */
static tsar_status replace_codes(const verifier *v, const char *name, size_t rank, const size_t *shape, int64_t *codes, tsar_error *err)
{
    const tsar_tensor *theirs = tsar_file_find(v->file, name);
    const size_t count = count_of(rank, shape);
    if (strcmp(name, "vq.codes") != 0 || !theirs || !same_shape(theirs, rank, shape) || tsar_dtype_is_float(theirs->dtype)) return TSAR_OK;
    int64_t *values = tsar_alloc(count, sizeof *values, name, err);
    tsar_status status = values ? tsar_file_read_i64(v->file, theirs, 0, count, values, err) : TSAR_ROOM;
    size_t valid = 0;
    while (status == TSAR_OK && valid < count && values[valid] >= 0 && (uint64_t)values[valid] < v->model->config.codebook_size) valid++;
    if (status == TSAR_OK && valid == count) memcpy(codes, values, count * sizeof *codes);
    tsar_free(values);
    return status;
}

/* The narrowest type that holds every number of the part's own float tensors. */
static tsar_status find_precision(const verifier *v, const char *prefix, tsar_dtype *p, tsar_error *err)
{
    enum { SCANNED = 4096 };
    int holds[TSAR_DTYPES];
    double *x = tsar_alloc(SCANNED, sizeof *x, "a tensor", err);
    tsar_status status = x ? TSAR_OK : TSAR_ROOM;
    for (size_t type = 0; type < TSAR_DTYPES; type++) holds[type] = 1;
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_count(v->file); i++) {
        const tsar_tensor *t = tsar_file_at(v->file, i);
        if (!tsar_has_prefix(t->name, prefix) || !tsar_dtype_is_float(t->dtype)) continue;
        for (uint64_t at = 0; status == TSAR_OK && at < t->count && (holds[TSAR_F32] || holds[TSAR_F16] || holds[TSAR_BF16]); at += SCANNED) {
            const size_t n = t->count - at < SCANNED ? (size_t)(t->count - at) : SCANNED;
            status = tsar_file_read_f64(v->file, t, at, n, x, err);
            for (size_t k = 0; status == TSAR_OK && k < n; k++)
                for (int type = TSAR_F32; type <= TSAR_BF16; type++) holds[type] = holds[type] && tsar_holds((tsar_dtype)type, x[k]);
        }
    }
    tsar_free(x);
    *p = holds[TSAR_BF16] ? TSAR_BF16 : holds[TSAR_F16] ? TSAR_F16 : holds[TSAR_F32] ? TSAR_F32 : TSAR_F64;
    return status;
}

/* ------------------------------------------------------------------------------------------------------- the noise run */

/* x as numbers of type p. */
static tsar_status keep_noisy(noisy_tensor *kept, const char *name, tsar_dtype p, const double *x, size_t count, tsar_error *err)
{
    kept->type = p;
    kept->values = tsar_alloc(count, tsar_dtype_size(p), name, err);
    for (size_t i = 0; kept->values && i < count; i++)
        if (p == TSAR_F32)
            ((float *)kept->values)[i] = (float)x[i];
        else
            ((uint16_t *)kept->values)[i] = p == TSAR_BF16 ? tsar_round_bf16((float)x[i]) : tsar_round_f16((float)x[i]);
    return kept->values ? TSAR_OK : TSAR_ROOM;
}

static tsar_status put_noise(verifier *v, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    const size_t count = count_of(rank, shape), at = v->next - 1;
    const tsar_tensor *theirs = tsar_file_find(v->file, name);
    double *x = NULL;
    tsar_status status = at < v->noisy_room ? TSAR_OK : widen(&v->noisy, &v->noisy_room, v->n_noisy, sizeof *v->noisy, err);
    if (status != TSAR_OK) return status;
    v->n_noisy = v->next;
    v->noisy[at] = (noisy_tensor){ NULL, TSAR_F64 };
    if (dtype != TSAR_F64) return replace_codes(v, name, rank, shape, data, err);
    if (theirs || strcmp(name, "vq.latent") == 0) status = keep_noisy(&v->noisy[at], name, v->p, data, count, err);
    if (status == TSAR_OK && theirs && fits(theirs, 1, rank, shape)) status = read_theirs(v, theirs, count, &x, err);
    if (status == TSAR_OK && x && all_finite(x, count)) memcpy(data, x, count * sizeof *x);
    tsar_free(x);
    return status;
}

static void drop_noise(verifier *v)
{
    for (size_t i = 0; i < v->n_noisy; i++) tsar_free(v->noisy[i].values);
    v->n_noisy = 0;
}

/* ------------------------------------------------------------------------------------------------------- a wrong shape */

/* out = x with its axes in another order: axis a of the result is axis order[a] of x, whose shape is `shape`. */
static void permute(double *out, const double *x, size_t rank, const size_t *shape, const size_t *order)
{
    const size_t count = count_of(rank, shape);
    size_t stride[TSAR_MAX_RANK], index[TSAR_MAX_RANK] = { 0 };
    for (size_t a = 0; a < rank; a++) {
        stride[a] = 1;
        for (size_t b = order[a] + 1; b < rank; b++) stride[a] *= shape[b];
    }
    for (size_t i = 0; i < count; i++) {
        size_t from = 0;
        for (size_t a = 0; a < rank; a++) from += index[a] * stride[a];
        out[i] = x[from];
        for (size_t a = rank; a-- > 0 && ++index[a] == shape[order[a]];) index[a] = 0;
    }
}

/* The words for a tensor whose shape is wrong, where its values tell what is: an axis of 1, axes in another order, another division. */
static tsar_status explain_shape(const tsar_stage *stage, tsar_comparison *r, tsar_error *err)
{
    static const size_t orders[5][3] = { { 1, 0, 2 }, { 0, 2, 1 }, { 2, 1, 0 }, { 1, 2, 0 }, { 2, 0, 1 } };
    const size_t n = stage->rows * stage->columns, rank = r->rank;
    tsar_comparison trial = { .verdict = TSAR_DIFFERS };
    tsar_stage turned = *stage;
    tsar_judge(&turned, &trial);
    if (trial.verdict != TSAR_DIFFERS) {
        (void)snprintf(r->words, sizeof r->words, "%s",
                       rank == r->our_rank + 1 && r->shape[0] == 1 ? "a batch axis of 1 in front: drop it; the values agree"
                                                                   : "the values agree in this order: reshape it");
        return TSAR_OK;
    }
    double *out = rank == r->our_rank && rank >= 2 && rank <= 3 ? tsar_alloc(n, sizeof *out, r->name, err) : NULL;
    turned.x = out;
    for (size_t o = 0; out && o < 5 && !r->words[0]; o++) {
        int possible = rank == 3 || orders[o][2] == 2;
        for (size_t a = 0; possible && a < rank; a++) possible = r->shape[orders[o][a]] == r->our_shape[a];
        if (!possible) continue;
        permute(out, stage->x, rank, r->shape, orders[o]);
        tsar_comparison other = { .verdict = TSAR_DIFFERS };
        tsar_judge(&turned, &other);
        if (other.verdict == TSAR_DIFFERS) continue;
        if (rank == 2)
            (void)snprintf(r->words, sizeof r->words, "transposed: the values agree the other way round");
        else
            (void)snprintf(r->words, sizeof r->words, "transposed: the values agree where axes %zu, %zu, %zu come first, second, third", orders[o][0],
                           orders[o][1], orders[o][2]);
    }
    tsar_free(out);
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------------- the judged run */

static tsar_status keep_latent(verifier *v, const tsar_stage *stage, int held, const double *data, tsar_error *err)
{
    const size_t n = stage->rows * stage->columns;
    const double rtol = v->options->rtol, vector = sqrt((double)stage->rows);
    tsar_free(v->latent);
    v->latent = tsar_alloc(n, sizeof *v->latent, "vq.latent", err);
    if (!v->latent) return TSAR_ROOM;
    memcpy(v->latent, data, n * sizeof *v->latent);
    v->positions = stage->columns;
    v->latent_move = rtol >= 0 ? rtol * tsar_rms(data, n) * vector : held ? 0 : tsar_slack_of(stage) * vector;
    return TSAR_OK;
}

/* How far from the best codeword a (tsar's) codeword b (theirs) is at one position, in units of what the precision decides: at most 1 is a near-tie.
 *
 * d(e) = |z - e|^2; b is right up to u 32 (|z|^2 + |a|^2) (SPEC 10). Where the file lacks the latent, or a tolerance is given, z may be off by m: then
 * d(b) - d(a) moves by at most 2 m |a - b|. With l2_norm it is z/|z| that counts, and unit vectors of x and y are at most 2 |x - y| / (|x| + |y|) apart
 * (Dunkl and Williams), here 2 m / (2 |z| - m), and never more than 2. */
static tsar_status code_margin(const verifier *v, size_t position, tsar_dtype p, const int64_t codes[2], double *z, double *margin, tsar_error *err)
{
    const size_t E = v->model->config.vq_embed_dim;
    double *a = z + E, *b = z + 2 * E, distance[2], zz = 0, aa = 0, apart = 0, move = v->latent_move;
    for (size_t k = 0; k < E; k++) z[k] = v->latent[k * v->positions + position], zz += z[k] * z[k];
    const tsar_status status = tsar_vq_distances(v->model, z, codes, 2, distance, err);
    if (status != TSAR_OK) return status;
    tsar_vq_codeword(v->model, (size_t)codes[0], a);
    tsar_vq_codeword(v->model, (size_t)codes[1], b);
    for (size_t k = 0; k < E; k++) aa += a[k] * a[k], apart += (a[k] - b[k]) * (a[k] - b[k]);
    if (v->model->config.vq_l2_norm) {
        const double sum = 2 * sqrt(zz) - move;
        move = sum > move ? 2 * move / sum : 2;
        zz = 1; /* of z/|z| */
    }
    const double gap = distance[1] - distance[0], decided = tsar_code_slack(p, zz, aa) + 2 * move * sqrt(apart);
    *margin = gap <= 0 ? 0 : decided > 0 ? gap / decided : INFINITY;
    return TSAR_OK;
}

/* A tolerance as wide as that of F32 or BF16 was says that the numbers were computed so, however they are stored. */
static tsar_dtype precision_of_codes(const verifier *v)
{
    const double rtol = v->options->rtol;
    return rtol >= 5e-2 ? TSAR_BF16 : rtol >= 1e-4 && v->p == TSAR_F64 ? TSAR_F32 : v->p;
}

/* Integers: equal, or codes that the precision cannot decide. */
static tsar_status judge_integers(const verifier *v, const tsar_tensor *theirs, tsar_dtype dtype, const void *ours, tsar_comparison *r, tsar_error *err)
{
    const size_t count = (size_t)theirs->count;
    const int codes = strcmp(r->name, "vq.codes") == 0 && v->latent;
    int64_t *values = tsar_alloc(count, sizeof *values, r->name, err);
    double *scratch = tsar_alloc(3, v->model->config.vq_embed_dim * sizeof *scratch, "a latent", err);
    tsar_status status = values && scratch ? tsar_file_read_i64(v->file, theirs, 0, count, values, err) : TSAR_ROOM;
    r->verdict = TSAR_IDENTICAL;
    for (size_t i = 0; status == TSAR_OK && i < count; i++) {
        const int64_t own = dtype == TSAR_U8 ? ((const uint8_t *)ours)[i] : ((const int64_t *)ours)[i], pair[2] = { own, values[i] };
        double margin = INFINITY;
        if (own == values[i]) continue;
        if (r->bad++ == 0) r->first_bad = r->place = i, r->ours = (double)own, r->theirs = (double)values[i];
        if (codes && pair[1] >= 0 && (uint64_t)pair[1] < v->model->config.codebook_size)
            status = code_margin(v, i, precision_of_codes(v), pair, scratch, &margin, err);
        if (margin > r->margin) r->margin = margin;
        r->rms = r->max = fmax(r->max, fabs((double)own - (double)values[i]));
        r->verdict = r->margin <= 1 ? TSAR_NEAR_TIE : TSAR_DIFFERS;
    }
    tsar_free(values);
    tsar_free(scratch);
    return status;
}

/* Rows and columns as SPEC 10 has them: channels of the tokenizer's pictures, else the last axis. */
static tsar_stage stage_of(const verifier *v, const char *name, size_t rank, const size_t *shape, const double *y)
{
    const size_t count = count_of(rank, shape), at = v->next - 1;
    tsar_stage s = { .y = y, .p = v->p, .rtol = v->options->rtol, .channels = tsar_has_prefix(name, "vq.") };
    s.rows = rank == 0 ? 1 : s.channels ? shape[0] : count / (shape[rank - 1] ? shape[rank - 1] : 1);
    s.columns = s.rows ? count / s.rows : 0;
    s.K = s.channels || s.rows < v->K ? v->K : s.rows; /* attention's positions */
    if (at < v->n_noisy) s.noisy = v->noisy[at].values, s.noisy_type = v->noisy[at].type;
    return s;
}

/* The words for a tensor that differs. For a block whose inside the file does not hold, wo tells heads apart; what attention takes and gives has them
 * side by side. */
static tsar_status suggest(const verifier *v, tsar_stage *stage, tsar_comparison *r, tsar_error *err)
{
    const int fine = tsar_has_prefix(r->name, "fine.block.");
    const tsar_stack *stack = fine ? &v->model->fine : &v->model->gpt;
    char *end = r->name;
    const unsigned long layer = fine || tsar_has_prefix(r->name, "gpt.block.") ? strtoul(strstr(r->name, ".block.") + 7, &end, 10) : 0;
    if (end == r->name || layer >= stack->n_layer) {
        tsar_suggest(stage, r);
        return TSAR_OK;
    }
    if (r->our_rank == 3 || strcmp(end, ".attn") == 0) stage->heads = r->our_rank == 3 ? r->our_shape[1] : stack->n_head;
    if (!*end && !v->inside) {
        const tsar_matrix *wo = &stack->layers[layer].wo;
        stage->heads = stack->n_head, stage->wo = tsar_alloc(wo->cols, wo->rows * sizeof *stage->wo, r->name, err);
        for (size_t c = 0; stage->wo && c < wo->cols; c++)
            for (size_t k = 0; k < wo->rows; k++) stage->wo[c * wo->rows + k] = tsar_matrix_element(wo, k, c);
        if (!stage->wo) return TSAR_ROOM;
    }
    tsar_suggest(stage, r);
    tsar_free(stage->wo);
    stage->wo = NULL;
    return TSAR_OK;
}

static int is_input(const char *name) { return tsar_has_prefix(name, "input.") || strcmp(name, "ctf.cluster_of") == 0; }

/* An F64 tensor of ours: judged, and then theirs in its place. */
static tsar_status judge_floats(verifier *v, const tsar_tensor *theirs, tsar_comparison *r, double *data, tsar_error *err)
{
    const size_t count = count_of(r->our_rank, r->our_shape);
    double *x = NULL, *share = NULL;
    tsar_stage stage = stage_of(v, r->name, r->our_rank, r->our_shape, data);
    tsar_status status = read_theirs(v, theirs, count, &x, err);
    if (is_input(r->name)) stage.p = TSAR_F64;
    if (status == TSAR_OK && x && !stage.channels && stage.noisy && stage.p != TSAR_F64) {
        share = tsar_alloc(stage.columns, sizeof *share, r->name, err);
        if (share) tsar_column_shares(&stage, share);
        status = share ? TSAR_OK : TSAR_ROOM;
    }
    stage.x = x, stage.share = share;
    const int usable = x && fits(theirs, 1, r->our_rank, r->our_shape);
    if (status == TSAR_OK && x && fits(theirs, 0, r->our_rank, r->our_shape)) {
        tsar_judge(&stage, r);
        if (r->verdict == TSAR_DIFFERS && !is_input(r->name)) status = suggest(v, &stage, r, err);
    } else if (status == TSAR_OK) {
        r->verdict = TSAR_MISSHAPEN;
        if (!tsar_dtype_is_float(theirs->dtype))
            (void)snprintf(r->words, sizeof r->words, "%s, it must be of a floating-point type", tsar_dtype_name(theirs->dtype));
        if (x) status = explain_shape(&stage, r, err);
    }
    if (status == TSAR_OK && usable && !is_input(r->name) && all_finite(x, count)) memcpy(data, x, count * sizeof *x);
    if (status == TSAR_OK && strcmp(r->name, "vq.latent") == 0) {
        stage.x = NULL;
        status = keep_latent(v, &stage, usable, data, err);
    }
    tsar_free(x);
    tsar_free(share);
    return status;
}

static tsar_status judge_tensor(verifier *v, tsar_comparison *r, void *data, tsar_error *err)
{
    const tsar_tensor *theirs = tsar_file_find(v->file, r->name);
    const int is_mask = strcmp(r->name, "input.caption_mask") == 0; /* 0 and 1 in any type */
    r->dtype = theirs ? theirs->dtype : r->our_dtype, r->rank = theirs ? theirs->rank : r->our_rank;
    memcpy(r->shape, theirs ? theirs->shape : r->our_shape, r->rank * sizeof *r->shape);
    r->precision = is_input(r->name) ? TSAR_F64 : v->p;
    r->from_inputs = -1;
    if (!theirs) {
        r->verdict = TSAR_MISSING;
        if (strcmp(r->name, "vq.latent") != 0) return TSAR_OK;
        const tsar_stage stage = stage_of(v, r->name, r->our_rank, r->our_shape, data);
        return keep_latent(v, &stage, 0, data, err);
    }
    v->seen[theirs - tsar_file_at(v->file, 0)] = 1;
    if (is_mask && !tsar_dtype_is_float(theirs->dtype)) return TSAR_OK;
    if (r->our_dtype == TSAR_F64) return judge_floats(v, theirs, r, data, err);
    if (!same_shape(theirs, r->our_rank, r->our_shape) || tsar_dtype_is_float(theirs->dtype)) {
        r->verdict = TSAR_MISSHAPEN;
        if (tsar_dtype_is_float(theirs->dtype)) (void)snprintf(r->words, sizeof r->words, "%s, it must be of an integer type", tsar_dtype_name(theirs->dtype));
        return TSAR_OK;
    }
    const tsar_status status = judge_integers(v, theirs, r->our_dtype, data, r, err);
    return status == TSAR_OK ? replace_codes(v, r->name, r->our_rank, r->our_shape, data, err) : status;
}

/* -------------------------------------------------------------------------------------------------------- all four runs */

/* The plain run: nothing is replaced but codes, without which the decoder would be that of another picture. */
static tsar_status put_plain(const verifier *v, tsar_comparison *r, void *data, tsar_error *err)
{
    const tsar_tensor *theirs = tsar_file_find(v->file, r->name);
    double *x = NULL;
    if (r->our_dtype != TSAR_F64) return replace_codes(v, r->name, r->our_rank, r->our_shape, data, err);
    if (r->verdict > TSAR_DIFFERS) return TSAR_OK;
    tsar_stage stage = stage_of(v, r->name, r->our_rank, r->our_shape, data);
    const tsar_status status = read_theirs(v, theirs, stage.rows * stage.columns, &x, err);
    stage.x = x;
    if (status == TSAR_OK && x) r->from_inputs = tsar_error_of(&stage);
    tsar_free(x);
    return status;
}

static tsar_status put_tensor(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    verifier *v = context;
    v->next++;
    if (v->kind == NOISE) return put_noise(v, name, dtype, rank, shape, data, err);
    if (v->kind == FROM_INPUTS) return put_plain(v, &v->results[v->first + v->next - 1], data, err);
    tsar_comparison r = { .our_dtype = dtype, .our_rank = rank };
    (void)snprintf(r.name, sizeof r.name, "%s", name);
    memcpy(r.our_shape, shape, rank * sizeof *shape);
    tsar_status status = judge_tensor(v, &r, data, err);
    if (v->kind == NARROWER) {
        tsar_comparison *first = &v->results[v->first + v->next - 1];
        if (first->verdict == TSAR_DIFFERS && first->passes_in == TSAR_F64 && r.verdict < TSAR_DIFFERS) first->passes_in = v->p;
        return status;
    }
    if (status == TSAR_OK && v->n == v->room) status = widen(&v->results, &v->room, v->n, sizeof *v->results, err);
    if (status == TSAR_OK) v->results[v->n++] = r;
    return status;
}

/* K of a part: the longest dot product with one of its weights. */
static tsar_status find_longest(void *context, const tsar_weight *weight, tsar_error *err)
{
    verifier *v = context;
    size_t terms = 1;
    (void)err;
    for (size_t i = 1; i < weight->rank; i++) terms *= weight->shape[i];
    if (weight->use == TSAR_AS_MATRIX && tsar_has_prefix(weight->name, v->prefix) && terms > v->K) v->K = terms;
    return TSAR_OK;
}

/* The noise run of a part in precision p, then the judged one; `kind` JUDGED or NARROWER. */
static tsar_status judge_part(verifier *v, const struct tsar_named_part *part, tsar_dtype p, run_kind kind, tsar_error *err)
{
    const tsar_sink sink = { .put = put_tensor, .context = v, .inside = v->inside };
    tsar_model *rounded = NULL;
    tsar_status status = TSAR_OK;
    v->p = p;
    if (p != TSAR_F64 && v->options->rtol < 0) {
        v->kind = NOISE, v->next = 0;
        status = tsar_rounded_open(&rounded, v->model, (unsigned)part->part, p, err);
        if (status == TSAR_OK) status = tsar_run_part(rounded, v->inputs, part->part, &sink, err);
        tsar_rounded_close(rounded, v->model);
    }
    v->kind = kind, v->next = 0;
    if (status == TSAR_OK) status = tsar_run_part(v->model, v->inputs, part->part, &sink, err);
    drop_noise(v);
    return status;
}

/* The largest error, in units of RMS(y), of what differs in the results from `first` on; 0 if nothing does. */
static double differing(const verifier *v, size_t first)
{
    double largest = 0;
    for (size_t i = first; i < v->n; i++)
        if (v->results[i].verdict == TSAR_DIFFERS && tsar_dtype_is_float(v->results[i].our_dtype) && v->results[i].passes_in == TSAR_F64)
            largest = fmax(largest, v->results[i].rms);
    return largest;
}

static tsar_status run_part(verifier *v, const struct tsar_named_part *part, tsar_error *err)
{
    enum { WORTH = 64 }; /* a part whose errors are more than so many units of a precision is not judged in it once more */
    static const tsar_dtype narrower[] = { TSAR_F32, TSAR_F16, TSAR_BF16 };
    const tsar_sink sink = { .put = put_tensor, .context = v, .inside = v->inside };
    tsar_dtype p = v->options->precision;
    tsar_status status = p != TSAR_DTYPES ? TSAR_OK : find_precision(v, part->prefix, &p, err);
    v->first = v->n, v->prefix = part->prefix, v->K = 1;
    if (status == TSAR_OK) status = tsar_weights(&v->model->config, NULL, find_longest, v, err);
    if (status == TSAR_OK) status = judge_part(v, part, p, JUDGED, err);
    v->kind = FROM_INPUTS, v->next = 0;
    if (status == TSAR_OK) status = tsar_run_part(v->model, v->inputs, part->part, &sink, err);
    for (size_t i = 0; status == TSAR_OK && i < 3 && v->options->rtol < 0 && p <= TSAR_F32; i++) {
        const double error = narrower[i] > p ? differing(v, v->first) : 0;
        if (error > 0 && error <= (double)WORTH * tsar_unit_roundoff(narrower[i])) status = judge_part(v, part, narrower[i], NARROWER, err);
    }
    return status;
}

/* ---------------------------------------------------------------------------------------------------- names and parts */

/* The first tensor of the file whose name begins with `prefix`, or NULL. */
static const char *held_name(const tsar_file *file, const char *prefix)
{
    for (size_t i = 0; i < tsar_file_count(file); i++)
        if (tsar_has_prefix(tsar_file_at(file, i)->name, prefix)) return tsar_file_at(file, i)->name;
    return NULL;
}

/* Which parts to recompute: those that the file holds tensors of. It must hold what they need, too; the encoder needs a picture. */
static tsar_status choose_parts(const tsar_config *c, const tsar_inputs *inputs, const tsar_file *file, int decided, int *wanted, tsar_error *err)
{
    const int fed = tsar_parts_fed(c, inputs);
    *wanted = 0;
    if (!fed && !decided) return tsar_fail_unfed(c, tsar_file_path(file), err);
    for (int p = 0; p < TSAR_PARTS; p++) {
        const char *needs = tsar_part_needs(c, tsar_parts[p].part), *held = needs ? held_name(file, tsar_parts[p].prefix) : NULL;
        if (held && !(fed & tsar_parts[p].part))
            return tsar_fail(err, TSAR_INPUT, "%s: holds %s, but not the %s that it is recomputed from", tsar_file_path(file), held, needs);
        if (held) *wanted |= tsar_parts[p].part;
    }
    if ((*wanted & TSAR_PART_VQ) && !inputs->image) {
        const char *encoder = held_name(file, "vq.encoder."), *latent = held_name(file, "vq.latent");
        if (encoder || latent)
            return tsar_fail(err, TSAR_INPUT, "%s: holds %s, but not the input.image that it is recomputed from", tsar_file_path(file),
                             encoder ? encoder : latent);
    }
    if (!*wanted && !decided)
        return tsar_fail(err, TSAR_INPUT, "%s: holds inputs, but no tensor of the model's parts (t5.*, gpt.*, fine.*, vq.*) to compare", tsar_file_path(file));
    return TSAR_OK;
}

/* How many letters must be put in, left out or changed to make b of a (Levenshtein), cut at SIZE_MAX letters of 127. */
static size_t edits(const char *a, const char *b)
{
    size_t row[128];
    const size_t n = strlen(b) < 127 ? strlen(b) : 127;
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 1; j <= n; j++) {
            const size_t change = diagonal + (a[i] != b[j - 1]), more = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < more ? change : more;
        }
    }
    return row[n];
}

/* The part's prefix that `name` lacks to be a tensor of the trace; NULL if it is none even so. */
static const char *lacking_prefix(const verifier *v, const char *name)
{
    char whole[160];
    for (size_t p = 0; p < TSAR_PARTS; p++) {
        (void)snprintf(whole, sizeof whole, "%s%.140s", tsar_parts[p].prefix, name);
        for (size_t i = 0; i < v->n; i++)
            if (strcmp(v->results[i].name, whole) == 0) return tsar_parts[p].prefix;
    }
    return NULL;
}

static tsar_status report_unknown(verifier *v, const tsar_tensor *tensor, const char *prefix, tsar_error *err)
{
    tsar_comparison r = { .verdict = TSAR_UNKNOWN, .dtype = tensor->dtype, .rank = tensor->rank, .our_dtype = TSAR_F64, .from_inputs = -1 };
    size_t least = SIZE_MAX, best = 0;
    (void)snprintf(r.name, sizeof r.name, "%s", tensor->name);
    memcpy(r.shape, tensor->shape, sizeof r.shape);
    for (size_t i = 0; i < v->n && !prefix; i++) {
        const size_t distance = edits(tensor->name, v->results[i].name);
        if (distance < least && !is_input(v->results[i].name)) least = distance, best = i;
    }
    if (prefix)
        (void)snprintf(r.words, sizeof r.words, "%s%s is one, without its prefix", prefix, r.name);
    else if (least <= 3 + strlen(tensor->name) / 3)
        (void)snprintf(r.words, sizeof r.words, "the nearest one is %s", v->results[best].name);
    else
        (void)snprintf(r.words, sizeof r.words, "the model's trace has nothing like it");
    if (v->n == v->room && widen(&v->results, &v->room, v->n, sizeof *v->results, err) != TSAR_OK) return TSAR_ROOM;
    v->results[v->n++] = r;
    return TSAR_OK;
}

/* Appends the name to a list of names, in which the first few stand. */
static void name_one(char list[TSAR_NAME_LIST], size_t before, const char *name)
{
    const size_t used = strlen(list);
    if (before < NAMED) (void)snprintf(list + used, TSAR_NAME_LIST - used, "%s%.40s", used ? ", " : "", name);
}

/* Everything else in the file: names of the model's parts that the trace does not have are differences, the rest is left alone. */
static tsar_status judge_rest(verifier *v, tsar_verify_counts *counts, tsar_error *err)
{
    const size_t known = v->n;
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < tsar_file_count(v->file); i++) {
        const tsar_tensor *tensor = tsar_file_at(v->file, i);
        int ours = 0;
        for (int p = 0; p < TSAR_PARTS; p++) ours |= tsar_has_prefix(tensor->name, tsar_parts[p].prefix);
        if (v->seen[i]) continue;
        const size_t n = v->n;
        v->n = known; /* unknown names are nothing to suggest */
        const char *prefix = ours ? NULL : lacking_prefix(v, tensor->name);
        v->n = n;
        if (ours || prefix) {
            status = report_unknown(v, tensor, prefix, err);
            continue;
        }
        const size_t used = strlen(counts->ignored_names);
        if (counts->ignored++ < 6) (void)snprintf(counts->ignored_names + used, sizeof counts->ignored_names - used, "%s%.40s", used ? ", " : "", tensor->name);
    }
    return status;
}

/* ------------------------------------------------------------------------------------------------------------- verify */

/* Counts, marks the first difference, and reports everything in order. */
static tsar_status report_all(verifier *v, tsar_verify_counts *counts, tsar_comparison_fn report, void *context, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < v->n; i++) {
        tsar_comparison *r = &v->results[i];
        if (r->verdict == TSAR_MISSING && (is_inside(r->name) || is_input(r->name))) continue;
        r->first = tsar_verdict_is_difference(r->verdict, v->options->strict) && !counts->first[0];
        if (r->first) memcpy(counts->first, r->name, sizeof counts->first);
        if (r->verdict == TSAR_MISSING) name_one(counts->missing_names, counts->verdicts[TSAR_MISSING], r->name);
        counts->verdicts[r->verdict]++;
        counts->compared += r->verdict != TSAR_MISSING;
        if (report) status = report(context, r, err);
    }
    return status == TSAR_OK && counts->first[0] ? TSAR_DIFFERENT : status;
}

/* What the file's inputs leave to be wondered at: a prefix ends with the id whose output predicts the first code, boi (<soi>), img, or boi and two sizes. */
static void note_inputs(const tsar_config *c, const tsar_inputs *inputs, tsar_verify_counts *counts)
{
    const int64_t own = tsar_family_of(c)->boi, boi = own >= 0 ? own : c->boi;
    const size_t n = inputs->n_text;
    if (!inputs->text || boi < 0 || inputs->text[n - 1] == boi || inputs->text[n - 1] == c->img || (n >= 3 && inputs->text[n - 3] == boi)) return;
    (void)snprintf(counts->note, sizeof counts->note, "input.text ends with id %lld: a prefix ends with %s (id %lld), whose output predicts the first code",
                   (long long)inputs->text[n - 1], own >= 0 ? "<soi>" : "boi", (long long)boi);
}

static tsar_status keep_result(void *context, const tsar_comparison *r, tsar_error *err)
{
    verifier *v = context;
    const tsar_tensor *theirs = tsar_file_find(v->file, r->name);
    if (theirs) v->seen[theirs - tsar_file_at(v->file, 0)] = 1;
    if (v->n == v->room && widen(&v->results, &v->room, v->n, sizeof *v->results, err) != TSAR_OK) return TSAR_ROOM;
    v->results[v->n++] = *r;
    return TSAR_OK;
}

/* Of a group of decisions that differs: the narrower precision in which it would pass. */
static tsar_status keep_narrower(void *context, const tsar_comparison *r, tsar_error *err)
{
    verifier *v = context;
    (void)err;
    for (size_t i = v->first; i < v->n; i++)
        if (strcmp(v->results[i].name, r->name) == 0 && v->results[i].verdict == TSAR_DIFFERS && v->results[i].passes_in == TSAR_F64 &&
            r->verdict < TSAR_DIFFERS)
            v->results[i].passes_in = v->p;
    return TSAR_OK;
}

/* Codes alone do not tell their precision: those that differ as F64 are judged in each narrower one, until every group has one in which it passes. */
static tsar_status narrow_decisions(verifier *v, const tsar_prompt *prompt, tsar_error *err)
{
    static const tsar_dtype narrower[] = { TSAR_F32, TSAR_F16, TSAR_BF16 };
    tsar_verify_counts counts;
    tsar_status status = TSAR_OK;
    for (size_t k = 0; status == TSAR_OK && k < sizeof narrower / sizeof *narrower; k++) {
        int open = 0;
        for (size_t i = v->first; i < v->n; i++) open |= v->results[i].verdict == TSAR_DIFFERS && v->results[i].passes_in == TSAR_F64;
        if (!open) break;
        memset(&counts, 0, sizeof counts);
        v->p = narrower[k];
        status = tsar_judge_decisions(v->model, v->file, v->options, prompt, v->p, v->K, &counts, keep_narrower, v, err);
    }
    return status;
}

/* The decisions of a generation. Their precision is that of gpt.*, or of the logits where the file has no tensor of it. */
static tsar_status verify_decisions(verifier *v, tsar_verify_counts *counts, tsar_error *err)
{
    const tsar_prompt prompt = tsar_prompt_of(v->inputs);
    tsar_dtype p = v->options->precision;
    tsar_status status = TSAR_OK;
    if (p == TSAR_DTYPES) status = find_precision(v, held_name(v->file, "gpt.") ? "gpt." : "logits", &p, err);
    const int unknown = v->options->precision == TSAR_DTYPES && !held_name(v->file, "gpt.") && !tsar_file_find(v->file, "logits");
    if (unknown) p = TSAR_F64;
    v->prefix = "gpt.", v->K = 1, v->first = v->n;
    if (status == TSAR_OK) status = tsar_weights(&v->model->config, NULL, find_longest, v, err);
    if (status == TSAR_OK) status = tsar_judge_decisions(v->model, v->file, v->options, &prompt, p, v->K, counts, keep_result, v, err);
    return status == TSAR_OK && unknown && v->options->rtol < 0 ? narrow_decisions(v, &prompt, err) : status;
}

static tsar_status verify_file(verifier *v, tsar_inputs *inputs, tsar_verify_counts *counts, tsar_error *err)
{
    const tsar_sink sink = { .put = put_tensor, .context = v };
    int wanted = 0;
    v->seen = tsar_alloc(tsar_file_count(v->file), 1, "the list of tensors", err);
    tsar_status status = v->seen ? tsar_inputs_read(inputs, v->model, v->file, err) : TSAR_ROOM;
    const int decided = status == TSAR_OK && tsar_has_decisions(v->model, v->file) && tsar_has_prompt(&v->model->config, inputs);
    if (status == TSAR_OK) status = choose_parts(&v->model->config, inputs, v->file, decided, &wanted, err);
    for (size_t i = 0; i < tsar_file_count(v->file); i++) v->inside |= is_inside(tsar_file_at(v->file, i)->name);
    v->inputs = inputs, v->kind = JUDGED, v->p = TSAR_F64;
    if (status == TSAR_OK) status = tsar_emit_inputs(v->model, inputs, &sink, err);
    for (size_t i = 0; status == TSAR_OK && i < TSAR_PARTS; i++)
        if (wanted & tsar_parts[i].part) status = run_part(v, &tsar_parts[i], err);
    if (status == TSAR_OK && decided) status = verify_decisions(v, counts, err);
    if (status == TSAR_OK) status = judge_rest(v, counts, err);
    if (status == TSAR_OK) note_inputs(&v->model->config, inputs, counts);
    return status;
}

tsar_status tsar_verify(const tsar_model *model, const char *path, const tsar_verify_options *options, tsar_comparison_fn report, void *context,
                        tsar_verify_counts *counts, tsar_error *err)
{
    tsar_inputs inputs = { 0 };
    verifier v = { .model = model, .options = options };
    memset(counts, 0, sizeof *counts);
    tsar_status status = tsar_file_open_alone(&v.file, path, err);
    if (status == TSAR_OK) status = verify_file(&v, &inputs, counts, err);
    if (status == TSAR_OK) status = report_all(&v, counts, report, context, err);
    drop_noise(&v);
    tsar_free(v.noisy);
    tsar_free(v.seen);
    tsar_free(v.latent);
    tsar_free(v.results);
    tsar_inputs_close(&inputs);
    tsar_file_close(v.file);
    return status;
}
