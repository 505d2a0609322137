/* Mini-GenEval and the tokenizer's score: see train_score.h. */
#include "train_score.h"
#include "scenes.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define UNSEEN UINT64_C(0x53434F5245000000) /* xor into the seed: captions and scenes apart from those of training */

/* What one prompt gave. */
typedef struct {
    int right;
    size_t passes;
    tsar_status status;
    tsar_error err;
} verdict;

/* Wilson's interval (J. Am. Stat. Assoc. 22, 1927) of a share k/n at 95 %: centre +- half. */
static void interval(double k, double n, double *low, double *high)
{
    const double z = 1.959964, z2 = z * z;
    double p = n > 0.0 ? k / n : 0.0, centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    double half = z * sqrt(p * (1.0 - p) / n + z2 / (4.0 * n * n)) / (1.0 + z2 / n);
    *low = centre - half;
    *high = centre + half;
}

static tsar_status settings_of(tsar_settings *settings, const tsar_model *model, const score_plan *plan, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    *settings = tsar_settings_default(model);
    if (plan->cfg >= 0.0) settings->cfg = plan->cfg;
    if (plan->temperature >= 0.0) settings->temperature = plan->temperature;
    if (plan->top_k >= 0.0) settings->top_k = (size_t)plan->top_k;
    if (plan->top_p >= 0.0) settings->top_p = plan->top_p;
    settings->greedy = plan->greedy;
    if (plan->schedule) status = tsar_schedule_parse(&settings->schedule, plan->schedule, err);
    if (status == TSAR_OK && plan->decode) status = tsar_order_parse(settings, plan->decode, err);
    return status == TSAR_OK ? tsar_settings_check(settings, err) : status;
}

/* One prompt to pixels to a verdict. */
static void judge_prompt(verdict *v, const tsar_model *model, tsar_settings settings, const scene *s, uint64_t seed)
{
    tsar_prompt prompt = { 0 };
    int64_t *ids = NULL;
    size_t h = model->config.grid_h, w = model->config.grid_w, f = model->config.vq_factor;
    int64_t *codes = tsar_alloc(h * w, sizeof *codes, "codes", &v->err);
    uint8_t *rgb = tsar_alloc(h * f * w * f, 3, "a picture", &v->err);
    tsar_result result = { codes, NULL, NULL, NULL, &v->passes };
    settings.seed = seed;
    v->status = codes && rgb ? tsar_text_encode(model, s->caption, &ids, &prompt.n_text, &v->err) : TSAR_ROOM;
    prompt.text = ids;
    if (v->status == TSAR_OK) v->status = tsar_generate(model, &prompt, &settings, 1, &result, NULL, NULL, &v->err);
    if (v->status == TSAR_OK) v->status = tsar_vq_decode(model, codes, h, w, rgb, NULL, &v->err);
    if (v->status == TSAR_OK) {
        scene_object found[SCENE_FOUND];
        v->right = scene_judge(s, found, scene_find(rgb, h * f, w * f, found));
    }
    tsar_free(ids);
    tsar_free(codes);
    tsar_free(rgb);
}

/* All prompts of a category; *right of plan->n are right. */
static tsar_status judge_category(const tsar_model *model, const tsar_settings *settings, const score_plan *plan, int category, verdict *verdicts,
                                  size_t *right, double *passes, tsar_error *err)
{
    TSAR_PARALLEL_FOR(plan->threads)
    for (ptrdiff_t i = 0; i < (ptrdiff_t)plan->n; i++) {
        scene s;
        uint64_t index = (uint64_t)category * 1000000 + (uint64_t)i;
        scene_draw(&s, plan->seed ^ UNSEEN, index, category, plan->held_out);
        memset(&verdicts[i], 0, sizeof verdicts[i]);
        judge_prompt(&verdicts[i], model, *settings, &s, tsar_mix(plan->seed + index));
    }
    *right = 0;
    for (size_t i = 0; i < plan->n; i++) {
        if (verdicts[i].status != TSAR_OK) {
            *err = verdicts[i].err;
            return verdicts[i].status;
        }
        *right += (size_t)verdicts[i].right;
        *passes += (double)verdicts[i].passes;
    }
    return TSAR_OK;
}

tsar_status score_generation(const score_plan *plan, tsar_error *err)
{
    tsar_model *model;
    tsar_settings settings;
    tsar_status status = tsar_model_open(&model, plan->model, 1, err);
    if (status != TSAR_OK) return status;
    if (!model->config.has_gpt || !model->config.has_vq || model->config.grid_h * model->config.vq_factor != SCENE_SIDE)
        status = tsar_fail(err, TSAR_INPUT, "%s does not make pictures of %d x %d pixels from text", plan->model, SCENE_SIDE, SCENE_SIDE);
    status = status == TSAR_OK ? settings_of(&settings, model, plan, err) : status;
    verdict *verdicts = status == TSAR_OK ? tsar_alloc(plan->n, sizeof *verdicts, "verdicts", err) : NULL;
    status = status == TSAR_OK && !verdicts ? TSAR_ROOM : status;
    int first = plan->held_out ? SCENE_COLOUR : 0, categories = SCENE_CATEGORIES - first;
    double share = 0.0, all = 0.0, passes = 0.0, low, high;
    clock_t start = clock();
    for (int c = first; c < SCENE_CATEGORIES && status == TSAR_OK; c++) {
        size_t right = 0;
        status = judge_category(model, &settings, plan, c, verdicts, &right, &passes, err);
        interval((double)right, (double)plan->n, &low, &high);
        if (status == TSAR_OK)
            printf("%-20s %5zu of %zu  %.3f  (%.3f ... %.3f)\n", scene_category_names[c], right, plan->n, (double)right / (double)plan->n, low, high);
        fflush(stdout);
        share += (double)right / (double)plan->n;
        all += (double)right;
    }
    if (status == TSAR_OK) {
        double total = (double)plan->n * categories, seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        interval(all, total, &low, &high);
        printf("%-20s %5.0f of %.0f  %.3f  (%.3f ... %.3f)  %.1f passes, %.3f processor seconds a picture\n",
               plan->held_out ? "held out, overall" : "overall", all, total, share / (double)categories, low, high, passes / total, seconds / total);
    }
    tsar_free(verdicts);
    tsar_model_close(model);
    return status;
}

