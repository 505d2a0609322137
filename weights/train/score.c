/* Mini-GenEval and the tokenizer's score: see score.h. */
#include "score.h"
#include "scenes.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define Z95 1.959964 /* 95 % of a normal distribution lie within this many standard deviations */

/* Wilson's interval (J. Am. Stat. Assoc. 22, 1927) of a share k/n at 95 %: centre +- half. */
static void interval(double k, double n, double *low, double *high)
{
    const double z2 = Z95 * Z95;
    double p = n > 0.0 ? k / n : 0.0, centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    double half = Z95 * sqrt(p * (1.0 - p) / n + z2 / (4.0 * n * n)) / (1.0 + z2 / n);
    *low = centre > half ? centre - half : 0.0; /* rounding left neither just below 0 nor just above 1 */
    *high = centre + half < 1.0 ? centre + half : 1.0;
}

/* Mean of n values, one for each picture, and half the width of its 95 % interval, from their sum and the sum of their squares. */
static double mean_of(double sum, double squares, double n, double *half)
{
    double mean = sum / n, variance = n > 1.0 ? (squares - sum * mean) / (n - 1.0) : 0.0;
    *half = variance > 0.0 ? Z95 * sqrt(variance / n) : 0.0;
    return mean;
}

/* ------------------------------------------------------------------------------------------------ 1. mini-GenEval */

/* One prompt, its picture, the verdict. */
typedef struct {
    scene truth;
    uint64_t seed;
    int64_t *codes, *coarse; /* [h*w] each */
    uint8_t *rgb;            /* [SCENE_SIDE][SCENE_SIDE][3] */
    scene_object found[SCENE_FOUND];
    size_t n_found;
    int right;
    size_t passes;
    tsar_status status;
    tsar_error err;
} picture;

/* A run over all categories. h*w codes of a picture. */
typedef struct {
    const score_plan *plan;
    tsar_model *model;
    tsar_settings settings;
    int first, categories; /* held-out combinations occur from SCENE_POSITION on */
    size_t h, w, total;    /* total: pictures of all categories together */
    picture *pictures;     /* [n]: of the category under way */
    int64_t *codes;        /* [total][h*w] */
    int64_t *theirs;       /* [total][h*w] of another decode order, or NULL */
    int64_t *coarse;       /* [n][h*w] */
    uint8_t *rgb;          /* [n][SCENE_SIDE][SCENE_SIDE][3] */
    char guidance[64], sampling[96];
    size_t right[SCENE_CATEGORIES];
    double passes, share, squares;          /* sums over pictures: of passes, of the share of equal codes, of its square */
    double transformer, tokenizer, refined; /* processor seconds: generation of codes, decoding of pictures, CTF's stage two alone */
} score_run;

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

/* The settings in force in words, for the table and the file of codes. */
static void describe(score_run *r)
{
    const tsar_settings *settings = &r->settings;
    char top_k[32] = "", top_p[32] = "";
    if (settings->cfg > 1.0)
        snprintf(r->guidance, sizeof r->guidance, "%s %g", tsar_schedule_names[settings->schedule], settings->cfg);
    else
        snprintf(r->guidance, sizeof r->guidance, "none");
    if (settings->top_k > 0) snprintf(top_k, sizeof top_k, ", top-k %zu", settings->top_k);
    if (settings->top_p < 1.0) snprintf(top_p, sizeof top_p, ", top-p %g", settings->top_p);
    if (settings->greedy)
        snprintf(r->sampling, sizeof r->sampling, "greedy");
    else
        snprintf(r->sampling, sizeof r->sampling, "T %g%s%s", settings->temperature, top_k, top_p);
}

/* What happens to a picture, one function for each phase: prompt to codes, ... */
static void generate(const score_run *r, picture *p)
{
    tsar_prompt prompt = { 0 };
    tsar_settings settings = r->settings;
    tsar_result result = { p->codes, p->coarse, NULL, NULL, &p->passes };
    int64_t *ids = NULL;
    settings.seed = p->seed;
    p->status = tsar_text_encode(r->model, p->truth.caption, &ids, &prompt.n_text, &p->err);
    prompt.text = ids;
    if (p->status == TSAR_OK) p->status = tsar_generate(r->model, &prompt, &settings, 1, &result, NULL, NULL, &p->err);
    tsar_free(ids);
}

