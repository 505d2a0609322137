/* How near a training step comes to the machine's own limit: see score.h. */
#include "gpt.h"
#include "score.h"
#include "vq.h"

#include <stdio.h>
#include <string.h>

/* Separate multiplications and additions in registers, 192 chains side by side: returns operations per second. */
#define SUMS 192
#define TERMS_OF_SUM 2000000
static double peak(size_t threads)
{
    double sink = 0.0, start = tsar_seconds();
    ptrdiff_t workers = (ptrdiff_t)threads;
    float results[64];
    TSAR_PARALLEL_FOR(threads)
    for (ptrdiff_t worker = 0; worker < workers; worker++) {
        float sum[SUMS], factor = 1.0f - (float)(worker + 1) * 1e-7f, step = 1e-6f;
        for (size_t i = 0; i < SUMS; i++) sum[i] = (float)i;
        for (size_t k = 0; k < TERMS_OF_SUM; k++)
            for (size_t i = 0; i < SUMS; i++) sum[i] = sum[i] * factor + step;
        results[worker] = 0.0f;
        for (size_t i = 0; i < SUMS; i++) results[worker] += sum[i];
    }
    double taken = tsar_seconds() - start;
    for (size_t i = 0; i < threads; i++) sink += (double)results[i];
    return sink > 0.0 ? 2.0 * SUMS * TERMS_OF_SUM * (double)threads / taken : 0.0;
}

#define STEPS 4 /* the fastest of them counts: others may use the machine */

static void report(const char *name, double work, double taken, size_t pictures, size_t threads)
{
    double limit = 0.0, speed = 2.0 * work / taken;
    for (int i = 0; i < STEPS; i++) {
        double once = peak(threads);
        limit = once > limit ? once : limit;
    }
    printf("%-8s %7.2f pictures/s  %7.1f of %.1f GFLOP/s: %.2f\n", name, (double)pictures / taken, speed / 1e9, limit / 1e9, speed / limit);
}

static tsar_status bench_vq(size_t threads, tsar_error *err)
{
    vq_net net;
    vq_shape shape = vq_standard();
    tsar_status status = vq_open(&net, &shape, 8, 1, threads, err);
    double best = 1e9;
    for (int i = 0; i < STEPS && status == TSAR_OK; i++) {
        double start = tsar_seconds();
        vq_draw(&net, 1, (uint64_t)i, 1);
        vq_forward(&net);
        vq_loss(&net);
        vq_backward(&net);
        train_adam(&net.tape, (uint64_t)i + 1, 1e-4, 0.99, 0.0, 1.0 / (1.0 + train_gradient_norm(&net.tape)));
        best = tsar_seconds() - start < best ? tsar_seconds() - start : best;
    }
    if (status == TSAR_OK) {
        report("vq", train_work(&net.tape), best, 8, threads);
        vq_close(&net);
    }
    return status;
}

static tsar_status bench_gpt(size_t s, size_t threads, tsar_error *err)
{
    gpt_net net;
    gpt_shape shape = { 160, 6, 5, 432, s, 2, 160, 425, 512, 16, 0, 1e-5, 10000.0, 0, 0 };
    int64_t codes[256], text[12] = { TSAR_BOS, 300, 301, 302, 303, 304, 305, 306, 307, 308, 309, TSAR_SOI };
    char name[16];
    double best = 1e9;
    tsar_status status = gpt_open(&net, &shape, 32, 12, 1, threads, err);
    for (int i = 0; i < STEPS && status == TSAR_OK; i++) {
        double start = tsar_seconds();
        gpt_begin(&net, net.n - 1);
        for (size_t b = 0; b < 32; b++) {
            for (size_t k = 0; k < 256; k++) codes[k] = (int64_t)(tsar_mix(b * 256 + k) % 512);
            gpt_sequence(&net, b, text, 12, codes, 1);
        }
        gpt_end(&net);
        train_forward(&net.tape);
        gpt_loss(&net, 1e-4);
        gpt_backward(&net);
        train_adam(&net.tape, (uint64_t)i + 1, 1e-4, 0.95, 0.05, 1.0 / (1.0 + train_gradient_norm(&net.tape)));
        best = tsar_seconds() - start < best ? tsar_seconds() - start : best;
    }
    if (status == TSAR_OK) {
        snprintf(name, sizeof name, "gpt s=%zu", s);
        report(name, train_work(&net.tape), best, 32, threads);
        gpt_close(&net);
    }
    return status;
}

tsar_status train_bench(size_t threads, tsar_error *err)
{
    tsar_status status = bench_vq(threads, err);
    for (size_t s = 1; s <= 4 && status == TSAR_OK; s *= 2) status = bench_gpt(s, threads, err);
    return status;
}
