/* The command line (SPEC 9): the only file that prints or exits. Commands and flags (weights/flags.c) stand in two tables, from
 * which the parser, the short and long help and the manual page (tsar --man) are made, so that no flag can be missing anywhere. What a command
 * does beyond reading, calling and printing is in the library. */
#include "weights/paths.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef __wasi__ /* it has no signals */
#include <signal.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

enum { PATH_ROOM = 4096 }; /* bytes of a path that is made here */

/* ------------------------------------------------------------------------------------------ 1. what commands share */

/* Text that came from a file or an argument: nothing in it moves the cursor or turns the line around. */
static void print_text(FILE *out, const char *text)
{
    for (size_t length; *text; text += length) {
        int is_plain;
        length = tsar_character(text, NULL, &is_plain);
        if (is_plain)
            (void)fwrite(text, 1, length, out);
        else
            fputc('?', out);
    }
}

static void note(const arguments *a, const char *text)
{
    if (a->at[O_QUIET].text) return;
    fputs("tsar: ", stderr);
    print_text(stderr, text);
    fputc('\n', stderr);
}

static void print_note(void *context, const char *line) { note(context, line); }

static size_t thread_count(const arguments *a)
{
#ifdef _OPENMP
    const int most = omp_get_max_threads();
    size_t threads = a->at[O_THREADS].text ? (size_t)a->at[O_THREADS].count : most > 1 ? (size_t)most : 1;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    const size_t possible = tsar_threads_possible(threads);
    char text[96];
    (void)snprintf(text, sizeof text, "the system gives %zu of %zu threads; these are used", possible, threads);
    if (possible < threads) note(a, text);
    return possible;
#else
    if (a->at[O_THREADS].text && a->at[O_THREADS].count > 1) note(a, "built without OpenMP (make OMP=1): one thread is used");
    return 1;
#endif
}

/* -m, or the shipped model beside the program or in the data directory. */
static tsar_status find_model(const arguments *a, char *path, size_t size, tsar_error *err)
{
    const char *given = a->at[O_MODEL].text;
    const int folder = (int)tsar_path_folder(a->program);
    int length = given ? snprintf(path, size, "%s", given) : folder ? snprintf(path, size, "%.*sweights/" SHIPPED_MODEL, folder, a->program) : 0;
    if (given && (size_t)length >= size) return tsar_fail(err, TSAR_USAGE, "-m %s: the name is too long", given);
    if (given || (length > 0 && (size_t)length < size && tsar_path_is_readable(path))) return TSAR_OK;
#ifdef TSAR_DATADIR
    length = snprintf(path, size, "%s", TSAR_DATADIR "/" SHIPPED_MODEL);
    if ((size_t)length < size && tsar_path_is_readable(path)) return TSAR_OK;
#endif
    return tsar_fail(err, TSAR_INPUT, "the shipped model " SHIPPED_MODEL " was not found; name a model with -m MODEL");
}

static const tsar_needs tokenizer_alone = { .parts = TSAR_PART_VQ };

/* The one line of a terminal that is drawn over and over. */
static struct {
    double start, drawn; /* of the clock: when what it shows began, when it was drawn last */
} bar;

static int has_bar(const arguments *a) { return !a->at[O_QUIET].text && tsar_is_terminal(2); }

static void draw_bar(double done)
{
    enum { PROGRESS = 30 };
    const int filled = (int)(done * (double)PROGRESS);
    fprintf(stderr, "[%.*s%*s] ", filled, "==============================", PROGRESS - filled, "");
}

static void erase_bar(void)
{
    if (bar.drawn > 0) fputs("\r\033[K", stderr);
    bar.drawn = 0, bar.start = tsar_seconds();
}

/* How far a prompt, a trace or the text encoder is, where that takes long enough to be seen. */
static void show_watch(void *context, const char *what, double done)
{
    const double now = tsar_seconds(), seconds = now - bar.start;
    (void)context;
    if (done >= 1)
        erase_bar();
    else if (seconds > 0.2 && now - bar.drawn > 0.1) {
        fputc('\r', stderr);
        draw_bar(done);
        fprintf(stderr, "%s: %.0f %%, %.0f s left \033[K", what, 100 * done, seconds * (1 - done) / done);
        fflush(stderr);
        bar.drawn = now;
    }
}

static void watch_model(const arguments *a, tsar_model *model)
{
    if (has_bar(a)) model->watch = show_watch, bar.start = tsar_seconds();
}

/* The parts of the model that the work needs; its grid is that of given codes, else --grid, else the model's. */
static tsar_status open_model(const arguments *a, const tsar_needs *needs, tsar_model **model, tsar_error *err)
{
    char path[PATH_ROOM];
    size_t grid[2];
    tsar_status status = find_model(a, path, sizeof path, err);
    if (status == TSAR_OK && a->at[O_GRID].text) status = tsar_grid_parse(grid, a->at[O_GRID].text, err);
    if (status == TSAR_OK) status = tsar_model_open_for(model, path, needs, a->at[O_GRID].text ? grid : NULL, thread_count(a), err);
    if (status == TSAR_OK) watch_model(a, *model);
    return status;
}

/* A safetensors file of one tensor. */
static tsar_status write_tensor(const char *path, const tsar_values *tensor, tsar_error *err)
{
    tsar_writer *writer = NULL;
    tsar_status status = tsar_writer_open(&writer, path, err);
    return status == TSAR_OK ? tsar_values_write(writer, tensor, 1, err) : status;
}

/* The picture in the terminal: two pixels in each character, the upper half block in front of its background; pictures
 * wider than 80 columns are averaged down. */
static void show_picture(const uint8_t *rgb, size_t H, size_t W)
{
    const size_t step = (W + 79) / 80, columns = W / step, rows = H / step;
    for (size_t y = 0; y < rows; y += 2) {
        for (size_t x = 0; x < columns; x++) {
            for (size_t half = 0; half < 2 && y + half < rows; half++) {
                size_t sum[3] = { 0, 0, 0 };
                for (size_t i = 0; i < step * step; i++)
                    for (size_t k = 0; k < 3; k++) sum[k] += rgb[(((y + half) * step + i / step) * W + x * step + i % step) * 3 + k];
                printf("\033[%d;2;%zu;%zu;%zum", half ? 48 : 38, sum[0] / (step * step), sum[1] / (step * step), sum[2] / (step * step));
            }
            fputs("\xe2\x96\x80", stdout);
        }
        fputs("\033[0m\n", stdout);
    }
}

/* --------------------------------------------------------------------------------------------------- 2. generation */

/* A request of the command line: what pictures are made from, how, and what came out. */
typedef struct {
    const arguments *a;
    tsar_model *model;
    tsar_settings settings;
    tsar_prompt prompt;
    tsar_condition condition; /* what prompt points to; owned, as are the following */
    char *ids;                /* that the prompt became, as text */
    tsar_result result;
    uint8_t *rgb;       /* [H][W][3]; NULL without a tokenizer */
    int64_t *frame;     /* [gh][gw], codes of an unfinished picture */
    size_t *frames, *decoded; /* of each image under way: frames that were written; codes that the last one showed */
    tsar_job job;       /* its files */
    size_t images, H, W;
    char *done;            /* [images]: it is there from an earlier run, which this one resumes */
    size_t pending, made;  /* images that are not, at first; images made since */
    double start, seconds; /* of the clock; spent on generation */
    int checking;          /* nothing is computed: all that a list could fail for is looked at before its work */
} request;

static void close_request(request *g)
{
    tsar_condition_close(&g->condition);
    tsar_free(g->ids);
    tsar_free(g->result.codes);
    tsar_free(g->result.coarse);
    tsar_free(g->result.step_of);
    tsar_free(g->result.logits);
    tsar_free(g->result.passes);
    tsar_free(g->rgb);
    tsar_free(g->frame);
    tsar_free(g->frames);
    tsar_free(g->decoded);
    tsar_job_close(&g->job);
    tsar_free(g->done);
    if (g->a && !g->a->model) tsar_model_close(g->model);
}

/* The model's defaults, then the flags. */
static tsar_status read_settings(request *g, tsar_error *err)
{
    g->settings = tsar_settings_default(g->model);
    return tsar_flag_settings(g->a->at, &g->settings, err);
}

/* What the prompt becomes: ids, or with the text encoder a caption; all of it printed where --show-ids asks for it. */
static tsar_status read_sentence(request *g, tsar_error *err)
{
    const option_value *at = g->a->at;
    const tsar_sentence sentence = {
        .text = at[O_PROMPT].text, .bytes = strlen(at[O_PROMPT].text), .raw = at[O_RAW_PROMPT].text != NULL, .ids_only = g->checking
    };
    tsar_model *own = NULL;
    tsar_status status = TSAR_OK;
    if (at[O_TEXT_MODEL].text && !g->a->text_model) status = tsar_model_open(&own, at[O_TEXT_MODEL].text, TSAR_PART_T5, thread_count(g->a), err);
    if (own) watch_model(g->a, own);
    if (status == TSAR_OK)
        status = tsar_condition_open(&g->condition, g->model, g->a->text_model ? g->a->text_model : own, &sentence, at[O_NEGATIVE].text, err);
    if (status == TSAR_OK && !(g->ids = tsar_condition_text(&g->condition, err))) status = TSAR_ROOM;
    if (status == TSAR_OK && at[O_SHOW_IDS].text && !g->checking) puts(g->ids);
    tsar_model_close(own);
    return status;
}

