/* Decoding verified (SPEC 10): every decision of another implementation's generation is made once more, with the file's own earlier codes. Its
 * logits are judged as
 * a tensor, its code as the argmax or the draw of its own logits; where another one comes out, the gap is held against what the rule lets pass. */
#include "verify.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LABELS, CODES, GROUPS };

typedef struct {
    const tsar_model *model;
    const tsar_verify_options *options;
    tsar_file *file;
    tsar_settings settings;
    tsar_dtype p;
    size_t K; /* the longest sum */

    int64_t *theirs[GROUPS], *step_of; /* [gh][gw] coarse labels (NULL: the model has none) and codes; [rows][columns], NULL: not in the file */
    const tsar_tensor *logits;         /* [n][s*s][V] of the file, or NULL */
    double *y, *noisy;                 /* the same, of tsar: in double; rounded to p (NULL: none) */
    int64_t *passes;                   /* [rows][columns]: step_of of tsar */

    int noise;         /* the run under way is the rounded one */
    float *fine_noisy; /* stage two's rounded logits, in the order of decisions */
    size_t n_fine, fine_room, fine_at;
    double *x, *limit, *chance; /* [K or V]: theirs; how far each logit may be off; probabilities */
    size_t *index;              /* [K or V] */
    tsar_comparison group[GROUPS];
    tsar_verify_counts *counts;
} decoder;

/* -------------------------------------------------------------------------------------------------- how near a decision was */

/* How far a mass M may be off where the logits are, in units of the distance |M - at|: M is the chance of the elements in front, of one that is on neither
 * side the element is counted behind. dM = (1 - M) sum over those in front of p e + M sum over the others of p e, e = limit / T. */
static double mass_slack(double M, double front, double behind) { return (1 - M) * front + M * behind; }

static double apart(double distance, double slack) { return distance <= 0 ? 0 : slack > 0 ? distance / slack : INFINITY; }

/* How near element i is to the edge of what top-k and top-p keep, in units of what the limits let pass; infinite if they are off. chance: after both. */
static double edge_margin(const decoder *v, const double *logits, const double *chance, size_t V, size_t i)
{
    const double T = fmax(v->settings.temperature, 1e-5);
    double nearest = INFINITY, total = 0, before = 0, front = 0, behind = 0;
    for (size_t j = 0; j < V; j++) { /* top-k and top-p alike: the nearest element on the other side */
        const double e = v->limit[j] / T, size = tsar_exp((logits[j] - logits[i]) / T);
        const int ahead = logits[j] > logits[i] || (logits[j] == logits[i] && j < i);
        if ((chance[j] > 0) != (chance[i] > 0)) nearest = fmin(nearest, apart(fabs(logits[j] - logits[i]), v->limit[i] + v->limit[j]));
        if (v->settings.top_k > 0 && chance[j] == 0 && chance[i] > 0) continue;
        total += size;
        if (ahead) before += size, front += size * e;
        if (!ahead) behind += size * e;
    }
    if (!(v->settings.top_p < 1) || !(total < INFINITY) || !(total > 0)) return nearest;
    const double M = before / total;
    return fmin(nearest, apart(fabs(M - v->settings.top_p), mass_slack(M, front / total, behind / total)));
}

/* Distance of u from the stretch of the running sum that belongs to `code`, in units of what the limits let pass. chance sums to 1 over V elements. */
static double draw_margin(const decoder *v, const double *chance, size_t V, double u, size_t code, double flips)
{
    const double T = fmax(v->settings.temperature, 1e-5);
    double at = 0, front = 0, all = 0;
    for (size_t j = 0; j < V; j++) all += chance[j] * v->limit[j] / T;
    for (size_t j = 0; j < code; j++) at += chance[j], front += chance[j] * v->limit[j] / T;
    if (u < at) return apart(at - u, mass_slack(at, front, all - front) + flips);
    at += chance[code], front += chance[code] * v->limit[code] / T;
    return u < at ? 0 : apart(u - at, mass_slack(at, front, all - front) + flips);
}

