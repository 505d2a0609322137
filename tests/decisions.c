/* Decoding verified (SPEC 10): every decision of another implementation's generation is made once more, with the file's own earlier codes. Its
 * logits are judged as
 * a tensor, its code as the argmax or the draw of its own logits; where another one comes out, the gap is held against what the rule lets pass. */
#include "verify.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LABELS, CODES, GROUPS };
enum { BEFORE, NOW };                                /* two distributions that follow one another */
typedef enum { OPEN, KEPT, COMPLETE } candidate_end; /* tested once more; final because it came through its test, or because the row above is complete */

typedef struct {
    double key, low, high;
} ranked;

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
    const tsar_model *rounded; /* in it */
    float *aside;              /* rounded logits that the result does not keep, of candidates and of stage two, in the order of decisions */
    size_t n_aside, aside_room, aside_at;
    double *x, *limit, *chance; /* [K or V]: theirs; how far each logit may be off; probabilities */
    size_t *index;              /* [K or V] */

    double *trail; /* the candidate under way: [evaluations][s*s][2 V + 2] logits, how far each may be off, the random numbers u and replace */
    size_t n_trail, trail_room;
    size_t *own;                                         /* [s*s] what tsar's own path makes of it */
    int kept, strayed;                                   /* that path came through this test; through one before the pass that the file tells */
    double *low[2], *high[2], *least, *most, *gap[2];    /* [V] bounds of probabilities before and now; of logits; of what is drawn from */
    ranked *order;                                       /* [V] */
    unsigned char *possible, *drawn, *certain, *changes; /* [V]; changes [tokens + 1] */
    double *pass_margin;                                 /* [rows][columns]; 0: tsar's own path ends in the pass that the file tells */
    tsar_comparison group[GROUPS];
    tsar_verify_counts *counts;
} replay;

/* ------------------------------------------------------------------------------------------------------------ what may be drawn
 *
 * Probabilities between bounds: of each weight by its limit, of what top-k and top-p certainly and possibly keep. u may draw y where it may fall on its stretch
 * of the running sum. */

static int descending(const void *a, const void *b)
{
    const double x = ((const ranked *)a)->key, y = ((const ranked *)b)->key;
    return (x < y) - (x > y);
}

/* v->order: keys in descending order, each with the sums of low and high up to it. */
static void rank_by(replay *v, const double *key, const double *low, const double *high, size_t V)
{
    for (size_t j = 0; j < V; j++) v->order[j] = (ranked){ key[j], low[j], high[j] };
    qsort(v->order, V, sizeof *v->order, descending);
    for (size_t j = 1; j < V; j++) v->order[j].low += v->order[j - 1].low, v->order[j].high += v->order[j - 1].high;
}

/* Those sums over the keys above x, or not below it. */
static ranked sums_above(const replay *v, size_t V, double x, int equal)
{
    size_t first = 0, n = V;
    while (n > 0) {
        const size_t half = n / 2, at = first + half;
        if (v->order[at].key > x || (equal && v->order[at].key == x))
            first = at + 1, n -= half + 1;
        else
            n = half;
    }
    return first > 0 ? v->order[first - 1] : (ranked){ 0, 0, 0 };
}

/* Top-k: what k others certainly exceed is cut away (high = 0); what fewer than k others may exceed is certainly kept, all else may go (low = 0). */
static void cut_top_k(replay *v, size_t k, double *low, double *high, size_t V)
{
    if (k == 0 || k >= V) return;
    rank_by(v, v->least, low, high, V);
    const double out = v->order[k - 1].key;
    rank_by(v, v->most, low, high, V);
    for (size_t j = 0; j < V; j++) {
        const double in = v->order[v->most[j] >= v->order[k - 1].key ? k : k - 1].key; /* the k-th of the others */
        if (v->most[j] < out) high[j] = 0;
        if (v->least[j] < in) low[j] = 0;
    }
}