/* The condition, of the kind that the model takes. */
static tsar_status read_condition(request *g, tsar_error *err)
{
    static const char *const wants[] = { "", "-p PROMPT or --prompt-ids IDS", "--class N", "-p PROMPT or --caption FEATURES" }; /* by tsar_prefix */
    const option_value *at = g->a->at;
    const tsar_family *family = tsar_family_of(&g->model->config);
    tsar_condition *c = &g->condition;
    const int given[] = { at[O_PROMPT].text != NULL, at[O_PROMPT_IDS].text != NULL, at[O_CLASS].text != NULL, at[O_CAPTION].text != NULL };
    const int fits = family->prefix == TSAR_PREFIX_CLASS ? given[2] : given[0] + given[family->prefix == TSAR_PREFIX_IDS ? 1 : 3];
    tsar_status status = tsar_model_needs(g->model, TSAR_PART_GPT, "generate", err);
    if (status != TSAR_OK) return status;
    if (fits != 1 || given[0] + given[1] + given[2] + given[3] != 1)
        return tsar_fail(err, TSAR_USAGE, "the model is %s: give it %s%s", family->name, wants[family->prefix], fits ? " and nothing else to start from" : "");
    if (given[0]) status = read_sentence(g, err);
    if (given[1]) status = tsar_parse_ids("prompt-ids", at[O_PROMPT_IDS].text, &c->ids, &c->n_ids, err);
    if (status == TSAR_OK && at[O_NEGATIVE_IDS].text && family->prefix != TSAR_PREFIX_IDS)
        status = tsar_fail(err, TSAR_USAGE, "--negative-ids: the model is %s, whose unconditional sequence begins with no ids", family->name);
    if (status == TSAR_OK && at[O_NEGATIVE_IDS].text && c->uncond) tsar_free(c->uncond), c->uncond = NULL;
    if (status == TSAR_OK && at[O_NEGATIVE_IDS].text) status = tsar_parse_ids("negative-ids", at[O_NEGATIVE_IDS].text, &c->uncond, &c->n_uncond, err);
    if (given[2]) g->prompt.class_id = (size_t)at[O_CLASS].count;
    if (given[3]) status = tsar_caption_read(g->model, at[O_CAPTION].text, &c->caption, &c->mask, err);
    g->prompt.text = family->prefix == TSAR_PREFIX_IDS ? c->ids : NULL, g->prompt.n_text = family->prefix == TSAR_PREFIX_IDS ? c->n_ids : 0;
    g->prompt.text_uncond = c->uncond, g->prompt.n_text_uncond = c->n_uncond;
    g->prompt.caption = c->caption, g->prompt.caption_mask = c->mask;
    return status == TSAR_OK ? tsar_prompt_check(g->model, &g->prompt, err) : status;
}

/* The job that the flags describe. */
static tsar_status describe_job(request *g, tsar_error *err)
{
    /* what a command is drawn from, in its order */
    static const int drawn[] = { O_PROMPT, O_PROMPT_IDS, O_CLASS, O_CAPTION, O_NEGATIVE, O_NEGATIVE_IDS, O_TEXT_MODEL, O_RAW_PROMPT, O_GRID };
    const option_value *at = g->a->at;
    tsar_job *job = &g->job;
    job->model = g->model, job->settings = &g->settings, job->model_path = at[O_MODEL].text, job->images = g->images;
    for (size_t i = 0; i < sizeof drawn / sizeof drawn[0]; i++) {
        const option *o = &tsar_options[drawn[i]];
        if (at[drawn[i]].text) job->flags[job->n_flags] = o->name, job->values[job->n_flags++] = o->kind == IS_SWITCH ? NULL : at[drawn[i]].text;
    }
    const char *const picture = at[O_OUTPUT].text ? at[O_OUTPUT].text : at[O_CODES].text ? NULL : "out" PICTURE_ENDING; /* NULL: only codes are wanted */
    job->ids = g->ids;
    job->files[TSAR_JOB_PICTURE] = g->model->config.has_vq ? picture : NULL;
    job->files[TSAR_JOB_CODES] = at[O_CODES].text;
    job->files[TSAR_JOB_ORDER_MAP] = at[O_ORDER_MAP].text;
    job->frames = at[O_FRAMES].text, job->ending = PICTURE_ENDING;
    return tsar_job_open(job, err);
}

/* Room for as many images as are generated at a time. */
static tsar_status open_result(request *g, size_t I, int with_logits, tsar_error *err)
{
    const tsar_config *c = &g->model->config;
    const size_t N = c->grid_h * c->grid_w;
    tsar_result *r = &g->result;
    if (!(r->codes = tsar_alloc(I, N * sizeof *r->codes, "codes", err))) return TSAR_ROOM;
    if (!(r->passes = tsar_alloc(I, sizeof *r->passes, "passes", err))) return TSAR_ROOM;
    if (!(r->step_of = tsar_alloc(I, c->tokens * sizeof *r->step_of, "step_of", err))) return TSAR_ROOM;
    if (c->n_coarse && !(r->coarse = tsar_alloc(I, N * sizeof *r->coarse, "coarse labels", err))) return TSAR_ROOM;
    if (with_logits && c->vocab > (size_t)-1 / sizeof(double) / N) return tsar_fail(err, TSAR_ROOM, "out of memory for logits");
    if (with_logits && !(r->logits = tsar_alloc(I, N * c->vocab * sizeof *r->logits, "logits", err))) return TSAR_ROOM;
    if (!c->has_vq) return TSAR_OK;
    g->H = c->grid_h * c->vq_factor, g->W = c->grid_w * c->vq_factor;
    if (!(g->rgb = tsar_alloc(g->H, 3 * g->W, "a picture", err))) return TSAR_ROOM;
    if (!(g->frames = tsar_alloc(I, sizeof *g->frames, "frames", err)) || !(g->decoded = tsar_alloc(I, sizeof *g->decoded, "frames", err))) return TSAR_ROOM;
    return (g->frame = tsar_alloc(N, sizeof *g->frame, "a frame", err)) ? TSAR_OK : TSAR_ROOM;
}

/* The frame of image i of those under way, if this pass decoded something of it. */
static tsar_status write_frame(request *g, const tsar_progress *p, size_t i, tsar_error *err)
{
    const tsar_config *c = &g->model->config;
    const size_t N = c->grid_h * c->grid_w;
    const tsar_job_frame frame = { p->first_image + i, g->frames[i], p->codes + i * N, c->n_coarse && !p->fine };
    size_t decoded = 0;
    for (size_t k = 0; k < N; k++) decoded += frame.codes[k] >= 0;
    if (decoded == g->decoded[i] && !p->fine) return TSAR_OK;
    g->decoded[i] = decoded, g->frames[i]++;
    return tsar_job_save_frame(&g->job, &frame, g->frame, g->rgb, err);
}

/* Tokens of all images; the time that the first prompt took has no say in what is left. */
static void show_tokens(request *g, const tsar_progress *p)
{
    const double all = (double)g->pending * (double)p->tokens;
    const double done = (double)g->made * (double)p->tokens + (double)p->images * (double)p->decoded;
    bar.drawn = bar.start = tsar_seconds();
    if (g->made == 0 && p->pass == 0) g->start = bar.start;
    const double seconds = bar.start - g->start, rate = seconds > 0 ? done / seconds : 0;
    fputc('\r', stderr);
    if (g->a->listed) fprintf(stderr, "%zu/%zu ", g->a->index + 1, g->a->listed);
    draw_bar(done / all);
    fprintf(stderr, "%.0f/%.0f tokens", done, all);
    if (rate > 0) fprintf(stderr, ", %.1f tokens/s, %.0f s left", rate, (all - done) / rate);
    fputs(" \033[K", stderr);
    fflush(stderr);
}

static tsar_status on_pass(void *context, const tsar_progress *p, tsar_error *err)
{
    request *g = context;
    tsar_status status = TSAR_OK;
    if (has_bar(g->a)) show_tokens(g, p);
    for (size_t i = 0; g->job.frames && status == TSAR_OK && i < p->images; i++) status = write_frame(g, p, i, err);
    return status;
}

static tsar_status open_generation(request *g, const arguments *a, const tsar_needs *needs, size_t images, tsar_error *err)
{
    memset(g, 0, sizeof *g);
    g->a = a, g->images = g->pending = images;
    tsar_status status = a->model ? TSAR_OK : open_model(a, needs, &g->model, err);
    if (a->model) g->model = a->model;
    return status == TSAR_OK ? read_settings(g, err) : status;
}