/* Two codes of a draw from `logits`: at most 1 is a near-tie. */
static double sampled_margin(const decoder *v, const tsar_decision *d, const double *logits, size_t ours, size_t theirs)
{
    double flips = 0, most = -INFINITY;
    size_t removed = 0;
    memcpy(v->chance, logits, d->V * sizeof *v->chance);
    tsar_probabilities(v->chance, d->V, &v->settings, v->index);
    const double kept = v->chance[theirs] > 0 ? 0 : edge_margin(v, logits, v->chance, d->V, theirs);
    if (v->options->other_random || kept > 1) return kept;
    const double edges = fmin(edge_margin(v, logits, v->chance, d->V, theirs), edge_margin(v, logits, v->chance, d->V, ours));
    if (edges <= 1) return edges;
    for (size_t j = 0; j < d->V; j++)
        if (!(v->chance[j] > 0) && logits[j] > most) most = logits[j], removed = j;
    for (size_t j = 0; j < d->V && most > -INFINITY; j++) /* what may come in or fall out moves every sum behind it */
        if (v->chance[j] > 0 && logits[j] - most <= v->limit[j] + v->limit[removed]) flips += v->chance[j];
    return draw_margin(v, v->chance, d->V, d->u, theirs, flips);
}

/* The test of an adaptive candidate: u before[c] against p[c], each off by its part of what the limits let pass; both codes replacements: infinite. */
static double accept_margin(const decoder *v, const tsar_decision *d, size_t ours, size_t theirs)
{
    const double T = fmax(v->settings.temperature, 1e-5);
    const size_t c = d->candidate;
    double all = 0;
    if (ours != c && theirs != c) return INFINITY;
    for (size_t j = 0; j < d->V; j++) all += d->p[j] * v->limit[j] / T;
    const double part = v->limit[c] / T + all, tested = d->u * d->before[c];
    return apart(fabs(tested - d->p[c]), part * (tested + d->p[c]));
}

/* ------------------------------------------------------------------------------------------------------------- one decision */

static void note_decision(decoder *v, const tsar_decision *d, size_t ours, int64_t theirs, double margin)
{
    tsar_comparison *r = &v->group[d->purpose == TSAR_FINE || !v->theirs[LABELS] ? CODES : LABELS];
    const tsar_verdict verdict = margin <= 1 ? TSAR_NEAR_TIE : TSAR_DIFFERS;
    const size_t at = d->y * v->model->config.grid_w + d->x, n = v->counts->n_decisions++;
    if (n < TSAR_DECISIONS)
        v->counts->decisions[n] = (tsar_decision_note){ d->y, d->x, d->pass, d->purpose == TSAR_FINE, (int64_t)ours, theirs, margin, verdict };
    if (r->bad++ == 0 || (verdict == TSAR_DIFFERS && r->verdict != TSAR_DIFFERS)) {
        r->first_bad = r->place = at, r->ours = (double)ours, r->theirs = (double)theirs;
        (void)snprintf(r->words, sizeof r->words, "first decided in pass %zu", d->pass);
    }
    if (margin > r->margin) r->margin = margin;
    if (verdict > r->verdict) r->verdict = verdict;
}

/* The rounded logits of a decision in v->x and how far each logit may be off in v->limit; a row of noise or, without one, what the precision alone says. */
static void set_limits(decoder *v, const tsar_decision *d, size_t row)
{
    const int fine = d->purpose == TSAR_FINE;
    tsar_stage s = { .rows = 1, .columns = d->V, .y = d->logits, .p = v->p, .K = v->K, .rtol = v->options->rtol };
    s.noisy = fine ? (const void *)(v->fine_noisy ? v->fine_noisy + v->fine_at : NULL) : (const void *)(v->noisy ? v->noisy + row * d->V : NULL);
    s.noisy_type = fine ? TSAR_F32 : TSAR_F64;
    if (!s.noisy) s.noisy = d->logits, s.noisy_type = TSAR_F64;
    tsar_limits(&s, v->limit);
}