/* Top-p alike, by the least and the largest mass in front. */
static void cut_top_p(replay *v, double p, double *low, double *high, size_t V)
{
    if (!(p < 1)) return;
    rank_by(v, v->most, low, high, V);
    for (size_t j = 0; j < V; j++) {
        const ranked ahead = sums_above(v, V, v->least[j], 1);
        const double front = fmax(0, ahead.high - high[j]), rest = fmax(0, v->order[V - 1].low - ahead.low) + low[j];
        v->certain[j] = low[j] > 0 && front <= p * (front + rest);
    }
    rank_by(v, v->least, low, high, V);
    for (size_t j = 0; j < V; j++) {
        const ranked ahead = sums_above(v, V, v->most[j], 0);
        const double rest = fmax(0, v->order[V - 1].high - ahead.high);
        v->drawn[j] = ahead.low <= p * (ahead.low + rest); /* may be kept */
    }
    for (size_t j = 0; j < V; j++) {
        if (!v->certain[j]) low[j] = 0;
        if (!v->drawn[j]) high[j] = 0;
    }
}

/* Bounds of the weights exp((x - max) / T) that are left of logits [V] which may be off by scale * limit [V]; greedy: 1 for the maximum. */
static void bound_weights(replay *v, const double *logits, const double *limit, double scale, double *low, double *high, size_t V)
{
    enum { WIDEST = 600 }; /* exp of it, V times, is a number */
    const double T = v->settings.greedy ? 1 : fmax(v->settings.temperature, 1e-5), top = logits[tsar_argmax(logits, V)];
    for (size_t j = 0; j < V; j++) {
        v->least[j] = (logits[j] - scale * limit[j] - top) / T, v->most[j] = (logits[j] + scale * limit[j] - top) / T;
        low[j] = v->settings.greedy ? 1 : tsar_exp(fmax(-WIDEST, fmin(WIDEST, v->least[j])));
        high[j] = v->settings.greedy ? 1 : tsar_exp(fmax(-WIDEST, fmin(WIDEST, v->most[j])));
    }
    cut_top_k(v, v->settings.greedy ? 1 : v->settings.top_k, low, high, V);
    if (!v->settings.greedy) cut_top_p(v, v->settings.top_p, low, high, V);
}

/* Of the weights to those of the probabilities: a weight by itself and the others at their other end. */
static void bound_probabilities(double *low, double *high, size_t V)
{
    double least = 0, most = 0;
    for (size_t j = 0; j < V; j++) least += low[j], most += high[j];
    for (size_t j = 0; j < V; j++) {
        const double l = low[j] > 0 ? low[j] / (low[j] + fmax(0, most - high[j])) : 0, h = high[j] > 0 ? high[j] / (high[j] + fmax(0, least - low[j])) : 0;
        low[j] = l, high[j] = h;
    }
}

/* Which indices u may draw from weights within bounds. */
static void draw_any(const double *low, const double *high, size_t V, double u, unsigned char *set)
{
    double least = 0, most = 0, front_low = 0, front_high = 0;
    for (size_t j = 0; j < V; j++) least += low[j], most += high[j];
    for (size_t j = 0; j < V; j++) {
        const double end = front_high + high[j], behind_high = fmax(0, most - end), behind_low = fmax(0, least - front_low - low[j]);
        set[j] = high[j] > 0 && front_low <= u * (front_low + high[j] + behind_high) && u * (end + behind_low) < end;
        front_low += low[j], front_high = end;
    }
}

/* -------------------------------------------------------------------------------------------------- how near a decision was */

/* How far a mass M may be off where the logits are, in units of the distance |M - at|: M is the chance of the elements in front, of one that is on neither
 * side the element is counted behind. dM = (1 - M) sum over those in front of p e + M sum over the others of p e, e = limit / T. */
static double mass_slack(double M, double front, double behind) { return (1 - M) * front + M * behind; }

static double apart(double distance, double slack) { return distance <= 0 ? 0 : slack > 0 ? distance / slack : INFINITY; }

/* How near element i is to the edge of what top-k and top-p keep, in units of what the limits let pass; infinite if they are off. chance: after both. */
static double edge_margin(const replay *v, const double *logits, const double *chance, size_t V, size_t i)
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

