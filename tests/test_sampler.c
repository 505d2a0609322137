/* Tests of sampler.c, in its order: settings, pure functions against naive ones, decode orders against SPEC 6, generation against
 * golden vectors, against a plain replay of every pass, and against itself (window = row, batch = single).
 *
 * Run from the root of the repository. The golden files are looked for in tests/vectors, or where the environment variable
 * TSAR_VECTORS says. */
#include "../tsar.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A number in [0, 1) for the i-th need of test `which`. */
static double random_at(uint64_t which, uint64_t i) { return tsar_uniform(2024, which, i, 0, 0, 0, 0); }
static size_t random_below(uint64_t which, uint64_t i, size_t n) { return (size_t)(random_at(which, i) * (double)n); }

static void *need(size_t count, size_t size)
{
    tsar_error err = { "" };
    void *memory = tsar_alloc(count, size, "a test", &err);
    if (memory == NULL) {
        printf("%s\n", err.text);
        exit(2);
    }
    return memory;
}

static tsar_settings plain_settings(void)
{
    tsar_settings s;
    memset(&s, 0, sizeof s);
    s.cfg = 1;
    s.cfg_interval = -1;
    s.temperature = 1;
    s.top_p = 1;
    return s;
}

/* ------------------------------------------------------------------------------------------------------- 1. settings */

static void test_parsing(void)
{
    static const struct {
        const char *text;
        int ok;
        tsar_order order;
        size_t window;
        int first_row;
    } cases[] = { { "raster", 1, TSAR_RASTER, 0, 0 },
                  { "zipar:1", 1, TSAR_ZIPAR, 1, 0 },
                  { "zipar:16,first-row", 1, TSAR_ZIPAR, 16, 1 },
                  { "zipar:16777216", 1, TSAR_ZIPAR, 16777216, 0 },
                  { "zipar-adaptive:3", 1, TSAR_ZIPAR_ADAPTIVE, 3, 0 },
                  { "zipar:0", 0, 0, 0, 0 },
                  { "zipar:-1", 0, 0, 0, 0 },
                  { "zipar:+1", 0, 0, 0, 0 },
                  { "zipar: 1", 0, 0, 0, 0 },
                  { "zipar:", 0, 0, 0, 0 },
                  { "zipar", 0, 0, 0, 0 },
                  { "zipar:x", 0, 0, 0, 0 },
                  { "zipar:1x", 0, 0, 0, 0 },
                  { "zipar:1.5", 0, 0, 0, 0 },
                  { "zipar:1,", 0, 0, 0, 0 },
                  { "zipar:1,first", 0, 0, 0, 0 },
                  { "zipar:1,first-row,", 0, 0, 0, 0 },
                  { "zipar:16777217", 1, TSAR_ZIPAR, 16777216, 0 },
                  { "zipar:4294967297,first-row", 1, TSAR_ZIPAR, 16777216, 1 },
                  { "zipar-adaptive:18446744073709551617", 1, TSAR_ZIPAR_ADAPTIVE, 16777216, 0 },
                  { "zipar:99999999999999999999x", 0, 0, 0, 0 },
                  { "zipar-adaptive:0", 0, 0, 0, 0 },
                  { "zipar-adaptive:2,first-row", 0, 0, 0, 0 },
                  { "raster:1", 0, 0, 0, 0 },
                  { "Raster", 0, 0, 0, 0 },
                  { "", 0, 0, 0, 0 } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tsar_settings s = plain_settings(), before = s;
        tsar_error err = { "" };
        const tsar_status status = tsar_order_parse(&s, cases[i].text, &err);
        CHECK(status == (cases[i].ok ? TSAR_OK : TSAR_USAGE), "order '%s': status %d", cases[i].text, (int)status);
        CHECK((err.text[0] == '\0') == cases[i].ok, "order '%s': message '%s'", cases[i].text, err.text);
        if (cases[i].ok)
            CHECK(s.order == cases[i].order && s.window == cases[i].window && s.first_row == cases[i].first_row, "order '%s' is read as %d %zu %d",
                  cases[i].text, (int)s.order, s.window, s.first_row);
        else
            CHECK(s.order == before.order && s.window == before.window, "order '%s' leaves the settings alone", cases[i].text);
    }
    static const char *const names[] = { "constant", "linear", "half-linear", "cosine" };
    tsar_schedule schedule;
    for (int i = 0; i < 4; i++) CHECK(tsar_schedule_parse(&schedule, names[i], NULL) == TSAR_OK && (int)schedule == i, "schedule %s", names[i]);
    CHECK(tsar_schedule_parse(&schedule, "half_linear", NULL) == TSAR_USAGE, "an unknown schedule is refused");
}

/* Sets one field of plain settings and tells whether they are then refused. */
#define REFUSED(field, value) (s = plain_settings(), s.field = (value), tsar_settings_check(&s, NULL) == TSAR_USAGE)

static void test_settings_check(void)
{
    tsar_settings s = plain_settings();
    CHECK(tsar_settings_check(&s, NULL) == TSAR_OK, "plain settings are accepted");
    CHECK(REFUSED(cfg, -0.5) && REFUSED(cfg, NAN) && REFUSED(cfg, INFINITY), "a bad cfg is refused");
    CHECK(!REFUSED(temperature, 0) && REFUSED(temperature, -1) && REFUSED(temperature, NAN) && REFUSED(temperature, INFINITY),
          "a bad temperature is refused");
    CHECK(!REFUSED(top_p, 0) && REFUSED(top_p, -0.1) && REFUSED(top_p, 1.0000001) && REFUSED(top_p, NAN), "a bad top_p is refused");
    CHECK(REFUSED(cfg_interval, -2), "cfg_interval -2 is refused");
    CHECK(REFUSED(order, TSAR_ZIPAR) && REFUSED(order, TSAR_ZIPAR_ADAPTIVE), "window 0 is refused");
    s.window = 1;
    CHECK(tsar_settings_check(&s, NULL) == TSAR_OK, "window 1 is accepted");
}

/* ------------------------------------------------------------------------------------------------- 2. pure functions */