static tsar_status judge_decision(decoder *v, const tsar_decision *d, size_t code, int64_t theirs, tsar_error *err)
{
    const size_t slots = v->model->config.shuffle * v->model->config.shuffle, row = d->token * slots + d->slot;
    const double *logits = d->logits;
    size_t ours = code, other = (size_t)theirs, j = 0;
    if (d->codes) {
        while (j < d->V && d->codes[j] != (size_t)theirs) j++;
        other = j;
        for (j = 0; j < d->V && d->codes[j] != code;) j++;
        ours = j;
    }
    if (theirs < 0 || other >= d->V) {
        note_decision(v, d, code, theirs, INFINITY);
        return TSAR_OK;
    }
    if (v->logits && d->purpose == TSAR_DRAW) { /* judged on their own logits */
        tsar_status status = tsar_file_read_f64(v->file, v->logits, row * d->V, d->V, v->x, err);
        if (status != TSAR_OK) return status;
        logits = v->x;
        ours = tsar_argmax(logits, d->V);
        if (!v->settings.greedy) {
            memcpy(v->chance, logits, d->V * sizeof *v->chance);
            tsar_probabilities(v->chance, d->V, &v->settings, v->index);
            ours = tsar_draw(v->chance, d->V, d->u);
        }
    }
    if (ours == other) return TSAR_OK;
    set_limits(v, d, row);
    const double margin = v->settings.greedy          ? apart(logits[ours] - logits[other], v->limit[ours] + v->limit[other])
                          : d->purpose == TSAR_ACCEPT ? accept_margin(v, d, ours, other)
                                                      : sampled_margin(v, d, logits, ours, other);
    if (v->options->other_random && margin == 0) return TSAR_OK;
    note_decision(v, d, d->codes && ours < d->V ? d->codes[ours] : ours, theirs, margin);
    return TSAR_OK;
}

static tsar_status keep_fine(decoder *v, const tsar_decision *d, tsar_error *err)
{
    if (v->n_fine + d->V > v->fine_room) {
        const size_t room = 2 * (v->n_fine + d->V);
        float *wider = tsar_alloc(room, sizeof *wider, "the rounded logits", err);
        if (!wider) return TSAR_ROOM;
        if (v->n_fine) memcpy(wider, v->fine_noisy, v->n_fine * sizeof *wider);
        tsar_free(v->fine_noisy);
        v->fine_noisy = wider, v->fine_room = room;
    }
    for (size_t j = 0; j < d->V; j++) v->fine_noisy[v->n_fine++] = (float)d->logits[j];
    return TSAR_OK;
}

/* The caller's word on a code: theirs. A candidate of the adaptive order is left to the rule until the pass in which the file says that it was decided. */
static tsar_status force(void *context, const tsar_decision *d, size_t *code, tsar_error *err)
{
    decoder *v = context;
    const size_t at = d->y * v->model->config.grid_w + d->x;
    const int fine = d->purpose == TSAR_FINE;
    const int64_t theirs = (fine || !v->theirs[LABELS] ? v->theirs[CODES] : v->theirs[LABELS])[at];
    const int final = d->settles || (d->purpose == TSAR_ACCEPT && v->step_of && v->step_of[d->token] == (int64_t)d->pass);
    tsar_status status = TSAR_OK;
    if (!final || (v->options->other_random && v->settings.order == TSAR_ZIPAR_ADAPTIVE && !d->settles)) return TSAR_OK;
    if (v->noise && fine) status = keep_fine(v, d, err);
    if (!v->noise) status = judge_decision(v, d, *code, theirs, err);
    if (!v->noise && fine) v->fine_at += d->V;
    if (theirs >= 0 && (uint64_t)theirs < (fine ? v->model->config.codebook_size : v->model->config.vocab)) *code = (size_t)theirs;
    return status;
}

/* ---------------------------------------------------------------------------------------------------------------- the file */

static tsar_status read_codes(decoder *v, const char *name, size_t rows, size_t columns, int64_t **out, tsar_error *err)
{
    const tsar_tensor *t = tsar_file_find(v->file, name);
    if (!t || tsar_dtype_is_float(t->dtype)) return TSAR_OK;
    if (t->rank != 2 || t->shape[0] != rows || t->shape[1] != columns) {
        char shape[64];
        return tsar_fail(err, TSAR_INPUT, "%s: %s has the shape %s, the model's is [%zu, %zu]", tsar_file_path(v->file), name,
                         tsar_shape_text(shape, sizeof shape, t->rank, t->shape), rows, columns);
    }
    *out = tsar_alloc((size_t)t->count, sizeof **out, name, err);
    return *out ? tsar_file_read_i64(v->file, t, 0, (size_t)t->count, *out, err) : TSAR_ROOM;
}