/* Images first ... first+count-1. */
static tsar_status run_generation(request *g, size_t first, size_t count, tsar_error *err)
{
    const double start = tsar_seconds();
    if (g->made == 0) g->start = start;
    g->settings.first_image = first;
    for (size_t i = 0; g->frames && i < count; i++) g->frames[i] = g->decoded[i] = 0;
    const tsar_status status = tsar_generate(g->model, &g->prompt, &g->settings, count, &g->result, on_pass, g, err);
    erase_bar();
    g->made += count;
    g->seconds += tsar_seconds() - start;
    return status;
}

/* Image i of those that were generated last. */
static tsar_status save_image(request *g, size_t i, tsar_error *err)
{
    const tsar_config *c = &g->model->config;
    const int show = g->a->at[O_SHOW].text != NULL;
    tsar_job_files files;
    tsar_status status = tsar_job_names(&files, &g->job, (size_t)g->settings.first_image + i, err);
    const char *picture = status == TSAR_OK ? files.paths[TSAR_JOB_PICTURE] : NULL;
    if (status == TSAR_OK && c->has_vq && (picture || show))
        status = tsar_vq_decode(g->model, g->result.codes + i * c->grid_h * c->grid_w, c->grid_h, c->grid_w, g->rgb, NULL, err);
    if (status == TSAR_OK) status = tsar_job_save(&g->job, &g->prompt, &g->result, i, g->rgb, err);
    if (status == TSAR_OK && picture && !g->a->at[O_QUIET].text) {
        print_text(stderr, picture);
        fprintf(stderr, ": %zu passes for %zu tokens\n", g->result.passes[i], c->tokens);
    }
    if (status == TSAR_OK && show) show_picture(g->rgb, g->H, g->W);
    return status;
}

/* Refuses files that could only fail when the work is done, and looks for those that are there already. */
static tsar_status check_files(request *g, tsar_error *err)
{
    char model[PATH_ROOM];
    tsar_names *names = NULL;
    tsar_status status = find_model(g->a, model, sizeof model, err);
    if (status == TSAR_OK) status = tsar_names_open(&names, err);
    if (status == TSAR_OK) status = tsar_paths_read(names, g->a, model, err);
    if (status == TSAR_OK && !(g->done = tsar_alloc(g->images, 1, "the list of images", err))) status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_job_check(&g->job, names, g->a->at[O_RESUME].text ? g->done : NULL, err);
    for (size_t i = 0; status == TSAR_OK && i < g->images; i++) g->pending -= g->done[i] != 0;
    tsar_names_close(names);
    return status;
}

/* Refuses what the model cannot give. */
static tsar_status check_outputs(const request *g, tsar_error *err)
{
    static const int pictures[] = { O_OUTPUT, O_ORDER_MAP };
    const option_value *at = g->a->at;
    const char *output = at[O_OUTPUT].text ? at[O_OUTPUT].text : "out" PICTURE_ENDING;
    for (int i = 0; i < 2; i++) {
        const tsar_status status = at[pictures[i]].text ? tsar_image_name_check(at[pictures[i]].text, err) : TSAR_OK;
        if (status != TSAR_OK) return status;
    }
    if (at[O_RESUME].text && !at[O_CODES].text && !tsar_image_keeps_text(output))
        return tsar_fail(err, TSAR_USAGE, "--resume: %s has no text to know the image by; write a .png, or --codes FILE as well", output);
    if (g->model->config.has_vq) return TSAR_OK;
    if (at[O_OUTPUT].text || at[O_FRAMES].text || at[O_SHOW].text || (!at[O_CODES].text && !at[O_ORDER_MAP].text))
        return tsar_fail(err, TSAR_INPUT,
                         "the model has no image tokenizer (vq.*), so there is no picture: write its codes with --codes FILE, "
                         "or import the tokenizer into the same model file");
    return TSAR_OK;
}

/* Tells in one line which words of the prompt the model never saw in training, the first few by name. */
static void note_new_words(const request *g)
{
    enum { NAMED = 6, LONGEST_WORD = 40 };
    const char *prompt = g->a->at[O_PROMPT].text;
    char names[NAMED * (LONGEST_WORD + 8) + 1] = "";
    size_t words = 0, used = 0, length = 0, at = prompt ? tsar_text_new_word(g->model, prompt, 0, &length) : SIZE_MAX;
    for (; at != SIZE_MAX && words < NAMED; at = tsar_text_new_word(g->model, prompt, at + length, &length), words++) {
        size_t shown = length < LONGEST_WORD ? length : LONGEST_WORD;
        while (shown > 0 && shown < length && ((unsigned char)prompt[at + shown] & 0xC0) == 0x80) shown--; /* no character is cut in two */
        used += (size_t)snprintf(names + used, sizeof names - used, "%s\"%.*s%s\"", words ? ", " : "", (int)shown, prompt + at, shown < length ? "..." : "");
    }
    if (words == 0 || g->a->at[O_QUIET].text) return;
    fputs(words > 1 ? "note: the model never saw the words " : "note: the model never saw the word ", stderr);
    print_text(stderr, names);
    fprintf(stderr, "%s in training; it does what it can\n", at != SIZE_MAX ? " and others" : "");
}

/* The images that are not done, as many at a time as are decoded side by side; each is written when these are. */
static tsar_status generate_pending(request *g, tsar_error *err)
{
    const size_t batch = tsar_batch(g->model, &g->prompt, &g->settings, g->pending);
    tsar_status status = g->pending ? open_result(g, batch, g->a->at[O_CODES].text != NULL, err) : TSAR_OK;
    for (size_t first = 0, count; status == TSAR_OK && first < g->images; first += count) {
        for (count = 0; count < batch && first + count < g->images && !g->done[first + count]; count++) {
        }
        if (count > 0) status = run_generation(g, first, count, err);
        for (size_t i = 0; status == TSAR_OK && i < count; i++) status = save_image(g, i, err);
        count += count == 0; /* an image that is done */
    }
    return status;
}

static tsar_needs generated_needs(const arguments *a)
{
    const int pictures = a->at[O_OUTPUT].text || a->at[O_FRAMES].text || a->at[O_SHOW].text || !a->at[O_CODES].text;
    const int speaks = a->at[O_PROMPT].text || a->at[O_PROMPTS].text;
    const unsigned parts = TSAR_PART_GPT | TSAR_PART_FINE | TSAR_PART_TEXT | (pictures ? TSAR_PART_VQ : 0u) | (speaks ? TSAR_PART_T5 : 0u);
    const tsar_needs needs = { .parts = parts, .generates = 1, .cfg = a->at[O_CFG].text ? a->at[O_CFG].real : -1 };
    return needs;
}

/* One command: everything that it could fail for before the work, and the work. */
enum { CHECK_ONLY, CHECK_AND_GENERATE };
static tsar_status generate_images(const arguments *a, int what, tsar_error *err)
{
    request g;
    const tsar_needs needs = generated_needs(a);
    tsar_status status = open_generation(&g, a, &needs, a->at[O_IMAGES].text ? (size_t)a->at[O_IMAGES].count : 1, err);
    g.checking = what == CHECK_ONLY;
    if (status == TSAR_OK) status = read_condition(&g, err);
    if (status == TSAR_OK) status = check_outputs(&g, err);
    if (status == TSAR_OK) status = describe_job(&g, err);
    if (status == TSAR_OK && a->at[O_CODES].text && !tsar_is_utf8(g.job.command))
        status = tsar_fail(err, TSAR_USAGE, "--codes %s: the file keeps the command line, whose prompt or path is not UTF-8", a->at[O_CODES].text);
    if (status == TSAR_OK) status = check_files(&g, err);
    if (status == TSAR_OK && what == CHECK_AND_GENERATE) {
        note_new_words(&g);
        status = generate_pending(&g, err);
        if (status == TSAR_OK && !a->at[O_QUIET].text && g.pending < g.images)
            fprintf(stderr, "%zu of %zu images were there already\n", g.images - g.pending, g.images);
        if (status == TSAR_OK && !a->at[O_QUIET].text && g.seconds > 0)
            fprintf(stderr, "%zu tokens in %.2f s, %.1f tokens/s\n", g.pending * g.model->config.tokens, g.seconds,
                    (double)(g.pending * g.model->config.tokens) / g.seconds);
    }
    close_request(&g);
    return status;
}

/* The command of one line of a list: with its prompt, seed and number of images, and files that have its number. */
static tsar_status listed_command(arguments *one, const arguments *a, const tsar_prompt_line *line, char room[3][PATH_ROOM], tsar_error *err)
{
    static const int files[] = { O_OUTPUT, O_CODES, O_ORDER_MAP };
    const char *given[] = { a->at[O_OUTPUT].text, a->at[O_CODES].text, a->at[O_ORDER_MAP].text };
    tsar_status status = TSAR_OK;
    one->at[O_PROMPT].text = line->text;
    one->at[O_SEED].text = one->at[O_IMAGES].text = "";
    one->at[O_SEED].count = line->seed;
    one->at[O_IMAGES].count = line->images;
    if (!given[0] && !given[1]) given[0] = ".";
    for (int i = 0; i < 3 && status == TSAR_OK; i++) {
        const int folder = i == 0 && given[i] && tsar_image_name_check(given[i], NULL) != TSAR_OK;
        if (given[i]) status = tsar_prompts_name(room[i], PATH_ROOM, given[i], folder ? PICTURE_ENDING : NULL, line->number, err);
        one->at[files[i]].text = given[i] ? room[i] : NULL;
    }
    return status;
}

