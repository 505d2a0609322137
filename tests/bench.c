/* bench.c - tsar's speed against the limits of the machine that it runs on (the command `tsar bench`).
 *
 * Two loops find the limits: one only reads memory, one only multiplies and adds in registers, in the arithmetic of SPEC 1
 * (double, no fused multiply-add). What is measured takes turns with its limit, round after round, and the best round of each
 * counts: on a machine with other work, both see the same disturbance, and only their ratio means anything. One thread is
 * measured in processor time, so that the turns of other programs do not count; several are measured by the clock. */
#include "../tsar.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define ROUNDS 8
#define BUFFER_BYTES ((size_t)1 << 30)
#define MOST_THREADS 256

static double seconds(size_t threads) { return threads > 1 ? tsar_seconds() : tsar_processor_seconds(); }

/* ------------------------------------------------------------------------------------------------------------ limits */

typedef struct {
    size_t threads;       /* that limits and measurements use now */
    uint64_t *buffer;     /* [BUFFER_BYTES / 8], for the limit of reading; NULL when it is not needed */
    volatile double sink; /* keeps results alive */
    double read, macs;    /* best so far: bytes and multiply-adds per second */
    double many, softmax; /* multiply-adds of 64 F32 vectors, numbers of a softmax per second */
    tsar_measurement_fn report;
    void *context;
    tsar_error *err;
} bench;

/* Sum of n words, n a multiple of 64, in 64 accumulators; `ahead` bytes in front the memory is asked for them (0: it is not). */
TSAR_INLINE uint64_t read_words(const uint64_t *words, size_t n, size_t ahead)
{
    uint64_t sums[64] = { 0 }, total = 0;
    for (size_t i = 0; i < n; i += 64) {
        for (size_t line = 0; line < 64 && ahead > 0; line += 8) TSAR_PREFETCH((const void *)((uintptr_t)(words + i + line) + ahead));
        for (size_t j = 0; j < 64; j++) sums[j] += words[i + j];
    }
    for (size_t j = 0; j < 64; j++) total += sums[j];
    return total;
}

static uint64_t read_plain(const uint64_t *words, size_t n) { return read_words(words, n, 0); }
static uint64_t read_ahead(const uint64_t *words, size_t n) { return read_words(words, n, 4096); }

/* Each way of reading takes half of the buffer; the better one counts. */
static void try_read(bench *b)
{
    static uint64_t (*const ways[2])(const uint64_t *words, size_t n) = { read_plain, read_ahead };
    const size_t threads = b->threads, words = BUFFER_BYTES / 16 / threads / 64 * 64;
    for (size_t way = 0; way < 2; way++) {
        uint64_t sums[MOST_THREADS] = { 0 };
        const uint64_t *half = b->buffer + way * (BUFFER_BYTES / 16);
        const double start = seconds(threads);
        TSAR_PARALLEL_FOR(threads)
        for (size_t i = 0; i < threads; i++) sums[i] = ways[way](half + i * words, words);
        const double rate = (double)(words * 8 * threads) / (seconds(threads) - start);
        for (size_t i = 0; i < threads; i++) b->sink += (double)sums[i];
        b->read = rate > b->read ? rate : b->read;
    }
}

/* n steps a = a * m + c on N independent values of a, product and sum rounded apart: N / (vector length) chains, enough
 * to hide the latency, few enough for the registers. Which N that is depends on the CPU: the best counts. The prefetch
 * keeps compilers from exchanging the loops. */
#define CHAINS_OF(N)                                                                                                                                    \
    static double chains_##N(size_t n, double m, double c)                                                                                           \
    {                                                                                                                                                \
        double a[N], sum = 0;                                                                                                                        \
        for (size_t j = 0; j < N; j++) a[j] = (double)j;                                                                                             \
        for (size_t i = 0; i < n; i++) {                                                                                                             \
            TSAR_PREFETCH(&m);                                                                                                                       \
            for (size_t j = 0; j < N; j++) a[j] = a[j] * m + c;                                                                                      \
        }                                                                                                                                            \
        for (size_t j = 0; j < N; j++) sum += a[j];                                                                                                  \
        return sum;                                                                                                                                  \
    }