static void test_cfg_scale(void)
{
    tsar_settings s = plain_settings();
    for (size_t n = 1; n < 40; n++)
        for (size_t t = 0; t < n; t++) {
            const double a = 7.5, T = (double)t, M = (double)(n - 1);
            const double line = n > 1 ? T / M : 1;
            const double expected[4] = { a, 1 + (a - 1) * line, 1 + (a - 1) * (2 * T / (double)n < 1 ? 2 * T / (double)n : 1),
                                         1 + (a - 1) * (1 - cos(3.141592653589793 * line)) / 2 };
            for (int i = 0; i < 4; i++) {
                s = plain_settings();
                s.cfg = a;
                s.schedule = (tsar_schedule)i;
                CHECK(fabs(tsar_cfg_scale(&s, t, n) - expected[i]) <= 1e-14, "schedule %d at %zu of %zu", i, t, n);
                for (int64_t interval = 0; interval < 5; interval++) {
                    s.cfg_interval = interval;
                    CHECK((tsar_cfg_scale(&s, t, n) > 0) == ((int64_t)t <= interval + 1), "interval %d at %zu", (int)interval, t);
                }
            }
        }
    s = plain_settings();
    CHECK(!(tsar_cfg_scale(&s, 0, 4) > 0), "no guidance at cfg 1");
    double x[3] = { 1, -2, 0.5 };
    const double uncond[3] = { 0.5, 1, 0.25 };
    tsar_guide(x, uncond, 3, 3.0);
    CHECK(x[0] == 2 && x[1] == -8 && x[2] == 1, "guidance");
}

/* The same as tsar_probabilities, by sorting everything. */
static void naive_probabilities(double *x, size_t V, const tsar_settings *s)
{
    size_t *order = need(V, sizeof *order), n = 0;
    double total = 0, mass = 0, max;
    for (size_t v = 0; v < V; v++) x[v] = x[v] / s->temperature;
    for (size_t v = 0; v < V; v++) { /* insertion sort, stable, descending */
        size_t at = v;
        for (; at > 0 && x[order[at - 1]] < x[v]; at--) order[at] = order[at - 1];
        order[at] = v;
    }
    max = x[order[0]];
    n = s->top_k > 0 && s->top_k < V ? s->top_k : V;
    while (n < V && x[order[n]] == x[order[n - 1]]) n++;
    for (size_t i = n; i < V; i++) x[order[i]] = -INFINITY;
    for (size_t v = 0; v < V; v++) total += tsar_exp(x[v] - max);
    for (size_t i = 0; i < n && s->top_p < 1; i++) {
        const double e = tsar_exp(x[order[i]] - max);
        if (mass > s->top_p) x[order[i]] = -INFINITY;
        mass += e / total;
    }
    for (total = 0, n = 0; n < V; n++) total += x[n] = tsar_exp(x[n] - max);
    for (size_t v = 0; v < V; v++) x[v] = x[v] / total;
    tsar_free(order);
}

static void test_probabilities(void)
{
    double x[300], y[300];
    size_t scratch[300];
    for (uint64_t round = 0; round < 3000; round++) {
        const size_t V = 1 + random_below(1, round, round % 3 ? 40 : 300);
        const double levels = round % 2 ? 5 : 1e9; /* few levels: many ties */
        tsar_settings s = plain_settings();
        s.temperature = 0.3 + random_at(2, round);
        s.top_k = round % 5 ? random_below(3, round, V + 3) : 0;
        s.top_p = round % 7 ? 0.05 + 0.95 * random_at(4, round) : 1;
        for (size_t v = 0; v < V; v++) x[v] = y[v] = floor((random_at(100 + round, v) - 0.5) * levels) / levels * 8;
        tsar_probabilities(x, V, &s, scratch);
        naive_probabilities(y, V, &s);
        size_t different = 0;
        for (size_t v = 0; v < V; v++) different += !(x[v] == y[v]);
        CHECK(different == 0, "round %d: V %zu, k %zu, p %g: %zu probabilities differ", (int)round, V, s.top_k, s.top_p, different);
    }
}

static void test_draw(void)
{
    for (uint64_t round = 0; round < 2000; round++) {
        const size_t V = 1 + random_below(5, round, 20);
        const double u = round % 10 ? random_at(6, round) : (round % 20 ? 0 : 1 - ldexp(1, -53));
        double w[20], total = 0, running = 0;
        size_t expected = 0;
        for (size_t v = 0; v < V; v++) total += w[v] = random_at(7 + round * 16, v) < 0.3 ? 0 : random_at(8 + round * 16, v);
        if (!(total > 0)) continue;
        while (!((running += w[expected]) > u * total)) expected++;
        const size_t drawn = tsar_draw(w, V, u);
        CHECK(drawn == expected && w[drawn] > 0, "round %d: draws %zu, not %zu", (int)round, drawn, expected);
    }
    static const double ties[] = { -3, 5, 5, 2, 5 }, rounded[] = { 0.5, 0.25, 0 };
    CHECK(tsar_argmax(ties, 5) == 1, "the lowest index of the maximum");
    CHECK(tsar_draw(rounded, 3, 1.0) == 1, "the fallback is the last index with weight");
}

/* A mass that equals p does not exceed it: one more is kept. Among equals the lower index comes first. */
static void test_top_p_edge(void)
{
    double x[4] = { 1, 1, 1, 1 }, y[4] = { 1, 1, 1, 1 };
    size_t scratch[4];
    tsar_settings s = plain_settings();
    s.top_p = 0.5;
    tsar_probabilities(x, 4, &s, scratch);
    CHECK(x[0] > 0 && x[1] > 0 && x[2] > 0 && !(x[3] > 0), "top-p 0.5 of four equals keeps the first three");
    s.top_p = 0.4999;
    tsar_probabilities(y, 4, &s, scratch);
    CHECK(y[0] == 0.5 && y[1] == 0.5 && !(y[2] > 0) && !(y[3] > 0), "top-p 0.4999 of four equals keeps the first two");
    double z[4] = { 1, 2, 2, 1 }, cold[4] = { 1, 1.5, 1.25, 0 };
    s.top_p = 0;
    tsar_probabilities(z, 4, &s, scratch);
    CHECK(z[0] == 0 && z[1] == 1 && z[2] == 0 && z[3] == 0, "top-p 0 keeps exactly one, the first of the largest");
    s.top_p = 1, s.temperature = 0;
    tsar_probabilities(cold, 4, &s, scratch);
    CHECK(cold[0] == 0 && cold[1] == 1 && cold[2] == 0 && cold[3] == 0, "temperature 0 leaves the largest");
}

/* Sum of (seen - expected)^2 / expected over cells, and how many cells there are; those that expect nothing must be empty. */
static double chi_squared(const double *seen, const double *expected, size_t cells, size_t *used)
{
    double sum = 0;
    *used = 0;
    for (size_t i = 0; i < cells; i++) {
        if (!(expected[i] > 0)) {
            if (seen[i] > 0) return INFINITY;
            continue;
        }
        sum += (seen[i] - expected[i]) * (seen[i] - expected[i]) / expected[i];
        ++*used;
    }
    return sum;
}

