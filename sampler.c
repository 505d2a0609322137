/* sampler.c - from logits to tokens: guidance, sampling, decode orders, generation, CTF's second stage (SPEC 5, 6).
 *
 * Five parts, from the inside out:
 *     1. settings        what a user may ask for, and what is refused
 *     2. pure functions  logits and a random number in, an index out
 *     3. decode orders   which fused tokens the next pass decodes: the only part that knows about rows
 *     4. generation      batches, passes, the transformer's two branches, CTF; every code is decided by decide_code
 *     5. likelihood      of given codes, by the same path
 *
 * Letters here, besides those of tsar.h: R, C rows and columns of the grid of fused tokens (n = R C); W ZipAR's window; B images of a
 * batch, b one of them; t a fused token, in raster order, (i, j) its row and column. */
#include "tsar.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------- 1. settings */

tsar_settings tsar_settings_default(const tsar_model *model)
{
    const tsar_config *config = &model->config;
    tsar_settings settings;
    memset(&settings, 0, sizeof settings);
    settings.cfg = config->defaults.cfg;
    settings.schedule = (tsar_schedule)config->defaults.cfg_schedule;
    settings.cfg_interval = -1;
    settings.temperature = config->defaults.temperature;
    settings.top_k = config->defaults.top_k;
    settings.top_p = config->defaults.top_p;
    settings.order = TSAR_RASTER;
    return settings;
}

tsar_status tsar_schedule_parse(tsar_schedule *schedule, const char *text, tsar_error *err)
{
    for (int i = 0; i < TSAR_SCHEDULES; i++)
        if (strcmp(text, tsar_schedule_names[i]) == 0) {
            *schedule = (tsar_schedule)i;
            return TSAR_OK;
        }
    return tsar_fail(err, TSAR_USAGE, "guidance schedule '%.60s' is unknown; use constant, linear, half-linear or cosine", text);
}

/* Reads a positive decimal integer and returns what follows it, or NULL if there is none. A window wider than the row is the
 * row, and no row is wider than TSAR_MAX_DIM: larger numbers become it, the same on every machine. */
static const char *parse_window(const char *text, size_t *window)
{
    size_t value = 0;
    if (*text < '0' || *text > '9') return NULL;
    for (; *text >= '0' && *text <= '9'; text++) {
        value = value * 10 + (size_t)(*text - '0');
        if (value > TSAR_MAX_DIM) value = TSAR_MAX_DIM;
    }
    *window = value;
    return value > 0 ? text : NULL;
}

tsar_status tsar_order_parse(tsar_settings *settings, const char *text, tsar_error *err)
{
    static const char zipar[] = "zipar:", adaptive[] = "zipar-adaptive:";
    tsar_settings parsed = *settings;
    const char *rest = text;
    parsed.window = 0;
    parsed.first_row = parsed.authors = 0;
    if (strcmp(text, "raster") == 0) {
        parsed.order = TSAR_RASTER;
        *settings = parsed;
        return TSAR_OK;
    }
    if (strncmp(text, zipar, sizeof zipar - 1) == 0) {
        parsed.order = TSAR_ZIPAR;
        rest += sizeof zipar - 1;
    } else if (strncmp(text, adaptive, sizeof adaptive - 1) == 0) {
        parsed.order = TSAR_ZIPAR_ADAPTIVE;
        rest += sizeof adaptive - 1;
    } else
        return tsar_fail(err, TSAR_USAGE, "decode order '%.60s' is unknown; use raster, zipar:W, zipar:W,first-row, zipar:W,authors or zipar-adaptive:W", text);

    rest = parse_window(rest, &parsed.window);
    if (rest != NULL && parsed.order == TSAR_ZIPAR) {
        parsed.first_row = strcmp(rest, ",first-row") == 0;
        parsed.authors = strcmp(rest, ",authors") == 0;
        if (parsed.first_row || parsed.authors) rest += strlen(rest);
    }
    if (rest == NULL) return tsar_fail(err, TSAR_USAGE, "%.60s: the window must be a positive integer", text);
    if (*rest != '\0')
        return tsar_fail(err, TSAR_USAGE, "%.60s: '%.60s' after the window is not understood; %s", text, rest,
                         parsed.order == TSAR_ZIPAR ? "only ,first-row or ,authors may follow" : "nothing may follow");
    *settings = parsed;
    return TSAR_OK;
}

const char *tsar_order_text(char *text, const tsar_settings *settings)
{
    if (settings->order == TSAR_RASTER) return "raster";
    const char *variant = settings->order != TSAR_ZIPAR ? "" : settings->authors ? ",authors" : settings->first_row ? ",first-row" : "";
    (void)snprintf(text, 64, "%s:%lu%s", settings->order == TSAR_ZIPAR ? "zipar" : "zipar-adaptive", (unsigned long)settings->window, variant);
    return text;
}

tsar_status tsar_settings_check(const tsar_settings *settings, tsar_error *err)
{
    const double cfg = settings->cfg, temperature = settings->temperature, top_p = settings->top_p;
    if (!(cfg >= 0 && cfg < INFINITY))
        return tsar_fail(err, TSAR_USAGE, "cfg is %g; it must be a finite number of at least 0 (1 switches guidance off)", cfg);
    if (settings->schedule != TSAR_CONSTANT && settings->schedule != TSAR_LINEAR && settings->schedule != TSAR_HALF_LINEAR &&
        settings->schedule != TSAR_COSINE)
        return tsar_fail(err, TSAR_USAGE, "the guidance schedule must be constant, linear, half-linear or cosine");
    if (settings->cfg_interval < -1)
        return tsar_fail(err, TSAR_USAGE, "cfg_interval is %ld; it must be -1 (guidance everywhere) or the index of a token",
                         (long)settings->cfg_interval);
    if (!(temperature >= 0 && temperature < INFINITY))
        return tsar_fail(err, TSAR_USAGE, "temperature is %g; it must be a finite number of at least 0 (0 counts as 1e-5)", temperature);
    if (!(top_p >= 0 && top_p <= 1))
        return tsar_fail(err, TSAR_USAGE, "top_p is %g; it must be from 0 (one code is kept) to 1 (which switches it off)", top_p);
    if (settings->order != TSAR_RASTER && settings->order != TSAR_ZIPAR && settings->order != TSAR_ZIPAR_ADAPTIVE)
        return tsar_fail(err, TSAR_USAGE, "the decode order must be raster, zipar or zipar-adaptive");
    if (settings->order != TSAR_RASTER && settings->window == 0)
        return tsar_fail(err, TSAR_USAGE, "ZipAR's window is 0; it must be a positive integer");
    if (settings->order != TSAR_ZIPAR && (settings->first_row || settings->authors))
        return tsar_fail(err, TSAR_USAGE, "first-row and authors are variants of zipar:W; no other order has them");
    return TSAR_OK;
}