CHAINS_OF(24)
CHAINS_OF(32) CHAINS_OF(48) CHAINS_OF(64) CHAINS_OF(96)

    static void try_macs(bench *b)
{
    static const struct {
        double (*run)(size_t n, double m, double c);
        size_t width;
    } loops[] = {
        { chains_24, 24 }, { chains_32, 32 }, { chains_48, 48 }, { chains_64, 64 }, { chains_96, 96 },
    };
    const size_t steps = 100000, threads = b->threads;
    for (size_t l = 0; l < sizeof loops / sizeof *loops; l++) {
        double sums[MOST_THREADS] = { 0 };
        const double m = 1 - 1e-9 * b->read / (b->read + 1), start = seconds(threads);
        TSAR_PARALLEL_FOR(threads)
        for (size_t i = 0; i < threads; i++) sums[i] = loops[l].run(steps, m, 1e-9);
        const double rate = (double)(steps * loops[l].width * threads) / (seconds(threads) - start);
        for (size_t i = 0; i < threads; i++) b->sink += sums[i];
        b->macs = rate > b->macs ? rate : b->macs;
    }
}

static tsar_status say(bench *b, double value, const char *unit, double limit, const char *format, ...) TSAR_FORMAT(5, 6);
static tsar_status say(bench *b, double value, const char *unit, double limit, const char *format, ...)
{
    tsar_measurement m = { .value = value, .limit = limit };
    char name[sizeof m.name];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    if (b->threads > 1)
        snprintf(m.name, sizeof m.name, "%.40s, %u threads", name, (unsigned)b->threads);
    else
        snprintf(m.name, sizeof m.name, "%s", name);
    snprintf(m.unit, sizeof m.unit, "%s", unit);
    return b->report(b->context, &m, b->err);
}

static void keep_best(const bench *b, double *best, double start)
{
    const double time = seconds(b->threads) - start;
    if (*best == 0 || time < *best) *best = time;
}

/* --------------------------------------------------------------------------------------------------- synthetic weights */

/* u in [-1, 1). */
static double noise(uint64_t i) { return (double)(tsar_mix(i) >> 11) * 0x1p-52 - 1; }

/* values [n] in dtype: scale * u. */
static void fill(void *values, tsar_dtype dtype, size_t n, double scale)
{
    for (size_t i = 0; i < n; i++) {
        const double x = scale * noise(i);
        const float f = (float)x;
        const uint16_t half = dtype == TSAR_BF16 ? tsar_round_bf16(f) : tsar_round_f16(f);
        const size_t size = tsar_dtype_size(dtype);
        memcpy((char *)values + i * size, dtype == TSAR_F64 ? (const void *)&x : dtype == TSAR_F32 ? (const void *)&f : (const void *)&half, size);
    }
}

/* A matrix whose panels repeat the same few random rows. */
static tsar_status fill_matrix(tsar_matrix *w, size_t rows, size_t cols, tsar_dtype dtype, tsar_error *err)
{
    enum { SLAB = 31 };
    tsar_status status = tsar_matrix_open(w, rows, cols, dtype, "a matrix to measure", err);
    void *slab = status == TSAR_OK ? tsar_alloc(SLAB * cols, tsar_dtype_size(dtype), "weights to measure", err) : NULL;
    if (slab == NULL) return TSAR_ROOM;
    fill(slab, dtype, SLAB * cols, 1.7 / (double)cols);
    for (size_t r = 0; r < rows; r += SLAB) tsar_matrix_set_rows(w, r, rows - r < SLAB ? rows - r : SLAB, slab);
    tsar_free(slab);
    return TSAR_OK;
}