/* Below the 0.9999 quantile of chi-squared with k degrees of freedom (Wilson and Hilferty's approximation). */
static int plausible(double chi2, size_t k)
{
    const double c = 2.0 / (9.0 * (double)k), root = 1 - c + 3.719 * sqrt(c);
    return chi2 < (double)k * root * root * root;
}

/* A candidate of `slots` codes drawn from p, tested against q: afterwards it is distributed as q, over the product of its codes. */
static void test_adapt(size_t slots)
{
    static const double p[3] = { 0.5, 0.3, 0.2 }, q[3] = { 0.15, 0.3, 0.55 };
    const uint64_t draws = 100000;
    double residual[3], seen[81] = { 0 }, expected[81];
    size_t cells = 1, used, kept = 0;
    for (size_t slot = 0; slot < slots; slot++) cells *= 3;
    for (size_t cell = 0; cell < cells; cell++) {
        expected[cell] = (double)draws;
        for (size_t slot = 0, rest = cell; slot < slots; slot++, rest /= 3) expected[cell] *= q[rest % 3];
    }
    for (uint64_t i = 0; i < draws; i++) {
        size_t cell = 0, power = 1;
        for (size_t slot = 0; slot < slots; slot++, power *= 3) {
            const size_t x = tsar_draw(p, 3, tsar_uniform(9, i, 0, 0, slot, TSAR_DRAW, 0));
            const size_t y =
                tsar_adapt(x, p, q, residual, 3, tsar_uniform(9, i, 0, 0, slot, TSAR_ACCEPT, 0), tsar_uniform(9, i, 0, 0, slot, TSAR_REPLACE, 0));
            kept += x == y;
            cell += power * y;
        }
        seen[cell]++;
    }
    const double chi2 = chi_squared(seen, expected, cells, &used);
    CHECK(plausible(chi2, cells - 1), "%zu codes: chi-squared %g over %zu cells", slots, chi2, cells);
    const double share = (double)kept / (double)(draws * slots); /* sum of min(p, q) = 0.65 */
    CHECK(fabs(share - 0.65) < 0.01, "%g of the codes are kept", share);
}

static void test_adapt_edges(void)
{
    static const double p[3] = { 0.25, 0.5, 0.25 }, q[3] = { 0, 0.5, 0.5 };
    double residual[3];
    CHECK(tsar_adapt(0, p, q, residual, 3, 0.0, 0.9) == 2, "a code that has become impossible is replaced, even at 0");
    CHECK(tsar_adapt(1, p, q, residual, 3, 0.999, 0.0) == 1, "a code that is as likely as before is kept");
    CHECK(tsar_adapt(1, p, p, residual, 3, 1.0, 0.3) == 1, "without a residual the new distribution is drawn from");
}

/* ------------------------------------------------------------------------------------------------- 3. decode orders */

/* SPEC 6, word for word: may (i,j) be decoded? */
static int may_decode(const tsar_settings *s, size_t C, const int64_t *step_of, size_t i, size_t j, size_t W)
{
    if (j > 0 && step_of[i * C + j - 1] < 0) return 0;
    size_t end = j + W < C ? j + W : C;
    if (s->order == TSAR_RASTER || (s->order == TSAR_ZIPAR && s->first_row && i == 1)) end = C;
    for (size_t above = 0; i > 0 && above < end; above++)
        if (step_of[(i - 1) * C + above] < 0) return 0;
    return 1;
}

static void test_order(const tsar_settings *s, size_t R, size_t C)
{
    int64_t step_of[400], pass = 0;
    size_t next[400], decoded = 0;
    for (size_t t = 0; t < R * C; t++) step_of[t] = -1;
    for (;; pass++) {
        const size_t count = tsar_order_next(s, R, C, step_of, NULL, next);
        size_t expected = 0, wrong = 0;
        for (size_t t = 0; t < R * C; t++)
            if (step_of[t] < 0 && may_decode(s, C, step_of, t / C, t % C, s->window)) {
                wrong += !(expected < count && next[expected] == t);
                expected++;
            }
        CHECK(wrong == 0 && count == expected, "%zu x %zu, order %d:%zu, pass %d: %zu tokens, %zu expected", R, C, (int)s->order, s->window,
              (int)pass, count, expected);
        if (count == 0) break;
        for (size_t k = 0; k < count; k++) step_of[next[k]] = pass;
        decoded += count;
    }
    const size_t W = s->window < C ? s->window : C;
    const size_t passes = s->order == TSAR_RASTER ? R * C : s->first_row && R > 1 ? 2 * C + (R - 2) * W : C + (R - 1) * W;
    CHECK(decoded == R * C, "%zu x %zu: all tokens are decoded", R, C);
    CHECK((size_t)pass == passes && tsar_order_passes(s, R, C) == passes, "%zu x %zu, order %d:%zu: %d passes, %zu said, %zu by the formula", R, C,
          (int)s->order, s->window, (int)pass, tsar_order_passes(s, R, C), passes);
}

static void test_orders(void)
{
    for (size_t R = 1; R <= 7; R++)
        for (size_t C = 1; C <= 9; C++)
            for (size_t W = 1; W <= C + 2; W++)
                for (int variant = 0; variant < 3; variant++) {
                    tsar_settings s = plain_settings();
                    s.order = variant < 2 ? TSAR_ZIPAR : TSAR_RASTER;
                    s.window = W;
                    s.first_row = variant == 1;
                    test_order(&s, R, C);
                }
    static const size_t windows[3] = { 16, 12, 8 }, published[3] = { 400, 312, 224 };
    for (int i = 0; i < 3; i++) {
        tsar_settings s = plain_settings();
        s.order = TSAR_ZIPAR;
        s.window = windows[i];
        s.first_row = 1;
        CHECK(tsar_order_passes(&s, 24, 24) == published[i], "24 x 24, window %zu: the paper's Table 1", windows[i]);
    }
}

/* ---------------------------------------------------------------------------------------------------- 4. generation */

#define SYNTHETIC "test_sampler.tmp.safetensors"

/* The synthetic model of "key=value key=value ...", or NULL after a failed check. */
static tsar_model *describe(const char *text)
{
    tsar_error err = { "" };
    tsar_model *model = NULL;
    return CHECK(test_synthesise(&model, SYNTHETIC, text, TSAR_F32, 1, &err) == TSAR_OK, "a synthetic model: %s", err.text) ? model : NULL;
}

typedef struct {
    size_t images, N, n, token;
    tsar_result result;
} run; /* token = s*s*V */