static tsar_status open_decoder(decoder *v, tsar_error *err)
{
    const tsar_config *c = &v->model->config;
    const size_t n = c->tokens * c->shuffle * c->shuffle, widest = c->vocab > c->codebook_size ? c->vocab : c->codebook_size;
    tsar_status status = read_codes(v, "codes", c->grid_h, c->grid_w, &v->theirs[CODES], err);
    if (status == TSAR_OK && c->n_coarse) status = read_codes(v, "coarse", c->grid_h, c->grid_w, &v->theirs[LABELS], err);
    if (status == TSAR_OK) status = read_codes(v, "step_of", c->rows, c->columns, &v->step_of, err);
    if (status == TSAR_OK && c->n_coarse && !v->theirs[LABELS]) {
        v->theirs[LABELS] = tsar_alloc(c->grid_h * c->grid_w, sizeof **v->theirs, "coarse labels", err);
        for (size_t i = 0; v->theirs[LABELS] && i < c->grid_h * c->grid_w; i++) {
            const int64_t code = v->theirs[CODES][i];
            v->theirs[LABELS][i] = code >= 0 && (uint64_t)code < c->codebook_size ? v->model->cluster_of[code] : -1;
        }
        if (!v->theirs[LABELS]) status = TSAR_ROOM;
    }
    if (status != TSAR_OK) return status;
    v->x = tsar_alloc(widest, sizeof *v->x, "logits", err);
    v->limit = tsar_alloc(widest, sizeof *v->limit, "logits", err);
    v->chance = tsar_alloc(widest, sizeof *v->chance, "probabilities", err);
    v->index = tsar_alloc(widest, sizeof *v->index, "probabilities", err);
    v->passes = tsar_alloc(c->tokens, sizeof *v->passes, "step_of", err);
    v->y = tsar_alloc(tsar_product(n, c->vocab), sizeof *v->y, "logits", err);
    return v->x && v->limit && v->chance && v->index && v->passes && v->y ? TSAR_OK : TSAR_ROOM;
}

static void close_decoder(decoder *v)
{
    void *owned[] = { v->theirs[CODES], v->theirs[LABELS], v->step_of, v->x, v->limit, v->chance, v->index, v->passes, v->y, v->noisy, v->fine_noisy };
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) tsar_free(owned[i]);
}

/* One generation in which the file has the last word; its logits in *logits. */
static tsar_status run(decoder *v, const tsar_model *model, const tsar_prompt *prompt, double *logits, tsar_error *err)
{
    const tsar_config *c = &v->model->config;
    int64_t *codes = tsar_alloc(c->grid_h * c->grid_w, 2 * sizeof *codes, "codes", err);
    tsar_result result = { .codes = codes, .coarse = codes && c->n_coarse ? codes + c->grid_h * c->grid_w : NULL, .step_of = v->passes, .logits = logits };
    const tsar_status status = codes ? tsar_generate(model, prompt, &v->settings, 1, &result, tsar_watch_passes, (void *)model, err) : TSAR_ROOM;
    tsar_free(codes);
    return status;
}

static tsar_status noise_run(decoder *v, const tsar_prompt *prompt, tsar_error *err)
{
    const tsar_config *c = &v->model->config;
    tsar_model *rounded = NULL;
    if (v->p == TSAR_F64 || v->options->rtol >= 0) return TSAR_OK;
    const size_t count = tsar_product(c->tokens * c->shuffle * c->shuffle, c->vocab);
    v->noisy = tsar_alloc(count, sizeof *v->noisy, "the rounded logits", err);
    tsar_status status = v->noisy ? tsar_rounded_open(&rounded, v->model, TSAR_PART_GPT | TSAR_PART_FINE, v->p, err) : TSAR_ROOM;
    v->noise = 1;
    if (status == TSAR_OK) status = run(v, rounded, prompt, v->noisy, err);
    if (status == TSAR_OK) tsar_round_to(rounded, v->noisy, count);
    tsar_rounded_close(rounded, v->model);
    v->noise = 0;
    return status;
}

/* --------------------------------------------------------------------------------------------------------------- the groups */

static tsar_comparison group_of(const decoder *v, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape)
{
    const tsar_tensor *theirs = tsar_file_find(v->file, name);
    tsar_comparison r = { .verdict = theirs ? TSAR_IDENTICAL : TSAR_MISSING, .our_dtype = dtype, .our_rank = rank, .precision = v->p, .from_inputs = -1 };
    (void)snprintf(r.name, sizeof r.name, "%s", name);
    memcpy(r.our_shape, shape, rank * sizeof *shape);
    r.dtype = theirs ? theirs->dtype : dtype, r.rank = theirs ? theirs->rank : rank;
    memcpy(r.shape, theirs ? theirs->shape : shape, r.rank * sizeof *shape);
    return r;
}