static tsar_status fill_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    const tsar_dtype dtype = *(const tsar_dtype *)context;
    size_t cols = 1;
    for (size_t i = 1; i < weight->rank; i++) cols *= weight->shape[i];
    if (weight->use == TSAR_AS_MATRIX) return fill_matrix(weight->home, weight->rows, cols, dtype, err);
    if (weight->use == TSAR_AS_TABLE) {
        tsar_table *table = weight->home;
        *table = (tsar_table){ weight->rows, cols, dtype, tsar_alloc(weight->rows * cols, tsar_dtype_size(dtype), weight->name, err) };
        if (table->values == NULL) return TSAR_ROOM;
        fill(table->values, dtype, weight->rows * cols, 1);
    }
    if (weight->use == TSAR_AS_VECTOR) {
        double *vector = tsar_alloc(weight->shape[0], sizeof *vector, weight->name, err);
        if (vector == NULL) return TSAR_ROOM;
        for (size_t i = 0; i < weight->shape[0]; i++) vector[i] = 1 + 0.1 * noise(i);
        *(double **)weight->home = vector;
    }
    return TSAR_OK;
}

static const char *lookup(const void *source, const char *key)
{
    for (const char *const *pair = source; pair[0] != NULL; pair += 2)
        if (strcmp(pair[0], key) == 0) return pair[1];
    return NULL;
}

/* A model in memory from key, value, ..., NULL; to be closed. */
static tsar_status open_synthetic(tsar_model **model, const char *const *pairs, tsar_dtype dtype, size_t threads, tsar_error *err)
{
    tsar_model *m = *model = tsar_alloc(1, sizeof *m, "a model", err);
    if (m == NULL) return TSAR_ROOM;
    m->threads = threads;
    tsar_status status = tsar_config_read(&m->config, lookup, pairs, "bench", err);
    if (status == TSAR_OK) status = tsar_model_allocate(m, err);
    return status == TSAR_OK ? tsar_weights(&m->config, m, fill_weight, &dtype, err) : status;
}

/* ------------------------------------------------------------------------------------------------------------- matrices */

/* y = W x with W of about 1 GB in memory: one vector, a pair, four; and 64 vectors with a part of W. */
static tsar_status measure_matrix(bench *b, tsar_dtype dtype)
{
    enum { BENCH_COLS = 4096, MANY_VECTORS = 64, PART_ROWS = 4096 };
    const size_t size = tsar_dtype_size(dtype), rows = BUFFER_BYTES / (BENCH_COLS * size);
    const char *name = tsar_dtype_name(dtype);
    const double bytes = (double)(rows * BENCH_COLS * size);
    double best[5] = { 0 }, many = 0;
    tsar_matrix w = { 0 };
    double *x = tsar_alloc(MANY_VECTORS * BENCH_COLS, sizeof *x, "vectors to measure", b->err), *y = NULL;
    double *scratch = tsar_alloc(tsar_scratch(MANY_VECTORS, b->threads), sizeof *scratch, "vectors to measure", b->err);
    tsar_status status = x != NULL && scratch != NULL ? fill_matrix(&w, rows, BENCH_COLS, dtype, b->err) : TSAR_ROOM;
    if (status == TSAR_OK) y = tsar_alloc(4 * rows + MANY_VECTORS * PART_ROWS, sizeof *y, "vectors to measure", b->err);
    if (y == NULL) status = TSAR_ROOM;
    if (status == TSAR_OK) fill(x, TSAR_F64, MANY_VECTORS * BENCH_COLS, 1);
    for (size_t round = 0; round < ROUNDS && status == TSAR_OK; round++) {
        for (size_t T = 1; T <= 4; T++) {
            try_read(b);
            const double start = seconds(b->threads);
            tsar_matmul(y, x, &w, NULL, T, b->threads, scratch);
            keep_best(b, &best[T], start);
        }
        try_macs(b);
        tsar_matrix part = w; /* the first rows; not owned */
        part.rows = PART_ROWS;
        const double start = seconds(b->threads);
        tsar_matmul(y, x, &part, NULL, MANY_VECTORS, b->threads, scratch);
        keep_best(b, &many, start);
    }
    if (status == TSAR_OK) status = say(b, bytes / best[1] * 1e-9, "GB/s", b->read * 1e-9, "%s matrix of 1 GB times one vector", name);
    for (size_t T = 2; T <= 4 && status == TSAR_OK; T++) status = say(b, best[T] / best[1], "x", 0, "%s, %u vectors: time of one", name, (unsigned)T);
    const double rate = (double)PART_ROWS * (double)BENCH_COLS * (double)MANY_VECTORS / many;
    if (dtype == TSAR_F32) b->many = rate;
    if (status == TSAR_OK) status = say(b, rate * 1e-9, "GMAC/s", b->macs * 1e-9, "%s matrix times %d vectors", name, MANY_VECTORS);
    tsar_matrix_close(&w);
    tsar_free(x);
    tsar_free(y);
    tsar_free(scratch);
    return status;
}