static run run_open(const tsar_model *m, size_t images)
{
    const tsar_config *c = &m->config;
    run r;
    memset(&r, 0, sizeof r);
    r.images = images;
    r.N = c->grid_h * c->grid_w;
    r.n = c->tokens;
    r.token = c->shuffle * c->shuffle * c->vocab;
    r.result.codes = need(images * r.N, sizeof(int64_t));
    r.result.coarse = need(images * r.N, sizeof(int64_t));
    r.result.step_of = need(images * r.n, sizeof(int64_t));
    r.result.logits = need(images * r.n * r.token, sizeof(double));
    r.result.passes = need(images, sizeof(size_t));
    return r;
}

static void run_close(run *r)
{
    tsar_free(r->result.codes);
    tsar_free(r->result.coarse);
    tsar_free(r->result.step_of);
    tsar_free(r->result.logits);
    tsar_free(r->result.passes);
}

static run generate(const tsar_model *m, const tsar_prompt *prompt, const tsar_settings *s, size_t images)
{
    run r = run_open(m, images);
    tsar_error err = { "" };
    const tsar_status status = tsar_generate(m, prompt, s, images, &r.result, NULL, NULL, &err);
    CHECK(status == TSAR_OK, "generation: %s", err.text);
    return r;
}

/* Codes and logits of two runs' first images, to the last bit. */
static int same_run(const run *a, const run *b)
{
    const size_t images = a->images < b->images ? a->images : b->images;
    size_t different = 0;
    for (size_t i = 0; i < images * a->N; i++) different += a->result.codes[i] != b->result.codes[i];
    for (size_t i = 0; i < images * a->n * a->token; i++) different += !(a->result.logits[i] == b->result.logits[i]);
    return different == 0;
}

/* The s*s codes of fused token t from a picture [gh][gw]. */
static void window_codes(const tsar_config *c, const int64_t *picture, size_t t, int64_t *codes)
{
    const size_t s = c->shuffle;
    for (size_t y = 0; y < s; y++)
        for (size_t x = 0; x < s; x++) codes[y * s + x] = picture[(t / c->columns * s + y) * c->grid_w + t % c->columns * s + x];
}

/* One pass of one sequence, straight from SPEC 6: every token of pass-1 is fed, and where the one before a wanted token is missing,
 * the last decoded one stands in; with eol the first token of a row is predicted by it alone. codes [n][s*s], logits [n][s*s][V], feed [2n]. */
static tsar_status plain_pass(tsar_state *state, const tsar_config *c, const int64_t *step_of, int64_t pass, const unsigned char *wanted, const int64_t *codes,
                              double *logits, tsar_feed *feed)
{
    const size_t slots = c->shuffle * c->shuffle, token = slots * c->vocab;
    size_t rows = 0;
    for (size_t t = 0; t + 1 < c->tokens; t++) {
        const int fresh = step_of[t] == pass - 1, decoded = step_of[t] >= 0 && step_of[t] < pass;
        const int eol = c->eol >= 0 && (t + 1) % c->columns == 0;
        double *prediction = wanted[t + 1] ? logits + (t + 1) * token : NULL;
        size_t source = t;
        while (!eol && (step_of[source] < 0 || step_of[source] >= pass)) source--;
        const tsar_feed row = { 0, t, codes + source * slots, decoded, eol ? NULL : prediction }, end = { 0, t, NULL, 1, prediction };
        if (fresh || (prediction && !eol)) feed[rows++] = row;
        if (prediction && eol) feed[rows++] = end;
    }
    return tsar_forward(state, feed, rows, NULL);
}

/* Decodes a finished image again, one sequence at a time, and compares the guided logits bit for bit. */
static void replay(const tsar_model *m, const tsar_prompt *prompt, const tsar_settings *s, const run *r, size_t image, const char *what)
{
    const tsar_config *c = &m->config;
    const size_t n = r->n, slots = c->shuffle * c->shuffle;
    const int64_t *step_of = r->result.step_of + image * n;
    double *logits[2] = { need(n * r->token, sizeof(double)), need(n * r->token, sizeof(double)) };
    int64_t *codes = need(n * slots, sizeof *codes);
    unsigned char *wanted = need(n, 1);
    tsar_feed *feed = need(2 * n, sizeof *feed);
    size_t different = 0;
    const size_t branches = s->cfg > 1 ? 2 : 1;
    for (size_t t = 0; t < n; t++) window_codes(c, (c->n_coarse ? r->result.coarse : r->result.codes) + image * r->N, t, codes + t * slots);
    for (size_t branch = 0; branch < branches; branch++) {
        tsar_prompt p = *prompt;
        tsar_state *state = NULL;
        p.unconditional = branch == 1;
        tsar_status status = tsar_state_open(&state, m, 1, NULL);
        if (status == TSAR_OK) status = tsar_prefill(state, 0, &p, logits[branch], NULL);
        for (int64_t pass = 1; status == TSAR_OK && pass < (int64_t)r->result.passes[image]; pass++) {
            for (size_t t = 0; t < n; t++) wanted[t] = step_of[t] == pass;
            status = plain_pass(state, c, step_of, pass, wanted, codes, logits[branch], feed);
        }
        CHECK(status == TSAR_OK, "%s: replay", what);
        tsar_state_close(state);
    }
    for (size_t t = 0; t < n; t++) {
        const double scale = tsar_cfg_scale(s, t, n);
        double *guided = logits[0] + t * r->token;
        if (scale > 0) tsar_guide(guided, logits[1] + t * r->token, r->token, scale);
        for (size_t i = 0; i < r->token; i++) different += !(guided[i] == r->result.logits[(image * n + t) * r->token + i]);
    }
    CHECK(different == 0, "%s, image %zu: %zu logits differ from the replay", what, image, different);
    tsar_free(logits[0]);
    tsar_free(logits[1]);
    tsar_free(codes);
    tsar_free(wanted);
    tsar_free(feed);
}

/* p [V] of one code; in greedy decoding 1 at the maximum and 0 elsewhere. */
static void distribution(double *p, const double *logits, size_t V, const tsar_settings *s, size_t *scratch)
{
    const size_t best = tsar_argmax(logits, V);
    for (size_t v = 0; v < V; v++) p[v] = s->greedy ? v == best : logits[v];
    if (!s->greedy) tsar_probabilities(p, V, s, scratch);
}

/* zipar-adaptive without guidance, straight from SPEC 6, for one image of at most 10 rows; compares codes and step_of. Acceptance, residual and
 * lag are written out here; greedy decoding takes the same path with distributions of a single code. */
