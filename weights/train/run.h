/* A training run: what it is, where it stands, its checkpoints and its result. */
#ifndef TRAIN_RUN_H
#define TRAIN_RUN_H

#include "train.h"

#define RUN_KEYS 64
#define RUN_NOTES 8

/* Integers that a file holds beside the parameters: merges, cluster labels, counters. */
typedef struct {
    const char *name;
    size_t rank, shape[2];
    int64_t *values;
} run_integers;

typedef struct {
    const char *stage, *checkpoint, *output;
    uint64_t seed, step, steps; /* step: how many are done */
    size_t batch;
    /* Learning rate: rises over `warm_up` steps, then falls from `rate` to `rate_end` along a half cosine that would take
     * `rate_steps` (0: it stays); from step `finish_from` on, along another to `rate_end` at the last step. */
    double rate, rate_end;
    uint64_t warm_up, rate_steps, finish_from;
    double minutes;             /* between checkpoints */
    uint64_t stop_after;        /* steps of this sitting, 0: no limit */
    const char *keys[RUN_KEYS]; /* configuration of the model, as in its metadata */
    char values[RUN_KEYS][64];
    size_t n_keys;
    const char *note_keys[RUN_NOTES], *notes[RUN_NOTES]; /* metadata of the result that does not bear on the training; the caller's */
    size_t n_notes;
    run_integers state;               /* counters that a checkpoint keeps; name NULL: none */
    int64_t started, saved, reported; /* seconds on the clock */
    uint64_t first_step;              /* of this sitting */
} train_run;

void run_key(train_run *run, const char *key, const char *format, ...) TSAR_FORMAT(3, 4);
void run_note(train_run *run, const char *key, const char *text); /* NULL: none */
double run_rate(const train_run *run);

/* Continues from the checkpoint if there is one. TSAR_INPUT if it belongs to another run. */
tsar_status run_resume(train_run *run, train_tape *tape, tsar_error *err);
/* Saves the checkpoint: parameters, moments, step and counters; a failure leaves the one before. */
tsar_status run_save(const train_run *run, const train_tape *tape, tsar_error *err);
/* What a stage does in a step, with its own context. */
#define RUN_FIGURES 3
typedef struct {
    train_tape *tape;
    void *context;
    double beta2, decay;                                                                       /* of AdamW */
    tsar_status (*pass)(void *context, const train_run *run, double *figure, tsar_error *err); /* forward and backward; figure [RUN_FIGURES] to report */
    void (*report)(const void *context, train_run *run, const double *mean, double norm);      /* calls run_report; mean: of the figures of late */
    void (*after)(void *context, const train_run *run);                                        /* after the update, of step run->step + 1; NULL: nothing */
} run_stage;
/* The steps that are left: pass, AdamW with the gradients clipped to norm 1, report. Saves the checkpoint every `minutes`, at an interrupt and after
 * the last step. TSAR_INPUT when the training diverges. */
tsar_status run_steps(train_run *run, const run_stage *stage, tsar_error *err);
/* What a result takes from another model file. */
typedef enum { RUN_TAKE_TOKENIZER, RUN_TAKE_ALL, RUN_TAKE_ALL_BUT_TOKENIZER } run_part;
/* Writes run->output: the parameters rounded to dtype (TSAR_BF16, TSAR_F32), integers, notes, and that part of the model file
 * `with` (may be NULL) which the result does not have itself. */
tsar_status run_export(const train_run *run, const train_tape *tape, tsar_dtype dtype, const run_integers *integers, size_t n_integers,
                       tsar_file *with, run_part part, tsar_error *err);

/* A line about progress: step, what the stage says, rate, pictures per second, time left. */
void run_report(train_run *run, const char *format, ...) TSAR_FORMAT(2, 3);

/* A whole number of a file's metadata; TSAR_INPUT if there is none, or anything else. */
tsar_status run_meta_number(uint64_t *value, const tsar_file *file, const char *key, tsar_error *err);
/* Loads the parameters of a tape from a model file, rounded to real. */
tsar_status run_load(train_tape *tape, tsar_file *file, const char *prefix, tsar_error *err);
/* Whether there is a file of this name, also one that cannot be opened: whoever opens it then is told why. */
int run_file_exists(const char *path);
/* The signals that end a program: from now on they make run_interrupted true, so that the run saves its state (SIGINT, SIGTERM, SIGHUP, SIGXCPU,
 * if it has any to save), or end it as ever but leave no half-written file. */
void run_catch_signals(int saves);
int run_interrupted(void);

/* Every named value of the tape, picture or sequence `b`, to a trace file with the run's keys as metadata. input: U8 image or I64 tensors. */
typedef struct {
    const char *name;
    tsar_dtype dtype;
    size_t rank, shape[3];
    const void *data;
} run_input;
tsar_status run_trace(const train_run *run, const train_tape *tape, const char *path, const run_input *inputs, size_t n_inputs, tsar_error *err);

#endif