/* ----------------------------------------------------------------------------------------------------------- transformer */

typedef struct {
    double bytes, macs;
} weight_sum;

/* Adds up the matrices that every token passes. */
static tsar_status count_weight(void *context, const tsar_weight *weight, tsar_error *err)
{
    weight_sum *sum = context;
    (void)err;
    if (weight->use == TSAR_AS_MATRIX && strncmp(weight->name, "gpt.", 4) == 0 && strstr(weight->name, "cls_embedding") == NULL) {
        const tsar_matrix *w = weight->home;
        sum->macs += (double)w->rows * (double)w->cols;
        sum->bytes += (double)w->rows * (double)w->cols * (double)tsar_dtype_size(w->dtype);
    }
    return TSAR_OK;
}

#define MOST_ROWS 64

/* Feeds rows tokens from *token on (row i of them in sequence i % sequences) and keeps the best time. */
static tsar_status feed(bench *b, tsar_state *state, size_t sequences, size_t rows, size_t *token, const int64_t *codes, double *logits,
                        size_t n_logits, double *best)
{
    tsar_feed feeds[MOST_ROWS];
    for (size_t i = 0; i < rows; i++) feeds[i] = (tsar_feed){ i % sequences, *token + i / sequences, codes, 1, logits + i * n_logits };
    const double start = seconds(b->threads);
    const tsar_status status = tsar_forward(state, feeds, rows, b->err);
    keep_best(b, best, start);
    *token += rows / sequences;
    return status;
}

/* A state whose sequences have got the shortest prompt that the model takes. */
static tsar_status open_state(tsar_state **state, const tsar_model *model, size_t sequences, tsar_error *err)
{
    const tsar_config *c = &model->config;
    const int64_t text[2] = { TSAR_BOS, c->boi >= 0 ? c->boi : TSAR_SOI };
    double *caption = tsar_alloc(c->cond_tokens, c->caption_dim * sizeof *caption, "a caption", err);
    double *mask = tsar_alloc(c->cond_tokens, sizeof *mask, "a caption", err);
    tsar_status status = caption != NULL && mask != NULL ? tsar_state_open(state, model, sequences, err) : TSAR_ROOM;
    const tsar_prompt prompt = { .text = text, .n_text = 2, .class_id = 0, .caption = caption, .caption_mask = mask };
    for (size_t i = 0; mask != NULL && i < c->cond_tokens; i++) mask[i] = 1;
    for (size_t i = 0; i < sequences && status == TSAR_OK; i++) status = tsar_prefill(*state, i, &prompt, NULL, err);
    tsar_free(caption);
    tsar_free(mask);
    return status;
}