/* A list of prompts: one command after the other with one model; all of them are checked before the first one works. */
static tsar_status generate_list(const arguments *a, tsar_error *err)
{
    static const int alone[] = { O_PROMPT, O_PROMPT_IDS, O_CLASS, O_CAPTION, O_FRAMES };
    tsar_prompts *list = NULL;
    char room[3][PATH_ROOM];
    arguments one = *a;
    size_t shard = 0, shards = 1;
    tsar_status status = a->at[O_SHARD].text ? tsar_shard_parse(&shard, &shards, a->at[O_SHARD].text, err) : TSAR_OK;
    for (size_t i = 0; i < sizeof alone / sizeof alone[0] && status == TSAR_OK; i++)
        if (a->at[alone[i]].text) status = tsar_fail(err, TSAR_USAGE, "--prompts and --%s do not go together", tsar_options[alone[i]].name);
    if (status == TSAR_OK)
        status =
            tsar_prompts_open(&list, a->at[O_PROMPTS].text, a->at[O_SEED].count, a->at[O_IMAGES].text ? (size_t)a->at[O_IMAGES].count : 1, shard, shards, err);
    const tsar_needs needs = generated_needs(a);
    if (status == TSAR_OK) status = open_model(a, &needs, &one.model, err);
    if (status == TSAR_OK && a->at[O_TEXT_MODEL].text)
        status = tsar_model_open(&one.text_model, a->at[O_TEXT_MODEL].text, TSAR_PART_T5, thread_count(a), err);
    if (one.text_model) watch_model(a, one.text_model);
    one.listed = list ? tsar_prompts_count(list) : 0;
    for (int what = CHECK_ONLY; what <= CHECK_AND_GENERATE; what++)
        for (one.index = 0; one.index < one.listed && status == TSAR_OK; one.index++) {
            const tsar_prompt_line *line = tsar_prompts_at(list, one.index);
            tsar_error reason = { "" };
            status = listed_command(&one, a, line, room, &reason);
            if (status == TSAR_OK) status = generate_images(&one, what, &reason);
            if (status != TSAR_OK) (void)tsar_fail(err, status, "line %zu of %.80s: %s", line->number + 1, a->at[O_PROMPTS].text, reason.text);
        }
    if (status == TSAR_OK && one.listed == 0 && !a->at[O_QUIET].text) fprintf(stderr, "no prompt of the list falls to this shard\n");
    tsar_model_close(one.model);
    tsar_model_close(one.text_model);
    tsar_prompts_close(list);
    return status;
}

static tsar_status run_generate(const arguments *a, tsar_error *err)
{
    if (a->at[O_PROMPTS].text) return generate_list(a, err);
    if (a->at[O_SHARD].text) return tsar_fail(err, TSAR_USAGE, "--shard %s: it divides a list of prompts; give one with --prompts FILE", a->at[O_SHARD].text);
    return generate_images(a, CHECK_AND_GENERATE, err);
}

/* ---------------------------------------------------------------------------------------- 3. encode, decode, trace */

/* A picture whose sides are multiples of the model's factor. */
static tsar_status read_picture(const tsar_model *model, const char *path, uint8_t **rgb, size_t *H, size_t *W, tsar_error *err)
{
    const size_t factor = model->config.vq_factor;
    if (!model->config.has_vq) return tsar_fail(err, TSAR_INPUT, "the model has no image tokenizer (vq.*): it cannot encode %s", path);
    tsar_status status = tsar_image_read(path, rgb, H, W, err);
    if (status == TSAR_OK && (*H % factor || *W % factor))
        return tsar_fail(err, TSAR_INPUT, "%s: %zu x %zu pixels; the model needs multiples of %zu, for example %zu x %zu", path, *W, *H, factor,
                         (*W + factor - 1) / factor * factor, (*H + factor - 1) / factor * factor);
    return status;
}

static tsar_status run_encode(const arguments *a, tsar_error *err)
{
    tsar_model *model = NULL;
    uint8_t *rgb = NULL;
    int64_t *codes = NULL;
    size_t H = 0, W = 0;
    tsar_status status = open_model(a, &tokenizer_alone, &model, err);
    if (status == TSAR_OK) status = read_picture(model, a->operands[0], &rgb, &H, &W, err);
    if (status == TSAR_OK && !(codes = tsar_alloc(H / model->config.vq_factor, W / model->config.vq_factor * sizeof *codes, "codes", err))) status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_vq_encode(model, rgb, H, W, codes, NULL, err);
    if (status == TSAR_OK) {
        const tsar_values tensor = { "codes", TSAR_I64, 2, { H / model->config.vq_factor, W / model->config.vq_factor }, codes };
        status = write_tensor(a->at[O_OUTPUT].text, &tensor, err);
    }
    tsar_free(codes);
    tsar_free(rgb);
    tsar_model_close(model);
    return status;
}

/* `codes` [h][w] of a file, checked. */
static tsar_status read_codes(const tsar_model *model, const char *path, int64_t **codes, size_t *h, size_t *w, tsar_error *err)
{
    tsar_file *file = NULL;
    tsar_status status = tsar_file_open_alone(&file, path, err);
    if (status != TSAR_OK) return status;
    const tsar_tensor *t = tsar_file_find(file, "codes");
    if (!t && tsar_file_find(file, "coarse"))
        status = tsar_fail(err, TSAR_INPUT, "%s: holds coarse labels only; tsar generate --codes writes codes, too", path);
    else if (!t)
        status = tsar_fail(err, TSAR_INPUT, "%s: has no tensor codes; tsar encode and tsar generate --codes write it", path);
    else if (t->rank != 2 || t->count == 0 || t->dtype < TSAR_I64)
        status = tsar_fail(err, TSAR_INPUT, "%s: tensor codes must be integers of shape [h, w]", path);
    else if (t->count > SIZE_MAX / sizeof **codes)
        status = tsar_fail(err, TSAR_ROOM, "%s: tensor codes is too large for this machine", path);
    else if (!(*codes = tsar_alloc((size_t)t->count, sizeof **codes, "codes", err)))
        status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_file_read_i64(file, t, 0, t->count, *codes, err);
    for (size_t i = 0; status == TSAR_OK && i < t->count; i++)
        if ((*codes)[i] < 0 || (uint64_t)(*codes)[i] >= model->config.codebook_size)
            status =
                tsar_fail(err, TSAR_INPUT, "%s: code %" PRId64 " at index %zu is outside 0 ... %zu", path, (*codes)[i], i, model->config.codebook_size - 1);
    if (status == TSAR_OK) *h = t->shape[0], *w = t->shape[1];
    tsar_file_close(file);
    return status;
}

static tsar_status run_decode(const arguments *a, tsar_error *err)
{
    tsar_model *model = NULL;
    int64_t *codes = NULL;
    uint8_t *rgb = NULL;
    size_t h = 0, w = 0, factor = 1;
    const char *const keys[] = { "Software" }, *const values[] = { "tsar " TSAR_VERSION };
    tsar_status status = open_model(a, &tokenizer_alone, &model, err);
    if (status == TSAR_OK && !model->config.has_vq) status = tsar_fail(err, TSAR_INPUT, "the model has no image tokenizer (vq.*): it cannot decode");
    if (status == TSAR_OK) status = read_codes(model, a->operands[0], &codes, &h, &w, err);
    if (status == TSAR_OK) {
        factor = model->config.vq_factor;
        if (w > (size_t)-1 / 3 / factor / factor / h)
            status = tsar_fail(err, TSAR_ROOM, "%s: %zu x %zu codes make too large a picture", a->operands[0], h, w);
        else if (!(rgb = tsar_alloc(h * factor, w * factor * 3, "a picture", err)))
            status = TSAR_ROOM;
    }
    if (status == TSAR_OK) status = tsar_vq_decode(model, codes, h, w, rgb, NULL, err);
    if (status == TSAR_OK) status = tsar_image_write(a->at[O_OUTPUT].text, rgb, h * factor, w * factor, keys, values, 1, err);
    if (status == TSAR_OK && a->at[O_SHOW].text) show_picture(rgb, h * factor, w * factor);
    tsar_free(rgb);
    tsar_free(codes);
    tsar_model_close(model);
    return status;
}

/* The condition that a file's inputs hold, which stay theirs. */
static void use_inputs(request *g, const tsar_inputs *inputs)
{
    g->prompt.text = inputs->text, g->prompt.n_text = inputs->n_text, g->prompt.class_id = inputs->class_id;
    g->prompt.text_uncond = inputs->text_uncond, g->prompt.n_text_uncond = inputs->n_text_uncond;
    g->prompt.caption = inputs->caption, g->prompt.caption_mask = inputs->caption_mask;
}