/* What is asked: whether `theirs` is drawn from logits [V] by u; or whether a candidate may end like this with code `theirs` at `slot`, or any (-1). */
typedef struct {
    size_t V;
    const double *logits;
    double u;
    size_t last, slot;
    candidate_end end;
    int64_t theirs;
} outcome;

/* The least factor of the limits with which it is possible; infinite if there is none. */
static double least_factor(replay *v, const outcome *o, int (*possible)(replay *v, const outcome *o, double scale))
{
    enum { HALVINGS = 12 };
    const double wider = 16, farthest = 1e15;
    double low = 0, high = 1;
    while (high <= farthest && !possible(v, o, high)) low = high, high *= wider;
    if (high > farthest) return INFINITY;
    for (int i = 0; i < HALVINGS; i++) {
        const double middle = (low + high) / 2;
        if (possible(v, o, middle))
            high = middle;
        else
            low = middle;
    }
    return high;
}

static int may_draw(replay *v, const outcome *o, double scale)
{
    bound_weights(v, o->logits, v->limit, scale, v->low[NOW], v->high[NOW], o->V);
    draw_any(v->low[NOW], v->high[NOW], o->V, o->u, v->possible);
    return v->possible[o->theirs];
}

/* Two codes of a draw from `logits`: at most 1 is a near-tie. */
static double sampled_margin(replay *v, const tsar_decision *d, const double *logits, size_t ours, size_t theirs)
{
    const outcome o = { .V = d->V, .logits = logits, .u = d->u, .theirs = (int64_t)theirs };
    memcpy(v->chance, logits, d->V * sizeof *v->chance);
    tsar_probabilities(v->chance, d->V, &v->settings, v->index);
    const double kept = v->chance[theirs] > 0 ? 0 : edge_margin(v, logits, v->chance, d->V, theirs);
    if (v->options->other_random || kept > 1) return kept;
    const double edges = fmin(edge_margin(v, logits, v->chance, d->V, theirs), edge_margin(v, logits, v->chance, d->V, ours));
    return edges <= 1 ? edges : least_factor(v, &o, may_draw);
}

/* ------------------------------------------------------------------------------------------------------------- one decision */

static void note_decision(replay *v, const tsar_decision *d, size_t ours, int64_t theirs, double margin)
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

/* Whether an adaptive candidate (SPEC 6) is drawn or tested. */
static int is_candidate(const replay *v, const tsar_decision *d)
{
    return v->settings.order == TSAR_ZIPAR_ADAPTIVE && (d->purpose == TSAR_ACCEPT || !d->settles);
}

/* How far each logit may be off, in v->limit; a row of noise or, without one, what the precision alone says. */
static void set_limits(replay *v, const tsar_decision *d, size_t row)
{
    const int aside = d->purpose == TSAR_FINE || (v->step_of && is_candidate(v, d));
    tsar_stage s = { .rows = 1, .columns = d->V, .y = d->logits, .p = v->p, .K = v->K, .rtol = v->options->rtol };
    s.noisy = aside                             ? (const void *)(v->aside && v->aside_at + d->V <= v->n_aside ? v->aside + v->aside_at : NULL)
              : v->noisy && !is_candidate(v, d) ? (const void *)(v->noisy + row * d->V)
                                                : NULL;
    s.noisy_type = aside ? TSAR_F32 : TSAR_F64;
    if (!s.noisy) s.noisy = d->logits, s.noisy_type = TSAR_F64;
    tsar_limits(&s, v->limit);
}

static tsar_status judge_decision(replay *v, const tsar_decision *d, size_t code, int64_t theirs, tsar_error *err)
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
    const double margin =
        v->settings.greedy ? apart(logits[ours] - logits[other], v->limit[ours] + v->limit[other]) : sampled_margin(v, d, logits, ours, other);
    if (v->options->other_random && margin == 0) return TSAR_OK;
    note_decision(v, d, d->codes && ours < d->V ? d->codes[ours] : ours, theirs, margin);
    return TSAR_OK;
}