/* Decoding through tsar_forward: one token, a CFG pair, two, three, four and twelve tokens of one sequence as in ZipAR, and 64 as in a prompt. */
enum { CASES = 7, PROMPT = CASES - 1 };
static const struct {
    size_t sequences, rows;
} cases[CASES] = { { 1, 1 }, { 2, 2 }, { 1, 2 }, { 1, 3 }, { 1, 4 }, { 1, 12 }, { 1, MOST_ROWS } };

/* Reports their best times [CASES], 0 where a case did not fit into the picture; sum: what one token reads and multiplies. */
static tsar_status say_decoding(bench *b, const char *name, const double *best, const weight_sum *sum)
{
    tsar_status status = say(b, sum->bytes / best[0] * 1e-9, "GB/s", b->read * 1e-9, "%s: one token, weights read", name);
    if (status == TSAR_OK) status = say(b, best[0] * 1e3, "ms", sum->bytes / b->read * 1e3, "%s: one token, time", name);
    for (size_t i = 1; i < PROMPT && status == TSAR_OK; i++)
        if (best[i] > 0)
            status = say(b, best[i] / best[0], "x", 0, i == 1 ? "%s: CFG pair, time of one" : "%s: %u tokens in a pass, time of one", name,
                         (unsigned)cases[i].rows);
    if (status == TSAR_OK && best[PROMPT] > 0)
        status = say(b, sum->macs * MOST_ROWS / best[PROMPT] * 1e-9, "GMAC/s", b->macs * 1e-9, "%s: %d tokens in a pass", name, MOST_ROWS);
    return status;
}

static tsar_status measure_decoding(bench *b, const tsar_model *model, const char *name)
{
    const tsar_config *c = &model->config;
    const size_t n_logits = c->shuffle * c->shuffle * c->vocab;
    tsar_state *states[CASES] = { NULL };
    double best[CASES] = { 0 };
    weight_sum sum = { 0, 0 };
    int64_t *codes = tsar_alloc(c->shuffle * c->shuffle, sizeof *codes, "codes", b->err);
    double *logits = tsar_alloc(n_logits, MOST_ROWS * sizeof *logits, "logits", b->err);
    tsar_status status = codes != NULL && logits != NULL ? TSAR_OK : TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_weights(c, (tsar_model *)model, count_weight, &sum, b->err); /* which changes nothing */
    for (size_t i = 0; i < CASES && status == TSAR_OK; i++) status = open_state(&states[i], model, cases[i].sequences, b->err);
    size_t tokens[CASES] = { 0 };
    for (size_t round = 0; round < ROUNDS && status == TSAR_OK; round++) {
        for (size_t i = 0; i < CASES && status == TSAR_OK; i++) {
            if (tokens[i] + cases[i].rows > c->tokens) continue;
            if (i < PROMPT)
                try_read(b);
            else
                try_macs(b);
            status = feed(b, states[i], cases[i].sequences, cases[i].rows, &tokens[i], codes, logits, n_logits, &best[i]);
        }
    }
    if (status == TSAR_OK) status = say_decoding(b, name, best, &sum);
    for (size_t i = 0; i < CASES; i++) tsar_state_close(states[i]);
    tsar_free(codes);
    tsar_free(logits);
    return status;
}

/* The softmax of as many rows as attention takes at a time. */
static tsar_status measure_softmax(bench *b)
{
    enum { SOFTMAX_ROWS = 20, SOFTMAX_COLS = 2048 };
    const size_t threads = b->threads;
    double best = 0, *x = tsar_alloc(threads * SOFTMAX_ROWS, SOFTMAX_COLS * sizeof *x, "scores to measure", b->err);
    if (x == NULL) return TSAR_ROOM;
    fill(x, TSAR_F64, threads * SOFTMAX_ROWS * SOFTMAX_COLS, 8);
    for (size_t round = 0; round < 8 * ROUNDS; round++) {
        const double start = seconds(threads);
        TSAR_PARALLEL_FOR(threads)
        for (size_t i = 0; i < threads; i++) tsar_softmax_rows(x + i * SOFTMAX_ROWS * SOFTMAX_COLS, SOFTMAX_COLS, SOFTMAX_COLS, SOFTMAX_ROWS);
        keep_best(b, &best, start);
    }
    b->softmax = (double)(threads * SOFTMAX_ROWS * SOFTMAX_COLS) / best;
    tsar_free(x);
    return say(b, b->softmax * 1e-9, "G/s", 0, "softmax of %d rows of %d numbers", SOFTMAX_ROWS, SOFTMAX_COLS);
}