/* Squared error over a picture, whether the referee judges both alike, codes used. */
typedef struct {
    double error;
    int alike;
    tsar_status status;
    tsar_error err;
    int64_t codes[(SCENE_SIDE / 2) * (SCENE_SIDE / 2)];
} round_trip;

static void judge_round_trip(round_trip *r, const tsar_model *model, const scene *s)
{
    size_t pixels = SCENE_SIDE * SCENE_SIDE * 3, h = SCENE_SIDE / model->config.vq_factor;
    uint8_t *before = tsar_alloc(pixels, 2, "a picture", &r->err), *after = before ? before + pixels : NULL;
    scene_object found[SCENE_FOUND];
    r->status = before ? TSAR_OK : TSAR_ROOM;
    if (before) {
        scene_render(s, before);
        r->status = tsar_vq_encode(model, before, SCENE_SIDE, SCENE_SIDE, r->codes, NULL, &r->err);
    }
    if (r->status == TSAR_OK) r->status = tsar_vq_decode(model, r->codes, h, h, after, NULL, &r->err);
    for (size_t i = 0; r->status == TSAR_OK && i < pixels; i++) {
        double d = (double)before[i] - (double)after[i];
        r->error += d * d;
    }
    if (r->status == TSAR_OK) {
        int first = scene_judge(s, found, scene_find(before, SCENE_SIDE, SCENE_SIDE, found));
        r->alike = first == scene_judge(s, found, scene_find(after, SCENE_SIDE, SCENE_SIDE, found));
    }
    tsar_free(before);
}

tsar_status score_tokenizer(const score_plan *plan, tsar_error *err)
{
    tsar_model *model;
    tsar_status status = tsar_model_open(&model, plan->model, 1, err);
    if (status != TSAR_OK) return status;
    if (!model->config.has_vq || model->config.vq_factor < 2 || SCENE_SIDE % model->config.vq_factor)
        status = tsar_fail(err, TSAR_INPUT, "%s holds no tokenizer for pictures of %d x %d pixels", plan->model, SCENE_SIDE, SCENE_SIDE);
    size_t K = model->config.codebook_size, codes = status == TSAR_OK ? SCENE_SIDE / model->config.vq_factor : 0, in_use = 0, alike = 0;
    round_trip *trips = status == TSAR_OK ? tsar_alloc(plan->n, sizeof *trips, "round trips", err) : NULL;
    char *used = status == TSAR_OK ? tsar_alloc(K, 1, "codes", err) : NULL;
    status = status == TSAR_OK && (!trips || !used) ? TSAR_ROOM : status;
    if (status == TSAR_OK) {
        TSAR_PARALLEL_FOR(plan->threads)
        for (ptrdiff_t i = 0; i < (ptrdiff_t)plan->n; i++) {
            scene s;
            int held_out = (int)(i % 2); /* half of them show what training never does */
            scene_draw(&s, plan->seed ^ UNSEEN, (uint64_t)i, held_out ? SCENE_COLOUR + (int)(i / 2 % 3) : -1, held_out);
            judge_round_trip(&trips[i], model, &s);
        }
    }
    double error = 0.0, psnr = 0.0, pixels = SCENE_SIDE * SCENE_SIDE * 3, low, high;
    for (size_t i = 0; i < plan->n && status == TSAR_OK; i++) {
        if (trips[i].status != TSAR_OK) {
            *err = trips[i].err;
            status = trips[i].status;
            break;
        }
        error += trips[i].error;
        psnr += 10.0 / 2.302585092994046 * tsar_log(255.0 * 255.0 * pixels / (trips[i].error + 1e-9));
        alike += (size_t)trips[i].alike;
        for (size_t k = 0; k < codes * codes; k++) used[trips[i].codes[k]] = 1;
    }
    for (size_t c = 0; c < K && status == TSAR_OK; c++) in_use += (size_t)used[c];
    if (status == TSAR_OK) {
        double n = (double)plan->n;
        interval((double)alike, n, &low, &high);
        printf("PSNR %.2f dB (mean over pictures %.2f dB), %zu of %zu codes in use, %zu of %zu judged like their originals: %.3f (%.3f ... %.3f)\n",
               10.0 / 2.302585092994046 * tsar_log(255.0 * 255.0 * pixels * n / (error + 1e-9)), psnr / n, in_use, K, alike, plan->n,
               (double)alike / n, low, high);
    }
    tsar_free(trips);
    tsar_free(used);
    tsar_model_close(model);
    return status;
}
