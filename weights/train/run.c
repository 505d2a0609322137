/* Checkpoints, results and progress of a training run: see run.h. */
#include "run.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void run_key(train_run *run, const char *key, const char *format, ...)
{
    va_list arguments;
    size_t i = 0;
    for (; i < run->n_keys && strcmp(run->keys[i], key) != 0; i++) {
    }
    if (i == RUN_KEYS) return;
    run->keys[i] = key;
    va_start(arguments, format);
    vsnprintf(run->values[i], sizeof run->values[i], format, arguments);
    va_end(arguments);
    run->n_keys = i == run->n_keys ? i + 1 : run->n_keys;
}

void run_note(train_run *run, const char *key, const char *text)
{
    if (!text) return;
    run->note_keys[run->n_notes] = key;
    run->notes[run->n_notes++] = text;
}

/* Half a cosine from `from` to `to`, x from 0 to 1. */
static double fall(double from, double to, double x) { return to + (from - to) * 0.5 * (1.0 + tsar_cos(3.14159265358979323846 * (x < 1.0 ? x : 1.0))); }

static double first_rate(const train_run *run, uint64_t step)
{
    if (step < run->warm_up) return run->rate * (double)(step + 1) / (double)run->warm_up;
    if (run->rate_steps == 0) return run->rate;
    return fall(run->rate, run->rate_end, (double)(step - run->warm_up) / (double)(run->rate_steps > run->warm_up ? run->rate_steps - run->warm_up : 1));
}

/* Linear warm-up, then rate_end + (rate - rate_end) (1 + cos(pi x)) / 2 with x = the part of rate_steps that is done; from finish_from on,
 * the same from the rate there, over the steps that are left. */
double run_rate(const train_run *run)
{
    if (run->step < run->finish_from) return first_rate(run, run->step);
    return fall(first_rate(run, run->finish_from), run->rate_end, (double)(run->step - run->finish_from) / (double)(run->steps - run->finish_from));
}

/* ------------------------------------------------------------------------------------------------------ checkpoints */

static tsar_status check_meta(const tsar_file *file, const char *key, const char *expected, tsar_error *err)
{
    const char *value = tsar_file_meta(file, key);
    if (!value || strcmp(value, expected) != 0)
        return tsar_fail(err, TSAR_INPUT, "%s: the checkpoint has %s=%s, this run %s (give the run its own --checkpoint, or the same settings)",
                         tsar_file_path(file), key, value ? value : "(none)", expected);
    return TSAR_OK;
}

tsar_status run_meta_number(uint64_t *value, const tsar_file *file, const char *key, tsar_error *err)
{
    const char *text = tsar_file_meta(file, key);
    uint64_t number = 0;
    size_t digits = 0;
    for (; text && text[digits] >= '0' && text[digits] <= '9'; digits++) {
        const uint64_t digit = (uint64_t)(text[digits] - '0');
        if (number > (UINT64_MAX - digit) / 10) break;
        number = number * 10 + digit;
    }
    if (digits == 0 || text[digits] != 0 || (digits > 1 && text[0] == '0'))
        return tsar_fail(err, TSAR_INPUT, "%s: its key %s is %.60s, not a whole number; the file is damaged (remove it, and the work begins anew)",
                         tsar_file_path(file), key, text ? text : "missing");
    *value = number;
    return TSAR_OK;
}

/* Before the rate begins to fall at its end, a run may be made longer or shorter: what is done does not depend on it. */
static int may_change_length(const train_run *run, uint64_t step, uint64_t finish_from) { return step > 0 && step <= run->finish_from && step <= finish_from; }

/* The checkpoint is of this run; *step is how far it is. */
static tsar_status check_run(const train_run *run, const tsar_file *file, uint64_t *step, tsar_error *err)
{
    char text[32];
    uint64_t finish_from = 0;
    tsar_status status = check_meta(file, "train.stage", run->stage, err);
    if (status == TSAR_OK) status = run_meta_number(step, file, "train.step", err);
    if (status == TSAR_OK) status = run_meta_number(&finish_from, file, "train.finish_from", err);
    const char *const names[6] = { "train.seed", "train.batch", "train.warm_up", "train.rate_steps", "train.steps", "train.finish_from" };
    const uint64_t numbers[6] = { run->seed, run->batch, run->warm_up, run->rate_steps, run->steps, run->finish_from };
    for (size_t i = 0; i < (may_change_length(run, *step, finish_from) ? 4 : 6) && status == TSAR_OK; i++) {
        snprintf(text, sizeof text, "%" PRIu64, numbers[i]);
        status = check_meta(file, names[i], text, err);
    }
    snprintf(text, sizeof text, "%g", run->rate);
    if (status == TSAR_OK) status = check_meta(file, "train.rate", text, err);
    for (size_t i = 0; i < run->n_keys && status == TSAR_OK; i++) status = check_meta(file, run->keys[i], run->values[i], err);
    if (status == TSAR_OK && *step > run->steps)
        status = tsar_fail(err, TSAR_INPUT, "%s: its key train.step is %" PRIu64 ", but the run has %" PRIu64 " steps; the file is damaged (remove it)",
                           tsar_file_path(file), *step, run->steps);
    return status;
}