/* A prompt of `length` ids; its limit is the time of its multiply-adds at the speed of 64 F32 vectors, and of its softmax at that of
 * measure_softmax. */
static tsar_status measure_prefill(bench *b, const tsar_model *model, size_t length)
{
    const tsar_config *c = &model->config;
    const tsar_stack *stack = &model->gpt;
    const double hd = (double)stack->head_dim, heads = (double)stack->n_head, pairs = 0.5 * (double)length * (double)(length + 1);
    const double weights = ((2 * heads + 2 * (double)stack->n_kv_head) * hd + 3 * (double)stack->ffn_hidden) * (double)stack->dim;
    const double macs = (double)stack->n_layer * ((double)length * weights + pairs * 2 * heads * hd);
    const double limit = macs / b->many + (double)stack->n_layer * pairs * heads / b->softmax;
    int64_t *text = tsar_alloc(length, sizeof *text, "a prompt", b->err);
    tsar_status status = text != NULL ? TSAR_OK : TSAR_ROOM;
    double best = 0;
    for (size_t i = 0; i < length && status == TSAR_OK; i++) text[i] = (int64_t)(TSAR_SPECIALS + i % (c->text_vocab - TSAR_SPECIALS));
    for (size_t round = 0; round < 3 && status == TSAR_OK; round++) {
        tsar_state *state = NULL;
        const tsar_prompt prompt = { .text = text, .n_text = length };
        status = tsar_state_open(&state, model, 1, b->err);
        const double start = seconds(b->threads);
        if (status == TSAR_OK) status = tsar_prefill(state, 0, &prompt, NULL, b->err);
        if (status == TSAR_OK) keep_best(b, &best, start);
        tsar_state_close(state);
    }
    tsar_free(text);
    return status == TSAR_OK ? say(b, best, "s", limit, "shape of tsar-s2: prompt of %u ids", (unsigned)length) : status;
}

/* ---------------------------------------------------------------------------------------------------------- tokenizer */

static double conv_macs(const tsar_conv *conv, double pixels)
{
    return (double)conv->in * (double)conv->out * (double)(conv->size * conv->size) * pixels;
}

static double res_macs(const tsar_resblock *r, double pixels)
{
    return conv_macs(&r->conv1, pixels) + conv_macs(&r->conv2, pixels) + conv_macs(&r->nin_shortcut, pixels);
}

static double attn_macs(const tsar_attnblock *a, double pixels) { return 4 * conv_macs(&a->q, pixels) + 2 * (double)a->q.out * pixels * pixels; }

/* Multiply-adds of the decoder on `codes` codes. (Emu3's on its few latent channels, below 0.1 %, are not counted.) */
static double decoder_macs(const tsar_model *model, double codes)
{
    const tsar_coder *d = &model->vq.decoder;
    double pixels = codes, sum = conv_macs(&model->vq.post_quant_conv, pixels) + conv_macs(&d->conv_in, pixels) + res_macs(&d->mid0, pixels) +
                                 attn_macs(&d->mid1, pixels) + res_macs(&d->mid2, pixels);
    for (size_t i = 0; i < model->config.vq_levels; i++) {
        const tsar_level *level = &d->levels[i];
        for (size_t j = 0; j < level->n_res; j++) sum += res_macs(&level->res[j], pixels);
        for (size_t j = 0; j < level->n_attn; j++) sum += attn_macs(&level->attn[j], pixels);
        if (level->resample.out > 0) {
            pixels *= 4;
            sum += conv_macs(&level->resample, pixels);
        }
    }
    return sum + conv_macs(&d->conv_out, pixels);
}