static void naive_adaptive(const tsar_model *m, const tsar_prompt *prompt, const tsar_settings *s, const run *r, size_t image)
{
    const tsar_config *c = &m->config;
    const size_t n = r->n, C = c->columns, slots = c->shuffle * c->shuffle, V = c->vocab, W = s->window < C ? s->window : C;
    size_t done[10] = { 0 }, lag[10] = { 0 }, tests = 0, left = n, different = 0, *scratch = need(V, sizeof *scratch);
    double *logits = need(n * r->token, sizeof *logits), *p = need(slots * V, sizeof *p), *q = need(V, sizeof *q);
    double *residual = need(V, sizeof *residual);
    int64_t *codes = need(n * slots, sizeof *codes), *expected = need(slots, sizeof *expected), *step_of = need(n, sizeof *step_of);
    unsigned char *wanted = need(n, 1);
    tsar_feed *feed = need(2 * n, sizeof *feed);
    tsar_state *state = NULL;
    int drawn = 0;
    for (size_t t = 0; t < n; t++) step_of[t] = -1;
    tsar_status status = tsar_state_open(&state, m, 1, NULL);
    for (int64_t pass = 0; status == TSAR_OK && left > 0 && pass < 1000; pass++) {
        for (size_t i = 0; i < c->rows; i++)
            for (size_t j = 0; j < C; j++) {
                const size_t window = j == 0 ? W : lag[i], needed = j + window < C ? j + window : C;
                wanted[i * C + j] = done[i] == j && (i == 0 || done[i - 1] >= needed);
            }
        status = pass == 0 ? tsar_prefill(state, 0, prompt, logits, NULL) : plain_pass(state, c, step_of, pass, wanted, codes, logits, feed);
        for (size_t t = n; status == TSAR_OK && t-- > 0;) { /* from the bottom, so that done[i-1] is still that of before the pass */
            const size_t i = t / C, j = t % C;
            const int candidate = i > 0 && j == 0;
            int final = !candidate || done[i - 1] == C, all_kept = 1;
            if (!wanted[t]) continue;
            for (size_t slot = 0; slot < slots; slot++) {
                int64_t *x = &codes[t * slots + slot];
                double *before = p + slot * V;
                distribution(q, logits + t * r->token + slot * V, V, s, scratch);
                if (candidate && drawn) {
                    if (!(tsar_uniform(s->seed, image, i, j, slot, TSAR_ACCEPT, tests) * before[*x] < q[*x])) {
                        for (size_t v = 0; v < V; v++) residual[v] = fmax(0, q[v] - before[v]);
                        *x = (int64_t)tsar_draw(residual, V, tsar_uniform(s->seed, image, i, j, slot, TSAR_REPLACE, tests));
                        all_kept = 0;
                    }
                } else
                    *x = (int64_t)tsar_draw(q, V, tsar_uniform(s->seed, image, i, j, slot, TSAR_DRAW, 0));
                if (candidate) memcpy(before, q, V * sizeof *q);
            }
            if (candidate) {
                tests = drawn ? tests + 1 : 0;
                final = final || (drawn && all_kept);
                drawn = !final;
                lag[i] = done[i - 1];
            }
            if (final) step_of[t] = pass;
        }
        for (size_t t = 0; t < n; t++)
            if (step_of[t] == pass) done[t / C]++, left--;
    }
    for (size_t t = 0; t < n; t++) {
        window_codes(c, r->result.codes + image * r->N, t, expected);
        different += memcmp(expected, codes + t * slots, slots * sizeof *codes) != 0 || step_of[t] != r->result.step_of[image * n + t];
    }
    CHECK(status == TSAR_OK && different == 0, "adaptive:%zu, greedy %d, image %zu: %zu tokens differ from a naive decoder", s->window, s->greedy,
          image, different);
    void *const owned[] = { scratch, logits, p, q, residual, codes, expected, step_of, wanted, feed };
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) tsar_free(owned[i]);
    tsar_state_close(state);
}

/* What SPEC 6 promises of an adaptive order's step_of: every row goes on without a pause from a first token that saw at
 * least min(W, C) tokens above. Returns the sum of the windows. */
static size_t check_adaptive(const tsar_settings *s, const tsar_config *c, const int64_t *step_of)
{
    const size_t C = c->columns;
    size_t sum = 0;
    for (size_t i = 0; i < c->rows; i++) {
        for (size_t j = 1; j < C; j++) CHECK(step_of[i * C + j] == step_of[i * C + j - 1] + 1, "row %zu goes on at column %zu", i, j);
        if (i == 0) continue;
        const int64_t lag = step_of[i * C] - step_of[(i - 1) * C];
        CHECK(lag >= (int64_t)(s->window < C ? s->window : C) && lag <= (int64_t)C, "row %zu has the window %ld", i, (long)lag);
        sum += (size_t)lag;
    }
    return sum;
}

static const char token_shuffle[] = "arch=token-shuffle dim=48 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=64 norm_eps=1e-5 rope=1d text_vocab=20 "
                                    "codebook_size=40 grid_h=10 grid_w=12 shuffle=2 shuffle_blocks=1 shuffle_hidden=32 seed=5";
static const char llamagen[] = "arch=llamagen-c2i dim=48 n_layer=2 n_head=4 n_kv_head=4 ffn_hidden=64 norm_eps=1e-5 rope=2d codebook_size=50 "
                               "grid_h=5 grid_w=7 cond_tokens=1 num_classes=3 seed=6";

static const char rows_with_ends[] = "arch=emu3 dim=48 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=64 norm_eps=1e-5 rope=1d vocab_size=90 image_base=40 "
                                     "codebook_size=50 eol=7 boi=2 grid_h=5 grid_w=6 seed=8";
static const char shuffled_ends[] = "arch=token-shuffle dim=48 n_layer=1 n_head=4 n_kv_head=2 ffn_hidden=64 norm_eps=1e-5 rope=2d text_vocab=20 eol=9 "
                                    "codebook_size=40 grid_h=8 grid_w=10 shuffle=2 shuffle_blocks=1 shuffle_hidden=32 seed=5";