/* Tensor prefix+name of a file into n reals. */
static tsar_status read_reals(tsar_file *file, const char *prefix, const train_param *p, real *out, tsar_error *err)
{
    char name[160];
    double piece[256];
    snprintf(name, sizeof name, "%s%s", prefix, p->name);
    const tsar_tensor *tensor = tsar_file_find(file, name);
    if (!tensor || tensor->count != p->n)
        return tsar_fail(err, TSAR_INPUT, "%s: tensor %s is missing or has another size than the %zu elements of this model", tsar_file_path(file), name, p->n);
    for (size_t i = 0; i < p->n; i += 256) {
        size_t n = p->n - i < 256 ? p->n - i : 256;
        tsar_status status = tsar_file_read_f64(file, tensor, i, n, piece, err);
        if (status != TSAR_OK) return status;
        for (size_t k = 0; k < n; k++) out[i + k] = (real)piece[k];
    }
    return TSAR_OK;
}

tsar_status run_load(train_tape *tape, tsar_file *file, const char *prefix, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < tape->n_params && status == TSAR_OK; i++)
        if (strncmp(tape->params[i].name, prefix, strlen(prefix)) == 0) status = read_reals(file, "", &tape->params[i], tape->params[i].w, err);
    return status;
}

int run_file_exists(const char *path)
{
    errno = 0;
    FILE *stream = fopen(path, "rb");
    if (stream) {
        fclose(stream);
        return 1;
    }
#ifdef ENOENT
    return errno != ENOENT;
#else
    return 0;
#endif
}

tsar_status run_resume(train_run *run, train_tape *tape, tsar_error *err)
{
    run->started = run->saved = run->reported = (int64_t)time(NULL);
    if (!run_file_exists(run->checkpoint)) return TSAR_OK;
    char name[512];
    tsar_file *file;
    tsar_status status = tsar_file_open(&file, run->checkpoint, err);
    if (status != TSAR_OK) return status;
    status = check_run(run, file, &run->step, err);
    for (size_t i = 0; i < tape->n_params && status == TSAR_OK; i++) {
        train_param *p = &tape->params[i];
        status = read_reals(file, "", p, p->w, err);
        if (status == TSAR_OK) status = read_reals(file, "adam.m.", p, p->m, err);
        if (status == TSAR_OK) status = read_reals(file, "adam.v.", p, p->v, err);
    }
    if (status == TSAR_OK && run->state.name) {
        const tsar_tensor *tensor = tsar_file_find(file, run->state.name);
        status = tensor && tensor->count == run->state.shape[0]
                     ? tsar_file_read_i64(file, tensor, 0, tensor->count, run->state.values, err)
                     : tsar_fail(err, TSAR_INPUT, "%s: tensor %s is missing or has the wrong size", run->checkpoint, run->state.name);
    }
    run->first_step = run->step;
    if (status == TSAR_OK)
        fprintf(stderr, "%s: continues %s after step %" PRIu64 " of %" PRIu64 "\n", run->stage, tsar_plain_text(name, sizeof name, run->checkpoint), run->step,
                run->steps);
    tsar_file_close(file);
    return status;
}

static tsar_status write_meta(tsar_writer *writer, const train_run *run, int checkpoint, tsar_error *err)
{
    char text[32];
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < run->n_keys && status == TSAR_OK; i++) status = tsar_writer_meta(writer, run->keys[i], run->values[i], err);
    const char *const names[7] = { "train.seed", "train.steps", "train.batch", "train.warm_up", "train.rate_steps", "train.finish_from", "train.step" };
    const uint64_t numbers[7] = { run->seed, run->steps, run->batch, run->warm_up, run->rate_steps, run->finish_from, run->step };
    for (size_t i = 0; i < 7 && status == TSAR_OK && checkpoint; i++) {
        snprintf(text, sizeof text, "%" PRIu64, numbers[i]);
        status = tsar_writer_meta(writer, names[i], text, err);
    }
    snprintf(text, sizeof text, "%g", run->rate);
    if (status == TSAR_OK && checkpoint) status = tsar_writer_meta(writer, "train.rate", text, err);
    return status == TSAR_OK && checkpoint ? tsar_writer_meta(writer, "train.stage", run->stage, err) : status;
}