/* `authors` does what their code for LlamaGen does, and refuses what it cannot (QUIRKS-zipar-authors 10 to 12). */
static tsar_status check_authors(const tsar_settings *settings, const tsar_config *c, tsar_error *err)
{
    char order[64];
    const char *text = tsar_order_text(order, settings);
    if (!(tsar_family_of(c)->takes & TSAR_TAKES_AUTHORS) || c->n_coarse > 0)
        return tsar_fail(err, TSAR_USAGE, "%s: the authors' code is for LlamaGen's codes and the model is %s%s; leave out ,authors", text,
                         tsar_family_of(c)->name, c->n_coarse > 0 ? " of coarse labels" : "");
    if (c->rows != c->columns)
        return tsar_fail(err, TSAR_USAGE, "%s: the authors' code takes square grids only and this one is %zu x %zu; leave out ,authors", text, c->rows,
                         c->columns);
    if (settings->window < 2 || settings->window >= c->columns)
        return tsar_fail(err, TSAR_USAGE, "%s: the authors' code works for windows from 2 to %zu on rows of %zu; leave out ,authors for others", text,
                         c->columns - 1, c->columns);
    return TSAR_OK;
}

tsar_status tsar_order_check(const tsar_settings *settings, const tsar_model *model, tsar_error *err)
{
    const tsar_config *c = &model->config;
    if (settings->order != TSAR_ZIPAR) return TSAR_OK;
    if (settings->authors) return check_authors(settings, c, err);
    if (settings->first_row && c->eol >= 0)
        return tsar_fail(err, TSAR_USAGE, "zipar:%zu,first-row: the model ends its rows by a token (eol), which begins the next row; leave out ,first-row",
                         settings->window);
    return TSAR_OK;
}

/* ------------------------------------------------------------------------------------------------- 2. pure functions */

/* SPEC 5; the target scale is a, and t of n counts fused tokens in raster order, whatever order decodes them.
 *     constant      a
 *     linear        1 + (a - 1) * (t / (n - 1))                              a for n = 1
 *     half-linear   1 + (a - 1) * min(1, (2 t) / n)                          (Token-Shuffle's default)
 *     cosine        1 + (a - 1) * (1 - cos(pi * (t / (n - 1)))) / 2          a for n = 1
 * with pi the double nearest to it. Every scale of a > 1 is at least 1, so 0 can say "none here": a <= 1, or a token
 * beyond cfg_interval + 1 (QUIRKS, GPT 7: the official loop compares with the index of the token before). */
double tsar_cfg_scale(const tsar_settings *settings, size_t t, size_t n)
{
    const double pi = 3.14159265358979311600;
    const double a = settings->cfg, progress = n > 1 ? (double)t / (double)(n - 1) : 1.0;
    if (!(a > 1) || (settings->cfg_interval >= 0 && t > 0 && (uint64_t)(t - 1) > (uint64_t)settings->cfg_interval)) return 0;
    switch (settings->schedule) {
    case TSAR_LINEAR:
        return 1 + (a - 1) * progress;
    case TSAR_HALF_LINEAR: {
        const double half = 2.0 * (double)t / (double)n;
        return 1 + (a - 1) * (half < 1 ? half : 1.0);
    }
    case TSAR_COSINE:
        return 1 + (a - 1) * (1 - tsar_cos(pi * progress)) / 2;
    case TSAR_CONSTANT:
        break;
    }
    return a;
}

/* Classifier-free guidance: logits = uncond + (cond - uncond) * scale, SPEC 5; cond is what logits come as. */
void tsar_guide(double *logits, const double *uncond, size_t V, double scale)
{
    for (size_t v = 0; v < V; v++) logits[v] = uncond[v] + (logits[v] - uncond[v]) * scale;
}

/* The bits of a double as an unsigned integer that orders as the doubles do (-0 just below +0). */
static uint64_t ordered_bits(double x)
{
    const uint64_t sign = (uint64_t)1 << 63;
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & sign ? ~bits : bits | sign;
}

/* The k-th largest of x [V], 1 <= k <= V, by radix selection: eight rounds fix the bytes of its ordered bits from the
 * top, each counting the next byte of the values that share the bytes fixed so far; those are gathered in
 * scratch [V], so a round costs only what is still in question. O(V) whatever the values are. */
static double kth_largest(const double *x, size_t V, size_t k, size_t *scratch)
{
    size_t m = V;
    for (size_t i = 0; i < V; i++) scratch[i] = i;
    for (int shift = 56; shift >= 0 && m > 1; shift -= 8) {
        size_t count[256] = { 0 }, kept = 0;
        unsigned byte = 255;
        for (size_t i = 0; i < m; i++) count[(ordered_bits(x[scratch[i]]) >> shift) & 255]++;
        for (; count[byte] < k; byte--) k -= count[byte];
        for (size_t i = 0; i < m; i++) { /* branchless: always written, counted only if it stays */
            const size_t candidate = scratch[i];
            scratch[kept] = candidate;
            kept += ((ordered_bits(x[candidate]) >> shift) & 255) == byte;
        }
        m = kept;
    }
    return x[scratch[0]]; /* all that are left are equal */
}

/* Whether index a comes before index b in the stable descending order of x. */
static int comes_before(const double *x, size_t a, size_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); }

