/* A decode case: one generation. codes (and coarse) and step_of are what comes out; whole/logits are each decision's, after guidance; uniform/... the random
 * number of each code's draw; ties/P/... how near a decision was, in units of what P lets its logits be off by: another code where that is at most 1 is a
 * near-tie. The noise of the logits is that of runs in which every decision was made as in double. */
#include "suite.h"

#include <math.h>
#include <string.h>

enum { LABELS, CODES, STAGES, MOST_DECISIONS = 8192 };

static const char *const ties_format[SUITE_PRECISIONS] = { "ties/f32/%s", "ties/f16/%s", "ties/bf16/%s" };
static const char *const noise_format[SUITE_PRECISIONS] = { "noise/whole/f32/%s", "noise/whole/f16/%s", "noise/whole/bf16/%s" };

typedef struct {
    suite_job *job;
    int noise;                    /* the decisions are those of the first run */
    size_t taken[MOST_DECISIONS]; /* its codes, in the order of its decisions */
    size_t n, at;
    size_t V;                                 /* room for the logits of one decision */
    double *logits[STAGES], *noisy[STAGES];   /* [gh*gw][V] of each place's last decision, in double and rounded */
    size_t *competing[STAGES];                /* [gh*gw]: how many codes competed */
    double *uniform[STAGES], *margin[STAGES]; /* [gh*gw] */
} decoder;

/* By how much every logit may be off without another code being taken: half the gap of a greedy decision; of a mass M (the running sum at u, or the one
 * that top-p compares) 2 T |M - at|, because dM <= e / (2 T); half the gap at the edge of top-k; of a candidate's test T |ln(u before / p)| / 4. */
static double margin_of(const tsar_settings *s, const tsar_decision *d, size_t index)
{
    const double T = fmax(s->temperature, 1e-5);
    double margin = INFINITY, sum = 0, least = INFINITY, most = -INFINITY, before = 0, total = 0;
    if (s->greedy) {
        for (size_t j = 0; j < d->V; j++)
            if (j != index) margin = fmin(margin, (d->logits[index] - d->logits[j]) / 2);
        return margin;
    }
    if (d->purpose == TSAR_ACCEPT) return T * fabs(tsar_log(d->u * d->before[d->candidate] / d->p[d->candidate])) / 4;
    for (size_t j = 0; j < d->V; j++) {
        sum += d->p[j];
        if (j + 1 < d->V && d->p[j] > 0) margin = fmin(margin, 2 * T * fabs(d->u - sum));
        if (d->p[j] > 0) least = fmin(least, d->logits[j]);
        if (!(d->p[j] > 0)) most = fmax(most, d->logits[j]);
    }
    if (s->top_k > 0 && most > -INFINITY) margin = fmin(margin, (least - most) / 2);
    for (size_t j = 0; s->top_p < 1 && j < d->V; j++) total += tsar_exp(d->logits[j] / T);
    for (size_t j = 0; s->top_p < 1 && j < d->V; j++)
        if (d->p[j] > 0 && d->logits[j] > least) before += tsar_exp(d->logits[j] / T);
    if (s->top_p < 1) margin = fmin(margin, 2 * T * fmin(fabs(before / total - s->top_p), fabs((before + tsar_exp(least / T)) / total - s->top_p)));
    return margin;
}

static tsar_status decide(void *context, const tsar_decision *d, size_t *code, tsar_error *err)
{
    decoder *t = context;
    const int stage = d->purpose == TSAR_FINE || !t->job->model->config.n_coarse ? CODES : LABELS;
    const size_t place = d->y * t->job->model->config.grid_w + d->x;
    size_t index = *code;
    if (t->at == MOST_DECISIONS) return tsar_fail(err, TSAR_ROOM, "a case has more than %d decisions", (int)MOST_DECISIONS);
    memcpy((t->noise ? t->noisy : t->logits)[stage] + place * t->V, d->logits, d->V * sizeof *d->logits);
    if (t->noise) {
        *code = t->taken[t->at++];
        return TSAR_OK;
    }
    t->taken[t->at++] = *code, t->n = t->at;
    for (size_t j = 0; d->codes && j < d->V; j++)
        if (d->codes[j] == *code) index = j;
    t->competing[stage][place] = d->V;
    if (d->purpose != TSAR_ACCEPT) t->uniform[stage][place] = d->u;
    const double margin = margin_of(&t->job->settings, d, index);
    t->margin[stage][place] = d->purpose == TSAR_ACCEPT ? fmin(t->margin[stage][place], margin) : margin;
    return TSAR_OK;
}