static tsar_status keep_aside(replay *v, const tsar_decision *d, tsar_error *err)
{
    if (v->n_aside + d->V > v->aside_room) {
        const size_t room = 2 * (v->n_aside + d->V);
        float *wider = tsar_alloc(room, sizeof *wider, "the rounded logits", err);
        if (!wider) return TSAR_ROOM;
        if (v->n_aside) memcpy(wider, v->aside, v->n_aside * sizeof *wider);
        tsar_free(v->aside);
        v->aside = wider, v->aside_room = room;
    }
    memcpy(v->x, d->logits, d->V * sizeof *v->x);
    if (d->purpose != TSAR_FINE) tsar_round_to(v->rounded, v->x, d->V); /* guidance is in double */
    for (size_t j = 0; j < d->V; j++) v->aside[v->n_aside++] = (float)v->x[j];
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------- candidates of the adaptive order
 *
 * What a candidate is drawn from and tested against does not depend on it: it is fed only when it is final. So the codes and passes that logits within
 * their limits allow are found by a walk over its evaluations, in which the set of possible codes stands for the code:
 *     draw     y is possible    if u may fall on its stretch of the running sum
 *     test     x may be kept    if u min p(x) < max q(x)
 *              it may be rejected     if u max p(x) >= min q(x), and then y may follow where `replace` may fall on it in max(0, q - p)
 * The margin is the least factor of the limits with which the file's code is possible. */

/* One test of a code out of v->possible, which becomes the codes after it. alone: a token of one code, of which one that is kept would be final. Tells whether
 * the code may change. */
static int test_any(replay *v, size_t V, const double *random, candidate_end end, int alone)
{
    const double *p_low = v->low[BEFORE], *p_high = v->high[BEFORE], *q_low = v->low[NOW], *q_high = v->high[NOW];
    size_t rejected = 0;
    for (size_t j = 0; j < V; j++) v->gap[0][j] = fmax(0, q_low[j] - p_high[j]), v->gap[1][j] = fmax(0, q_high[j] - p_low[j]);
    draw_any(v->gap[0], v->gap[1], V, random[1], v->drawn);
    for (size_t j = 0; j < V; j++) {
        v->certain[j] = v->possible[j] && random[0] * p_high[j] >= q_low[j]; /* may be rejected */
        rejected += v->certain[j];
    }
    for (size_t j = 0; j < V; j++) {
        const int kept = v->possible[j] && random[0] * p_low[j] < q_high[j], redrawn = v->drawn[j] && rejected > v->certain[j];
        v->possible[j] = (unsigned char)(end == KEPT ? kept : (kept && !(end == OPEN && alone)) || redrawn);
    }
    return rejected > 0;
}

static size_t slots_of(const replay *v) { return v->model->config.shuffle * v->model->config.shuffle; }

/* The walk of one code to evaluation `last`; v->possible holds the codes there. */
static void walk(replay *v, size_t V, size_t slot, double scale, size_t last, candidate_end end)
{
    for (size_t e = 0; e <= last; e++) {
        const double *logits = v->trail + (e * slots_of(v) + slot) * (2 * V + 2);
        double *low = v->low[BEFORE], *high = v->high[BEFORE];
        v->low[BEFORE] = v->low[NOW], v->high[BEFORE] = v->high[NOW], v->low[NOW] = low, v->high[NOW] = high;
        bound_weights(v, logits, logits + V, scale, low, high, V);
        if (e == 0) draw_any(low, high, V, logits[2 * V], v->possible);
        bound_probabilities(low, high, V);
        if (e > 0 && test_any(v, V, logits + 2 * V, e < last ? OPEN : end, slots_of(v) == 1)) v->changes[e] = 1;
    }
}

/* Whether a token may end like this with limits times `scale`, with code `theirs` at `slot`; of every code at each slot if theirs < 0. */
static int may_end(replay *v, const outcome *o, double scale)
{
    const size_t V = o->V, last = o->last;
    int found = o->theirs < 0;
    memset(v->changes, 0, last + 1);
    for (size_t k = 0; k < slots_of(v); k++) {
        size_t n = 0;
        walk(v, V, k, scale, last, o->end);
        for (size_t j = 0; j < V; j++) n += v->possible[j];
        if (n == 0) return 0;
        if (k == o->slot && o->theirs >= 0) found = v->possible[o->theirs];
    }
    for (size_t e = 1; e < last + (o->end == OPEN); e++)
        if (!v->changes[e]) return 0; /* all kept, so final before */
    return found;
}

static double end_margin(replay *v, size_t V, size_t last, candidate_end end, size_t slot, int64_t theirs)
{
    const outcome o = { .V = V, .last = last, .end = end, .slot = slot, .theirs = theirs };
    return theirs >= 0 && (uint64_t)theirs >= V ? INFINITY : least_factor(v, &o, may_end);
}

/* A file without passes: theirs may also have been final before, or become so later. */
static double any_margin(replay *v, size_t V, size_t last, candidate_end end, size_t slot, int64_t theirs)
{
    double margin = end_margin(v, V, last, end, slot, theirs);
    for (size_t e = 1; e < last; e++) margin = fmin(margin, end_margin(v, V, e, KEPT, slot, theirs));
    return end == KEPT && theirs >= 0 && (uint64_t)theirs < V ? fmin(margin, end_margin(v, V, last, OPEN, slot, -1)) : margin;
}

/* A token that became final with `d`, the decision of its last code. */
static void judge_candidate(replay *v, const tsar_decision *d)
{
    const tsar_config *c = &v->model->config;
    const candidate_end end = d->settles ? COMPLETE : KEPT;
    const size_t last = v->n_trail / slots_of(v) - 1;
    const int exact = !v->strayed && (d->settles || v->kept);
    double pass = 0;
    if (!exact) pass = end_margin(v, d->V, last, end, 0, -1);
    v->pass_margin[d->token] = pass;
    for (size_t k = 0; pass <= 1 && k < slots_of(v); k++) {
        tsar_decision one = *d;
        one.slot = k, one.y += k / c->shuffle, one.y -= d->slot / c->shuffle, one.x += k % c->shuffle, one.x -= d->slot % c->shuffle;
        const int64_t theirs = (v->theirs[LABELS] ? v->theirs[LABELS] : v->theirs[CODES])[one.y * c->grid_w + one.x];
        if (exact && theirs == (int64_t)v->own[k]) continue;
        const double margin = theirs < 0 ? INFINITY : v->step_of ? end_margin(v, d->V, last, end, k, theirs) : any_margin(v, d->V, last, end, k, theirs);
        if (exact || margin > pass) note_decision(v, &one, v->own[k], theirs, margin);
    }
}

/* One evaluation of one code into the trail; tsar's own path beside it. */
static tsar_status note_evaluation(replay *v, const tsar_decision *d, size_t code, tsar_error *err)
{
    const size_t entry = 2 * d->V + 2;
    if (d->purpose == TSAR_DRAW && d->slot == 0) v->n_trail = 0, v->strayed = 0;
    if (v->n_trail == v->trail_room) {
        const size_t room = 2 * v->trail_room + 4 * slots_of(v);
        double *wider = tsar_alloc(room, tsar_product(entry, sizeof *wider), "candidates", err);
        if (!wider) return TSAR_ROOM;
        if (v->n_trail) memcpy(wider, v->trail, v->n_trail * entry * sizeof *wider);
        tsar_free(v->trail);
        v->trail = wider, v->trail_room = room;
    }
    double *logits = v->trail + v->n_trail++ * entry;
    set_limits(v, d, d->token * slots_of(v) + d->slot);
    memcpy(logits, d->logits, d->V * sizeof *logits);
    memcpy(logits + d->V, v->limit, d->V * sizeof *logits);
    logits[2 * d->V] = d->u, logits[2 * d->V + 1] = d->purpose == TSAR_ACCEPT ? d->replace : 0;
    if (d->slot == 0) v->kept = d->purpose == TSAR_ACCEPT;
    if (d->purpose == TSAR_ACCEPT && !v->settings.greedy) code = tsar_adapt(v->own[d->slot], d->before, d->p, v->chance, d->V, d->u, d->replace);
    if (d->purpose == TSAR_ACCEPT && code != v->own[d->slot]) v->kept = 0;
    v->own[d->slot] = code;
    return TSAR_OK;
}

/* The code with which a candidate becomes final in the pass that the file tells: theirs in that pass and in the one before, and by turns another one earlier,
 * so that it comes through no test. Without passes the rule has its way. */
static size_t steer(const replay *v, const tsar_decision *d, int64_t theirs, size_t code)
{
    const int64_t pass = (int64_t)d->pass, final = v->step_of ? v->step_of[d->token] : pass;
    const size_t base = theirs >= 0 && (uint64_t)theirs < d->V ? (size_t)theirs : 0;
    if (!v->step_of && !d->settles && !v->options->other_random) return code;
    return !d->settles && final > pass && (final - pass - 1) % 2 ? (base + 1) % d->V : base;
}

static tsar_status follow(replay *v, const tsar_decision *d, int64_t theirs, size_t *code, tsar_error *err)
{
    const int ends = d->slot + 1 == slots_of(v), told = v->step_of && v->step_of[d->token] == (int64_t)d->pass;
    tsar_status status = TSAR_OK;
    if (v->noise && v->step_of) status = keep_aside(v, d, err);
    if (!v->noise && !v->options->other_random) {
        status = note_evaluation(v, d, *code, err);
        if (status == TSAR_OK && ends && (v->step_of ? told : d->settles || v->kept)) judge_candidate(v, d);
        if (ends && v->kept) v->strayed = 1;
    }
    if (!v->noise && v->step_of) v->aside_at += d->V;
    *code = steer(v, d, theirs, *code);
    return status;
}

/* The caller's word on a code: theirs. */
static tsar_status force(void *context, const tsar_decision *d, size_t *code, tsar_error *err)
{
    replay *v = context;
    const size_t at = d->y * v->model->config.grid_w + d->x;
    const int fine = d->purpose == TSAR_FINE;
    const int64_t theirs = (fine || !v->theirs[LABELS] ? v->theirs[CODES] : v->theirs[LABELS])[at];
    tsar_status status = TSAR_OK;
    if (is_candidate(v, d)) return follow(v, d, theirs, code, err);
    if (v->noise && fine) status = keep_aside(v, d, err);
    if (!v->noise) status = judge_decision(v, d, *code, theirs, err);
    if (!v->noise && fine) v->aside_at += d->V;
    if (theirs >= 0 && (uint64_t)theirs < (fine ? v->model->config.codebook_size : v->model->config.vocab)) *code = (size_t)theirs;
    return status;
}

/* ---------------------------------------------------------------------------------------------------------------- the file */

static tsar_status read_codes(replay *v, const char *name, size_t rows, size_t columns, int64_t **out, tsar_error *err)
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

static tsar_status open_bounds(replay *v, size_t V, tsar_error *err)
{
    double **bounds[] = { &v->low[0], &v->low[1], &v->high[0], &v->high[1], &v->least, &v->most, &v->gap[0], &v->gap[1] };
    unsigned char **sets[] = { &v->possible, &v->drawn, &v->certain };
    int all = 1;
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) all &= (*bounds[i] = tsar_alloc(V, sizeof **bounds[i], "candidates", err)) != NULL;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) all &= (*sets[i] = tsar_alloc(V, 1, "candidates", err)) != NULL;
    v->changes = tsar_alloc(v->model->config.tokens + 1, 1, "candidates", err);
    v->order = tsar_alloc(V, sizeof *v->order, "candidates", err);
    v->own = tsar_alloc(v->model->config.shuffle * v->model->config.shuffle, sizeof *v->own, "candidates", err);
    return all && v->changes && v->order && v->own ? TSAR_OK : TSAR_ROOM;
}

