/* The codes that the transformers learn from: see gpt.h. */
#include "gpt.h"
#include "vq.h"
#include "scenes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ENCODE_BATCH 8
#define MAX_SIDE 64 /* codes in a row */

/* ---------------------------------------------------------------------------------------------- which code for a latent */

/* Which of several codewords near a latent is the nearest is decided by traces of things far away, and a transformer would spend
 * itself on learning them. The codes for training are therefore chosen by entropy-constrained vector quantization (Chou,
 * Lookabaugh, Gray, IEEE Trans. ASSP 37, 1989), which takes a common codeword that is nearly as near:
 *
 *     argmin over c of |z - e_c|^2 - PRICE ln p(c)
 *
 * p comes from counts in the first COUNTED_PICTURES pictures, which are coded CODINGS times: by the nearest codeword at first, then by the counts
 * of the round before. (ours) */
#define PRICE 0.02
#define COUNTED_PICTURES 512
#define CODINGS 6

/* Adds to cost [K]: -PRICE ln p(c), from the codes of the sample; every code counts half a time more, so that each has a price. */
static void price_codes(double *cost, const int16_t *codes, size_t n, size_t K)
{
    for (size_t c = 0; c < K; c++) cost[c] = 0.5;
    for (size_t i = 0; i < n; i++) cost[codes[i]] += 1.0;
    for (size_t c = 0; c < K; c++) cost[c] = -PRICE * tsar_log(cost[c] / ((double)n + 0.5 * (double)K));
}

/* Codes of n latents z [n][E] of length 1; the lower index of equals. */
static void cheapest_codes(int16_t *codes, const double *cost, const real *z, const vq_net *net, size_t n)
{
    const size_t K = net->shape.K, E = net->shape.embed;
    TSAR_PARALLEL_FOR(net->tape.threads)
    for (ptrdiff_t i = 0; i < (ptrdiff_t)n; i++) {
        double least = 1e30;
        for (size_t c = 0; c < K; c++) {
            double sum = cost[c];
            for (size_t k = 0; k < E; k++) {
                double difference = (double)z[(size_t)i * E + k] - (double)net->words[c * E + k];
                sum += difference * difference;
            }
            if (sum >= least) continue;
            least = sum;
            codes[i] = (int16_t)c;
        }
    }
}

/* cost [K] from the first pictures of `set`. */
static tsar_status learn_prices(double *cost, vq_net *net, const code_set *set, tsar_error *err)
{
    size_t n = set->count < COUNTED_PICTURES ? set->count : COUNTED_PICTURES, E = net->shape.embed, batches = (n + ENCODE_BATCH - 1) / ENCODE_BATCH;
    real *z = tsar_alloc(batches * net->n_codes * E, sizeof *z, "latents", err);
    int16_t *codes = tsar_alloc(batches * net->n_codes, sizeof *codes, "codes", err);
    for (size_t b = 0; z && codes && b < batches; b++) {
        vq_draw(net, set->seed, b * ENCODE_BATCH, 0);
        vq_encode(net);
        memcpy(z + b * net->n_codes * E, net->unit, net->n_codes * E * sizeof *z);
    }
    for (int round = 0; z && codes && round < CODINGS; round++) {
        cheapest_codes(codes, cost, z, net, n * set->grid * set->grid);
        price_codes(cost, codes, n * set->grid * set->grid, net->shape.K);
    }
    tsar_status status = z && codes ? TSAR_OK : TSAR_ROOM;
    tsar_free(z);
    tsar_free(codes);
    return status;
}

/* ---------------------------------------------------------------------------------------------------------- the file */

/* A digest of the tokenizer's weights and the price, so that codes of others are noticed. */
static uint64_t digest_of(const train_tape *tape)
{
    uint64_t digest = (uint64_t)(PRICE * 1e6);
    for (size_t i = 0; i < tape->n_params; i++)
        for (size_t k = 0; k < tape->params[i].n; k++) {
            union {
                float value;
                uint32_t bits;
            } u = { (float)tape->params[i].w[k] };
            digest = tsar_mix(digest + UINT64_C(0x9E3779B97F4A7C15) + u.bits);
        }
    return digest;
}