static tsar_status declare(tsar_writer *writer, const char *prefix, const train_param *p, tsar_dtype dtype, tsar_error *err)
{
    char name[160];
    snprintf(name, sizeof name, "%s%s", prefix, p->name);
    return tsar_writer_declare(writer, name, dtype, p->rank, p->shape, err);
}

/* The array that a tensor of a checkpoint comes from. */
static const real *array_of(const train_tape *tape, const char *name)
{
    int part = strncmp(name, "adam.m.", 7) == 0 ? 1 : strncmp(name, "adam.v.", 7) == 0 ? 2 : 0;
    for (size_t i = 0; i < tape->n_params; i++)
        if (strcmp(tape->params[i].name, name + (part ? 7 : 0)) == 0) return part == 0 ? tape->params[i].w : part == 1 ? tape->params[i].m : tape->params[i].v;
    return NULL;
}

/* n reals as dtype F32 or BF16. */
static tsar_status put_reals(tsar_writer *writer, const real *x, uint64_t n, tsar_dtype dtype, tsar_error *err)
{
    float wide[256];
    uint16_t narrow[256];
    for (uint64_t i = 0; i < n; i += 256) {
        uint64_t count = n - i < 256 ? n - i : 256;
        for (uint64_t k = 0; k < count; k++) {
            wide[k] = (float)x[i + k];
            narrow[k] = tsar_round_bf16(wide[k]);
        }
        tsar_status status = tsar_writer_put(writer, dtype == TSAR_BF16 ? (const void *)narrow : (const void *)wide, count, err);
        if (status != TSAR_OK) return status;
    }
    return TSAR_OK;
}

