/* Cases without a network: the functions that choose tokens, and texts. Their inputs are input.*; numbers are such that F32, mostly BF16 too, holds them
 * exactly, and draws stand far from every edge or exactly on it. */
#include "suite.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const noise_format[SUITE_PRECISIONS] = { "noise/whole/f32/%s", "noise/whole/f16/%s", "noise/whole/bf16/%s" };

/* A result in double, and as its noise one rounding of each number: N = N_r = u RMS(y). */
static tsar_status put_rows(tensor_list *list, const char *name, size_t rows, size_t columns, const double *y, tsar_error *err)
{
    enum { MOST_CASE_ROWS = 256 };
    const size_t shape[2] = { rows, columns }, n = 2 + rows;
    double figures[2 + MOST_CASE_ROWS];
    if (rows > MOST_CASE_ROWS) return tsar_fail(err, TSAR_ROOM, "%s has more than %d rows", name, (int)MOST_CASE_ROWS);
    tsar_status status = suite_put(list, TSAR_F64, rows > 1 ? 2 : 1, rows > 1 ? shape : shape + 1, y, "whole/%s", name, err) ? TSAR_OK : TSAR_ROOM;
    for (size_t p = 0; status == TSAR_OK && p < SUITE_PRECISIONS; p++) {
        figures[0] = 1;
        for (size_t r = 0; r <= rows; r++) figures[1 + r] = tsar_unit_roundoff(suite_precisions[p].p) * tsar_rms(y, rows * columns);
        status = suite_put_f32(list, 1, &n, figures, noise_format[p], name, err);
    }
    return status;
}

/* Multiples of 1/8 between -2 and 2. */
static void eighths(double *x, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) x[i] = (double)(int64_t)((tsar_synth_word(tsar_synth_key(name, 1), i) >> 33) % 33 - 16) / 8;
}

/* -------------------------------------------------------------------------------------------------------------------- guidance */

static tsar_status put_guidance(tensor_list *list, tsar_error *err)
{
    enum { n = 24, V = 12, R = 4 };
    static const struct {
        const char *name;
        tsar_schedule schedule;
        double cfg;
        int64_t interval;
    } scales[] = {
        { "scale.constant", TSAR_CONSTANT, 7.5, -1 }, { "scale.linear", TSAR_LINEAR, 7.5, -1 },  { "scale.half-linear", TSAR_HALF_LINEAR, 7.5, -1 },
        { "scale.cosine", TSAR_COSINE, 7.5, -1 },     { "scale.interval", TSAR_CONSTANT, 4, 2 }, { "scale.below", TSAR_CONSTANT, 0.5, -1 },
    };
    const size_t shape[2] = { R, V }, rows = R;
    double scale[n], cond[R * V], uncond[R * V], guided[V * R], a[R] = { 1.5, 2, 4, 7.5 };
    tsar_status status = TSAR_OK;
    for (size_t i = 0; status == TSAR_OK && i < sizeof scales / sizeof *scales; i++) {
        const tsar_settings s = { .cfg = scales[i].cfg, .schedule = scales[i].schedule, .cfg_interval = scales[i].interval };
        for (size_t t = 0; t < n; t++) scale[t] = tsar_cfg_scale(&s, t, n);
        status = put_rows(list, scales[i].name, 1, n, scale, err);
    }
    eighths(cond, R * V, "input.guide.cond");
    eighths(uncond, R * V, "input.guide.uncond");
    memcpy(guided, cond, sizeof guided);
    for (size_t r = 0; r < R; r++) tsar_guide(guided + r * V, uncond + r * V, V, a[r]);
    if (status == TSAR_OK && (!suite_put(list, TSAR_F64, 2, shape, cond, "input.%s", "guide.cond", err) ||
                              !suite_put(list, TSAR_F64, 2, shape, uncond, "input.%s", "guide.uncond", err) ||
                              !suite_put(list, TSAR_F64, 1, &rows, a, "input.%s", "guide.scale", err)))
        status = TSAR_ROOM;
    return status == TSAR_OK ? put_rows(list, "guide.logits", R, V, guided, err) : status;
}

/* -------------------------------------------------------------------------------------------------------------------- sampling */