/* ties/P of one stage: each place's margin against 12 k (N_r + u max |y|) of its own logits. */
static tsar_status put_ties(const decoder *t, int stage, size_t precision, tensor_list *list, tsar_error *err)
{
    const tsar_config *c = &t->job->model->config;
    const size_t shape[2] = { c->grid_h, c->grid_w }, N = c->grid_h * c->grid_w;
    double *ties = tsar_alloc(N, sizeof *ties, "ties", err), figures[3];
    if (!ties) return TSAR_ROOM;
    for (size_t i = 0; i < N; i++) {
        const tsar_stage s = { .rows = 1,
                               .columns = t->competing[stage][i],
                               .y = t->logits[stage] + i * t->V,
                               .noisy = t->noisy[stage] + i * t->V,
                               .noisy_type = TSAR_F64,
                               .p = suite_precisions[precision].p,
                               .K = t->job->K,
                               .rtol = -1 };
        double most = 0;
        for (size_t j = 0; j < s.columns; j++) most = fmax(most, fabs(s.y[j]));
        tsar_noise_figures(&s, figures);
        ties[i] = fmin(t->margin[stage][i] / (12 * figures[0] * (figures[2] + tsar_unit_roundoff(s.p) * most)), 1e30);
    }
    const tsar_status status = suite_put_f32(list, 2, shape, ties, ties_format[precision], stage == LABELS ? "coarse" : "codes", err);
    tsar_free(ties);
    return status;
}

static tsar_status put_logits_noise(const decoder *t, const double *y, double *noisy, const tsar_model *rounded, size_t precision, tensor_list *list,
                                    tsar_error *err)
{
    const tsar_config *c = &t->job->model->config;
    const size_t rows = c->tokens * c->shuffle * c->shuffle, n = 2 + rows;
    double *figures = tsar_alloc(n, sizeof *figures, "figures", err);
    if (!figures) return TSAR_ROOM;
    tsar_round_to(rounded, noisy, rows * c->vocab);
    const tsar_stage s = { .rows = rows,
                           .columns = c->vocab,
                           .y = y,
                           .noisy = noisy,
                           .noisy_type = TSAR_F64,
                           .p = suite_precisions[precision].p,
                           .K = rows < t->job->K ? t->job->K : rows,
                           .rtol = -1 };
    tsar_noise_figures(&s, figures);
    const tsar_status status = suite_put_f32(list, 1, &n, figures, noise_format[precision], "logits", err);
    tsar_free(figures);
    return status;
}

static tsar_status open_decoder(decoder *t, tsar_error *err)
{
    const tsar_config *c = &t->job->model->config;
    const size_t N = c->grid_h * c->grid_w;
    t->V = c->codebook_size > c->vocab ? c->codebook_size : c->vocab;
    tsar_status status = TSAR_OK;
    for (int stage = 0; status == TSAR_OK && stage < STAGES; stage++) {
        t->logits[stage] = tsar_alloc(N, t->V * sizeof **t->logits, "logits", err);
        t->noisy[stage] = tsar_alloc(N, t->V * sizeof **t->noisy, "logits", err);
        t->competing[stage] = tsar_alloc(N, sizeof **t->competing, "logits", err);
        t->uniform[stage] = tsar_alloc(N, sizeof **t->uniform, "logits", err);
        t->margin[stage] = tsar_alloc(N, sizeof **t->margin, "logits", err);
        if (!t->logits[stage] || !t->noisy[stage] || !t->competing[stage] || !t->uniform[stage] || !t->margin[stage]) status = TSAR_ROOM;
    }
    return status;
}