/* Every order on one model, sampled and greedy, with and without guidance. */
static void test_model(const char *description, const tsar_prompt *prompt)
{
    static const char *const orders[] = { "raster", "zipar:1", "zipar:3", "zipar:2,first-row", "zipar-adaptive:1", "zipar-adaptive:2" };
    tsar_model *m = describe(description);
    if (m == NULL) return;
    for (int variant = 0; variant < 6; variant++) {
        tsar_settings s = plain_settings();
        s.seed = 11;
        s.greedy = variant % 2;
        s.cfg = variant / 2 ? 2.5 : 1;
        s.schedule = variant / 2 == 1 ? TSAR_HALF_LINEAR : TSAR_COSINE;
        s.cfg_interval = variant / 2 == 2 ? 9 : -1;
        s.temperature = 0.8;
        s.top_k = 25;
        s.top_p = 0.97;
        run raster = generate(m, prompt, &s, 2);
        char wide[60];
        for (int adaptive = 0; adaptive < 2; adaptive++)
            for (size_t extra = 0; extra < 2; extra++) {
                sprintf(wide, "zipar%s:%zu", adaptive ? "-adaptive" : "", (m->config.columns + extra));
                tsar_order_parse(&s, wide, NULL);
                run r = generate(m, prompt, &s, 2);
                CHECK(same_run(&r, &raster), "%s equals raster, variant %d", wide, variant);
                run_close(&r);
            }
        run_close(&raster);
        for (size_t o = 0; o < sizeof orders / sizeof *orders; o++) {
            tsar_order_parse(&s, orders[o], NULL);
            if (m->config.eol >= 0 && s.first_row) continue;
            run many = generate(m, prompt, &s, 6), one = generate(m, prompt, &s, 1);
            CHECK(same_run(&many, &one) && many.result.passes[0] == one.result.passes[0], "%s: batch equals single, variant %d", orders[o], variant);
            for (size_t image = 0; image < 6; image += 5) {
                const size_t fewest = tsar_order_passes(&s, m->config.rows, m->config.columns);
                size_t passes = fewest;
                replay(m, prompt, &s, &many, image, orders[o]);
                if (s.order == TSAR_ZIPAR_ADAPTIVE && !(s.cfg > 1)) naive_adaptive(m, prompt, &s, &many, image);
                if (s.order == TSAR_ZIPAR_ADAPTIVE) passes = m->config.columns + check_adaptive(&s, &m->config, many.result.step_of + image * many.n);
                CHECK(many.result.passes[image] == passes && passes >= fewest, "%s: %zu passes", orders[o], many.result.passes[image]);
            }
            run_close(&many);
            run_close(&one);
        }
    }
    tsar_model_close(m);
}

/* On a grid of 2 x 2 codes, token (1,0) is drawn when the row above has one token, and the test of the next pass is final. So given
 * the first row it must be distributed as its logits say, which are those of that pass. */
static void test_adaptive_distribution(void)
{
    static const int64_t text[] = { 0, 3, 1 };
    const tsar_prompt prompt = { .text = text, .n_text = 3 };
    const size_t images = 100000, V = 3;
    double seen[27] = { 0 }, expected[27] = { 0 }, p[3];
    tsar_settings s = plain_settings();
    tsar_model *m = describe("arch=token-shuffle dim=8 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=1d text_vocab=4 "
                             "codebook_size=3 grid_h=2 grid_w=2 shuffle=1 seed=3");
    if (m == NULL) return;
    s.seed = 77;
    tsar_order_parse(&s, "zipar-adaptive:1", NULL);
    run r = generate(m, &prompt, &s, images);
    for (size_t i = 0; i < images; i++) {
        const int64_t *codes = r.result.codes + 4 * i;
        size_t scratch[3];
        memcpy(p, r.result.logits + (4 * i + 2) * V, sizeof p);
        tsar_probabilities(p, V, &s, scratch);
        for (size_t v = 0; v < V; v++) expected[(size_t)(codes[0] * 3 + codes[1]) * V + v] += p[v];
        seen[(size_t)(codes[0] * 3 + codes[1]) * V + (size_t)codes[2]]++;
    }
    size_t used;
    const double chi2 = chi_squared(seen, expected, 27, &used);
    CHECK(plausible(chi2, 18), "adaptive order, two tokens: chi-squared %g", chi2);
    run_close(&r);
    tsar_model_close(m);
}

/* CTF: every code belongs to its label's cluster, labels are those of stage one, in every order; and a naive stage two agrees. */
static void test_coarse_to_fine(void)
{
    static const int64_t text[] = { 0, 3, 5, 1 };
    static const char *const orders[] = { "raster", "zipar:1", "zipar-adaptive:1" };
    const tsar_prompt prompt = { .text = text, .n_text = 4 };
    tsar_model *m = describe("arch=token-shuffle dim=48 n_layer=1 n_head=4 n_kv_head=2 ffn_hidden=64 norm_eps=1e-5 rope=1d text_vocab=20 "
                             "codebook_size=90 n_coarse=9 grid_h=6 grid_w=8 shuffle=2 shuffle_blocks=1 shuffle_hidden=32 seed=5 "
                             "fine_dim=32 fine_n_layer=1 fine_n_head=2 fine_ffn_hidden=40");
    if (m == NULL) return;
    const size_t K = 90, N = 48;
    double *hidden = need(N, 32 * sizeof *hidden), *logits = need(N, K * sizeof *logits);
    for (size_t code = 0; code < K; code++) /* one label with a single member */
        m->cluster_of[code] = code == 17 ? 8 : (int64_t)(code * code % 8);
    for (size_t code = 0; code < 8; code++) m->cluster_of[code] = (int64_t)code;
    for (int variant = 0; variant < 6; variant++) {
        tsar_settings s = plain_settings();
        s.seed = 4;
        s.greedy = variant % 2;
        s.top_k = 3;
        s.temperature = 0.7;
        s.cfg = 2;
        tsar_order_parse(&s, orders[variant / 2], NULL);
        run r = generate(m, &prompt, &s, 5);
        size_t wrong = 0;
        for (size_t image = 0; image < 5; image++) {
            const int64_t *labels = r.result.coarse + image * N, *codes = r.result.codes + image * N;
            CHECK(tsar_fine_hidden(m, labels, hidden, NULL, NULL) == TSAR_OK && tsar_fine_logits(m, hidden, 0, N, logits, NULL) == TSAR_OK,
                  "stage two");
            replay(m, &prompt, &s, &r, image, "coarse to fine");
            for (size_t i = 0; i < N; i++) {
                const size_t y = i / 8, x = i % 8;
                double *l = logits + i * K;
                size_t scratch[90];
                for (size_t code = 0; code < K; code++)
                    if (m->cluster_of[code] != labels[i]) l[code] = -INFINITY;
                size_t code = tsar_argmax(l, K);
                if (!s.greedy) {
                    tsar_probabilities(l, K, &s, scratch);
                    code = tsar_draw(l, K, tsar_uniform(4, image, y / 2, x / 2, y % 2 * 2 + x % 2, TSAR_FINE, 0));
                }
                wrong += code != (size_t)codes[i] || m->cluster_of[codes[i]] != labels[i];
            }
        }
        CHECK(wrong == 0, "coarse to fine, variant %d: %zu codes differ", variant, wrong);
        run_close(&r);
    }
    tsar_settings s = plain_settings();
    tsar_error err = { "" };
    run r = run_open(m, 1);
    m->cluster_of[17] = 0;
    CHECK(tsar_generate(m, &prompt, &s, 1, &r.result, NULL, NULL, &err) == TSAR_INPUT && strstr(err.text, "label 8 has no codes"),
          "empty cluster: %s", err.text);
    m->cluster_of[17] = 9;
    CHECK(tsar_generate(m, &prompt, &s, 1, &r.result, NULL, NULL, &err) == TSAR_INPUT, "label out of range: %s", err.text);
    m->cluster_of[17] = 8;
    m->parts &= ~(unsigned)TSAR_PART_FINE;
    CHECK(tsar_generate(m, &prompt, &s, 1, &r.result, NULL, NULL, &err) == TSAR_INPUT && strstr(err.text, "fine"), "no fine stage: %s", err.text);
    m->parts |= TSAR_PART_FINE;
    run_close(&r);
    tsar_free(hidden);
    tsar_free(logits);
    tsar_model_close(m);
}