static int is_conditioned(const arguments *a)
{
    return a->at[O_PROMPT].text || a->at[O_PROMPT_IDS].text || a->at[O_CLASS].text || a->at[O_CAPTION].text;
}

/* inputs from --inputs, or from --image and the flags of the condition. */
static tsar_status read_trace_inputs(request *g, tsar_inputs *inputs, tsar_error *err)
{
    const option_value *at = g->a->at;
    const int conditioned = is_conditioned(g->a);
    tsar_status status = TSAR_OK;
    if (at[O_INPUTS].text) {
        tsar_file *file = NULL;
        if (conditioned || at[O_IMAGE].text)
            return tsar_fail(err, TSAR_USAGE, "--inputs %s: it holds all inputs; leave out --image and the prompt", at[O_INPUTS].text);
        status = tsar_file_open_alone(&file, at[O_INPUTS].text, err);
        if (status == TSAR_OK) status = tsar_inputs_read(inputs, g->model, file, err);
        tsar_file_close(file);
        use_inputs(g, inputs);
        return status;
    }
    if (at[O_IMAGE].text)
        status = read_picture(g->model, at[O_IMAGE].text, &inputs->image, &inputs->H, &inputs->W, err);
    else if (!conditioned && !g->model->config.has_gpt)
        return tsar_fail(err, TSAR_USAGE, "the model has no transformer: trace it with --image FILE or --inputs FILE");
    if (status != TSAR_OK || (at[O_IMAGE].text && !conditioned)) return status;
    status = read_condition(g, err);
    tsar_condition *c = &g->condition; /* its arrays belong to inputs from now on */
    inputs->text_uncond = c->uncond, inputs->n_text_uncond = g->prompt.n_text_uncond, inputs->caption = c->caption, inputs->caption_mask = c->mask;
    inputs->has_class = at[O_CLASS].text != NULL, inputs->class_id = g->prompt.class_id;
    c->uncond = NULL, c->caption = c->mask = NULL;
    if (g->prompt.text) inputs->text = c->ids, inputs->n_text = c->n_ids, c->ids = NULL;
    return status;
}

/* The tokens that the transformer is to be traced over where the inputs lack them: the codes of the image if it covers the grid, else
 * generated ones; labels are those of the codes. */
static tsar_status complete_tokens(request *g, tsar_inputs *inputs, tsar_error *err)
{
    const tsar_config *c = &g->model->config;
    const size_t N = c->grid_h * c->grid_w;
    const int conditioned = inputs->text || inputs->has_class || inputs->caption;
    const int covers = inputs->image && inputs->H == c->grid_h * c->vq_factor && inputs->W == c->grid_w * c->vq_factor;
    tsar_status status = TSAR_OK;
    if (!conditioned || (c->n_coarse && inputs->coarse)) return TSAR_OK;
    if (!inputs->codes) {
        if (!covers) {
            status = open_result(g, 1, 0, err);
            if (status == TSAR_OK) status = run_generation(g, 0, 1, err);
        } else if (!(g->result.codes = tsar_alloc(N, sizeof *inputs->codes, "codes", err)))
            status = TSAR_ROOM;
        else
            status = tsar_vq_encode(g->model, inputs->image, inputs->H, inputs->W, g->result.codes, NULL, err);
        inputs->codes = g->result.codes, inputs->coarse = g->result.coarse;
        inputs->h = c->grid_h, inputs->w = c->grid_w;
        g->result.codes = g->result.coarse = NULL; /* they belong to inputs now */
    }
    if (status == TSAR_OK && (inputs->h != c->grid_h || inputs->w != c->grid_w))
        return tsar_fail(err, TSAR_INPUT, "--inputs %s: its codes are %zu x %zu, the transformer's grid is %zu x %zu: leave out the codes or the prompt",
                         g->a->at[O_INPUTS].text, inputs->h, inputs->w, c->grid_h, c->grid_w);
    if (status != TSAR_OK || !c->n_coarse || inputs->coarse) return status;
    if (!(inputs->coarse = tsar_alloc(N, sizeof *inputs->coarse, "coarse labels", err))) return TSAR_ROOM;
    for (size_t i = 0; i < N; i++) inputs->coarse[i] = g->model->cluster_of[inputs->codes[i]];
    return TSAR_OK;
}

static tsar_status run_trace(const arguments *a, tsar_error *err)
{
    request g = { 0 };
    tsar_inputs inputs = { 0 };
    tsar_needs needs = tokenizer_alone;
    tsar_status status = a->at[O_INPUTS].text ? tsar_needs_of(&needs, a->at[O_INPUTS].text, err) : TSAR_OK;
    if (!a->at[O_INPUTS].text && (is_conditioned(a) || !a->at[O_IMAGE].text)) needs.parts = TSAR_PART_ALL;
    status = status == TSAR_OK ? open_generation(&g, a, &needs, 1, err) : status;
    if (status == TSAR_OK) status = read_trace_inputs(&g, &inputs, err);
    if (status == TSAR_OK) status = complete_tokens(&g, &inputs, err);
    if (status == TSAR_OK) status = tsar_trace_write(g.model, &inputs, a->at[O_ONLY].text, a->at[O_INSIDE].text != NULL, a->at[O_OUTPUT].text, err);
    tsar_inputs_close(&inputs);
    close_request(&g);
    return status;
}

/* The condition by flags, else the file's input.*; no guidance unless a flag says so. */
static tsar_status read_score_inputs(request *g, tsar_inputs *inputs, tsar_error *err)
{
    const option_value *at = g->a->at;
    const int conditioned = is_conditioned(g->a);
    tsar_file *file = NULL;
    tsar_status status = TSAR_OK;
    if (!at[O_CFG].text) g->settings.cfg = 1;
    if (!conditioned) status = tsar_file_open_alone(&file, g->a->operands[0], err);
    if (status == TSAR_OK && !conditioned) status = tsar_inputs_read(inputs, g->model, file, err);
    tsar_file_close(file);
    if (status != TSAR_OK) return status;
    if (conditioned || !(inputs->text || inputs->has_class || inputs->caption)) return read_condition(g, err);
    use_inputs(g, inputs);
    return TSAR_OK;
}

/* The log-likelihood of a file's codes: its sum on standard output, of each code into -o. */
static tsar_status run_score(const arguments *a, tsar_error *err)
{
    request g = { 0 };
    tsar_inputs inputs = { 0 };
    int64_t *codes = NULL;
    size_t h = 0, w = 0;
    double *nats = NULL, sum = 0;
    tsar_needs needs;
    tsar_status status = tsar_needs_of(&needs, a->operands[0], err);
    needs.parts = TSAR_PART_GPT | TSAR_PART_FINE | TSAR_PART_TEXT | TSAR_PART_T5;
    needs.generates = 1, needs.cfg = a->at[O_CFG].text ? a->at[O_CFG].real : 1;
    status = status == TSAR_OK ? open_generation(&g, a, &needs, 1, err) : status;
    if (status == TSAR_OK) status = read_score_inputs(&g, &inputs, err);
    if (status == TSAR_OK) status = read_codes(g.model, a->operands[0], &codes, &h, &w, err);
    if (status == TSAR_OK && (h != g.model->config.grid_h || w != g.model->config.grid_w))
        status = tsar_fail(err, TSAR_INPUT, "%s: its codes are %zu x %zu, the model's grid is %zu x %zu", a->operands[0], h, w, g.model->config.grid_h,
                           g.model->config.grid_w);
    if (status == TSAR_OK && !(nats = tsar_alloc(h * w, sizeof *nats, "likelihoods", err))) status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_score(g.model, &g.prompt, &g.settings, codes, nats, err);
    for (size_t i = 0; status == TSAR_OK && i < h * w; i++) sum += nats[i];
    if (status == TSAR_OK && a->at[O_OUTPUT].text) {
        const tsar_values tensor = { "log_likelihood", TSAR_F64, 2, { h, w }, nats };
        status = write_tensor(a->at[O_OUTPUT].text, &tensor, err);
    }
    if (status == TSAR_OK) {
        const double codes_n = (double)(h * w);
        printf("%.6f nats in %zu codes, %.6f a code, perplexity %.4f\n", sum, h * w, sum / codes_n, tsar_exp(-sum / codes_n));
    }
    tsar_free(nats);
    tsar_free(codes);
    tsar_inputs_close(&inputs);
    close_request(&g);
    return status;
}

/* --------------------------------------------------------------------------------------------------------- 4. text */

