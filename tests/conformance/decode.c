/* A decode case: one generation. codes (and coarse) and step_of are what comes out; whole/logits are each decision's, after guidance; uniform/... the random
 * number of each code's draw; ties/P/... [gh][gw][codes] how near each code was to being taken, in units of what P lets the logits be off by: at most 1 is a
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
    size_t V;                               /* room for the logits of one decision */
    double *logits[STAGES], *noisy[STAGES]; /* [gh*gw][V] of each place's last decision, in double and rounded */
    double *chance[STAGES];                 /* [gh*gw][V] what was drawn from */
    size_t *competing[STAGES];              /* [gh*gw]: how many codes competed */
    double *uniform[STAGES];                /* [gh*gw] */
    double *tested;                         /* [gh*gw] the adaptive order: by how much logits may be off without a test ending otherwise; infinite: no test */
} decoding;

/* One place: its logits and probabilities, the index that was taken, and by how much every logit may be off. */
typedef struct {
    const double *x, *p;
    size_t V, taken;
    double u, limit, T;
} place;

/* What may come in or fall out at the edge of top-k and top-p moves every sum behind it: the chance of what is within the limits of the edge. */
static double flips_of(const place *d)
{
    double flips = 0, most = -INFINITY;
    for (size_t j = 0; j < d->V; j++)
        if (!(d->p[j] > 0)) most = fmax(most, d->x[j]);
    for (size_t j = 0; j < d->V; j++)
        if (d->p[j] > 0 && d->x[j] - most <= 2 * d->limit) flips += d->p[j];
    return flips;
}

/* How near code j was, at most 1: it may be taken. Greedy: half the gap of the two logits. Drawn: the distance of u from its stretch of the running sum,
 * which moves by at most limit / (2 T), because d(sum) = sum (1 - sum) (two means of limits / T). Cut away: half its gap to the least that stays. */
static double tie_of(const place *d, size_t j, int greedy)
{
    double sum = 0, least = INFINITY;
    if (j == d->taken) return 0;
    if (greedy) return (d->x[d->taken] - d->x[j]) / 2 / d->limit;
    for (size_t i = 0; i < d->V; i++)
        if (d->p[i] > 0) least = fmin(least, d->x[i]);
    if (!(d->p[j] > 0)) return (least - d->x[j]) / 2 / d->limit;
    for (size_t i = 0; i < j; i++) sum += d->p[i];
    const double distance = d->u < sum ? sum - d->u : d->u - (sum + d->p[j]);
    return distance <= 0 ? 0 : distance / (d->limit / (2 * d->T) + flips_of(d));
}

static tsar_status decide(void *context, const tsar_decision *d, size_t *code, tsar_error *err)
{
    decoding *t = context;
    const int stage = d->purpose == TSAR_FINE || !t->job->model->config.n_coarse ? CODES : LABELS;
    const size_t at = d->y * t->job->model->config.grid_w + d->x;
    if (t->at == MOST_DECISIONS) return tsar_fail(err, TSAR_ROOM, "a case has more than %d decisions", (int)MOST_DECISIONS);
    memcpy((t->noise ? t->noisy : t->logits)[stage] + at * t->V, d->logits, d->V * sizeof *d->logits);
    if (t->noise) {
        *code = t->taken[t->at++];
        return TSAR_OK;
    }
    t->taken[t->at++] = *code, t->n = t->at;
    t->competing[stage][at] = d->V;
    if (d->p) memcpy(t->chance[stage] + at * t->V, d->p, d->V * sizeof *d->p);
    if (d->purpose != TSAR_ACCEPT) t->uniform[stage][at] = d->u, t->tested[at] = INFINITY;
    if (d->purpose == TSAR_ACCEPT) /* u before against p, both of which move by limit / T and as much for their sums */
        t->tested[at] = fmin(t->tested[at], t->job->settings.temperature * fabs(tsar_log(d->u * d->before[d->candidate] / d->p[d->candidate])) / 4);
    return TSAR_OK;
}