typedef struct {
    size_t calls, images, last_pass, wrong, stop_at, N;
    const int64_t *step_of;
} watched;

static tsar_status watch(void *context, const tsar_progress *now, tsar_error *err)
{
    watched *w = context;
    size_t undecoded = 0, most = 0;
    if (now->pass != (now->first_image == w->images ? w->last_pass + 1 : 0)) w->wrong++;
    for (size_t image = 0; image < now->images; image++, undecoded = 0) {
        for (size_t i = 0; i < w->N; i++) undecoded += now->codes[image * w->N + i] < 0;
        most = undecoded > most ? undecoded : most;
    }
    if (most * now->tokens != (now->tokens - now->decoded) * w->N) w->wrong++;
    w->images = now->first_image;
    w->last_pass = now->pass;
    if (++w->calls == w->stop_at) return tsar_fail(err, TSAR_ROOM, "enough");
    return TSAR_OK;
}

static void test_progress(void)
{
    static const int64_t text[] = { 0, 1 };
    const tsar_prompt prompt = { .text = text, .n_text = 2 };
    tsar_model *m = describe(token_shuffle);
    if (m == NULL) return;
    tsar_settings s = plain_settings();
    tsar_order_parse(&s, "zipar:2", NULL);
    run r = run_open(m, 5);
    watched w = { 0, 0, SIZE_MAX, 0, 0, r.N, NULL };
    tsar_error err = { "" };
    const size_t passes = tsar_order_passes(&s, m->config.rows, m->config.columns);
    CHECK(tsar_generate(m, &prompt, &s, 5, &r.result, watch, &w, &err) == TSAR_OK, "generation: %s", err.text);
    CHECK(w.calls == 2 * passes && w.wrong == 0, "progress: %zu calls, %zu wrong", w.calls, w.wrong);
    w.calls = 0;
    w.stop_at = 3;
    CHECK(tsar_generate(m, &prompt, &s, 5, &r.result, watch, &w, &err) == TSAR_ROOM && w.calls == 3 && !strcmp(err.text, "enough"),
          "a callback can stop it");
    const tsar_result codes_only = { r.result.codes, NULL, NULL, NULL, NULL };
    tsar_result copy = codes_only;
    CHECK(tsar_generate(m, &prompt, &s, 1, &copy, NULL, NULL, &err) == TSAR_OK, "only codes are wanted");
    run_close(&r);
    tsar_model_close(m);
}

/* -------------------------------------------------------------------------------------------------- 5. golden vectors */

static tsar_file *golden_open(const char *name)
{
    const char *folder = getenv("TSAR_VECTORS");
    char path[1000];
    tsar_file *file = NULL;
    snprintf(path, sizeof path, "%s/%s.safetensors", folder != NULL ? folder : "tests/vectors", name);
    return CHECK(tsar_file_open(&file, path, NULL) == TSAR_OK, "the golden file %s opens", path) ? file : NULL;
}

/* A tensor of a golden file as int64 or double, or NULL if it is not there; to be freed. */
static void *golden_read(tsar_file *file, const char *name, int integers)
{
    const tsar_tensor *tensor = tsar_file_find(file, name);
    if (tensor == NULL) return NULL;
    void *data = need((size_t)tensor->count, 8);
    const tsar_status status =
        integers ? tsar_file_read_i64(file, tensor, 0, tensor->count, data, NULL) : tsar_file_read_f64(file, tensor, 0, tensor->count, data, NULL);
    CHECK(status == TSAR_OK, "%s is read", name);
    return data;
}

typedef struct {
    tsar_model *model;
    tsar_prompt prompt;
    int64_t *text, *class_id;
    double *caption, *mask;
} golden;

static int golden_model(golden *g, tsar_file *file)
{
    tsar_error err = { "" };
    memset(g, 0, sizeof *g);
    tsar_status status = test_synth_like(SYNTHETIC, tsar_file_path(file), TSAR_F32, &err);
    if (status == TSAR_OK) status = tsar_model_open(&g->model, SYNTHETIC, TSAR_PART_ALL, 1, &err);
    remove(SYNTHETIC);
    CHECK(status == TSAR_OK, "a synthetic model: %s", err.text);
    if ((g->text = golden_read(file, "input.text", 1)) != NULL) g->prompt.n_text = (size_t)tsar_file_find(file, "input.text")->count;
    if ((g->class_id = golden_read(file, "input.class", 1)) != NULL) g->prompt.class_id = (size_t)g->class_id[0];
    g->prompt.text = g->text;
    g->prompt.caption = g->caption = golden_read(file, "input.caption", 0);
    g->prompt.caption_mask = g->mask = golden_read(file, "input.caption_mask", 0);
    return g->model != NULL;
}

static void golden_close(golden *g)
{
    tsar_model_close(g->model);
    tsar_free(g->text);
    tsar_free(g->class_id);
    tsar_free(g->caption);
    tsar_free(g->mask);
}