/* Ids divided by blanks or commas to bytes on standard output. */
static tsar_status print_bytes(const tsar_model *model, const tsar_tokenizer *tokenizer, char *text, size_t bytes, tsar_error *err)
{
    int64_t *ids = tsar_alloc(bytes / 2 + 1, sizeof *ids, "ids", err);
    size_t n = 0, n_bytes = 0;
    char *out = NULL;
    tsar_status status = ids ? TSAR_OK : TSAR_ROOM;
    for (size_t at = 0, end; at < bytes && status == TSAR_OK; at = end + 1) {
        uint64_t id = 0;
        for (end = at; end < bytes && !strchr(" ,\t\r\n", text[end]); end++) continue;
        text[end] = 0;
        if (end > at && !tsar_parse_count(text + at, INT64_MAX, &id))
            status = tsar_fail(err, TSAR_USAGE, "%s: give ids as whole numbers, for example 0 7 1", text + at);
        if (end > at) ids[n++] = (int64_t)id;
    }
    const tsar_spiece *spiece = model ? model->spiece : tokenizer->spiece;
    const tsar_bpe *bpe = model ? &model->bpe : &tokenizer->bpe;
    if (status == TSAR_OK) status = spiece ? tsar_spiece_decode(spiece, ids, n, &out, &n_bytes, err) : tsar_bpe_decode(bpe, ids, n, &out, &n_bytes, err);
    if (status == TSAR_OK) fwrite(out, 1, n_bytes, stdout);
    tsar_free(ids);
    tsar_free(out);
    return status;
}

static tsar_status print_ids(const arguments *a, const tsar_model *model, const tsar_tokenizer *tokenizer, const char *text, size_t bytes, tsar_error *err)
{
    const tsar_sentence sentence = { .text = text, .bytes = bytes, .raw = a->at[O_RAW_PROMPT].text != NULL };
    int64_t *ids = NULL;
    size_t n = 0;
    const tsar_status status = model && a->at[O_TEMPLATE].text ? tsar_text_prefix(model, &sentence, &ids, &n, err)
                               : model                         ? tsar_text_ids(model, text, bytes, &ids, &n, err)
                               : tokenizer->spiece             ? tsar_spiece_encode(tokenizer->spiece, text, bytes, &ids, &n, err)
                                                               : tsar_bpe_encode(&tokenizer->bpe, text, bytes, &ids, &n, err);
    for (size_t i = 0; i < n && status == TSAR_OK; i++) printf("%s%" PRId64, i ? " " : "", ids[i]);
    if (status == TSAR_OK) putchar('\n');
    tsar_free(ids);
    return status;
}

/* tsar text [TOKENIZER] TEXT: ids of a text, or with --to-text the bytes of ids. */
static tsar_status run_text(const arguments *a, tsar_error *err)
{
    const char *operand = a->operands[a->n - 1];
    tsar_model *model = NULL;
    tsar_tokenizer tokenizer = { 0 };
    char *text = NULL;
    size_t bytes = 0;
    if (a->n == 2 && (a->at[O_MODEL].text || a->at[O_TEMPLATE].text))
        return tsar_fail(err, TSAR_USAGE, "%s: %s; see tsar text --help", a->operands[0],
                         a->at[O_MODEL].text ? "give either -m MODEL or a tokenizer file" : "a tokenizer file has no --template, a model has (-m MODEL)");
    const tsar_needs needs = { .parts = TSAR_PART_TEXT };
    tsar_status status = a->n == 2 ? tsar_tokenizer_open(&tokenizer, a->operands[0], err) : open_model(a, &needs, &model, err);
    if (status == TSAR_OK && strcmp(operand, "-") == 0) {
        status = tsar_read_whole(operand, "the text", &text, &bytes, err);
    } else if (status == TSAR_OK) {
        bytes = strlen(operand);
        text = tsar_alloc(bytes + 1, 1, "the text", err);
        if (text) memcpy(text, operand, bytes);
        if (!text) status = TSAR_ROOM;
    }
    if (status == TSAR_OK)
        status = a->at[O_TO_TEXT].text ? print_bytes(model, &tokenizer, text, bytes, err) : print_ids(a, model, &tokenizer, text, bytes, err);
    tsar_free(text);
    tsar_model_close(model);
    tsar_tokenizer_close(&tokenizer);
    return status;
}

/* ------------------------------------------------------------------------------------------------------- 5. verify */

static tsar_status print_comparison(void *context, const tsar_comparison *r, tsar_error *err)
{
    size_t *lines = context;
    char text[2048]; /* a hostile name is six letters a byte in JSON */
    (void)err;
    if (r->verdict == TSAR_MISSING) return TSAR_OK;
    if ((*lines)++ == 0) printf("%-28s %-16s %9s %9s %9s %9s  verdict\n", "name", "shape", "rms", "max", "limit", "in all");
    tsar_comparison_text(text, sizeof text, r);
    print_text(stdout, text);
    putchar('\n');
    return TSAR_OK;
}

static tsar_status print_json_comparison(void *context, const tsar_comparison *r, tsar_error *err)
{
    size_t *lines = context;
    char text[2048]; /* a hostile name is six letters a byte in JSON */
    (void)err;
    tsar_comparison_json(text, sizeof text, r);
    printf("%s{%s}", (*lines)++ ? ",\n" : "{\"tensors\":[\n", text);
    return TSAR_OK;
}

/* How to judge: the flags, and for decoding what the file was generated with, as its metadata tell, where no flag does. */
static tsar_status read_verify_options(const arguments *a, const tsar_model *model, tsar_verify_options *how, tsar_settings *settings, tsar_error *err)
{
    static const struct {
        const char *name;
        tsar_dtype dtype;
    } precisions[] = { { "f64", TSAR_F64 }, { "f32", TSAR_F32 }, { "f16", TSAR_F16 }, { "bf16", TSAR_BF16 } };
    const char *precision = a->at[O_PRECISION].text;
    tsar_file *file = NULL;
    if (a->at[O_RTOL].text && a->at[O_RTOL].real < 0) return tsar_fail(err, TSAR_USAGE, "--rtol %s: give 0 or a positive number", a->at[O_RTOL].text);
    *how = (tsar_verify_options){ .rtol = a->at[O_RTOL].text ? a->at[O_RTOL].real : -1, .precision = TSAR_DTYPES, .settings = settings };
    how->strict = a->at[O_STRICT].text != NULL, how->other_random = a->at[O_OTHER].text != NULL;
    for (size_t i = 0; precision && i < sizeof precisions / sizeof *precisions; i++)
        if (strcmp(precision, precisions[i].name) == 0) how->precision = precisions[i].dtype;
    if (precision && how->precision == TSAR_DTYPES) return tsar_fail(err, TSAR_USAGE, "--precision %s: give f64, f32, f16 or bf16", precision);
    if (!model) return TSAR_OK;
    *settings = tsar_settings_default(model);
    tsar_status status = tsar_file_open_alone(&file, a->operands[0], err);
    if (status == TSAR_OK) status = tsar_record_settings(settings, &settings->first_image, file, err);
    tsar_file_close(file);
    return status == TSAR_OK ? tsar_flag_settings(a->at, settings, err) : status;
}

static tsar_status run_verify(const arguments *a, tsar_error *err)
{
    char text[1024];
    size_t lines = 0;
    tsar_verify_counts counts = { .compared = 0 };
    tsar_verify_options how;
    tsar_settings settings;
    tsar_model *model = NULL;
    tsar_needs needs;
    const int json = a->at[O_JSON].text != NULL;
    tsar_status status = read_verify_options(a, NULL, &how, &settings, err);
    if (status == TSAR_OK) status = tsar_needs_of(&needs, a->operands[0], err);
    if (status == TSAR_OK) status = open_model(a, &needs, &model, err);
    if (status == TSAR_OK) status = read_verify_options(a, model, &how, &settings, err);
    if (status == TSAR_OK) status = tsar_verify(model, a->operands[0], &how, json ? print_json_comparison : print_comparison, &lines, &counts, err);
    tsar_model_close(model);
    if (json && (lines || status <= TSAR_DIFFERENT)) {
        printf("%s],\n\"decisions\":[", lines ? "" : "{\"tensors\":[");
        for (size_t i = 0; i < counts.n_decisions && i < TSAR_DECISIONS; i++) {
            tsar_decision_json(text, sizeof text, &counts.decisions[i]);
            printf("%s{%s}", i ? ",\n" : "\n", text);
        }
        tsar_counts_json(text, sizeof text, &counts, status);
        printf("],\n%s}\n", text);
    }
    for (size_t i = 0; !json && status <= TSAR_DIFFERENT && tsar_counts_text(text, sizeof text, &counts, i); i++) {
        print_text(stdout, text);
        putchar('\n');
    }
    return status;
}

/* -------------------------------------------------------------------------- 6. model files: synth, import, cluster */

/* Keys and values: those of `file`, if any, and the operands key=value, the last one of each key. */
typedef struct {
    const char **keys, **values;
    char *copy;
    size_t n;
} key_list;

static void put_key(key_list *list, const char *key, const char *value)
{
    size_t i = 0;
    while (i < list->n && (strcmp(list->keys[i], key) != 0 || strcmp(key, "drop") == 0)) i++; /* drop may stand there several times */
    if (i == list->n) list->n++;
    list->keys[i] = key, list->values[i] = value;
}