/* ... codes to pixels, ... */
static void decode(const score_run *r, picture *p) { p->status = tsar_vq_decode(r->model, p->codes, r->h, r->w, p->rgb, NULL, &p->err); }

/* ... CTF's stage two once more, to know its part of the time (its draws, a few members of a cluster for each code, left out), ... */
static void refine(const score_run *r, picture *p)
{
    const tsar_config *c = &r->model->config;
    const size_t N = r->h * r->w;
    double *hidden = tsar_alloc(tsar_product(N, c->fine_dim), sizeof *hidden, "the fine stage", &p->err);
    double *logits = tsar_alloc(tsar_product(N, c->codebook_size), sizeof *logits, "the fine stage's logits", &p->err);
    p->status = hidden && logits ? tsar_fine_hidden(r->model, p->coarse, hidden, NULL, &p->err) : TSAR_ROOM;
    if (p->status == TSAR_OK) p->status = tsar_fine_logits(r->model, hidden, 0, N, logits, &p->err);
    tsar_free(hidden);
    tsar_free(logits);
}

/* ... pixels to a verdict. */
static void judge(const score_run *r, picture *p)
{
    (void)r;
    p->n_found = scene_find(p->rgb, p->found);
    p->right = scene_judge(&p->truth, p->found, p->n_found);
}

/* A line for a picture, with tabs between: category, whether it is right, the caption, and of each object that the referee finds its left, top,
 * right and bottom edge in pixels. */
static void print_each(const picture *p)
{
    printf("%s\t%d\t%s", scene_category_names[p->truth.category], p->right, p->truth.caption);
    for (size_t i = 0; i < p->n_found; i++) {
        const scene_object *o = &p->found[i];
        printf("\t%.1f,%.1f,%.1f,%.1f", o->x - o->r, o->y - o->r, o->x + o->r, o->y + o->r);
    }
    putchar('\n');
}

/* A phase over all pictures of a category. Adds the processor seconds that it took to *seconds: those of all threads together, which is what
 * one thread would need, as long as a thread that waits does so asleep (OMP_WAIT_POLICY=passive) and threads do not slow each other down. */
static tsar_status run_phase(const score_run *r, void (*phase)(const score_run *, picture *), double *seconds, tsar_error *err)
{
    const double start = tsar_processor_seconds();
    TSAR_PARALLEL_FOR(r->plan->threads)
    for (ptrdiff_t i = 0; i < (ptrdiff_t)r->plan->n; i++) phase(r, &r->pictures[i]);
    *seconds += tsar_processor_seconds() - start;
    for (size_t i = 0; i < r->plan->n; i++)
        if (r->pictures[i].status != TSAR_OK) {
            *err = r->pictures[i].err;
            return r->pictures[i].status;
        }
    return TSAR_OK;
}

static tsar_status run_category(score_run *r, int category, tsar_error *err)
{
    const size_t N = r->h * r->w, before = (size_t)(category - r->first) * r->plan->n;
    double elsewhere = 0.0;
    for (size_t i = 0; i < r->plan->n; i++) {
        const uint64_t index = (uint64_t)category * 1000000 + i;
        picture *p = &r->pictures[i];
        memset(p, 0, sizeof *p);
        scene_draw(&p->truth, r->plan->seed ^ SCENE_UNSEEN, index, category, r->plan->held_out);
        p->seed = tsar_mix(r->plan->seed + index);
        p->codes = r->codes + (before + i) * N;
        p->coarse = r->coarse + i * N;
        p->rgb = r->rgb + i * SCENE_SIDE * SCENE_SIDE * 3;
    }
    tsar_status status = run_phase(r, generate, &r->transformer, err);
    if (status == TSAR_OK && r->model->config.n_coarse) status = run_phase(r, refine, &r->refined, err);
    if (status == TSAR_OK) status = run_phase(r, decode, &r->tokenizer, err);
    if (status == TSAR_OK) status = run_phase(r, judge, &elsewhere, err);
    for (size_t i = 0; status == TSAR_OK && i < r->plan->n; i++) {
        size_t equal = 0;
        if (r->plan->each) print_each(&r->pictures[i]);
        for (size_t k = 0; r->theirs && k < N; k++) equal += r->pictures[i].codes[k] == r->theirs[(before + i) * N + k];
        r->right[category] += (size_t)r->pictures[i].right;
        r->passes += (double)r->pictures[i].passes;
        r->share += (double)equal / (double)N;
        r->squares += (double)equal / (double)N * ((double)equal / (double)N);
    }
    return status;
}