static tsar_status code_set_write(const code_set *set, const char *path, tsar_error *err)
{
    tsar_writer *writer;
    char text[32];
    const char *const keys[3] = { "codes.done", "codes.seed", "codes.tokenizer" };
    const uint64_t values[3] = { set->done, set->seed, set->tokenizer };
    const size_t shape[3] = { set->count, set->grid, set->grid };
    tsar_status status = tsar_writer_open(&writer, path, err);
    if (status != TSAR_OK) return status;
    for (size_t i = 0; i < 3 && status == TSAR_OK; i++) {
        snprintf(text, sizeof text, "%" PRIu64, values[i]);
        status = tsar_writer_meta(writer, keys[i], text, err);
    }
    if (status == TSAR_OK) status = tsar_writer_declare(writer, "codes", TSAR_I16, 3, shape, err);
    if (status == TSAR_OK && tsar_writer_next(writer)) status = tsar_writer_put(writer, set->codes, set->count * set->grid * set->grid, err);
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

/* What a file has of a set, complete or not: a square of codes for each picture. */
static tsar_status read_set(code_set *set, const char *path, tsar_error *err)
{
    tsar_file *file;
    memset(set, 0, sizeof *set);
    tsar_status status = tsar_file_open(&file, path, err);
    if (status != TSAR_OK) return status;
    const tsar_tensor *tensor = tsar_file_find(file, "codes");
    if (!tensor || tensor->dtype != TSAR_I16 || tensor->rank != 3 || tensor->count == 0 || tensor->shape[1] != tensor->shape[2] ||
        tensor->shape[1] > MAX_SIDE || tensor->count > SIZE_MAX)
        status = tsar_fail(err, TSAR_INPUT, "%s holds no codes of pictures (make them with: train codes)", path);
    else {
        set->count = tensor->shape[0];
        set->grid = tensor->shape[1];
        uint64_t done = 0;
        status = run_meta_number(&done, file, "codes.done", err);
        if (status == TSAR_OK) status = run_meta_number(&set->seed, file, "codes.seed", err);
        if (status == TSAR_OK) status = run_meta_number(&set->tokenizer, file, "codes.tokenizer", err);
        set->done = done < SIZE_MAX ? (size_t)done : SIZE_MAX;
        if (status == TSAR_OK && !(set->codes = tsar_alloc((size_t)tensor->count, sizeof *set->codes, "codes", err))) status = TSAR_ROOM;
        if (status == TSAR_OK) status = tsar_file_read(file, tensor, 0, tensor->count, set->codes, err);
    }
    tsar_file_close(file);
    if (status == TSAR_OK && set->done > set->count)
        status = tsar_fail(err, TSAR_INPUT, "%s says that it has %zu pictures of %zu; it is damaged (remove it)", path, set->done, set->count);
    if (status != TSAR_OK) code_set_close(set);
    return status;
}

tsar_status code_set_read(code_set *set, const char *path, tsar_error *err)
{
    tsar_status status = read_set(set, path, err);
    if (status == TSAR_OK && set->done < set->count) {
        status = tsar_fail(err, TSAR_INPUT, "%s holds only %zu of %zu pictures (finish it with: train codes)", path, set->done, set->count);
        code_set_close(set);
    }
    return status;
}

void code_set_close(code_set *set)
{
    tsar_free(set->codes);
    memset(set, 0, sizeof *set);
}

/* The same for a tokenizer that is open. */
static tsar_status check_set(const code_set *set, const char *path, const vq_net *net, tsar_error *err)
{
    if (set->grid != net->shape.side >> (net->shape.levels - 1) || set->tokenizer != digest_of(&net->tape))
        return tsar_fail(err, TSAR_INPUT, "%s holds the codes of another tokenizer (remove it, or choose another name)", path);
    for (size_t i = 0; i < set->done * set->grid * set->grid; i++)
        if (set->codes[i] < 0 || (size_t)set->codes[i] >= net->shape.K)
            return tsar_fail(err, TSAR_INPUT, "%s holds the code %d, the tokenizer has 0 ... %zu; it is damaged (remove it)", path, set->codes[i],
                             net->shape.K - 1);
    return TSAR_OK;
}

tsar_status code_set_check(const code_set *set, const char *path, const char *vq, tsar_error *err)
{
    vq_net net;
    tsar_status status = vq_open_file(&net, vq, 1, 1, err);
    if (status != TSAR_OK) return status;
    status = check_set(set, path, &net, err);
    vq_close(&net);
    return status;
}

/* What is there already, of the result or else of the checkpoint, or a new set. */
static tsar_status continue_set(code_set *set, const codes_plan *plan, const vq_net *net, tsar_error *err)
{
    const char *path = run_file_exists(plan->output) ? plan->output : plan->checkpoint;
    const code_set fresh = { plan->count, 0, net->shape.side >> (net->shape.levels - 1), plan->seed, digest_of(&net->tape), NULL };
    if (!run_file_exists(path)) {
        *set = fresh;
        set->codes = tsar_alloc(tsar_product(set->count, set->grid * set->grid), sizeof *set->codes, "codes", err);
        return set->codes ? TSAR_OK : TSAR_ROOM;
    }
    tsar_status status = read_set(set, path, err);
    if (status != TSAR_OK) return status;
    status = check_set(set, path, net, err);
    if (status == TSAR_OK && (set->count != plan->count || set->seed != plan->seed))
        status = tsar_fail(err, TSAR_INPUT, "%s holds the codes of other pictures (remove it, or choose another name)", path);
    if (status != TSAR_OK) code_set_close(set);
    return status;
}

static void encode_batch(const double *cost, vq_net *net, code_set *set)
{
    size_t N = set->grid * set->grid, n = net->B < set->count - set->done ? net->B : set->count - set->done;
    vq_draw(net, set->seed, set->done, 0);
    vq_encode(net);
    cheapest_codes(set->codes + set->done * N, cost, net->unit, net, n * N);
    set->done += n;
}

/* Encodes what is left, with a checkpoint now and then and when it is interrupted. */
static tsar_status encode_rest(code_set *set, vq_net *net, const double *cost, const codes_plan *plan, tsar_error *err)
{
    int64_t started = (int64_t)time(NULL), saved = started, reported = started;
    tsar_status status = TSAR_OK;
    size_t first = set->done;
    for (uint64_t batches = 1; status == TSAR_OK && set->done < set->count; batches++) {
        encode_batch(cost, net, set);
        int64_t now = (int64_t)time(NULL);
        int stop = (run_interrupted() || batches == plan->stop_after) && set->done < set->count;
        if (now - reported >= 5 || stop || set->done == set->count) {
            size_t done = set->done - first, left = set->count - set->done;
            double seconds = (double)(now - started), remaining = seconds * (double)left / (double)done;
            fprintf(stderr, "codes %zu/%zu  %.1f pictures/s  %d:%02d left\n", set->done, set->count, seconds > 0.0 ? (double)done / seconds : 0.0,
                    (int)(remaining / 3600.0), (int)(remaining / 60.0) % 60);
            reported = now;
        }
        if (stop || (double)(now - saved) >= 60.0 * plan->minutes) {
            status = code_set_write(set, plan->checkpoint, err);
            saved = now;
        }
        if (!stop) continue;
        char name[512];
        if (status == TSAR_OK)
            fprintf(stderr, "codes: stopped after %zu of %zu pictures; the same command continues from %s\n", set->done, set->count,
                    tsar_plain_text(name, sizeof name, plan->checkpoint));
        return status;
    }
    if (status == TSAR_OK) status = code_set_write(set, plan->output, err);
    if (status == TSAR_OK) remove(plan->checkpoint);
    return status;
}

tsar_status train_codes(const codes_plan *plan, tsar_error *err)
{
    vq_net net;
    code_set set;
    tsar_status status = vq_open_file(&net, plan->vq, ENCODE_BATCH, plan->threads, err);
    if (status != TSAR_OK) return status;
    if (net.shape.K > INT16_MAX)
        status = tsar_fail(err, TSAR_INPUT, "%s has %zu codes; a file of codes holds numbers up to %d", plan->vq, net.shape.K, INT16_MAX);
    if (status == TSAR_OK) status = continue_set(&set, plan, &net, err);
    if (status != TSAR_OK) {
        vq_close(&net);
        return status;
    }
    if (set.done < set.count) {
        double *cost = tsar_alloc(net.shape.K, sizeof *cost, "the prices of codes", err);
        status = cost ? learn_prices(cost, &net, &set, err) : TSAR_ROOM;
        if (status == TSAR_OK) status = encode_rest(&set, &net, cost, plan, err);
        tsar_free(cost);
    }
    code_set_close(&set);
    vq_close(&net);
    return status;
}