/* Restores the heap order of heap [m] below `at`: no index comes before the one at half its place. */
static void sift_down(size_t *heap, size_t m, size_t at, const double *x)
{
    const size_t moving = heap[at];
    for (size_t child; (child = 2 * at + 1) < m; at = child) {
        if (child + 1 < m && comes_before(x, heap[child + 1], heap[child])) child++;
        if (!comes_before(x, heap[child], moving)) break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

/* Top-p (QUIRKS, GPT 15). With i_0, i_1 ... the indices in stable descending order of x and e_i = exp(x_i - max), it equals
 *     mass_0 = 0,   mass_{j+1} = mass_j + e_{i_j} / total,   total = sum of e ascending by index
 *     x_{i_j} stays if mass_j <= p, else it becomes -INFINITY
 * A heap yields the order one value at a time: only the kept prefix is ever sorted, O(V + kept log V). */
static void keep_top_p(double *x, size_t V, double p, size_t *heap)
{
    double total = 0, mass = 0;
    size_t m = 0;
    const double max = x[tsar_argmax(x, V)];
    for (size_t v = 0; v < V; v++)
        if (x[v] > -INFINITY) {
            total += tsar_exp(x[v] - max);
            heap[m++] = v;
        }
    for (size_t at = m / 2; at-- > 0;) sift_down(heap, m, at, x);
    while (m > 0 && mass <= p) {
        mass += tsar_exp(x[heap[0]] - max) / total;
        heap[0] = heap[--m];
        if (m > 0) sift_down(heap, m, 0, x);
    }
    for (size_t i = 0; i < m; i++) x[heap[i]] = -INFINITY;
}

static double floor_temperature(double temperature) { return temperature > 1e-5 ? temperature : 1e-5; }

/* SPEC 5 in this order, as LlamaGen's sampler does (QUIRKS, GPT 15):
 *     x = x / max(temperature, 1e-5)
 *     top-k: x < (k-th largest) becomes -INFINITY; ties with it stay
 *     top-p: as above, with the softmax of what top-k left
 *     p = softmax(x) over what is left; what was removed has probability exactly 0 */
void tsar_probabilities(double *logits, size_t V, const tsar_settings *settings, size_t *scratch)
{
    const double temperature = floor_temperature(settings->temperature);
    for (size_t v = 0; v < V; v++) logits[v] = logits[v] / temperature;
    if (settings->top_k > 0 && settings->top_k < V) {
        const double least = kth_largest(logits, V, settings->top_k, scratch);
        for (size_t v = 0; v < V; v++) logits[v] = logits[v] < least ? -INFINITY : logits[v];
    }
    if (settings->top_p < 1) keep_top_p(logits, V, settings->top_p, scratch);
    tsar_softmax(logits, V);
}

/* The inverse of the cumulative distribution; total and running sum add the same weights in the same, ascending order. The
 * running sum ends at total > u * total, so the last index with weight is a fallback for rounding alone. */
size_t tsar_draw(const double *weights, size_t V, double u)
{
    double total = 0, running = 0, threshold;
    size_t last = 0;
    for (size_t v = 0; v < V; v++) total += weights[v];
    threshold = u * total;
    for (size_t v = 0; v < V; v++) {
        running += weights[v];
        if (running > threshold) return v;
        if (weights[v] > 0) last = v;
    }
    return last;
}

size_t tsar_argmax(const double *x, size_t V)
{
    size_t best = 0;
    for (size_t v = 1; v < V; v++)
        if (x[v] > x[best]) best = v;
    return best;
}

/* ZipAR's test of a candidate (arXiv 2412.04062; the rule of speculative sampling). If x is drawn from p, then what this
 * returns is distributed as q, exactly:
 *     P(y) = p(y) min(1, q(y)/p(y)) + P(rejected) max(0, q(y) - p(y)) / sum of max(0, q - p)
 *          = min(p(y), q(y)) + max(0, q(y) - p(y)) = q(y),
 * because P(rejected) = sum of p - min(p, q) = sum of max(0, q - p). The draw needs no normalised weights. If rounding leaves no
 * residual at all, p and q are equal but for rounding, and q itself is drawn from. */
size_t tsar_adapt(size_t code, const double *p, const double *q, double *residual, size_t V, double accept, double replace)
{
    double total = 0;
    if (accept * p[code] < q[code]) return code;
    for (size_t v = 0; v < V; v++) {
        residual[v] = q[v] > p[v] ? q[v] - p[v] : 0;
        total += residual[v];
    }
    return tsar_draw(total > 0 ? residual : q, V, replace);
}

/* ------------------------------------------------------------------------------------------------- 3. decode orders */

/* Each decode order is a rule: how many tokens of row i-1 row i waits for before its own first one. From then on it keeps that distance.
 *     raster             all C
 *     zipar:W            min(W, C)
 *     zipar:W,first-row  all C for row 1, min(W, C) below; `authors` too
 *     zipar-adaptive:W   min(W, C) for a candidate; what its first token had seen when it became final, lag[i], from then on */
static size_t order_window(const tsar_settings *settings, size_t columns, size_t i, const size_t *lag)
{
    size_t window = columns;
    switch (settings->order) {
    case TSAR_RASTER: break;
    case TSAR_ZIPAR: window = (settings->first_row || settings->authors) && i == 1 ? columns : settings->window; break;
    case TSAR_ZIPAR_ADAPTIVE: window = lag != NULL && lag[i] != SIZE_MAX ? lag[i] : settings->window; break;
    }
    return window < columns ? window : columns;
}

/* Tokens of row i that were decoded before pass `pass`; a row is decoded from left to right. */
static size_t order_decoded(const int64_t *step_of, size_t columns, size_t i, int64_t pass)
{
    size_t j = 0;
    while (j < columns && step_of[i * columns + j] >= 0 && step_of[i * columns + j] < pass) j++;
    return j;
}

/* SPEC 6: (i,j) may be decoded when (i,j-1) is, and (i-1, 0 ... min(j+W,C)-1). So a pass decodes at most one token of
 * each row, the first that is missing, and none below a row that has not begun. */
size_t tsar_order_next(const tsar_settings *settings, size_t rows, size_t columns, const int64_t *step_of, const size_t *lag, size_t *next)
{
    size_t count = 0, above = columns; /* nothing holds up the first row */
    for (size_t i = 0; i < rows && above > 0; i++) {
        const size_t j = order_decoded(step_of, columns, i, INT64_MAX);
        const size_t window = order_window(settings, columns, i, lag);
        const size_t needed = window < columns - j ? j + window : columns;
        if (j < columns && above >= needed) next[count++] = i * columns + j;
        above = j;
    }
    return count;
}

/* Row i starts as many passes after row i-1 as it waits for tokens, and takes C passes. */
size_t tsar_order_passes(const tsar_settings *settings, size_t rows, size_t columns)
{
    size_t passes = columns;
    for (size_t i = 1; i < rows; i++) passes += order_window(settings, columns, i, NULL);
    return passes;
}

/* The most tokens that one pass can decode: those of different rows are at least W columns apart. */
static size_t order_width(const tsar_settings *settings, size_t rows, size_t columns)
{
    const size_t width = 1 + (columns - 1) / order_window(settings, columns, 0, NULL);
    return width < rows ? width : rows;
}

/* Whether token t is only a candidate when pass `pass` predicts it: the first of a row in the adaptive order. Tells its
 * row, how many tokens of the row above the prediction has seen, and whether that row is complete. */
static int order_tests(const tsar_settings *settings, size_t columns, const int64_t *step_of, int64_t pass, size_t t, size_t *row, size_t *above,
                       int *complete)
{
    if (settings->order != TSAR_ZIPAR_ADAPTIVE || t < columns || t % columns != 0) return 0;
    *row = t / columns;
    *above = order_decoded(step_of, columns, *row - 1, pass);
    *complete = *above == columns;
    return 1;
}

/* ---------------------------------------------------------------------------------------------------- 4. generation */

#define MOST_OF_BATCH ((size_t)4)   /* images: weights are read once for all of them */
#define MOST_KV_BYTES 1073741824.0  /* of a batch's keys and values */
#define FINE_CHUNK ((size_t)262144) /* logits of stage two held at once: 2 MB */

/* Everything that one call of tsar_generate holds. Image b of a batch has the sequences branches*b (conditional) and
 * branches*b + 1 (unconditional, where guidance runs). */
typedef struct {
    const tsar_model *model;
    const tsar_settings *settings;
    tsar_prompt prompt[2];   /* conditional, unconditional */
    size_t branches;         /* 1, or 2 with guidance */
    size_t batch;            /* B, images decoded side by side */
    size_t R, C, n;          /* the grid of fused tokens */
    size_t s, slots;         /* side of a window, s*s: codes of a fused token */
    size_t V, N;             /* predicted vocabulary, codes of an image */
    size_t width;            /* tokens that a pass decodes of one image, at most */
    int eol;                 /* 1: rows end by a token that is fed, not decoded */
    size_t chunk;            /* CTF: codes whose fine logits are held at once; else 0 */
    tsar_state *state;
    /* the buffers of buffer_table; gh, gw are R*s, C*s */
    int64_t *codes;           /* [B][n][s*s], of decoded tokens and of the candidate */
    int64_t *picture;         /* [B][gh][gw], the same codes in place; -1 where nothing is decoded */
    int64_t *step_of;         /* [B][n], -1 before a token is decoded */
    unsigned char *fed;       /* [B][n], its keys and values are in the cache */
    size_t *decoded;          /* [B], tokens decoded so far */
    size_t *before_pass;      /* [B], those that were before this pass */
    size_t *next, *n_next;    /* [B][width], [B]: what this pass predicts */
    tsar_feed *feed;          /* [2 B branches width]: the most rows of a pass */
    double *logits;           /* [branches][B][width][s*s][V], of this pass */
    double *cond;             /* [s*s][V]: those of one token before guidance, for who looks on */
    double *p;                /* [max(V, K)]: the distribution of one code */
    size_t *scratch;          /* [max(V, K)] */
    size_t *lag;              /* [B][R], adaptive order: SIZE_MAX before a row's first token is final */
    size_t *evaluations;      /* [B]: predictions that the candidate has seen; 0: none drawn yet */
    double *before;           /* adaptive: [B][s*s][V], the candidate's last distribution */
    double *residual;         /* adaptive: [V] */
    size_t *members, *starts; /* CTF: codes by label [K], where each label's begin [n_coarse + 1] */
    double *hidden;           /* CTF: [N][fine_dim] */
    double *fine_logits;      /* CTF: [chunk][K] */
    int64_t *fine;            /* CTF: [N] codes of one image */
} generation;

/* Bytes of the keys and values of one image, both branches. */
static double image_bytes(const generation *g)
{
    double bytes = 0;
    for (size_t branch = 0; branch < g->branches; branch++)
        bytes += tsar_sequence_bytes(&g->model->config, tsar_prompt_length(g->model, &g->prompt[branch]));
    return bytes;
}

/* Images whose keys and values fit into MOST_KV_BYTES, at least 1. */
static size_t batch_size(const generation *g, size_t images)
{
    const double bytes = image_bytes(g);
    size_t batch = 1;
    while (batch < MOST_OF_BATCH && batch < images && (double)(batch + 1) * bytes <= MOST_KV_BYTES) batch++;
    return batch;
}

static tsar_status no_members(size_t label, tsar_error *err)
{
    return tsar_fail(err, TSAR_INPUT, "label %zu has no codes in ctf.cluster_of; cluster the codebook anew", label);
}

/* Sorts the codes by label, so that stage two walks only the members of a cluster. A label without any is refused before the work, but where
 * the caller decides: there it may never be taken (a likelihood, given codes), and decide_fine refuses it. */
static tsar_status index_clusters(generation *g, tsar_error *err)
{
    const tsar_config *config = &g->model->config;
    const int64_t *cluster_of = g->model->cluster_of;
    const size_t K = config->codebook_size, labels = config->n_coarse;
    for (size_t code = 0; code < K; code++) {
        if (cluster_of[code] < 0 || (uint64_t)cluster_of[code] >= labels)
            return tsar_fail(err, TSAR_INPUT, "ctf.cluster_of gives code %zu the label %ld; labels are 0 ... %zu", code, (long)cluster_of[code],
                             labels - 1);
        g->starts[cluster_of[code] + 1]++;
    }
    for (size_t label = 0; label < labels; label++) {
        if (g->starts[label + 1] == 0 && g->settings->decide == NULL) return no_members(label, err);
        g->starts[label + 1] += g->starts[label];
    }
    for (size_t code = K; code-- > 0;) /* downwards, so that members ascend; starts moves from each end to each begin */
        g->members[--g->starts[cluster_of[code] + 1]] = code;
    for (size_t label = 0; label < labels; label++) g->starts[label] = g->starts[label + 1];
    g->starts[labels] = K;
    return TSAR_OK;
}

/* Whether the model has what turns labels into codes. */
static tsar_status check_fine(const tsar_model *model, tsar_error *err)
{
    const tsar_config *config = &model->config;
    if (config->n_coarse == 0 || ((model->parts & TSAR_PART_FINE) && model->cluster_of != NULL)) return TSAR_OK;
    return tsar_fail(err, TSAR_INPUT,
                     "the model predicts %zu coarse labels but has no %s, which turns them into codes; "
                     "add the fine stage to the model file",
                     config->n_coarse, model->parts & TSAR_PART_FINE ? "ctf.cluster_of" : "fine.* part");
}

/* The sizes that everything else follows from. */
static void measure_generation(generation *g, const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, size_t images)
{
    const tsar_config *config = &model->config;
    const size_t K = config->codebook_size;
    memset(g, 0, sizeof *g);
    g->model = model;
    g->settings = settings;
    g->prompt[0] = g->prompt[1] = *prompt;
    g->prompt[1].unconditional = 1;
    g->branches = settings->cfg > 1 ? 2 : 1;
    g->R = config->rows;
    g->C = config->columns;
    g->n = config->tokens;
    g->s = config->shuffle;
    g->slots = g->s * g->s;
    g->V = config->vocab;
    g->N = config->grid_h * config->grid_w;
    g->eol = config->eol >= 0;
    g->width = order_width(settings, g->R, g->C);
    g->batch = batch_size(g, images);
    if (config->n_coarse == 0) return;
    g->chunk = FINE_CHUNK / K > 0 ? FINE_CHUNK / K : 1;
    if (g->chunk > g->N) g->chunk = g->N;
}

/* One buffer: where its pointer stands in a generation, its elements, their size. No elements: the pointer stays NULL. */
typedef struct {
    size_t at, count, size;
    const char *what;
} buffer;

enum { GENERATION_BUFFERS = 22 };
#define BUFFER(pointer, count, what) { offsetof(generation, pointer), count, sizeof *g->pointer, what }

/* Every buffer of a generation: opening and closing are loops over this table. */
static void buffer_table(const generation *g, buffer table[GENERATION_BUFFERS])
{
    const tsar_config *c = &g->model->config;
    const int adaptive = g->settings->order == TSAR_ZIPAR_ADAPTIVE, ctf = c->n_coarse > 0;
    const size_t B = g->batch, Bn = tsar_product(B, g->n), BW = tsar_product(B, g->width), token = tsar_product(g->slots, g->V), K = c->codebook_size;
    const buffer all[GENERATION_BUFFERS] = {
        BUFFER(codes, tsar_product(Bn, g->slots), "codes"),
        BUFFER(picture, tsar_product(B, g->N), "codes"),
        BUFFER(step_of, Bn, "the order of tokens"),
        BUFFER(fed, Bn, "the order of tokens"),
        BUFFER(decoded, B, "the order of tokens"),
        BUFFER(before_pass, B, "the order of tokens"),
        BUFFER(next, BW, "the order of tokens"),
        BUFFER(n_next, B, "the order of tokens"),
        BUFFER(lag, tsar_product(B, g->R), "the order of tokens"),
        BUFFER(evaluations, B, "the order of tokens"),
        BUFFER(feed, tsar_product(2 * g->branches, BW), "the rows of a pass"),
        BUFFER(logits, tsar_product(tsar_product(g->branches, BW), token), "logits"),
        BUFFER(cond, g->settings->decide != NULL ? token : 0, "logits"),
        BUFFER(p, g->V > K ? g->V : K, "sampling"),
        BUFFER(scratch, g->V > K ? g->V : K, "sampling"),
        BUFFER(before, adaptive ? tsar_product(B, token) : 0, "candidates"),
        BUFFER(residual, adaptive ? g->V : 0, "candidates"),
        BUFFER(members, ctf ? K : 0, "the codes of each label"),
        BUFFER(starts, ctf ? c->n_coarse + 1 : 0, "the codes of each label"),
        BUFFER(hidden, ctf ? tsar_product(g->N, c->fine_dim) : 0, "the fine stage"),
        BUFFER(fine_logits, tsar_product(g->chunk, K), "the fine stage's logits"),
        BUFFER(fine, ctf ? g->N : 0, "fine codes"),
    };
    memcpy(table, all, sizeof all);
}

/* The pointer at `at` of a generation; pointers to objects look alike on every machine that tsar knows. */
static void *get_buffer(const generation *g, size_t at)
{
    void *memory;
    memcpy(&memory, (const char *)g + at, sizeof memory);
    return memory;
}

static tsar_status generation_open(generation *g, tsar_error *err)
{
    buffer table[GENERATION_BUFFERS];
    const char *what = g->branches == 2 ? "the keys and values of a picture and its unguided twin" : "the keys and values of a picture";
    tsar_status status = check_fine(g->model, err);
    if (status == TSAR_OK) status = tsar_memory_check(image_bytes(g), what, g->branches == 2 ? "a smaller --grid, or --cfg 1" : "a smaller --grid", err);
    buffer_table(g, table);
    for (size_t i = 0; status == TSAR_OK && i < GENERATION_BUFFERS; i++) {
        void *memory = table[i].count > 0 ? tsar_alloc(table[i].count, table[i].size, table[i].what, err) : NULL;
        if (table[i].count > 0 && memory == NULL) status = TSAR_ROOM;
        memcpy((char *)g + table[i].at, &memory, sizeof memory);
    }
    if (status == TSAR_OK && g->model->config.n_coarse > 0) status = index_clusters(g, err);
    if (status == TSAR_OK) status = tsar_state_open(&g->state, g->model, g->batch * g->branches, err);
    return status;
}

static void generation_close(generation *g)
{
    buffer table[GENERATION_BUFFERS];
    buffer_table(g, table);
    for (size_t i = 0; i < GENERATION_BUFFERS; i++) tsar_free(get_buffer(g, table[i].at));
    tsar_state_close(g->state);
}

/* Logits [s*s][V] of the k-th token that this pass predicts of image b. */
static double *logits_of(const generation *g, size_t branch, size_t b, size_t k)
{
    return g->logits + ((branch * g->batch + b) * g->width + k) * g->slots * g->V;
}

/* What is known of a decision before its logits: fused token t of image `image` of this call, the code at `slot` of its window. */
static tsar_decision decision_at(const generation *g, size_t image, size_t t, size_t slot, size_t pass)
{
    tsar_decision d;
    memset(&d, 0, sizeof d);
    d.image = (size_t)g->settings->first_image + image;
    d.token = t;
    d.row = t / g->C;
    d.column = t % g->C;
    d.slot = slot;
    d.y = d.row * g->s + slot / g->s;
    d.x = d.column * g->s + slot % g->s;
    d.pass = pass;
    d.purpose = TSAR_DRAW;
    d.settles = 1;
    d.V = g->V;
    return d;
}

/* The decision of the code at `slot` of the window whose first code `first` decides. */
static tsar_decision decision_of_slot(const generation *g, const tsar_decision *first, size_t slot)
{
    tsar_decision d = *first;
    d.slot = slot;
    d.y += slot / g->s;
    d.x += slot % g->s;
    d.logits += slot * g->V;
    d.cond += slot * g->V;
    if (d.uncond != NULL) d.uncond += slot * g->V;
    return d;
}

/* The one function that decides a code: logits, random numbers and the rule of d->purpose give a code, and the caller's function has the last word.
 *     greedy        the lowest index of the maximum
 *     draw, fine    tsar_draw from p by u
 *     accept        tsar_adapt: the candidate if u * before[candidate] < p[candidate], else a draw by `replace` from max(0, p - before) */
static tsar_status decide_code(const generation *g, tsar_decision *d, int64_t *code, tsar_error *err)
{
    const tsar_settings *settings = g->settings;
    const int tested = d->purpose == TSAR_ACCEPT;
    const size_t K = d->codes == NULL ? g->V : g->model->config.codebook_size;
    tsar_status status = TSAR_OK;
    size_t choice;
    d->u = tsar_uniform(settings->seed, d->image, d->row, d->column, d->slot, (uint64_t)d->purpose, d->attempt);
    if (tested) d->replace = tsar_uniform(settings->seed, d->image, d->row, d->column, d->slot, TSAR_REPLACE, d->attempt);
    if (settings->greedy)
        choice = tsar_argmax(d->logits, d->V);
    else {
        memcpy(g->p, d->logits, d->V * sizeof *g->p);
        tsar_probabilities(g->p, d->V, settings, g->scratch);
        d->p = g->p;
        choice = tested ? tsar_adapt(d->candidate, d->before, d->p, g->residual, d->V, d->u, d->replace) : tsar_draw(d->p, d->V, d->u);
    }
    if (d->codes != NULL) choice = d->codes[choice];
    if (settings->decide != NULL) status = settings->decide(settings->decide_context, d, &choice, err);
    if (status == TSAR_OK && choice >= K)
        status = tsar_fail(err, TSAR_USAGE, "code %zu was decided for (%zu, %zu); it must be below %zu", choice, d->y, d->x, K);
    *code = (int64_t)choice;
    return status;
}

/* The place whose token is fed at place t when the first token of row r, at t+1, is wanted before the last one of row r-1, at t, is decoded:
 *     SPEC 6 (ours)   the last one of row r-1 that is decoded; its keys and values are forgotten after the pass
 *     authors         the last one of row r-2 that is (QUIRKS-zipar-authors 2); they stay until those of the real token replace them (3) */
static size_t stand_in(const generation *g, const int64_t *step_of, size_t t)
{
    if (g->settings->authors && step_of[t] < 0) t -= g->C;
    while (step_of[t] < 0) t--;
    return t;
}

/* The scale of guidance for token t of image b: 0 where there is none. With `authors` cfg_interval = k counts anew from row 1 on: there a pass is guided
 * if at most k tokens of these rows were decoded before it (QUIRKS-zipar-authors 9). Their unconditional sequence sees every token. */
static double guidance_scale(const generation *g, size_t b, size_t t)
{
    tsar_settings settings = *g->settings;
    if (!settings.authors || settings.cfg_interval < 0 || t < g->C) return tsar_cfg_scale(&settings, t, g->n);
    if (g->before_pass[b] > g->C && (uint64_t)(g->before_pass[b] - g->C) > (uint64_t)settings.cfg_interval) return 0;
    settings.cfg_interval = -1;
    return tsar_cfg_scale(&settings, t, g->n);
}

/* Whether no row that guidance covers will ever look at the unconditional keys and values of place t: it covers the first tokens of the raster order. */
static int is_unguided(const generation *g, size_t t) { return !g->settings->authors && !(tsar_cfg_scale(g->settings, t + 1, g->n) > 0); }

/* What is fed at one place: token t, kept or as a stand-in, or the eol behind it. */
typedef enum { FEED_TOKEN, FEED_EOL } feed_kind;

/* The row of a place for each branch that looks at it, which predicts the k-th token of this pass, or nothing (k = SIZE_MAX); returns how many. */
static size_t feed_place(const generation *g, size_t b, size_t t, feed_kind kind, size_t k, tsar_feed *feed)
{
    const int64_t *step_of = g->step_of + b * g->n;
    size_t count = 0;
    for (size_t branch = 0; branch < g->branches; branch++) {
        tsar_feed *row = &feed[count];
        if (branch == 1 && is_unguided(g, t)) continue;
        row->sequence = g->branches * b + branch;
        row->token = t;
        row->codes = kind == FEED_EOL ? NULL : g->codes + (b * g->n + stand_in(g, step_of, t)) * g->slots;
        row->keep = kind == FEED_EOL || step_of[t] >= 0 || g->settings->authors;
        row->logits = k != SIZE_MAX ? logits_of(g, branch, b, k) : NULL;
        count++;
    }
    return count;
}

/* The rows of image b in the next pass, ascending (SPEC 6). A decoded token is fed once, at its place t, and its keys and values are kept; what predicts
 * token t+1, in the pass that wants it, is
 *     token t         where it is in the same row, or where rows have no end of their own
 *     its stand-in    if that is not decoded yet
 *     eol             for the first token of a row where rows end by it: known beforehand, fed in that pass (in the adaptive order anew for each
 *                     evaluation) and kept, though it may not have seen the rest of the row
 * The last token of the image predicts nothing and is never fed. Returns the number of rows. */
static size_t feed_image(const generation *g, size_t b, tsar_feed *feed)
{
    const int64_t *step_of = g->step_of + b * g->n;
    unsigned char *fed = g->fed + b * g->n;
    const size_t *next = g->next + b * g->width;
    size_t count = 0, k = 0;
    for (size_t t = 0; t + 1 < g->n; t++) {
        const int wanted = k < g->n_next[b] && next[k] == t + 1;
        const int by_eol = g->eol && (t + 1) % g->C == 0;
        const size_t predicts = wanted ? k++ : SIZE_MAX;
        const int fresh = step_of[t] >= 0 && !fed[t];
        if (fresh || (wanted && !by_eol)) count += feed_place(g, b, t, FEED_TOKEN, by_eol ? SIZE_MAX : predicts, feed + count);
        if (wanted && by_eol) count += feed_place(g, b, t, FEED_EOL, predicts, feed + count);
        if (fresh) fed[t] = 1;
    }
    return count;
}

/* Runs the transformer for everything that this pass predicts: the prompts in pass 0, one forward call in every other. */
static tsar_status run_pass(const generation *g, size_t images, size_t pass, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    size_t rows = 0;
    for (size_t b = 0; pass == 0 && b < images; b++)
        for (size_t branch = 0; status == TSAR_OK && branch < g->branches; branch++) {
            status = tsar_prefill(g->state, g->branches * b + branch, &g->prompt[branch], logits_of(g, branch, b, 0), err);
            if (status == TSAR_OK && g->settings->authors) tsar_show_unfed(g->state, g->branches * b + branch);
        }
    if (pass == 0) return status;
    for (size_t b = 0; b < images; b++) rows += feed_image(g, b, g->feed + rows);
    return tsar_forward(g->state, g->feed, rows, err);
}

/* Takes the codes of token t of image b as final: decoded in pass `pass`. */
static void settle(generation *g, size_t b, size_t t, size_t pass)
{
    const int64_t *codes = g->codes + (b * g->n + t) * g->slots;
    const size_t y = t / g->C * g->s, x = t % g->C * g->s, gw = g->C * g->s;
    for (size_t slot = 0; slot < g->slots; slot++) g->picture[b * g->N + (y + slot / g->s) * gw + x + slot % g->s] = codes[slot];
    g->step_of[b * g->n + t] = (int64_t)pass;
    g->decoded[b]++;
}

/* One evaluation of the adaptive order's candidate: token t, the first of a row, from the logits [s*s][V] of `first`, which give p_k
 * (SPEC 6); `first` is the decision of its first code, which settles if the row above is complete. The first evaluation draws it; each
 * later one tests every code of it against the distribution before, so that each code is then a draw from p_k (tsar_adapt). *outlived
 * tells whether the candidate came through a test as a whole. In greedy decoding p is 1 at the maximum and 0 elsewhere: a code outlives a
 * test if the maximum has not moved. */
static tsar_status evaluate_candidate(generation *g, size_t b, const tsar_decision *first, int *outlived, tsar_error *err)
{
    int64_t *codes = g->codes + (b * g->n + first->token) * g->slots;
    const size_t V = g->V, evaluation = g->evaluations[b]++;
    tsar_status status = TSAR_OK;
    *outlived = evaluation > 0;
    for (size_t slot = 0; status == TSAR_OK && slot < g->slots; slot++) {
        double *before = g->before + (b * g->slots + slot) * V;
        const int64_t candidate = codes[slot];
        tsar_decision test = decision_of_slot(g, first, slot);
        if (evaluation > 0) {
            test.purpose = TSAR_ACCEPT;
            test.attempt = evaluation - 1;
            test.candidate = (size_t)candidate;
            test.before = before;
        }
        status = decide_code(g, &test, &codes[slot], err);
        if (codes[slot] != candidate) *outlived = 0;
        memcpy(before, test.p != NULL ? test.p : test.logits, V * sizeof *before);
    }
    return status;
}

/* Finite, and still so when the temperature divides them: the largest stands for all. */
static int are_finite(const double *logits, size_t n, const tsar_settings *settings)
{
    const double temperature = settings->greedy ? 1 : floor_temperature(settings->temperature);
    double largest = 0;
    int finite = 1;
    for (size_t i = 0; i < n; i++) {
        const double size = fabs(logits[i]);
        finite &= size < INFINITY;
        largest = size > largest ? size : largest;
    }
    return finite && largest / temperature < INFINITY;
}

/* Decides the codes of the k-th token that this pass predicted of image b of the batch, `image` of this call. */
static tsar_status decide_token(generation *g, size_t b, size_t image, size_t k, size_t pass, const tsar_result *result, tsar_error *err)
{
    const size_t t = g->next[b * g->width + k], count = g->slots * g->V;
    int64_t *codes = g->codes + (b * g->n + t) * g->slots;
    double *logits = logits_of(g, 0, b, k);
    tsar_decision first = decision_at(g, image, t, 0, pass);
    size_t row, above;
    int complete, outlived;
    tsar_status status = TSAR_OK;
    first.logits = first.cond = logits;
    first.scale = guidance_scale(g, b, t);
    if (first.scale > 0) {
        first.uncond = logits_of(g, 1, b, k);
        if (g->cond != NULL) first.cond = memcpy(g->cond, logits, count * sizeof *logits);
        tsar_guide(logits, first.uncond, count, first.scale);
    }
    if (!are_finite(logits, count, g->settings))
        return tsar_fail(err, TSAR_INPUT, "the logits of fused token %zu are not finite; weights, guidance or temperature are out of range", t);
    if (result->logits != NULL) memcpy(result->logits + (image * g->n + t) * count, logits, count * sizeof *logits);

    if (order_tests(g->settings, g->C, g->step_of + b * g->n, (int64_t)pass, t, &row, &above, &complete)) {
        first.settles = complete;
        status = evaluate_candidate(g, b, &first, &outlived, err);
        if (status != TSAR_OK || (!outlived && !complete)) return status;
        g->lag[b * g->R + row] = above;
        g->evaluations[b] = 0;
    } else
        for (size_t slot = 0; status == TSAR_OK && slot < g->slots; slot++) {
            tsar_decision draw = decision_of_slot(g, &first, slot);
            status = decide_code(g, &draw, &codes[slot], err);
        }
    if (status == TSAR_OK) settle(g, b, t, pass);
    return status;
}

/* Tells the caller where images first ... first+images-1 are. */
static tsar_status report(const generation *g, size_t first, size_t images, size_t pass, int fine, tsar_progress_fn progress, void *context,
                          tsar_error *err)
{
    tsar_progress now;
    if (progress == NULL) return TSAR_OK;
    now.first_image = (size_t)g->settings->first_image + first;
    now.images = images;
    now.pass = pass;
    now.tokens = now.decoded = g->n;
    for (size_t b = 0; b < images; b++)
        if (g->decoded[b] < now.decoded) now.decoded = g->decoded[b];
    now.fine = fine;
    now.codes = g->picture;
    return progress(context, &now, err);
}

/* Code i of the picture [gh][gw] from its fine logits [K], of which only those of its label's members count. */
static tsar_status decide_fine(const generation *g, size_t image, size_t i, int64_t label, double *logits, size_t pass, tsar_error *err)
{
    const size_t gw = g->C * g->s, y = i / gw, x = i % gw;
    const size_t t = y / g->s * g->C + x / g->s, slot = y % g->s * g->s + x % g->s;
    tsar_decision d = decision_at(g, image, t, slot, pass);
    d.purpose = TSAR_FINE;
    d.codes = g->members + g->starts[label];
    d.V = g->starts[label + 1] - g->starts[label];
    d.logits = d.cond = logits;
    if (d.V == 0) return no_members((size_t)label, err);
    for (size_t j = 0; j < d.V; j++) logits[j] = logits[d.codes[j]]; /* codes[j] >= j: nothing is overwritten before it is read */
    if (!are_finite(logits, d.V, g->settings))
        return tsar_fail(err, TSAR_INPUT, "the fine logits of code %zu are not finite; weights or temperature are out of range", i);
    return decide_code(g, &d, &g->fine[i], err);
}

/* CTF's second stage for image b: labels of the picture become codes, each drawn on its own from the fine logits of its cluster's
 * members, in ascending order of their codes (ours: the mask). Temperature, top-k and top-p apply within the
 * cluster, guidance does not (ours). */
static tsar_status refine(generation *g, size_t b, size_t image, size_t pass, tsar_error *err)
{
    const size_t K = g->model->config.codebook_size;
    int64_t *labels = g->picture + b * g->N;
    tsar_status status = tsar_fine_hidden(g->model, labels, g->hidden, NULL, err);
    for (size_t first = 0; status == TSAR_OK && first < g->N; first += g->chunk) {
        const size_t count = g->chunk < g->N - first ? g->chunk : g->N - first;
        status = tsar_fine_logits(g->model, g->hidden, first, count, g->fine_logits, err);
        for (size_t i = first; status == TSAR_OK && i < first + count; i++)
            status = decide_fine(g, image, i, labels[i], g->fine_logits + (i - first) * K, pass, err);
    }
    if (status == TSAR_OK) memcpy(labels, g->fine, g->N * sizeof *labels);
    return status;
}

/* Gives the caller images first ... first+images-1: the labels of stage one if `labels`, else codes and all the rest. */
static void deliver(const generation *g, size_t first, size_t images, int labels, tsar_result *result)
{
    int64_t *codes = labels ? result->coarse : result->codes;
    if (codes != NULL) memcpy(codes + first * g->N, g->picture, images * g->N * sizeof *codes);
    if (labels) return;
    if (result->step_of != NULL) memcpy(result->step_of + first * g->n, g->step_of, images * g->n * sizeof *g->step_of);
    for (size_t b = 0; b < images && result->passes != NULL; b++) {
        int64_t last = 0;
        for (size_t t = 0; t < g->n; t++)
            if (g->step_of[b * g->n + t] > last) last = g->step_of[b * g->n + t];
        result->passes[first + b] = (size_t)last + 1;
    }
}

/* Decodes images first ... first+images-1 side by side, every pass one call of the transformer; then CTF's second stage. */
static tsar_status generate_batch(generation *g, size_t first, size_t images, tsar_result *result, tsar_progress_fn progress, void *context,
                                  tsar_error *err)
{
    const int ctf = g->model->config.n_coarse > 0;
    tsar_status status = TSAR_OK;
    size_t pass = 0, predicted;
    memset(g->fed, 0, g->batch * g->n * sizeof *g->fed);
    for (size_t i = 0; i < g->batch * g->n; i++) g->step_of[i] = -1;
    for (size_t i = 0; i < g->batch * g->N; i++) g->picture[i] = -1;
    for (size_t i = 0; i < g->batch * g->R; i++) g->lag[i] = SIZE_MAX;
    for (size_t b = 0; b < g->batch; b++) g->decoded[b] = g->evaluations[b] = 0;

    for (;; pass++) {
        predicted = 0;
        for (size_t b = 0; b < images; b++)
            predicted += g->n_next[b] =
                tsar_order_next(g->settings, g->R, g->C, g->step_of + b * g->n, g->lag + b * g->R, g->next + b * g->width);
        if (predicted == 0) break;
        memcpy(g->before_pass, g->decoded, g->batch * sizeof *g->decoded);
        status = run_pass(g, images, pass, err);
        for (size_t b = 0; b < images; b++)
            for (size_t k = 0; status == TSAR_OK && k < g->n_next[b]; k++) status = decide_token(g, b, first + b, k, pass, result, err);
        if (status == TSAR_OK) status = report(g, first, images, pass, 0, progress, context, err);
        if (status != TSAR_OK) return status;
    }
    if (ctf) {
        deliver(g, first, images, 1, result);
        for (size_t b = 0; status == TSAR_OK && b < images; b++) status = refine(g, b, first + b, pass, err);
        if (status == TSAR_OK) status = report(g, first, images, pass, 1, progress, context, err);
    }
    if (status == TSAR_OK) deliver(g, first, images, 0, result);
    return status;
}

size_t tsar_batch(const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, size_t images)
{
    generation g;
    measure_generation(&g, model, prompt, settings, images);
    return g.batch;
}

/* The prompt, and with guidance that of the branch that is subtracted. */
static tsar_status check_prompts(const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, tsar_error *err)
{
    tsar_prompt uncond = *prompt;
    uncond.unconditional = 1;
    const tsar_status status = tsar_prompt_check(model, prompt, err);
    return status == TSAR_OK && settings->cfg > 1 ? tsar_prompt_check(model, &uncond, err) : status;
}

tsar_status tsar_generate(const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, size_t images, tsar_result *result,
                          tsar_progress_fn progress, void *context, tsar_error *err)
{
    generation g;
    tsar_status status = TSAR_OK;
    if (!(model->parts & TSAR_PART_GPT))
        status = tsar_fail(err, TSAR_INPUT, "the model has no gpt.* part, so it cannot generate; use a model file with a transformer");
    if (status == TSAR_OK) status = tsar_settings_check(settings, err);
    if (status == TSAR_OK) status = tsar_order_check(settings, model, err);
    if (status == TSAR_OK) status = check_prompts(model, prompt, settings, err);
    if (status != TSAR_OK) return status;
    measure_generation(&g, model, prompt, settings, images);
    status = generation_open(&g, err);
    for (size_t first = 0; status == TSAR_OK && first < images; first += g.batch) {
        const size_t count = g.batch < images - first ? g.batch : images - first;
        status = generate_batch(&g, first, count, result, progress, context, err);
    }
    generation_close(&g);
    return status;
}

/* ------------------------------------------------------------------------------------------------------- 5. likelihood */

/* What a scoring needs at each decision. */
typedef struct {
    const tsar_model *model;
    const int64_t *codes; /* [gh][gw], given */
    double *nats;         /* [gh][gw], out */
} scoring;

/* Takes the given code, and adds its log-likelihood under logits [V]:  ln p_c = (x_c - max) - ln(sum of exp(x_v - max), v ascending).
 * Stage one of CTF decides the code's label, stage two the code among the label's: ln p(code) = ln p(label) + ln p(code | label). */
static tsar_status score_code(void *context, const tsar_decision *d, size_t *code, tsar_error *err)
{
    const scoring *scored = context;
    const tsar_config *config = &scored->model->config;
    const size_t at = d->y * config->grid_w + d->x, given = (size_t)scored->codes[at];
    const double max = d->logits[tsar_argmax(d->logits, d->V)];
    double total = 0;
    size_t index = 0;
    (void)err;
    *code = config->n_coarse > 0 && d->codes == NULL ? (size_t)scored->model->cluster_of[given] : given;
    for (size_t v = 0; v < d->V; v++) {
        total += tsar_exp(d->logits[v] - max);
        if ((d->codes == NULL ? v : d->codes[v]) == *code) index = v;
    }
    scored->nats[at] += d->logits[index] - max - tsar_log(total);
    return TSAR_OK;
}

tsar_status tsar_watch_passes(void *model, const tsar_progress *now, tsar_error *err)
{
    const tsar_model *m = model;
    (void)err;
    if (m->watch) m->watch(m->watch_context, "codes", (double)now->decoded / (double)now->tokens);
    return TSAR_OK;
}

tsar_status tsar_score(const tsar_model *model, const tsar_prompt *prompt, const tsar_settings *settings, const int64_t *codes, double *nats, tsar_error *err)
{
    const tsar_config *config = &model->config;
    const size_t N = config->grid_h * config->grid_w;
    scoring context = { model, codes, nats };
    tsar_result result = { NULL, NULL, NULL, NULL, NULL };
    tsar_settings forced = *settings;
    forced.greedy = 1; /* no code is drawn */
    forced.decide = score_code;
    forced.decide_context = &context;
    if (settings->order == TSAR_ZIPAR_ADAPTIVE)
        return tsar_fail(err, TSAR_USAGE, "the adaptive order has no likelihood: its windows depend on what is drawn; use raster or zipar:W");
    for (size_t i = 0; i < N; i++) {
        if (codes[i] < 0 || (uint64_t)codes[i] >= config->codebook_size)
            return tsar_fail(err, TSAR_INPUT, "code %ld at place %zu is outside 0 ... %zu", (long)codes[i], i, config->codebook_size - 1);
        nats[i] = 0;
    }
    return tsar_generate(model, prompt, &forced, 1, &result, tsar_watch_passes, (void *)model, err);
}