/* ------------------------------------------------------------------------------- 2. files of codes, for the agreement */

/* Everything but the decode order that the codes of a run depend on, the model itself excepted. */
static void identify(const score_run *r, char *text, size_t size)
{
    snprintf(text, size, "%zu pictures a category, %s, seed %" PRIu64 ", guidance %s, %s", r->plan->n, r->plan->held_out ? "held out" : "not held out",
             r->plan->seed, r->guidance, r->sampling);
}

static tsar_status write_codes(const score_run *r, tsar_error *err)
{
    const size_t shape[3] = { r->total, r->h, r->w };
    char run[256];
    tsar_writer *writer;
    identify(r, run, sizeof run);
    tsar_status status = tsar_writer_open(&writer, r->plan->output, err);
    if (status != TSAR_OK) return status;
    status = tsar_writer_meta(writer, "run", run, err);
    if (status == TSAR_OK) status = tsar_writer_declare(writer, "codes", TSAR_I64, 3, shape, err);
    if (status == TSAR_OK && tsar_writer_next(writer)) status = tsar_writer_put(writer, r->codes, (uint64_t)r->total * r->h * r->w, err);
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

/* The codes of another decode order of the same run. */
static tsar_status read_codes(score_run *r, tsar_error *err)
{
    const char *path = r->plan->agreement, *theirs;
    char run[256];
    tsar_file *file;
    identify(r, run, sizeof run);
    tsar_status status = tsar_file_open(&file, path, err);
    if (status != TSAR_OK) return status;
    const tsar_tensor *codes = tsar_file_find(file, "codes");
    theirs = tsar_file_meta(file, "run");
    if (!codes || !theirs)
        status = tsar_fail(err, TSAR_INPUT, "%s holds no codes of a scored run; write one with train score -o", path);
    else if (strcmp(run, theirs) != 0)
        status = tsar_fail(err, TSAR_INPUT, "%s is of another run (%.150s) than this one (%.150s)", path, theirs, run);
    else if (codes->count != (uint64_t)r->total * r->h * r->w)
        status = tsar_fail(err, TSAR_INPUT, "%s holds codes of another grid than the model's %zu x %zu", path, r->h, r->w);
    if (status == TSAR_OK && !(r->theirs = tsar_alloc(tsar_product(r->total, r->h * r->w), sizeof *r->theirs, "codes", err))) status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_file_read_i64(file, codes, 0, codes->count, r->theirs, err);
    tsar_file_close(file);
    return status;
}

/* -------------------------------------------------------------------------------------------------- 3. what is printed */

static tsar_status run_open(score_run *r, const score_plan *plan, tsar_error *err)
{
    const size_t pixels = SCENE_SIDE * SCENE_SIDE * 3;
    memset(r, 0, sizeof *r);
    r->plan = plan;
    r->first = plan->held_out ? SCENE_POSITION : 0;
    r->categories = SCENE_CATEGORIES - r->first;
    r->total = plan->n * (size_t)r->categories;
    tsar_status status = tsar_model_open(&r->model, plan->model, TSAR_PART_ALL, 1, err);
    if (status != TSAR_OK) return status;
    const tsar_config *c = &r->model->config;
    r->h = c->grid_h;
    r->w = c->grid_w;
    if (!c->has_gpt || !c->has_vq || !c->text_vocab || c->grid_h * c->vq_factor != SCENE_SIDE || c->grid_w * c->vq_factor != SCENE_SIDE)
        status = tsar_fail(err, TSAR_INPUT, "%s does not make pictures of %d x %d pixels from text", plan->model, SCENE_SIDE, SCENE_SIDE);
    if (status == TSAR_OK) status = settings_of(&r->settings, r->model, plan, err);
    if (status == TSAR_OK) describe(r);
    if (status == TSAR_OK && plan->agreement) status = read_codes(r, err);
    if (status == TSAR_OK && (!(r->pictures = tsar_alloc(plan->n, sizeof *r->pictures, "pictures", err)) ||
                              !(r->codes = tsar_alloc(tsar_product(r->total, r->h * r->w), sizeof *r->codes, "codes", err)) ||
                              !(r->coarse = tsar_alloc(tsar_product(plan->n, r->h * r->w), sizeof *r->coarse, "labels", err)) ||
                              !(r->rgb = tsar_alloc(plan->n, pixels, "pictures", err))))
        status = TSAR_ROOM;
    return status;
}

static void run_close(score_run *r)
{
    tsar_free(r->pictures);
    tsar_free(r->codes);
    tsar_free(r->theirs);
    tsar_free(r->coarse);
    tsar_free(r->rgb);
    tsar_model_close(r->model);
}

void score_generation_header(void)
{
    fputs("| run | guidance | sampling |", stdout);
    for (int c = 0; c < SCENE_CATEGORIES; c++) printf(" %s |", scene_category_names[c]);
    fputs(" overall (95 %) | passes | seconds | of them tokenizer | stage two of both | codes as raster |\n| --- | --- | --- |", stdout);
    for (int c = 0; c < SCENE_CATEGORIES + 6; c++) fputs(" ---: |", stdout);
    putchar('\n');
}

static void print_markdown(const score_run *r, double overall, double low, double high)
{
    const double total = (double)r->total;
    double half;
    printf("| %s | %s | %s |", r->plan->markdown, r->guidance, r->sampling);
    for (int c = 0; c < SCENE_CATEGORIES; c++)
        if (c < r->first)
            fputs(" |", stdout);
        else
            printf(" %.3f |", (double)r->right[c] / (double)r->plan->n);
    printf(" %.3f (%.3f to %.3f) | %.1f | %.3f | %.3f |", overall, low, high, r->passes / total, (r->transformer + r->tokenizer) / total, r->tokenizer / total);
    if (r->model->config.n_coarse)
        printf(" %.1f %% |", 100.0 * r->refined / r->transformer);
    else
        fputs(" |", stdout);
    if (r->theirs) {
        double share = mean_of(r->share, r->squares, total, &half);
        printf(" %.3f ± %.3f |\n", share, half);
    } else
        fputs(" |\n", stdout);
}

static void print_text(const score_run *r, double overall, double low, double high, double all)
{
    const double total = (double)r->total;
    double half, share = mean_of(r->share, r->squares, total, &half);
    printf("%-20s %5.0f of %.0f  %.3f  (%.3f ... %.3f)\n", r->plan->held_out ? "held out, overall" : "overall", all, total, overall, low, high);
    printf("guidance %s, %s; a picture takes %.1f passes and %.3f processor seconds, %.3f of them for the tokenizer\n", r->guidance, r->sampling,
           r->passes / total, (r->transformer + r->tokenizer) / total, r->tokenizer / total);
    if (r->model->config.n_coarse) printf("stage two takes %.1f %% of both stages\n", 100.0 * r->refined / r->transformer);
    char name[512];
    if (r->theirs) printf("%.4f +- %.4f of the codes are those of %s\n", share, half, tsar_plain_text(name, sizeof name, r->plan->agreement));
}

tsar_status score_generation(const score_plan *plan, tsar_error *err)
{
    score_run r;
    double overall = 0.0, all = 0.0, low, high;
    tsar_status status = run_open(&r, plan, err);
    for (int c = r.first; c < SCENE_CATEGORIES && status == TSAR_OK; c++) {
        status = run_category(&r, c, err);
        const double right = (double)r.right[c], n = (double)plan->n;
        interval(right, n, &low, &high);
        if (status == TSAR_OK && !plan->markdown && !plan->each)
            printf("%-20s %5zu of %zu  %.3f  (%.3f ... %.3f)\n", scene_category_names[c], r.right[c], plan->n, right / n, low, high);
        fflush(stdout);
        all += right;
        overall += right / n / (double)r.categories;
    }
    if (status == TSAR_OK && plan->output) status = write_codes(&r, err);
    interval(all, (double)r.total, &low, &high);
    if (status == TSAR_OK && plan->markdown) print_markdown(&r, overall, low, high);
    if (status == TSAR_OK && !plan->markdown && !plan->each) print_text(&r, overall, low, high, all);
    run_close(&r);
    return status;
}

/* -------------------------------------------------------------------------------------------------- 4. the tokenizer */

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
        int first = scene_judge(s, found, scene_find(before, found));
        r->alike = first == scene_judge(s, found, scene_find(after, found));
    }
    tsar_free(before);
}