static void close_decoder(decoder *t)
{
    for (int stage = 0; stage < STAGES; stage++) {
        tsar_free(t->logits[stage]);
        tsar_free(t->noisy[stage]);
        tsar_free(t->competing[stage]);
        tsar_free(t->uniform[stage]);
        tsar_free(t->margin[stage]);
    }
}

/* The generation in double, then once in each precision with its decisions. */
static tsar_status generate(decoder *t, tensor_list *list, tsar_error *err)
{
    suite_job *job = t->job;
    const tsar_config *c = &job->model->config;
    const size_t grid[2] = { c->grid_h, c->grid_w }, passes[2] = { c->rows, c->columns }, logits[3] = { c->tokens, c->shuffle * c->shuffle, c->vocab };
    const tsar_prompt prompt = tsar_prompt_of(&job->inputs);
    tsar_result r = { .codes = suite_put(list, TSAR_I64, 2, grid, NULL, "%s", "codes", err),
                      .coarse = c->n_coarse ? suite_put(list, TSAR_I64, 2, grid, NULL, "%s", "coarse", err) : NULL,
                      .step_of = suite_put(list, TSAR_I64, 2, passes, NULL, "%s", "step_of", err),
                      .logits = suite_put(list, TSAR_F64, 3, logits, NULL, "whole/%s", "logits", err) };
    const double *y = r.logits;
    double *noisy = tsar_alloc(logits[0] * logits[1], logits[2] * sizeof *noisy, "logits", err);
    tsar_status status = r.codes && (r.coarse || !c->n_coarse) && r.step_of && y && noisy ? TSAR_OK : TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_generate(job->model, &prompt, &job->settings, 1, &r, NULL, NULL, err);
    int64_t *again = tsar_alloc(c->grid_h * c->grid_w, 2 * sizeof *again, "codes", err);
    t->noise = 1;
    for (size_t p = 0; status == TSAR_OK && p < SUITE_PRECISIONS; p++) {
        tsar_result other = { .codes = again, .coarse = again ? again + c->grid_h * c->grid_w : NULL, .logits = noisy };
        tsar_model *rounded = NULL;
        t->at = 0;
        if (!c->n_coarse) other.coarse = NULL;
        status = again ? tsar_rounded_open(&rounded, job->model, TSAR_PART_GPT | TSAR_PART_FINE, suite_precisions[p].p, err) : TSAR_ROOM;
        if (status == TSAR_OK) status = tsar_generate(rounded, &prompt, &job->settings, 1, &other, NULL, NULL, err);
        if (status == TSAR_OK) status = put_logits_noise(t, y, noisy, rounded, p, list, err);
        if (status == TSAR_OK && c->n_coarse) status = put_ties(t, LABELS, p, list, err);
        if (status == TSAR_OK) status = put_ties(t, CODES, p, list, err);
        tsar_rounded_close(rounded, job->model);
    }
    tsar_free(again);
    tsar_free(noisy);
    return status;
}

static tsar_status put_input(void *context, const char *name, tsar_dtype dtype, size_t rank, const size_t *shape, void *data, tsar_error *err)
{
    return suite_put(context, dtype, rank, shape, data, "%s", name, err) ? TSAR_OK : TSAR_ROOM;
}

tsar_status suite_decode(suite_job *job, tensor_list *list, tsar_error *err)
{
    static decoder t;
    const tsar_config *c = &job->model->config;
    const size_t grid[2] = { c->grid_h, c->grid_w };
    const tsar_sink inputs = { .put = put_input, .context = list };
    t.job = job;
    job->settings.decide = decide, job->settings.decide_context = &t;
    tsar_status status = suite_longest(job, "gpt.", err);
    if (status == TSAR_OK) status = tsar_emit_inputs(job->model, &job->inputs, &inputs, err);
    if (status == TSAR_OK) status = open_decoder(&t, err);
    if (status == TSAR_OK) status = generate(&t, list, err);
    for (int stage = c->n_coarse ? LABELS : CODES; status == TSAR_OK && !job->settings.greedy && stage < STAGES; stage++)
        if (!suite_put(list, TSAR_F64, 2, grid, t.uniform[stage], "uniform/%s", stage == LABELS ? "coarse" : "codes", err)) status = TSAR_ROOM;
    close_decoder(&t);
    return status;
}