/* The operands are cut at their '=' in place. */
static tsar_status open_keys(key_list *list, const arguments *a, const tsar_file *file, tsar_error *err)
{
    const size_t room = a->n + (file ? tsar_file_meta_count(file) : 0);
    list->n = 0;
    list->keys = tsar_alloc(room, 2 * sizeof *list->keys, "the configuration", err);
    if (!list->keys) return TSAR_ROOM;
    list->values = list->keys + room;
    for (size_t i = 0; file && i < tsar_file_meta_count(file); i++, list->n++) /* no key of a file stands there twice */
        tsar_file_meta_at(file, i, &list->keys[i], &list->values[i]);
    for (size_t i = 0; i < a->n; i++) {
        char *equals = tsar_is_setting(a->operands[i]) ? strchr(a->operands[i], '=') : NULL;
        if (!equals) continue;
        *equals = 0;
        put_key(list, a->operands[i], equals + 1);
    }
    return TSAR_OK;
}

static const char *look_up_key(const void *source, const char *key) { return tsar_file_meta(source, key); }

static tsar_status run_synth(const arguments *a, tsar_error *err)
{
    static const struct {
        const char *name;
        tsar_dtype dtype;
    } types[] = { { "f32", TSAR_F32 }, { "bf16", TSAR_BF16 }, { "f16", TSAR_F16 } };
    const char *like = a->at[O_LIKE].text, *wanted = a->at[O_DTYPE].text ? a->at[O_DTYPE].text : "f32";
    tsar_file *file = NULL;
    key_list list = { 0 };
    int type = 0;
    while (type < 3 && strcmp(wanted, types[type].name) != 0) type++;
    if (type == 3) return tsar_fail(err, TSAR_USAGE, "--dtype %s: give f32, bf16 or f16", wanted);
    if (a->n == 0 && !like) return tsar_fail(err, TSAR_USAGE, "tsar synth needs key=value arguments or --like FILE");
    for (size_t i = 0; i < a->n; i++)
        if (!tsar_is_setting(a->operands[i])) return tsar_fail(err, TSAR_USAGE, "%s: give the configuration as key=value, for example dim=64", a->operands[i]);
    tsar_status status = like ? tsar_file_open(&file, like, err) : TSAR_OK;
    if (status == TSAR_OK && like && a->n == 0) { /* nothing but the file can be wrong */
        tsar_config config;
        status = tsar_config_read(&config, look_up_key, file, like, err);
    }
    if (status == TSAR_OK) status = open_keys(&list, a, file, err);
    if (status == TSAR_OK) status = tsar_synth(a->at[O_OUTPUT].text, list.keys, list.values, list.n, types[type].dtype, err);
    tsar_free(list.keys);
    tsar_file_close(file);
    return status;
}

static tsar_status run_import(const arguments *a, tsar_error *err)
{
    key_list list = { 0 };
    size_t n = 0;
    const char **paths = tsar_alloc(a->n, sizeof *paths, "the list of files", err);
    if (!paths) return TSAR_ROOM;
    for (size_t i = 0; i < a->n; i++)
        if (!tsar_is_setting(a->operands[i])) paths[n++] = a->operands[i];
    const char *dtype = a->at[O_DTYPE].text;
    tsar_status status = n ? TSAR_OK : tsar_fail(err, TSAR_USAGE, "tsar import needs at least one checkpoint file");
    if (status == TSAR_OK && dtype && strcmp(dtype, "bf16") != 0)
        status = tsar_fail(err, TSAR_USAGE, "--dtype %s: import keeps the bits as they are, or rounds them to bf16", dtype);
    if (status == TSAR_OK) status = open_keys(&list, a, NULL, err);
    if (status == TSAR_OK)
        status = tsar_import(paths, n, a->at[O_OUTPUT].text, list.keys, list.values, list.n, dtype ? TSAR_BF16 : TSAR_DTYPES, print_note, (void *)a, err);
    tsar_free(list.keys);
    tsar_free(paths);
    return status;
}

static tsar_status run_cluster(const arguments *a, tsar_error *err)
{
    return tsar_cluster_write(a->at[O_MODEL].text, a->at[O_OUTPUT].text, (size_t)a->at[O_LABELS].count, a->at[O_SEED].count, thread_count(a), print_note,
                              (void *)a, err);
}

/* -------------------------------------------------------------------------------------------------- 7. info, bench */

static void print_line(void *context, const char *text)
{
    (void)context;
    print_text(stdout, text);
    putchar('\n');
}

static tsar_status run_info(const arguments *a, tsar_error *err)
{
    size_t grid[2];
    const tsar_status status = a->at[O_GRID].text ? tsar_grid_parse(grid, a->at[O_GRID].text, err) : TSAR_OK;
    return status == TSAR_OK ? tsar_info(a->operands[0], a->at[O_GRID].text ? grid : NULL, print_line, NULL, err) : status;
}

static tsar_status print_measurement(void *context, const tsar_measurement *m, tsar_error *err)
{
    int *lines = context;
    (void)err;
    if ((*lines)++ == 0) fputs("| measured | value | unit | limit | ratio |\n| --- | ---: | --- | ---: | ---: |\n", stdout);
    printf("| %s | %.4g | %s |", m->name, m->value, m->unit);
    if (m->limit > 0)
        printf(" %.4g | %.2f |\n", m->limit, m->value / m->limit);
    else
        fputs(" | |\n", stdout);
    fflush(stdout);
    return TSAR_OK;
}

static tsar_status run_bench(const arguments *a, tsar_error *err)
{
    tsar_model *model = NULL;
    int lines = 0;
    const size_t threads = thread_count(a);
    tsar_status status = a->n ? tsar_model_open(&model, a->operands[0], TSAR_PART_ALL, threads, err) : TSAR_OK;
    if (status == TSAR_OK) status = tsar_bench(model, threads, print_measurement, &lines, err);
    tsar_model_close(model);
    return status;
}

/* -------------------------------------------------------------------------- 8. the table of commands, help, manual */

static const command commands[] = {
    { GENERATE, "generate", "", 0, 0, run_generate, "Generates images from a text prompt or a list of them, a class or caption features." },
    { ENCODE, "encode", "IMAGE.ppm", 1, 1, run_encode, "Turns a picture (binary PPM, - is standard input) into codes: a safetensors file with codes [h, w]." },
    { DECODE, "decode", "CODES.safetensors", 1, 1, run_decode, "Turns codes [h, w], as encode and generate --codes write them, into a picture." },
    { TRACE, "trace", "", 0, 0, run_trace,
      "Writes inputs and every intermediate tensor of one run to a safetensors file. Codes that are not given are generated first, with the same "
      "flags as in generate." },
    { VERIFY, "verify", "THEIRS.safetensors", 1, 1, run_verify,
      "Recomputes another implementation's trace from its inputs, compares every tensor that it holds in the order of computation, and marks the "
      "first that diverges." },
    { SCORE, "score", "CODES.safetensors", 1, 1, run_score,
      "Tells the log-likelihood of given codes in nats: their sum, and with -o FILE that of each code; without guidance unless --cfg says otherwise. The "
      "prompt is the file's own input.*, as generate --codes writes it, unless flags give it." },
    { TEXT, "text", "[TOKENIZER] TEXT", 1, 2, run_text,
      "Turns a text into ids, on one line, or with --to-text ids into bytes; - is standard input, of which every byte counts. The tokenizer is the model's, or "
      "a published file: tokenizer.json, emu3.tiktoken with emu3_vision_tokens.txt beside it, spiece.model." },
    { IMPORT, "import", "CHECKPOINT... [KEY=VALUE...]", 1, (size_t)-1, run_import,
      "Turns PyTorch (zip or legacy) and safetensors checkpoints, their indexes and folders into one model file. KEY=VALUE gives what neither shapes nor a "
      "config.json tell; from=KEY chooses the dictionary with the weights, drop=PREFIX leaves tensors out. No code of a checkpoint is run." },
    { SYNTH, "synth", "[KEY=VALUE...]", 0, (size_t)-1, run_synth, "Makes a model of any shape with synthetic weights, the same on every machine." },
    { INFO, "info", "MODEL", 1, 1, run_info, "Tells shapes, parameters, bytes, multiply-adds, passes per image and memory of a model file." },
    { BENCH, "bench", "[MODEL]", 0, 1, run_bench, "Measures speed against loops that only read memory or only calculate, in the same run; prints a table." },
    { CLUSTER, "cluster", "", 0, 0, run_cluster,
      "Clusters the codewords of a model into K coarse labels (k-means) and writes its tokenizer and the table of labels to a new model file, for "
      "coarse-to-fine generation." },
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static const char *const statuses[] = { "success", "verify found a difference", "a wrong flag or argument", "a missing or wrong input",
                                        "out of memory or disk" };

/* Prints text in lines of at most 96 columns, from column `column` on; further lines are indented by `indent`. */
static void print_wrapped(FILE *out, const char *text, int column, int indent)
{
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (column > indent && column + 1 + length > 96)
            fprintf(out, "\n%*s", indent, ""), column = indent;
        else if (column > indent)
            fputc(' ', out), column++;
        fprintf(out, "%.*s", length, text);
        text += length + (text[length] == ' '), column += length;
    }
    fputc('\n', out);
}