/* logits in eighths, the rest of each row's V at -16 (that is, out of play). */
static const struct sample {
    int eighths[8];
    double temperature;
    size_t top_k;
    double top_p, u;
} samples[] = {
    { { 3, -5, 12, 0, 8, -9, 5, 1 }, 1, 0, 1, 0.03125 },
    { { 3, -5, 12, 0, 8, -9, 5, 1 }, 1, 0, 1, 0.375 },
    { { 3, -5, 12, 0, 8, -9, 5, 1 }, 1, 0, 1, 0.96875 },
    { { 3, -5, 12, 0, 8, -9, 5, 1 }, 0.5, 0, 1, 0.875 },
    { { 3, -5, 12, 0, 8, -9, 5, 1 }, 2, 0, 1, 0.875 },
    { { 3, -5, 12, 0, 8, -9, 5, 1 }, 0, 0, 1, 0.9375 },
    { { 3, -5, 12, 0, 8, -9, 5, 1 }, 1, 3, 1, 0.9375 },
    { { 3, -5, 12, 0, 8, -9, 5, 1 }, 1, 3, 1, 0.0625 },
    { { 4, 8, 4, 12, 4, -8, 2, 1 }, 1, 3, 1, 0.9375 }, /* three are equal at the edge of top-k: all stay */
    { { 4, 8, 4, 12, 4, -8, 2, 1 }, 1, 3, 1, 0.03125 },
    { { 4, 8, 4, 12, 4, -8, 2, 1 }, 1, 1, 1, 0.75 },
    { { 8, 8, 8, 8, -100, -100, -100, -100 }, 1, 0, 0.5, 0.75 },  /* a mass of exactly p does not exceed it: three stay */
    { { 8, 8, 8, 8, -100, -100, -100, -100 }, 1, 4, 0.25, 0.75 }, /* two */
    { { 8, 8, 8, 8, -100, -100, -100, -100 }, 1, 4, 0, 0.75 },    /* one: the lowest of the equals */
    { { -100, 8, -100, 8, -100, 8, 8, -100 }, 1, 4, 0.375, 0.9375 },
    { { 8, 16, 24, 0, -8, 4, 12, 20 }, 1, 0, 0.75, 0.9375 },
    { { 8, 16, 24, 0, -8, 4, 12, 20 }, 1, 0, 0.75, 0.0625 },
    { { 8, 16, 24, 0, -8, 4, 12, 20 }, 1, 4, 0.9375, 0.96875 }, /* top-p of what top-k leaves */
    { { 8, 16, 24, 0, -8, 4, 12, 20 }, 2, 5, 0.5, 0.875 },
    { { 8, 16, 24, 0, -8, 4, 12, 20 }, 0.5, 0, 0.875, 0.96875 },
    { { 8, 8, -100, 8, 8, -100, -100, -100 }, 1, 4, 1, 0.5 }, /* u on an edge: the sum must exceed it */
    { { 8, 8, -100, 8, 8, -100, -100, -100 }, 1, 4, 1, 0 },
    { { -100, 8, -100, 8, 8, 8, -100, -100 }, 1, 4, 1, 0.25 },
    { { -8, 20, 3, 20, 5, 20, 1, 0 }, 1, 0, 1, 0.5 }, /* greedy: the lowest of three that are equal */
};

static tsar_status put_samples(tensor_list *list, tsar_error *err)
{
    enum { R = sizeof samples / sizeof *samples, V = 8 };
    static double logits[R * V], p[R * V], T[R], top_p[R], u[R];
    static int64_t top_k[R], code[R], greedy[R];
    const size_t shape[2] = { R, V }, rows = R;
    size_t scratch[V];
    for (size_t r = 0; r < R; r++) {
        const tsar_settings s = { .temperature = samples[r].temperature, .top_k = samples[r].top_k, .top_p = samples[r].top_p };
        for (size_t j = 0; j < V; j++) logits[r * V + j] = samples[r].eighths[j] / 8.0;
        T[r] = s.temperature, top_k[r] = (int64_t)s.top_k, top_p[r] = s.top_p, u[r] = samples[r].u;
        memcpy(p + r * V, logits + r * V, V * sizeof *p);
        tsar_probabilities(p + r * V, V, &s, scratch);
        code[r] = (int64_t)tsar_draw(p + r * V, V, u[r]);
        greedy[r] = (int64_t)tsar_argmax(logits + r * V, V);
    }
    if (!suite_put(list, TSAR_F64, 2, shape, logits, "input.%s", "sample.logits", err) ||
        !suite_put(list, TSAR_F64, 1, &rows, T, "input.%s", "sample.temperature", err) ||
        !suite_put(list, TSAR_I64, 1, &rows, top_k, "input.%s", "sample.top_k", err) ||
        !suite_put(list, TSAR_F64, 1, &rows, top_p, "input.%s", "sample.top_p", err) || !suite_put(list, TSAR_F64, 1, &rows, u, "input.%s", "sample.u", err))
        return TSAR_ROOM;
    const tsar_status status = put_rows(list, "sample.probabilities", R, V, p, err);
    if (status != TSAR_OK) return status;
    return suite_put(list, TSAR_I64, 1, &rows, code, "whole/%s", "sample.code", err) &&
                   suite_put(list, TSAR_I64, 1, &rows, greedy, "whole/%s", "sample.greedy", err)
               ? TSAR_OK
               : TSAR_ROOM;
}