static tsar_status measure_decoder(bench *b, const tsar_model *model, const char *name)
{
    const double most = 150e9; /* multiply-adds of a picture: 16 x 16 codes of VQ-16, 12 x 12 of Emu3's tokenizer */
    size_t side = 16;
    while (side > 1 && decoder_macs(model, (double)(side * side)) > most) side--;
    const size_t h = side, w = side, factor = model->config.vq_factor;
    const double macs = decoder_macs(model, (double)(h * w));
    double best = 0;
    int64_t *codes = tsar_alloc(h * w, sizeof *codes, "codes", b->err);
    uint8_t *rgb = tsar_alloc(h * factor, w * factor * 3, "a picture", b->err);
    tsar_status status = codes != NULL && rgb != NULL ? TSAR_OK : TSAR_ROOM;
    for (size_t i = 0; i < h * w && status == TSAR_OK; i++) codes[i] = (int64_t)(tsar_mix(i) % model->config.codebook_size);
    for (size_t round = 0; round < 3 && status == TSAR_OK; round++) {
        try_macs(b);
        const double start = seconds(b->threads);
        status = tsar_vq_decode(model, codes, h, w, rgb, NULL, b->err);
        keep_best(b, &best, start);
        try_macs(b);
    }
    if (status == TSAR_OK)
        status =
            say(b, macs / best * 1e-9, "GMAC/s", b->macs * 1e-9, "%s: decoder, %u x %u pixels", name, (unsigned)(h * factor), (unsigned)(w * factor));
    if (status == TSAR_OK) status = say(b, best, "s", macs / b->macs, "%s: time of a picture", name);
    tsar_free(codes);
    tsar_free(rgb);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------- the run */

/* LlamaGen's shapes: a transformer of about 1 GB (18 or 37 layers of 12.8 M weights and a head), and its VQ-16 tokenizer. */
#define GPT_KEYS(layers)                                                                                                                             \
    "arch", "llamagen-c2i", "dim", "1024", "n_layer", layers, "n_head", "16", "n_kv_head", "16", "ffn_hidden", "2816", "norm_eps", "1e-5", "rope",   \
        "2d", "codebook_size", "16384", "grid_h", "24", "grid_w", "24", "num_classes", "1000", "cond_tokens", "1", "shuffle", "1", NULL
static const char *const gpt_f32[] = { GPT_KEYS("18") }, *const gpt_bf16[] = { GPT_KEYS("37") };
static const char *const small_gpt[] = { "arch", "token-shuffle", "dim", "160", "n_layer", "6", "n_head", "5", "n_kv_head", "5", "ffn_hidden", "384",
                                         "norm_eps",
                                         "1e-5", "rope", "1d", "text_vocab", "426", "codebook_size", "512", "grid_h", "16", "grid_w", "16", "shuffle", "2",
                                         "shuffle_blocks", "2", "shuffle_hidden", "160", NULL };
static const char *const vq_16[] = {
    "codebook_size", "16384",        "vq_ch", "128",        "vq_ch_mult", "1,1,2,2,4", "vq_res_blocks", "2", "vq_z_channels",
    "256",           "vq_embed_dim", "8",     "vq_l2_norm", "1",          NULL
};
static const char *const emu3_vq[] = {
    "codebook_size", "32768",        "vq_ch", "256",        "vq_ch_mult", "1,2,2,4",     "vq_res_blocks", "2", "vq_z_channels",
    "4",             "vq_embed_dim", "4",     "vq_l2_norm", "0",          "vq_temporal", "4",             NULL
};

/* The measurements of one kind of synthetic model, with one thread and with all. */
static tsar_status measure_synthetic(bench *b, const char *const *pairs, tsar_dtype dtype, const char *name, size_t threads)
{
    tsar_model *model = NULL;
    tsar_status status = open_synthetic(&model, pairs, dtype, 1, b->err);
    for (size_t n = 1; status == TSAR_OK; n = threads) {
        b->threads = model->threads = n;
        b->read = b->macs = 0;
        status = model->config.has_gpt ? measure_decoding(b, model, name) : measure_decoder(b, model, name);
        if (n == threads) break;
    }
    tsar_model_close(model);
    return status;
}

/* What a long prompt takes, with b->threads threads; measure_matrix has found b->many. */
static tsar_status measure_prompt(bench *b)
{
    tsar_model *model = NULL;
    const tsar_dtype dtype = TSAR_BF16;
    tsar_status status = measure_softmax(b);
    if (status == TSAR_OK) status = open_synthetic(&model, small_gpt, dtype, b->threads, b->err);
    if (status == TSAR_OK) status = measure_prefill(b, model, 2000);
    tsar_model_close(model);
    return status;
}

static tsar_status measure_all(bench *b, size_t threads)
{
    static const tsar_dtype dtypes[3] = { TSAR_F32, TSAR_BF16, TSAR_F16 };
    tsar_status status = TSAR_OK;
    for (size_t n = 1; status == TSAR_OK; n = threads) {
        b->threads = n;
        b->read = b->macs = 0;
        for (size_t round = 0; round < ROUNDS; round++) {
            try_read(b);
            try_macs(b);
        }
        status = say(b, b->read * 1e-9, "GB/s", 0, "limit: reading memory");
        if (status == TSAR_OK) status = say(b, b->macs * 1e-9, "GMAC/s", 0, "limit: multiplying and adding");
        for (size_t i = 0; i < 3 && status == TSAR_OK; i++) status = measure_matrix(b, dtypes[i]);
        if (status == TSAR_OK) status = measure_prompt(b);
        if (n == threads) break;
    }
    if (status == TSAR_OK) status = measure_synthetic(b, gpt_f32, TSAR_F32, "GPT F32, 1 GB", threads);
    if (status == TSAR_OK) status = measure_synthetic(b, gpt_bf16, TSAR_BF16, "GPT BF16, 1 GB", threads);
    if (status == TSAR_OK) status = measure_synthetic(b, vq_16, TSAR_F32, "VQ-16", threads);
    if (status == TSAR_OK) status = measure_synthetic(b, emu3_vq, TSAR_F32, "Emu3's tokenizer", threads);
    return status;
}

tsar_status tsar_bench(const tsar_model *model, size_t threads, tsar_measurement_fn report, void *context, tsar_error *err)
{
    bench b = { .threads = 1, .report = report, .context = context, .err = err };
#ifndef _OPENMP
    threads = 1;
#endif
    if (threads < 1 || threads > MOST_THREADS)
        return tsar_fail(err, TSAR_USAGE, "bench takes 1 to %d threads, not %u", MOST_THREADS, (unsigned)threads);
    b.buffer = tsar_alloc(BUFFER_BYTES, 1, "the limit of reading", err);
    if (b.buffer == NULL) return TSAR_ROOM;
    for (size_t i = 0; i < BUFFER_BYTES / 8; i++) b.buffer[i] = i;
    tsar_status status = TSAR_OK;
    if (model == NULL)
        status = measure_all(&b, threads);
    else {
        b.threads = model->threads;
        if (model->config.has_gpt) status = measure_decoding(&b, model, "transformer");
        if (model->config.has_vq && status == TSAR_OK) {
            b.read = b.macs = 0;
            status = measure_decoder(&b, model, "tokenizer");
        }
    }
    tsar_free(b.buffer);
    return status;
}