static tsar_status open_replay(replay *v, tsar_error *err)
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
    v->pass_margin = tsar_alloc(c->tokens, sizeof *v->pass_margin, "step_of", err);
    if (!(v->x && v->limit && v->chance && v->index && v->passes && v->y && v->pass_margin)) return TSAR_ROOM;
    return open_bounds(v, widest, err);
}

static void close_replay(replay *v)
{
    void *owned[] = { v->theirs[CODES], v->theirs[LABELS], v->step_of, v->x,     v->limit,    v->chance, v->index,   v->passes,  v->y,
                      v->noisy,         v->aside,          v->trail,   v->own,   v->low[0],   v->low[1], v->high[0], v->high[1], v->least,
                      v->most,          v->gap[0],         v->gap[1],  v->order, v->possible, v->drawn,  v->certain, v->changes, v->pass_margin };
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) tsar_free(owned[i]);
}

/* One generation in which the file has the last word; its logits in *logits. */
static tsar_status run(replay *v, const tsar_model *model, const tsar_prompt *prompt, double *logits, tsar_error *err)
{
    const tsar_config *c = &v->model->config;
    int64_t *codes = tsar_alloc(c->grid_h * c->grid_w, 2 * sizeof *codes, "codes", err);
    tsar_result result = { .codes = codes, .coarse = codes && c->n_coarse ? codes + c->grid_h * c->grid_w : NULL, .step_of = v->passes, .logits = logits };
    const tsar_status status = codes ? tsar_generate(model, prompt, &v->settings, 1, &result, tsar_watch_passes, (void *)model, err) : TSAR_ROOM;
    tsar_free(codes);
    return status;
}