/* The adaptive order's test, where p and q are in sixteenths: at its edge, accepted and replaced. */
static tsar_status put_tests(tensor_list *list, tsar_error *err)
{
    enum { R = 6, V = 4 };
    static const double p[R * V] = { .5, .25, .125, .125, .5, .25, .125, .125, .5, .25, .125, .125, .25, .25, .25, .25, .5, .25, .125, .125, .5, .25, .25, 0 };
    static const double q[R * V] = { .25, .25, .25, .25, .25, .25, .25, .25, .25, .25, .25, .25, .5, .125, .125, .25, .125, .5, .25, .125, .25, .25, .25, .25 };
    static const double accept[R] = { .25, .75, .5, .9375, .75, .5 }, replace[R] = { .25, .75, .25, .5, .25, .5 };
    static const int64_t code[R] = { 0, 0, 0, 0, 0, 0 };
    const size_t shape[2] = { R, V }, rows = R;
    int64_t chosen[R];
    double residual[V];
    for (size_t r = 0; r < R; r++) chosen[r] = (int64_t)tsar_adapt((size_t)code[r], p + r * V, q + r * V, residual, V, accept[r], replace[r]);
    return suite_put(list, TSAR_F64, 2, shape, p, "input.%s", "adapt.p", err) && suite_put(list, TSAR_F64, 2, shape, q, "input.%s", "adapt.q", err) &&
                   suite_put(list, TSAR_F64, 1, &rows, accept, "input.%s", "adapt.accept", err) &&
                   suite_put(list, TSAR_F64, 1, &rows, replace, "input.%s", "adapt.replace", err) &&
                   suite_put(list, TSAR_I64, 1, &rows, code, "input.%s", "adapt.code", err) &&
                   suite_put(list, TSAR_I64, 1, &rows, chosen, "whole/%s", "adapt.chosen", err)
               ? TSAR_OK
               : TSAR_ROOM;
}

/* -------------------------------------------------------------------------------------------- random numbers, orders and bytes */

static tsar_status put_uniform(tensor_list *list, tsar_error *err)
{
    enum { R = 16 };
    const size_t shape[2] = { R, 7 };
    int64_t at[R * 7] = { 42, 0, 0, 0, 0, 0, 0, 42, 1, 2, 3, 1, 0, 0 }; /* seed, image, row, column, slot, purpose, attempt */
    double u[R];
    for (size_t i = 14; i < R * 7; i++) at[i] = (int64_t)((tsar_synth_word(tsar_synth_key("input.uniform.at", 1), i) >> 33) % (i % 7 == 5 ? 5 : 50));
    for (size_t r = 0; r < R; r++) {
        const int64_t *v = at + 7 * r;
        u[r] = tsar_uniform((uint64_t)v[0], (uint64_t)v[1], (uint64_t)v[2], (uint64_t)v[3], (uint64_t)v[4], (uint64_t)v[5], (uint64_t)v[6]);
    }
    if (!suite_put(list, TSAR_I64, 2, shape, at, "input.%s", "uniform.at", err)) return TSAR_ROOM;
    return put_rows(list, "uniform.u", 1, R, u, err);
}

static tsar_status put_order(tensor_list *list, const char *order, size_t rows, size_t columns, tsar_error *err)
{
    enum { MOST_CASES = 256 };
    const size_t shape[2] = { rows, columns };
    tsar_settings s = { .cfg = 1 };
    size_t next[MOST_CASES];
    char name[64];
    tsar_status status = tsar_order_parse(&s, order, err);
    (void)snprintf(name, sizeof name, "order.%s.%zux%zu", order, rows, columns);
    int64_t *step_of = status == TSAR_OK ? suite_put(list, TSAR_I64, 2, shape, NULL, "whole/%s", name, err) : NULL;
    for (size_t i = 0; step_of && i < rows * columns; i++) step_of[i] = -1;
    for (int64_t pass = 0, n = 1; step_of && n > 0; pass++) {
        n = (int64_t)tsar_order_next(&s, rows, columns, step_of, NULL, next);
        for (int64_t i = 0; i < n; i++) step_of[next[i]] = pass;
    }
    return step_of ? TSAR_OK : TSAR_ROOM;
}

static tsar_status put_bytes(tensor_list *list, tsar_error *err)
{
    enum { n = 321, BYTES = 256 };
    const size_t count = n, bytes = BYTES;
    double x[n], in[BYTES];
    uint8_t nearest[n], down[n];
    for (size_t i = 0; i < n; i++) x[i] = ((double)i - 160) / 128, nearest[i] = suite_byte(x[i], 0), down[i] = suite_byte(x[i], 1);
    for (size_t i = 0; i < BYTES; i++) in[i] = (double)i / 127.5 - 1;
    if (!suite_put(list, TSAR_F64, 1, &count, x, "input.%s", "bytes.x", err) ||
        !suite_put(list, TSAR_U8, 1, &count, nearest, "whole/%s", "bytes.nearest", err) ||
        !suite_put(list, TSAR_U8, 1, &count, down, "whole/%s", "bytes.down", err))
        return TSAR_ROOM;
    return put_rows(list, "bytes.in", 1, bytes, in, err);
}