/* PSNR in dB of a mean squared error of pixels in 0 ... 255; 1e-14 stands in for none at all. */
static double psnr_of(double error) { return 10.0 / 2.302585092994046 * tsar_log(255.0 * 255.0 / (error + 1e-14)); }

void score_tokenizer_header(void)
{
    fputs("| run | PSNR, mean over pictures | of the mean error | codes in use | judged like the original (95 %) |\n"
          "| --- | ---: | ---: | ---: | ---: |\n",
          stdout);
}

/* Adds up n round trips of h*h codes of K each; used [K] is scratch. */
static void print_tokenizer(const score_plan *plan, const round_trip *trips, size_t h, size_t K, char *used)
{
    const double pixels = SCENE_SIDE * SCENE_SIDE * 3, n = (double)plan->n;
    double error = 0.0, sum = 0.0, squares = 0.0, half, low, high;
    size_t in_use = 0, alike = 0;
    for (size_t i = 0; i < plan->n; i++) {
        const double psnr = psnr_of(trips[i].error / pixels);
        error += trips[i].error / pixels;
        sum += psnr;
        squares += psnr * psnr;
        alike += (size_t)trips[i].alike;
        for (size_t k = 0; k < h * h; k++) used[trips[i].codes[k]] = 1;
    }
    for (size_t c = 0; c < K; c++) in_use += used[c] ? 1 : 0;
    interval((double)alike, n, &low, &high);
    const double mean = mean_of(sum, squares, n, &half);
    if (plan->markdown)
        printf("| %s | %.2f ± %.2f dB | %.2f dB | %zu of %zu | %.3f (%.3f to %.3f) |\n", plan->markdown, mean, half, psnr_of(error / n), in_use, K,
               (double)alike / n, low, high);
    else
        printf("PSNR %.2f dB (mean over pictures %.2f +- %.2f dB), %zu of %zu codes in use, %zu of %zu judged like their originals: %.3f (%.3f ... %.3f)\n",
               psnr_of(error / n), mean, half, in_use, K, alike, plan->n, (double)alike / n, low, high);
}