static void print_flags(FILE *out, unsigned which)
{
    enum { INDENT = 26 };
    for (int i = 0; i < OPTIONS; i++) {
        const option *o = &tsar_options[i];
        if (!(o->commands & which)) continue;
        int column = o->letter ? fprintf(out, "  -%c, --%s", o->letter, o->name) : fprintf(out, "      --%s", o->name);
        if (o->value) column += fprintf(out, " %s", o->value);
        if (column < INDENT) fprintf(out, "%*s", INDENT - column, "");
        print_wrapped(out, o->help, column < INDENT ? INDENT : column, INDENT);
    }
}

static void print_usage(FILE *out, const command *c)
{
    fprintf(out, "tsar %s", c->name);
    for (int i = 0; i < OPTIONS; i++)
        if (tsar_options[i].required & c->bit) fprintf(out, " -%c %s", tsar_options[i].letter, tsar_options[i].value);
    fprintf(out, "%s%s [flags]\n", *c->operands ? " " : "", c->operands);
}

static void print_short_help(FILE *out)
{
    fputs("tsar " TSAR_VERSION " - token-efficient autoregressive image generation, the reference in portable C99\n\n"
          "    tsar generate -p \"three yellow stars above a blue ring\" -o mine" PICTURE_ENDING "\n\n",
          out);
    for (int i = 0; i < COMMANDS; i++) {
        fprintf(out, "  %-10s", commands[i].name);
        print_wrapped(out, commands[i].help, 12, 12);
    }
    fputs("\ntsar COMMAND --help tells the flags of a command, tsar --help those of all;\n"
          "tsar --version prints the version, tsar --man the manual page (troff).\n",
          out);
}

static void print_command_help(FILE *out, const command *c)
{
    print_usage(out, c);
    fputs("    ", out);
    print_wrapped(out, c->help, 4, 4);
    fputc('\n', out);
    print_flags(out, c->bit);
}

static void print_long_help(FILE *out)
{
    print_short_help(out);
    fputs("\nA flag is written --flag VALUE or --flag=VALUE; the last one counts; -- ends the flags.\n", out);
    for (int i = 0; i < COMMANDS; i++) {
        fputc('\n', out);
        print_command_help(out, &commands[i]);
    }
    fputs("\nExit status:", out);
    for (int i = 0; i < 5; i++) fprintf(out, "%s %d %s", i ? "," : "", i, statuses[i]);
    fputs(".\n", out);
}

/* Text for troff: hyphens and backslashes as themselves. */
static void print_roff(const char *text)
{
    for (; *text; text++)
        if (*text == '-')
            fputs("\\-", stdout);
        else if (*text == '\\')
            fputs("\\e", stdout);
        else
            fputc(*text, stdout);
}

static void print_roff_flags(unsigned which)
{
    for (int i = 0; i < OPTIONS; i++) {
        const option *o = &tsar_options[i];
        if (!(o->commands & which)) continue;
        fputs(".TP\n.B ", stdout);
        if (o->letter) printf("\\-%c, ", o->letter);
        fputs("\\-\\-", stdout);
        print_roff(o->name);
        if (o->value) printf(" \\fI%s\\fR", o->value);
        fputc('\n', stdout);
        print_roff(o->help);
        fputc('\n', stdout);
    }
}

static void print_manual(void)
{
    printf(".TH TSAR 1 \"\" \"tsar %s\" \"User Commands\"\n", TSAR_VERSION);
    fputs(".SH NAME\ntsar \\- token\\-efficient autoregressive image generation, the reference in portable C99\n"
          ".SH SYNOPSIS\n.B tsar\n.I COMMAND\n[flags] [operands]\n.br\n.B tsar\n\\-h | \\-\\-help | \\-\\-version\n"
          ".SH DESCRIPTION\nGenerates images with Token\\-Shuffle, LlamaGen, coarse\\-to\\-fine and ZipAR models in double precision, the same bits "
          "on every\n"
          "machine, and checks other implementations against its own numbers, tensor by tensor.\n"
          "A flag is written \\-\\-flag VALUE or \\-\\-flag=VALUE; the last one counts; \\-\\- ends the flags. Results go to standard output or\n"
          "the named file, progress to standard error.\n.SH COMMANDS\n",
          stdout);
    for (int i = 0; i < COMMANDS; i++) {
        printf(".SS %s\n", commands[i].name);
        fputs(".B tsar ", stdout);
        print_roff(commands[i].name);
        for (int k = 0; k < OPTIONS; k++)
            if (tsar_options[k].required & commands[i].bit) printf(" \\-%c \\fI%s\\fR", tsar_options[k].letter, tsar_options[k].value);
        printf(" \\fI%s\\fR [flags]\n.PP\n", commands[i].operands);
        print_roff(commands[i].help);
        fputc('\n', stdout);
        print_roff_flags(commands[i].bit);
    }
    fputs(".SH EXIT STATUS\n", stdout);
    for (int i = 0; i < 5; i++) printf(".TP\n.B %d\n%s\n", i, statuses[i]);
    fputs(".SH FILES\n.TP\n.I weights/" SHIPPED_MODEL "\nbeside the program, else in the data directory: the model that is used without \\-m\n"
          ".SH EXAMPLES\n.nf\ntsar generate \\-p \"three yellow stars above a blue ring\" \\-o mine" PICTURE_ENDING "\n"
          "tsar synth \\-\\-like theirs.safetensors \\-o model.safetensors\n"
          "tsar verify \\-m model.safetensors theirs.safetensors\n.fi\n",
          stdout);
}

/* --------------------------------------------------------------------------------------------------------- 9. main */

/* "tsar -h", "tsar --help", "tsar --version", "tsar --man"; 0 if it is none of them. */
static int print_general(const char *text)
{
    if (strcmp(text, "-h") == 0)
        print_short_help(stdout);
    else if (strcmp(text, "--help") == 0)
        print_long_help(stdout);
    else if (strcmp(text, "--version") == 0)
        puts("tsar " TSAR_VERSION);
    else if (strcmp(text, "--man") == 0)
        print_manual();
    else
        return 0;
    return 1;
}

/* Before the work: no output is read, and each can be written. */
static tsar_status check_paths(const arguments *a, tsar_error *err)
{
    char model[PATH_ROOM];
    const int has_model = (tsar_options[O_MODEL].commands & a->command) != 0 && a->at[O_OUTPUT].text;
    tsar_status status = has_model ? find_model(a, model, sizeof model, err) : TSAR_OK;
    if (status == TSAR_OK && a->command == DECODE) status = tsar_image_name_check(a->at[O_OUTPUT].text, err);
    return status == TSAR_OK ? tsar_paths_check(a, has_model ? model : NULL, err) : status;
}

static tsar_status run(int argc, char **argv, tsar_error *err)
{
    arguments a = { 0 };
    if (argc < 2) {
        print_short_help(stderr);
        return tsar_fail(err, TSAR_USAGE, "give a command");
    }
    if (print_general(argv[1])) return argc == 2 ? TSAR_OK : tsar_fail(err, TSAR_USAGE, "%s: tsar %s takes no argument", argv[2], argv[1]);
    int i = 0;
    while (i < COMMANDS && strcmp(argv[1], commands[i].name) != 0) i++;
    if (i == COMMANDS) return tsar_fail(err, TSAR_USAGE, "%s: tsar has no such command; tsar -h lists those it has", argv[1]);
    a.program = argv[0], a.command = commands[i].bit;
    tsar_status status = tsar_parse_arguments(&a, &commands[i], argc - 2, argv + 2, err);
    if (status != TSAR_OK) return status;
    if (a.at[O_HELP].text) {
        print_command_help(stdout, &commands[i]);
        return TSAR_OK;
    }
    status = tsar_self_check(err);
    if (status == TSAR_OK) status = check_paths(&a, err);
    return status == TSAR_OK ? commands[i].run(&a, err) : status;
}

#ifdef SIGINT
/* A signal that ends the program leaves no half-written file, and still ends it. */
static void on_signal(int number)
{
    tsar_output_clean();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static void catch_signals(void)
{
    static const int signals[] = { SIGINT, SIGTERM,
#ifdef SIGHUP
                                   SIGHUP,
#endif
#ifdef SIGPIPE
                                   SIGPIPE,
#endif
#ifdef SIGXCPU
                                   SIGXCPU,
#endif
    };
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        if (signal(signals[i], on_signal) == SIG_IGN && signals[i] != SIGINT) /* as under nohup; but shells ignore SIGINT for all that runs behind them */
            (void)signal(signals[i], SIG_IGN);
#ifdef SIGXFSZ
    (void)signal(SIGXFSZ, SIG_IGN); /* a file that grows beyond its limit is an error of writing */
#endif
}
#else
static void catch_signals(void) {}
#endif

int main(int argc, char **argv)
{
    tsar_error err = { "" };
    tsar_system_start(&argc, &argv);
    catch_signals();
    tsar_status status = run(argc, argv, &err);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status <= TSAR_DIFFERENT)
        status = tsar_fail(&err, TSAR_ROOM, "standard output cannot be written; is the disk full");
    erase_bar();
    if (status > TSAR_DIFFERENT) fprintf(stderr, "tsar: %s\n", err.text);
    return (int)status;
}