/* A row of ties/P of one place: of every code, those of other clusters far away. */
static void ties_at(const decoding *t, int stage, size_t at, size_t precision, const int64_t *codes, const int64_t *labels, double *ties)
{
    const tsar_config *c = &t->job->model->config;
    const size_t all = stage == LABELS ? c->n_coarse : c->codebook_size;
    const int64_t *cluster = stage == CODES && c->n_coarse ? t->job->model->cluster_of : NULL;
    const tsar_stage s = { .rows = 1,
                           .columns = t->competing[stage][at],
                           .y = t->logits[stage] + at * t->V,
                           .noisy = t->noisy[stage] + at * t->V,
                           .noisy_type = TSAR_F64,
                           .p = suite_precisions[precision].p,
                           .K = t->job->K,
                           .rtol = -1 };
    double most = 0, figures[3];
    size_t index = 0;
    for (size_t j = 0; j < s.columns; j++) most = fmax(most, fabs(s.y[j]));
    tsar_noise_figures(&s, figures);
    place d = { .x = s.y,
                .p = t->chance[stage] + at * t->V,
                .V = s.columns,
                .u = t->uniform[stage][at],
                .T = fmax(t->job->settings.temperature, 1e-5),
                .limit = 12 * figures[0] * (figures[2] + tsar_unit_roundoff(s.p) * most) };
    for (size_t j = 0; j < (size_t)codes[at]; j++) d.taken += !cluster || cluster[j] == labels[at];
    for (size_t j = 0; j < all; j++) {
        const int competes = !cluster || cluster[j] == labels[at];
        ties[j] = !competes ? 1e30 : t->tested[at] < INFINITY ? t->tested[at] / d.limit : tie_of(&d, index, t->job->settings.greedy);
        ties[j] = j == (size_t)codes[at] ? 0 : fmin(ties[j], 1e30);
        if (competes) index++;
    }
}

static tsar_status put_ties(const decoding *t, int stage, size_t precision, tensor_list *list, tsar_error *err)
{
    const tsar_config *c = &t->job->model->config;
    const char *name = stage == LABELS ? "coarse" : "codes";
    const size_t all = stage == LABELS ? c->n_coarse : c->codebook_size, shape[3] = { c->grid_h, c->grid_w, all }, N = c->grid_h * c->grid_w;
    const tsar_values *coarse = suite_find(list, "%s", "coarse");
    double *ties = tsar_alloc(N, all * sizeof *ties, "ties", err);
    if (!ties) return TSAR_ROOM;
    for (size_t at = 0; at < N; at++) ties_at(t, stage, at, precision, suite_find(list, "%s", name)->data, coarse ? coarse->data : NULL, ties + at * all);
    const tsar_status status = suite_put_f32(list, 3, shape, ties, ties_format[precision], name, err);
    tsar_free(ties);
    return status;
}

static tsar_status put_logits_noise(const decoding *t, const double *y, double *noisy, const tsar_model *rounded, size_t precision, tensor_list *list,
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
                           .channels = 1,
                           .p = suite_precisions[precision].p,
                           .K = rows < t->job->K ? t->job->K : rows,
                           .rtol = -1 };
    tsar_noise_figures(&s, figures);
    const tsar_status status = suite_put_f32(list, 1, &n, figures, noise_format[precision], "logits", err);
    tsar_free(figures);
    return status;
}

static tsar_status open_decoding(decoding *t, tsar_error *err)
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
        t->chance[stage] = tsar_alloc(N, t->V * sizeof **t->chance, "logits", err);
        if (!t->logits[stage] || !t->noisy[stage] || !t->competing[stage] || !t->uniform[stage] || !t->chance[stage]) status = TSAR_ROOM;
    }
    t->tested = status == TSAR_OK ? tsar_alloc(N, sizeof *t->tested, "logits", err) : NULL;
    return t->tested ? TSAR_OK : TSAR_ROOM;
}

static void close_decoding(decoding *t)
{
    for (int stage = 0; stage < STAGES; stage++) {
        tsar_free(t->logits[stage]);
        tsar_free(t->noisy[stage]);
        tsar_free(t->competing[stage]);
        tsar_free(t->uniform[stage]);
        tsar_free(t->chance[stage]);
    }
    tsar_free(t->tested);
}

/* The generation in double, then once in each precision with its decisions. */
static tsar_status generate(decoding *t, tensor_list *list, tsar_error *err)
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
    static decoding t;
    const tsar_config *c = &job->model->config;
    const size_t grid[2] = { c->grid_h, c->grid_w };
    const tsar_sink inputs = { .put = put_input, .context = list };
    t.job = job;
    job->settings.decide = decide, job->settings.decide_context = &t;
    tsar_status status = suite_longest(job, "gpt.", err);
    if (status == TSAR_OK) status = tsar_emit_inputs(job->model, &job->inputs, &inputs, err);
    if (status == TSAR_OK) status = open_decoding(&t, err);
    if (status == TSAR_OK) status = generate(&t, list, err);
    for (int stage = c->n_coarse ? LABELS : CODES; status == TSAR_OK && !job->settings.greedy && stage < STAGES; stage++)
        if (!suite_put(list, TSAR_F64, 2, grid, t.uniform[stage], "uniform/%s", stage == LABELS ? "coarse" : "codes", err)) status = TSAR_ROOM;
    close_decoding(&t);
    return status;
}