static tsar_status noise_run(replay *v, const tsar_prompt *prompt, tsar_error *err)
{
    const tsar_config *c = &v->model->config;
    tsar_model *rounded = NULL;
    if (v->p == TSAR_F64 || v->options->rtol >= 0) return TSAR_OK;
    const size_t count = tsar_product(c->tokens * c->shuffle * c->shuffle, c->vocab);
    v->noisy = tsar_alloc(count, sizeof *v->noisy, "the rounded logits", err);
    tsar_status status = v->noisy ? tsar_rounded_open(&rounded, v->model, TSAR_PART_GPT | TSAR_PART_FINE, v->p, err) : TSAR_ROOM;
    v->noise = 1, v->rounded = rounded;
    if (status == TSAR_OK) status = run(v, rounded, prompt, v->noisy, err);
    if (status == TSAR_OK) tsar_round_to(rounded, v->noisy, count);
    tsar_rounded_close(rounded, v->model);
    v->noise = 0, v->rounded = NULL;
    return status;
}

/* --------------------------------------------------------------------------------------------------------------- the groups */

static tsar_comparison group_of(const replay *v, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape)
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
static tsar_status judge_logits(replay *v, tsar_comparison *r, tsar_error *err)
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

static void judge_passes(const replay *v, tsar_comparison *r)
{
    for (size_t i = 0; i < v->model->config.tokens; i++) {
        const int same = v->step_of[i] == v->passes[i];
        const double margin = same ? v->pass_margin[i] : INFINITY;
        const tsar_verdict verdict = margin <= 1 ? TSAR_NEAR_TIE : TSAR_DIFFERS;
        if (same && margin == 0) continue;
        if (r->bad++ == 0 || verdict > r->verdict) {
            r->first_bad = r->place = i, r->ours = (double)v->passes[i], r->theirs = (double)v->step_of[i];
            if (same) (void)snprintf(r->words, sizeof r->words, "tsar's own test of the candidate ends in another pass");
        }
        if (verdict > r->verdict) r->verdict = verdict;
        r->margin = fmax(r->margin, margin);
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
    replay v = { .model = model, .options = options, .file = file, .p = p, .K = K, .counts = counts };
    v.settings = options->settings ? *options->settings : tsar_settings_default(model);
    v.settings.decide = force, v.settings.decide_context = &v;
    tsar_comparison tensor = group_of(&v, "logits", TSAR_F64, 3, logits), step = group_of(&v, "step_of", TSAR_I64, 2, passes);
    v.group[LABELS] = group_of(&v, "coarse", TSAR_I64, 2, grid), v.group[CODES] = group_of(&v, "codes", TSAR_I64, 2, grid);
    v.group[LABELS].verdict = TSAR_IDENTICAL;
    tsar_status status = open_replay(&v, err);
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
    close_replay(&v);
    return status;
}