tsar_status suite_rules(tensor_list *list, tsar_error *err)
{
    static const struct {
        const char *order;
        size_t rows, columns;
    } orders[] = {
        { "raster", 4, 5 },   { "zipar:1", 5, 6 },           { "zipar:2", 6, 8 },           { "zipar:3", 4, 3 },
        { "zipar:20", 4, 6 }, { "zipar:2,first-row", 6, 6 }, { "zipar:5,first-row", 4, 7 },
    };
    tsar_status status = put_guidance(list, err);
    if (status == TSAR_OK) status = put_samples(list, err);
    if (status == TSAR_OK) status = put_tests(list, err);
    if (status == TSAR_OK) status = put_uniform(list, err);
    for (size_t i = 0; status == TSAR_OK && i < sizeof orders / sizeof *orders; i++)
        status = put_order(list, orders[i].order, orders[i].rows, orders[i].columns, err);
    return status == TSAR_OK ? put_bytes(list, err) : status;
}

/* ------------------------------------------------------------------------------------------------------------------------ texts */

enum { MOST_TEXTS = 512, MOST_IDS = 256, MOST_BYTES = 1 << 16 };

/* The next line of hexadecimal digits; bytes of it, -1 at the end. */
static int read_hex(const char **at, const char *end, uint8_t *out, size_t room)
{
    static const char digits[] = "0123456789abcdef";
    int n = 0;
    if (*at >= end) return -1;
    for (; *at + 1 < end && (*at)[0] != '\n' && (size_t)n < room; *at += 2)
        out[n++] = (uint8_t)(16 * (strchr(digits, (*at)[0]) - digits) + (strchr(digits, (*at)[1]) - digits));
    while (*at < end && **at != '\n') ++*at;
    ++*at;
    return n;
}

static tsar_status encode(const tsar_tokenizer *t, const uint8_t *text, size_t n, int64_t *row, size_t *longest, tsar_error *err)
{
    int64_t *ids = NULL;
    size_t count = 0;
    tsar_status status = t->spiece ? tsar_spiece_encode(t->spiece, (const char *)text, n, &ids, &count, err)
                                   : tsar_bpe_encode(&t->bpe, (const char *)text, n, &ids, &count, err);
    if (status == TSAR_OK && count > MOST_IDS) status = tsar_fail(err, TSAR_ROOM, "a text has more than %d ids", (int)MOST_IDS);
    for (size_t i = 0; status == TSAR_OK && i < MOST_IDS; i++) row[i] = i < count ? ids[i] : -1;
    if (count > *longest) *longest = count;
    tsar_free(ids);
    return status;
}

/* input.bytes of all texts, input.at where each begins and the last ends, whole/ids [texts][longest], -1 behind the last. */
tsar_status suite_text(tensor_list *list, const char *tokenizer, const char *texts, tsar_error *err)
{
    static uint8_t bytes[MOST_BYTES];
    static int64_t at[MOST_TEXTS + 1], ids[MOST_TEXTS * MOST_IDS];
    tsar_tokenizer t = { .spiece = NULL };
    char *file = NULL;
    size_t size = 0, n = 0, longest = 1;
    tsar_status status = tsar_tokenizer_open(&t, tokenizer, err);
    if (status == TSAR_OK) status = tsar_read_whole(texts, "texts", &file, &size, err);
    for (const char *place = file; status == TSAR_OK && n < MOST_TEXTS; n++) {
        const int used = read_hex(&place, file + size, bytes + at[n], (size_t)(MOST_BYTES - at[n]));
        if (used < 0) break;
        status = encode(&t, bytes + at[n], (size_t)used, ids + n * MOST_IDS, &longest, err);
        at[n + 1] = at[n] + used;
    }
    for (size_t i = 0; i < n; i++) memmove(ids + i * longest, ids + i * MOST_IDS, longest * sizeof *ids);
    const size_t shape[2] = { n, longest }, places = n + 1, all = (size_t)at[n];
    if (status == TSAR_OK &&
        (!suite_put(list, TSAR_U8, 1, &all, bytes, "input.%s", "bytes", err) || !suite_put(list, TSAR_I64, 1, &places, at, "input.%s", "at", err) ||
         !suite_put(list, TSAR_I64, 2, shape, ids, "whole/%s", "ids", err)))
        status = TSAR_ROOM;
    tsar_free(file);
    tsar_tokenizer_close(&t);
    return status;
}