/* The logits as one tensor: a row is a decision's. */
static tsar_status judge_logits(decoder *v, tsar_comparison *r, tsar_error *err)
{
    const size_t V = v->model->config.vocab, rows = v->model->config.tokens * v->model->config.shuffle * v->model->config.shuffle;
    tsar_stage s = { .rows = rows, .columns = V, .y = v->y, .noisy = v->noisy, .noisy_type = TSAR_F64, .p = v->p, .K = v->K, .rtol = v->options->rtol };
    int fits = r->rank == 3;
    for (size_t i = 0; fits && i < 3; i++) fits = r->shape[i] == r->our_shape[i];
    if (!fits || !tsar_dtype_is_float(r->dtype)) {
        r->verdict = TSAR_MISSHAPEN;
        return TSAR_OK;
    }
    double *x = tsar_alloc(rows, V * sizeof *x, "logits", err), *share = tsar_alloc(V, sizeof *share, "logits", err);
    tsar_status status = x && share ? tsar_file_read_f64(v->file, v->logits, 0, v->logits->count, x, err) : TSAR_ROOM;
    if (status == TSAR_OK && v->noisy) tsar_column_shares(&s, share), s.share = share;
    s.x = x;
    if (status == TSAR_OK) tsar_judge(&s, r);
    tsar_free(share);
    tsar_free(x);
    return status;
}

static void judge_passes(const decoder *v, tsar_comparison *r)
{
    for (size_t i = 0; i < v->model->config.tokens; i++) {
        if (v->step_of[i] == v->passes[i]) continue;
        if (r->bad++ == 0) r->first_bad = r->place = i, r->ours = (double)v->passes[i], r->theirs = (double)v->step_of[i];
        r->verdict = TSAR_DIFFERS, r->margin = INFINITY;
    }
}

int tsar_has_decisions(const tsar_model *model, const tsar_file *file)
{
    const tsar_tensor *codes = tsar_file_find(file, "codes");
    return model->config.has_gpt && codes && !tsar_dtype_is_float(codes->dtype);
}

tsar_status tsar_judge_decisions(const tsar_model *model, tsar_file *file, const tsar_verify_options *options, const tsar_prompt *prompt, tsar_dtype p,
                                 size_t K, tsar_verify_counts *counts, tsar_keep_fn keep, void *context, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const size_t grid[2] = { c->grid_h, c->grid_w }, passes[2] = { c->rows, c->columns }, logits[3] = { c->tokens, c->shuffle * c->shuffle, c->vocab };
    decoder v = { .model = model, .options = options, .file = file, .p = p, .K = K, .counts = counts };
    v.settings = options->settings ? *options->settings : tsar_settings_default(model);
    v.settings.decide = force, v.settings.decide_context = &v;
    tsar_comparison tensor = group_of(&v, "logits", TSAR_F64, 3, logits), step = group_of(&v, "step_of", TSAR_I64, 2, passes);
    v.group[LABELS] = group_of(&v, "coarse", TSAR_I64, 2, grid), v.group[CODES] = group_of(&v, "codes", TSAR_I64, 2, grid);
    v.group[LABELS].verdict = TSAR_IDENTICAL;
    tsar_status status = open_decoder(&v, err);
    const tsar_tensor *theirs = tsar_file_find(file, "logits");
    if (theirs && tsar_dtype_is_float(theirs->dtype) && theirs->count == tsar_product(logits[0] * logits[1], logits[2])) v.logits = theirs;
    if (status == TSAR_OK) status = noise_run(&v, prompt, err);
    if (status == TSAR_OK) status = run(&v, model, prompt, v.y, err);
    if (status == TSAR_OK && theirs) status = judge_logits(&v, &tensor, err);
    if (status == TSAR_OK && v.step_of) judge_passes(&v, &step);
    if (status == TSAR_OK && theirs) status = keep(context, &tensor, err);
    if (status == TSAR_OK && (tsar_file_find(file, "coarse") || v.group[LABELS].bad)) status = keep(context, &v.group[LABELS], err);
    if (status == TSAR_OK) status = keep(context, &v.group[CODES], err);
    if (status == TSAR_OK && v.step_of) status = keep(context, &step, err);
    close_decoder(&v);
    return status;
}