tsar_status run_save(const train_run *run, const train_tape *tape, tsar_error *err)
{
    tsar_writer *writer;
    tsar_status status = tsar_writer_open(&writer, run->checkpoint, err);
    if (status != TSAR_OK) return status;
    status = write_meta(writer, run, 1, err);
    for (size_t i = 0; i < tape->n_params && status == TSAR_OK; i++) {
        status = declare(writer, "", &tape->params[i], TSAR_F32, err);
        if (status == TSAR_OK) status = declare(writer, "adam.m.", &tape->params[i], TSAR_F32, err);
        if (status == TSAR_OK) status = declare(writer, "adam.v.", &tape->params[i], TSAR_F32, err);
    }
    if (status == TSAR_OK && run->state.name) status = tsar_writer_declare(writer, run->state.name, TSAR_I64, run->state.rank, run->state.shape, err);
    const tsar_tensor *tensor;
    while (status == TSAR_OK && (tensor = tsar_writer_next(writer)) != NULL) {
        const real *array = array_of(tape, tensor->name);
        status = array ? put_reals(writer, array, tensor->count, TSAR_F32, err) : tsar_writer_put(writer, run->state.values, tensor->count, err);
    }
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

/* ---------------------------------------------------------------------------------------------------------- results */

/* Whether the tensor or key `name` belongs to a part. */
static int is_taken(const char *name, run_part part)
{
    int of_tokenizer = strncmp(name, "vq.", 3) == 0 || strncmp(name, "vq_", 3) == 0;
    int of_training = strncmp(name, "train.", 6) == 0 || strncmp(name, "adam.", 5) == 0;
    return part == RUN_TAKE_TOKENIZER ? of_tokenizer : !of_training && !(part == RUN_TAKE_ALL_BUT_TOKENIZER && of_tokenizer);
}

static tsar_status copy_keys(tsar_writer *writer, const tsar_file *with, run_part part, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    for (size_t i = 0; i < tsar_file_meta_count(with) && status == TSAR_OK; i++) {
        const char *key, *value;
        tsar_file_meta_at(with, i, &key, &value);
        if (is_taken(key, part)) status = tsar_writer_meta(writer, key, value, err);
    }
    return status;
}

tsar_status run_export(const train_run *run, const train_tape *tape, tsar_dtype dtype, const run_integers *integers, size_t n_integers, tsar_file *with,
                       run_part part, tsar_error *err)
{
    tsar_writer *writer;
    tsar_status status = tsar_writer_open(&writer, run->output, err);
    if (status != TSAR_OK) return status;
    if (with) status = copy_keys(writer, with, part, err);
    if (status == TSAR_OK) status = write_meta(writer, run, 0, err);
    for (size_t i = 0; i < run->n_notes && status == TSAR_OK; i++) status = tsar_writer_meta(writer, run->note_keys[i], run->notes[i], err);
    for (size_t i = 0; i < tape->n_params && status == TSAR_OK; i++) status = declare(writer, "", &tape->params[i], dtype, err);
    for (size_t i = 0; i < n_integers && status == TSAR_OK; i++)
        status = tsar_writer_declare(writer, integers[i].name, TSAR_I64, integers[i].rank, integers[i].shape, err);
    for (size_t i = 0; with && i < tsar_file_count(with) && status == TSAR_OK; i++) {
        const tsar_tensor *t = tsar_file_at(with, i);
        if (is_taken(t->name, part) && !array_of(tape, t->name)) status = tsar_writer_declare(writer, t->name, t->dtype, t->rank, t->shape, err);
    }
    const tsar_tensor *tensor;
    while (status == TSAR_OK && (tensor = tsar_writer_next(writer)) != NULL) {
        const real *array = array_of(tape, tensor->name);
        const tsar_tensor *theirs = with && !array ? tsar_file_find(with, tensor->name) : NULL;
        if (array)
            status = put_reals(writer, array, tensor->count, dtype, err);
        else if (theirs && is_taken(theirs->name, part))
            status = tsar_writer_copy(writer, with, theirs, err);
        else
            for (size_t i = 0; i < n_integers; i++)
                if (strcmp(integers[i].name, tensor->name) == 0) status = tsar_writer_put(writer, integers[i].values, tensor->count, err);
    }
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

/* Rows of a named value without its border, channels first: [C][H][W], or [W][C] for rows. */
static tsar_status put_value(tsar_writer *writer, const train_value *t, float *plain, tsar_error *err)
{
    for (size_t c = 0; c < t->C; c++)
        for (size_t y = 0; y < t->H; y++)
            for (size_t x = 0; x < t->W; x++)
                plain[t->H > 1 ? (c * t->H + y) * t->W + x : x * t->C + c] =
                    (float)t->x[train_at(t, 0, (ptrdiff_t)y, (ptrdiff_t)(t->order ? t->order[x] : x)) + c];
    return tsar_writer_put(writer, plain, t->C * t->H * t->W, err);
}

tsar_status run_trace(const train_run *run, const train_tape *tape, const char *path, const run_input *inputs, size_t n_inputs, tsar_error *err)
{
    tsar_writer *writer;
    size_t most = 1;
    tsar_status status = tsar_writer_open(&writer, path, err);
    if (status != TSAR_OK) return status;
    status = write_meta(writer, run, 0, err);
    for (size_t i = 0; i < n_inputs && status == TSAR_OK; i++)
        status = tsar_writer_declare(writer, inputs[i].name, inputs[i].dtype, inputs[i].rank, inputs[i].shape, err);
    for (size_t i = 0; i < tape->n_values && status == TSAR_OK; i++) {
        const train_value *t = &tape->values[i];
        const size_t picture[3] = { t->C, t->H, t->W }, rows[2] = { t->W, t->C }, by_window[3] = { t->W / (t->slots + !t->slots), t->slots, t->C };
        if (t->name[0])
            status = tsar_writer_declare(writer, t->name, TSAR_F32, t->H > 1 || t->slots ? 3 : 2, t->H > 1 ? picture : t->slots ? by_window : rows, err);
        most = t->C * t->H * t->W > most ? t->C * t->H * t->W : most;
    }
    float *plain = tsar_alloc(most, sizeof *plain, "the trace", err);
    status = status == TSAR_OK && !plain ? TSAR_ROOM : status;
    const tsar_tensor *tensor;
    while (status == TSAR_OK && (tensor = tsar_writer_next(writer)) != NULL) {
        for (size_t i = 0; i < n_inputs; i++)
            if (strcmp(inputs[i].name, tensor->name) == 0) status = tsar_writer_put(writer, inputs[i].data, tensor->count, err);
        for (size_t i = 0; i < tape->n_values; i++)
            if (strcmp(tape->values[i].name, tensor->name) == 0) status = put_value(writer, &tape->values[i], plain, err);
    }
    tsar_free(plain);
    if (status == TSAR_OK) return tsar_writer_commit(writer, err);
    tsar_writer_abandon(writer);
    return status;
}

/* --------------------------------------------------------------------------------------------------------- progress */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static void on_end(int number)
{
    tsar_output_clean();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

/* What was ignored when the program began stays so, as under nohup; but shells ignore SIGINT for all that runs behind them. */
static void catch(int number, void (*handler)(int))
{
    if (signal(number, handler) == SIG_IGN && number != SIGINT) (void)signal(number, SIG_IGN);
}

void run_catch_signals(int saves)
{
    void (*const ends)(int) = saves ? on_interrupt : on_end;
    catch(SIGINT, ends);
    catch(SIGTERM, ends);
#ifdef SIGHUP
    catch(SIGHUP, ends);
#endif
#ifdef SIGXCPU
    catch(SIGXCPU, ends);
#endif
#ifdef SIGPIPE
    catch(SIGPIPE, on_end);
#endif
#ifdef SIGXFSZ
    (void)signal(SIGXFSZ, SIG_IGN); /* a file that grows beyond its limit is an error of writing */
#endif
}

int run_interrupted(void) { return interrupted != 0; }

/* Whether to go on. */
static tsar_status after_step(train_run *run, const train_tape *tape, int *stop, tsar_error *err)
{
    int64_t now = (int64_t)time(NULL);
    run->step++;
    int last = run->step >= run->steps, enough = run->stop_after > 0 && run->step - run->first_step >= run->stop_after;
    *stop = last || enough || interrupted;
    if (!*stop && (double)(now - run->saved) < 60.0 * run->minutes) return TSAR_OK;
    run->saved = now;
    char name[512];
    tsar_status status = run_save(run, tape, err);
    if (status == TSAR_OK && *stop && !last)
        fprintf(stderr, "\n%s: stopped after step %" PRIu64 " of %" PRIu64 "; the same command continues from %s\n", run->stage, run->step, run->steps,
                tsar_plain_text(name, sizeof name, run->checkpoint));
    return status;
}

/* Whether a report is due: about every five seconds. */
static int is_due(const train_run *run) { return (int64_t)time(NULL) - run->reported >= 5 || run->step + 1 >= run->steps; }

void run_report(train_run *run, const char *format, ...)
{
    va_list arguments;
    char text[160];
    int64_t now = (int64_t)time(NULL);
    double seconds = (double)(now - run->started), done = (double)(run->step + 1 - run->first_step);
    double left = seconds * (double)(run->steps - run->step - 1) / done;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s %6" PRIu64 "/%" PRIu64 "  %s  rate %.2e  %.2f pictures/s  %d:%02d left\n", run->stage, run->step + 1, run->steps, text, run_rate(run),
            seconds > 0.0 ? done * (double)run->batch / seconds : 0.0, (int)(left / 3600.0), (int)(left / 60.0) % 60);
    run->reported = now;
}

/* ------------------------------------------------------------------------------------------------------------ steps */

#define CLIP 1.0

static tsar_status update(const train_run *run, const run_stage *stage, double *norm, tsar_error *err)
{
    *norm = train_gradient_norm(stage->tape);
    if (!(*norm < 1e6))
        return tsar_fail(err, TSAR_INPUT, "the gradient has norm %g at step %" PRIu64 ": training diverged (lower --rate)", *norm, run->step + 1);
    train_adam(stage->tape, run->step + 1, run_rate(run), stage->beta2, stage->decay, *norm > CLIP ? CLIP / *norm : 1.0);
    return TSAR_OK;
}

tsar_status run_steps(train_run *run, const run_stage *stage, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    int stop = run->step >= run->steps;
    double figure[RUN_FIGURES] = { 0.0 }, mean[RUN_FIGURES] = { 0.0 }, norm = 0.0;
    for (uint64_t k = 0; status == TSAR_OK && !stop; k++) {
        status = stage->pass(stage->context, run, figure, err);
        if (status == TSAR_OK) status = update(run, stage, &norm, err);
        const double keep = k < 50 ? (double)k / (double)(k + 1) : 0.98;
        for (size_t i = 0; i < RUN_FIGURES; i++) mean[i] = keep * mean[i] + (1.0 - keep) * figure[i];
        if (status == TSAR_OK && is_due(run)) stage->report(stage->context, run, mean, norm);
        if (status == TSAR_OK && stage->after) stage->after(stage->context, run);
        if (status == TSAR_OK) status = after_step(run, stage->tape, &stop, err);
    }
    return status;
}