/* Greedy codes exactly; logits to 1e-11 of their RMS. */
static void test_greedy(const char *name, size_t expected)
{
    size_t seen = 0;
    static const struct {
        const char *prefix;
        double cfg;
        tsar_schedule schedule;
    } cases[] = { { "greedy", 1, TSAR_CONSTANT },
                  { "greedy_cfg", 0, TSAR_CONSTANT }, /* 0: the metadata's cfg */
                  { "greedy_half_linear", 7.5, TSAR_HALF_LINEAR },
                  { "greedy_linear", 4, TSAR_LINEAR } };
    tsar_file *file = golden_open(name);
    golden g;
    if (file == NULL) return;
    for (size_t i = 0; golden_model(&g, file) && i < sizeof cases / sizeof *cases; i++, golden_close(&g)) {
        char tensor[60];
        snprintf(tensor, sizeof tensor, "%s.codes", cases[i].prefix);
        int64_t *codes = golden_read(file, tensor, 1);
        snprintf(tensor, sizeof tensor, "%s.logits", cases[i].prefix);
        double *logits = golden_read(file, tensor, 0);
        if (codes != NULL && logits != NULL) {
            tsar_settings s = plain_settings();
            seen++;
            s.greedy = 1;
            s.cfg = cases[i].cfg > 0 ? cases[i].cfg : strtod(tsar_file_meta(file, "cfg"), NULL);
            s.schedule = cases[i].schedule;
            run r = generate(g.model, &g.prompt, &s, 1);
            double worst = 0, square = 0;
            for (size_t v = 0; v < r.n * r.token; v++) {
                worst = fmax(worst, fabs(r.result.logits[v] - logits[v]));
                square += logits[v] * logits[v];
            }
            const double relative = worst / sqrt(square / (double)(r.n * r.token));
            CHECK(memcmp(codes, r.result.codes, r.N * sizeof *codes) == 0, "%s %s: codes", name, cases[i].prefix);
            CHECK(relative < 1e-11, "%s %s: logits differ by %g of their RMS", name, cases[i].prefix, relative);
            replay(g.model, &g.prompt, &s, &r, 0, name);
            run_close(&r);
        }
        tsar_free(codes);
        tsar_free(logits);
    }
    CHECK(seen == expected, "%s: %zu of %zu greedy cases", name, seen, expected);
    golden_close(&g);
    tsar_file_close(file);
}

/* Codes, step_of and passes of every case, exactly. */
static void test_zipar(const char *name, size_t expected)
{
    size_t seen = 0;
    static const int windows[] = { 1, 2, 3, 5, 8 };
    static const char *const scales[] = { "1", "7.5" };
    tsar_file *file = golden_open(name);
    golden g;
    if (file == NULL) return;
    if (golden_model(&g, file))
        for (int i = 0; i < 10; i++) {
            char tensor[60], order[60];
            snprintf(tensor, sizeof tensor, "zipar.%d.cfg%s.codes", windows[i / 2], scales[i % 2]);
            int64_t *codes = golden_read(file, tensor, 1);
            snprintf(tensor, sizeof tensor, "zipar.%d.cfg%s.step_of", windows[i / 2], scales[i % 2]);
            int64_t *step_of = golden_read(file, tensor, 1);
            snprintf(tensor, sizeof tensor, "zipar.%d.cfg%s.steps", windows[i / 2], scales[i % 2]);
            int64_t *steps = golden_read(file, tensor, 1);
            if (codes != NULL && step_of != NULL && steps != NULL) {
                tsar_settings s = plain_settings();
                seen++;
                s.greedy = 1;
                s.cfg = strtod(scales[i % 2], NULL);
                s.schedule = TSAR_HALF_LINEAR;
                snprintf(order, sizeof order, "zipar:%d", windows[i / 2]);
                tsar_order_parse(&s, order, NULL);
                run r = generate(g.model, &g.prompt, &s, 1);
                CHECK(memcmp(codes, r.result.codes, r.N * sizeof *codes) == 0, "%s %s: codes", name, tensor);
                CHECK(memcmp(step_of, r.result.step_of, r.n * sizeof *step_of) == 0, "%s %s: step_of", name, tensor);
                CHECK(steps[0] == (int64_t)r.result.passes[0], "%s %s: passes", name, tensor);
                replay(g.model, &g.prompt, &s, &r, 0, tensor);
                run_close(&r);
            }
            tsar_free(codes);
            tsar_free(step_of);
            tsar_free(steps);
        }
    CHECK(seen == expected, "%s: %zu of %zu cases", name, seen, expected);
    golden_close(&g);
    tsar_file_close(file);
}

/* The golden codes of stage two: the likeliest member of each label's cluster. */
static void test_fine(void)
{
    tsar_file *file = golden_open("fine");
    tsar_model *m = NULL;
    tsar_error err = { "" };
    if (file == NULL) return;
    tsar_status status = test_synth_like(SYNTHETIC, "tests/vectors/fine.safetensors", TSAR_F32, &err);
    if (status == TSAR_OK) status = tsar_model_open(&m, SYNTHETIC, TSAR_PART_ALL, 1, &err);
    int64_t *labels = golden_read(file, "input.coarse", 1), *codes = golden_read(file, "greedy.codes", 1);
    if (CHECK(status == TSAR_OK && labels && codes, "fine: %s", err.text)) {
        const size_t N = m->config.grid_h * m->config.grid_w, K = m->config.codebook_size;
        double *hidden = tsar_alloc(N, m->config.fine_dim * sizeof *hidden, "fine", NULL), *logits = tsar_alloc(N, K * sizeof *logits, "fine", NULL);
        size_t wrong = 0;
        CHECK(tsar_fine_hidden(m, labels, hidden, NULL, &err) == TSAR_OK && tsar_fine_logits(m, hidden, 0, N, logits, &err) == TSAR_OK, "fine: %s", err.text);
        for (size_t i = 0; i < N; i++) {
            for (size_t k = 0; k < K; k++)
                if (m->cluster_of[k] != labels[i]) logits[i * K + k] = -INFINITY;
            wrong += (int64_t)tsar_argmax(logits + i * K, K) != codes[i];
        }
        CHECK(wrong == 0, "fine: %zu of %zu codes differ", wrong, N);
        tsar_free(hidden);
        tsar_free(logits);
    }
    tsar_free(labels);
    tsar_free(codes);
    tsar_model_close(m);
    tsar_file_close(file);
    remove(SYNTHETIC);
}

int main(void)
{
    static const int64_t text[] = { 0, 3, 5, 17, 1 }, ids[] = { 9, 8, 2 }, negative[] = { 9, 4, 4, 6, 2 };
    const tsar_prompt own_prefixes = { .text = ids, .n_text = 3, .text_uncond = negative, .n_text_uncond = 5 };
    const tsar_prompt sentence = { .text = text, .n_text = 5 }, class_two = { .class_id = 2 };
    test_parsing();
    test_settings_check();
    test_cfg_scale();
    test_probabilities();
    test_top_p_edge();
    test_draw();
    test_adapt(1);
    test_adapt(4);
    test_adapt_edges();
    test_orders();
    test_model(token_shuffle, &sentence);
    test_model(llamagen, &class_two);
    test_model(rows_with_ends, &own_prefixes);
    test_model(shuffled_ends, &sentence);
    test_adaptive_distribution();
    test_coarse_to_fine();
    test_progress();
    test_greedy("c2i", 2);
    test_greedy("c2i_odd", 2);
    test_greedy("t2i", 2);
    test_greedy("shuffle_s1", 3);
    test_greedy("shuffle_s2", 3);
    test_greedy("shuffle_s4_gqa", 3);
    test_zipar("zipar_s1", 6);
    test_zipar("zipar_s2", 8);
    test_fine();
    return test_end();
}