tsar_status score_tokenizer(const score_plan *plan, tsar_error *err)
{
    tsar_model *model;
    tsar_status status = tsar_model_open(&model, plan->model, TSAR_PART_ALL, 1, err);
    if (status != TSAR_OK) return status;
    if (!model->config.has_vq || model->config.vq_factor < 2 || SCENE_SIDE % model->config.vq_factor)
        status = tsar_fail(err, TSAR_INPUT, "%s holds no tokenizer for pictures of %d x %d pixels", plan->model, SCENE_SIDE, SCENE_SIDE);
    const size_t K = model->config.codebook_size;
    round_trip *trips = status == TSAR_OK ? tsar_alloc(plan->n, sizeof *trips, "round trips", err) : NULL;
    char *used = status == TSAR_OK ? tsar_alloc(K, 1, "codes", err) : NULL;
    status = status == TSAR_OK && (!trips || !used) ? TSAR_ROOM : status;
    if (status == TSAR_OK) {
        TSAR_PARALLEL_FOR(plan->threads)
        for (ptrdiff_t i = 0; i < (ptrdiff_t)plan->n; i++) {
            scene s;
            int held_out = (int)(i % 2); /* half of them show what training never does */
            scene_draw(&s, plan->seed ^ SCENE_UNSEEN, (uint64_t)i, held_out ? SCENE_POSITION + (int)(i / 2 % 2) : -1, held_out);
            judge_round_trip(&trips[i], model, &s);
        }
    }
    for (size_t i = 0; i < plan->n && status == TSAR_OK; i++)
        if (trips[i].status != TSAR_OK) {
            *err = trips[i].err;
            status = trips[i].status;
        }
    if (status == TSAR_OK) print_tokenizer(plan, trips, SCENE_SIDE / model->config.vq_factor, K, used);
    tsar_free(trips);
    tsar_free(used);
    tsar_model_close(model);
    return status;
}
