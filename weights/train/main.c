/* The trainer: makes and scores tsar's own models. See --help. */
#include "gpt.h"
#include "figure.h"
#include "vq.h"
#include "score.h"
#include "scenes.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: train COMMAND [flags]; the same command continues where an interrupted one stopped\n"
    "  vq      -o VQ [--steps 4000]                           the image tokenizer\n"
    "  codes   --vq VQ [-n 64000]  -o CODES                   codes of that many pictures, for the transformers\n"
    "  gpt     --vq VQ --codes CODES --shuffle S -o MODEL     a Token-Shuffle transformer [--steps N]\n"
    "          [--dim D] [--layers L] [--heads H] [--ffn F] [--shuffle-hidden W] [--rope 2d] [--eol] [--vq-file NAME]\n"
    "          --rope 2d: rows and columns as rotary positions; --eol: an id, that of a newline, behind every row of codes\n"
    "  coarse  --vq VQ --codes CODES --coarse K -o MODEL      a transformer of cluster labels (CTF, stage one); flags of gpt\n"
    "  fine    --vq VQ --codes CODES --coarse K [--model MODEL] -o MODEL2   stage two, joined with stage one in MODEL; flags of gpt\n"
    "          --vq-file NAME leaves the tokenizer to the file of that name beside the result; the sampling flags of score become defaults of\n"
    "          what gpt and coarse make, and those of coarse are kept by fine\n"
    "  loss    --model MODEL --vq VQ --codes CODES [-n 500]   nats a code of the last n pictures, which a training of fewer has not seen\n"
    "  trace   --model MODEL [--part vq|gpt|fine] [-p PROMPT] -o TRACE    the forward pass in float32, for tsar verify\n"
    "  score   --model MODEL [-n 100] [--held-out] [--cfg A] [--cfg-schedule S] [--temperature T] [--top-k K] [--top-p P] [--greedy]\n"
    "          [--decode ORDER] [--markdown ROW] [-o CODES] [--agreement CODES] [--each]\n"
    "                                                         mini-GenEval, n pictures of each category; agreement with an earlier run's codes;\n"
    "                                                         each: a line for each picture, with the edges of its objects\n"
    "  score-vq --model MODEL [-n 600] [--markdown ROW]       the tokenizer on unseen scenes\n"
    "  score --header, score-vq --header                      the head of the table that --markdown prints a row of\n"
    "  scenes  [-n 16] [--category 0-5] [--held-out] -o SHEET a sheet of scenes, their captions on stdout\n"
    "  figure  -o PNG                                         quality against passes, of points on standard input (figure.h)\n"
    "  bench   [--threads N]                                  a step of each stage against the machine's own limit\n"
    "common: [--seed N] [--threads N] [--batch N] [--rate R] [--checkpoint FILE] [--minutes M] [--stop-after STEPS] [--f32]\n";

typedef struct {
    const char *output, *checkpoint, *model, *vq, *codes, *part, *prompt, *vq_file, *rope;
    uint64_t seed, steps, stop_after;
    size_t n, batch, threads, shuffle, coarse, dim, layers, heads, ffn, hidden;
    double rate, minutes, category;
    score_plan score;
    int held_out, f32, header, eol;
    char checkpoint_room[512], defaults_room[4][32];
} options;

/* What follows a flag, and where it goes. SWITCH takes no value. */
typedef enum { STRING, COUNT, BIG_COUNT, NUMBER, SWITCH } flag_kind;
typedef struct {
    const char *name;
    flag_kind kind;
    size_t offset;
} flag;

static const flag flags[] = { { "-o", STRING, offsetof(options, output) },
                              { "--checkpoint", STRING, offsetof(options, checkpoint) },
                              { "--model", STRING, offsetof(options, model) },
                              { "--vq", STRING, offsetof(options, vq) },
                              { "--codes", STRING, offsetof(options, codes) },
                              { "--part", STRING, offsetof(options, part) },
                              { "-p", STRING, offsetof(options, prompt) },
                              { "--decode", STRING, offsetof(options, score.decode) },
                              { "--cfg-schedule", STRING, offsetof(options, score.schedule) },
                              { "--markdown", STRING, offsetof(options, score.markdown) },
                              { "--agreement", STRING, offsetof(options, score.agreement) },
                              { "--header", SWITCH, offsetof(options, header) },
                              { "--seed", BIG_COUNT, offsetof(options, seed) },
                              { "--steps", BIG_COUNT, offsetof(options, steps) },
                              { "--stop-after", BIG_COUNT, offsetof(options, stop_after) },
                              { "-n", COUNT, offsetof(options, n) },
                              { "--batch", COUNT, offsetof(options, batch) },
                              { "--threads", COUNT, offsetof(options, threads) },
                              { "--shuffle", COUNT, offsetof(options, shuffle) },
                              { "--coarse", COUNT, offsetof(options, coarse) },
                              { "--dim", COUNT, offsetof(options, dim) },
                              { "--layers", COUNT, offsetof(options, layers) },
                              { "--heads", COUNT, offsetof(options, heads) },
                              { "--ffn", COUNT, offsetof(options, ffn) },
                              { "--shuffle-hidden", COUNT, offsetof(options, hidden) },
                              { "--category", NUMBER, offsetof(options, category) },
                              { "--rate", NUMBER, offsetof(options, rate) },
                              { "--minutes", NUMBER, offsetof(options, minutes) },
                              { "--cfg", NUMBER, offsetof(options, score.cfg) },
                              { "--temperature", NUMBER, offsetof(options, score.temperature) },
                              { "--top-k", NUMBER, offsetof(options, score.top_k) },
                              { "--top-p", NUMBER, offsetof(options, score.top_p) },
                              { "--held-out", SWITCH, offsetof(options, held_out) },
                              { "--greedy", SWITCH, offsetof(options, score.greedy) },
                              { "--each", SWITCH, offsetof(options, score.each) },
                              { "--f32", SWITCH, offsetof(options, f32) },
                              { "--rope", STRING, offsetof(options, rope) },
                              { "--eol", SWITCH, offsetof(options, eol) },
                              { "--vq-file", STRING, offsetof(options, vq_file) } };

/* Stores what follows flag f. Every slot has the type that its kind names, so that it may be written by its address. */
static tsar_status store(options *o, const flag *f, const char *text, tsar_error *err)
{
    void *slot = (char *)o + f->offset;
    double value;
    if (f->kind != SWITCH && !text) return tsar_fail(err, TSAR_USAGE, "%s needs a value", f->name);
    if (f->kind == SWITCH) {
        *(int *)slot = 1;
        return TSAR_OK;
    }
    if (f->kind == STRING) {
        *(const char **)slot = text;
        return TSAR_OK;
    }
    const int is_number = tsar_real_read(&value, text, NULL);
    const double most = f->kind == COUNT ? 1e9 : 1e15;
    if (!is_number || !(value >= 0.0) || value > most || (f->kind != NUMBER && floor(value) < value))
        return tsar_fail(err, TSAR_USAGE, "%s needs a %snumber up to %g, not %.60s", f->name, f->kind == NUMBER ? "" : "whole ", most, text);
    if (f->kind == NUMBER)
        *(double *)slot = value;
    else if (f->kind == COUNT)
        *(size_t *)slot = (size_t)value;
    else
        *(uint64_t *)slot = (uint64_t)value;
    return TSAR_OK;
}

/* The commands; the long ones save their progress when they are interrupted. */
enum { TRAINS = 1, WRITES = 2 };
static const struct command {
    const char *name;
    int what;
} commands[] = { { "vq", TRAINS | WRITES },
                 { "codes", TRAINS | WRITES },
                 { "gpt", TRAINS | WRITES },
                 { "coarse", TRAINS | WRITES },
                 { "fine", TRAINS | WRITES },
                 { "trace", WRITES },
                 { "score", 0 },
                 { "score-vq", 0 },
                 { "scenes", WRITES },
                 { "figure", WRITES },
                 { "bench", 0 },
                 { "loss", 0 } };

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

static tsar_status parse(options *o, int argc, char **argv, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    for (int i = 2; i < argc && status == TSAR_OK; i++) {
        size_t k = 0, n = sizeof flags / sizeof flags[0];
        while (k < n && strcmp(flags[k].name, argv[i]) != 0) k++;
        if (k == n) return tsar_fail(err, TSAR_USAGE, "unknown flag %s (train --help lists them)", argv[i]);
        status = store(o, &flags[k], i + 1 < argc ? argv[i + 1] : NULL, err);
        i += flags[k].kind != SWITCH;
    }
    if (status == TSAR_OK && !o->output && (find_command(argv[1])->what & WRITES)) status = tsar_fail(err, TSAR_USAGE, "-o FILE is missing");
    if (status == TSAR_OK && (o->category >= (double)SCENE_CATEGORIES || floor(o->category) < o->category))
        status = tsar_fail(err, TSAR_USAGE, "--category is 0 to %d, in the order of GenEval's six", SCENE_CATEGORIES - 1);
    if (status == TSAR_OK && (o->threads < 1 || o->threads > 64 || o->batch > 4096))
        status = tsar_fail(err, TSAR_USAGE, "--threads is 1 to 64, --batch at most 4096");
    if (status == TSAR_OK && !o->checkpoint && o->output) {
        int length = snprintf(o->checkpoint_room, sizeof o->checkpoint_room, "%s.checkpoint", o->output);
        if (length < 0 || (size_t)length >= sizeof o->checkpoint_room) status = tsar_fail(err, TSAR_USAGE, "%.80s...: the name is too long", o->output);
        o->checkpoint = o->checkpoint_room;
    }
    return status;
}

/* Before the work: the files that are written can be, none of them is read, and none is written twice. */
static tsar_status check_names(const options *o, const struct command *command, tsar_error *err)
{
    const char *const reads[] = { o->model, o->vq, o->codes, o->score.agreement };
    const char *const writes[] = { o->output, command->what & TRAINS ? o->checkpoint : NULL };
    tsar_names *names = NULL;
    tsar_status status = tsar_names_open(&names, err);
    for (size_t i = 0; i < sizeof reads / sizeof reads[0] && status == TSAR_OK; i++)
        if (reads[i]) status = tsar_names_read(names, reads[i], err);
    for (size_t i = 0; i < sizeof writes / sizeof writes[0] && status == TSAR_OK; i++) {
        if (writes[i]) status = tsar_names_write(names, writes[i], err);
        if (writes[i] && status == TSAR_OK) status = tsar_output_check(writes[i], err);
    }
    tsar_names_close(names);
    return status;
}

/* A sheet of n scenes, six in a row, two pixels apart. */
static tsar_status draw_sheet(const options *o, tsar_error *err)
{
    size_t n = o->n ? o->n : 16, columns = n < 6 ? n : 6, rows = (n + columns - 1) / columns, W = columns * (SCENE_SIDE + 2), H = rows * (SCENE_SIDE + 2);
    uint8_t *sheet = tsar_alloc(H * W, 3, "the sheet", err), rgb[SCENE_SIDE * SCENE_SIDE * 3];
    if (!sheet) return TSAR_ROOM;
    for (size_t i = 0; i < n; i++) {
        scene s;
        scene_draw(&s, o->seed, i, (int)o->category, o->held_out);
        scene_render(&s, rgb);
        printf("%zu: %s%s\n", i, s.caption, s.held_out ? " (held out)" : "");
        for (size_t y = 0; y < SCENE_SIDE; y++)
            memcpy(sheet + ((i / columns * (SCENE_SIDE + 2) + y) * W + i % columns * (SCENE_SIDE + 2)) * 3, rgb + y * SCENE_SIDE * 3, SCENE_SIDE * 3);
    }
    tsar_status status = tsar_image_write(o->output, sheet, H, W, NULL, NULL, 0, err);
    tsar_free(sheet);
    return status;
}

/* Sizes that a transformer needs to be divisible by. */
static tsar_status check_plan(const options *o, const gpt_plan *p, int fine, tsar_error *err)
{
    size_t d = fine ? p->fine.dim : p->gpt.dim, heads = fine ? p->fine.n_head : p->gpt.n_head, s = p->gpt.s;
    if (!o->vq || !o->codes) return tsar_fail(err, TSAR_USAGE, "--vq FILE and --codes FILE are needed");
    if (strcmp(o->rope, "1d") != 0 && strcmp(o->rope, "2d") != 0) return tsar_fail(err, TSAR_USAGE, "--rope is 1d or 2d, not %.60s", o->rope);
    if (!d || !heads || d % heads || d / heads % 4 || !s || d % (s * s) || 16 % s)
        return tsar_fail(err, TSAR_USAGE, "--dim must be a multiple of 4 * --heads and of --shuffle squared, --shuffle 1, 2, 4, 8 or 16");
    return TSAR_OK;
}

/* The sampling that users of the result get unless they ask for another: what tsar reads as a model's defaults. */
static tsar_status set_defaults(gpt_plan *plan, options *o, tsar_error *err)
{
    static const char *const names[4] = { "--cfg", "--temperature", "--top-k", "--top-p" };
    const double numbers[4] = { o->score.cfg, o->score.temperature, o->score.top_k, o->score.top_p };
    const char **const slots[4] = { &plan->cfg, &plan->temperature, &plan->top_k, &plan->top_p };
    tsar_schedule schedule;
    for (size_t i = 0; i < 4; i++) {
        if (numbers[i] < 0.0) continue; /* not given */
        if ((i < 2 && !(numbers[i] > 0.0)) || (i == 2 && (floor(numbers[i]) < numbers[i] || numbers[i] > 999999.0)) || (i == 3 && numbers[i] > 1.0))
            return tsar_fail(err, TSAR_USAGE,
                             "%s %g cannot be the default of a model: cfg and temperature are above 0, top-k is a whole number, top-p at most 1", names[i],
                             numbers[i]);
        snprintf(o->defaults_room[i], sizeof o->defaults_room[i], "%g", numbers[i]);
        *slots[i] = o->defaults_room[i];
    }
    plan->cfg_schedule = o->score.schedule;
    return o->score.schedule ? tsar_schedule_parse(&schedule, o->score.schedule, err) : TSAR_OK;
}

#define EOL_ID (TSAR_SPECIALS + '\n') /* the id of the byte that ends a line, which no caption has */

static tsar_status train_transformer(const char *command, options *o, tsar_error *err)
{
    int fine = !strcmp(command, "fine"), coarse = !strcmp(command, "coarse");
    size_t d = o->dim ? o->dim : fine ? 96 : 160, layers = o->layers ? o->layers : fine ? 4 : 6, heads = o->heads ? o->heads : d / 32;
    size_t ffn = o->ffn ? o->ffn : (d * 12 / 5 + 15) / 16 * 16;
    gpt_plan plan;
    memset(&plan, 0, sizeof plan);
    plan.vq = o->vq;
    plan.codes = o->codes;
    plan.output = o->output;
    plan.checkpoint = o->checkpoint;
    plan.seed = o->seed;
    plan.steps = o->steps ? o->steps : 32000;
    plan.stop_after = o->stop_after;
    plan.batch = o->batch ? o->batch : 8;
    plan.threads = o->threads;
    plan.rate = o->rate > 0.0 ? o->rate : 2e-3;
    plan.rate_end = 2e-5;
    plan.minutes = o->minutes;
    plan.dtype = o->f32 ? TSAR_F32 : TSAR_BF16;
    plan.vq_file = o->vq_file;
    tsar_status status = set_defaults(&plan, o, err);
    if (status != TSAR_OK) return status;
    plan.n_coarse = fine || coarse ? o->coarse : 0;
    plan.stage_one = o->model;
    plan.gpt = (gpt_shape){ .dim = d, .n_layer = layers, .n_head = heads, .ffn = ffn, .s = coarse ? 1 : o->shuffle, .blocks = 2, .eps = 1e-5 };
    plan.gpt.hidden = o->hidden ? o->hidden : d;
    plan.gpt.rope_base = 10000.0;
    plan.gpt.rope_2d = !strcmp(o->rope, "2d");
    plan.gpt.row_ends = o->eol;
    plan.gpt.eol = EOL_ID;
    plan.fine = (fine_shape){ d, layers, heads, ffn, 0, 0, 0, 1e-5, 10000.0 };
    if ((fine || coarse) && o->coarse < 2) return tsar_fail(err, TSAR_USAGE, "--coarse K, the number of cluster labels, is at least 2");
    status = check_plan(o, &plan, fine, err);
    if (status != TSAR_OK) return status;
    return fine ? train_fine(&plan, err) : train_gpt(&plan, err);
}

static tsar_status train_tokenizer(const options *o, tsar_error *err)
{
    vq_plan plan = { o->output,
                     o->checkpoint,
                     o->seed,
                     4000,
                     o->stop_after,
                     12000,
                     1454,
                     960,
                     o->batch ? o->batch : 8,
                     o->threads,
                     o->rate > 0.0 ? o->rate : 5e-4,
                     2e-5,
                     o->minutes,
                     o->f32 ? TSAR_F32 : TSAR_BF16,
                     vq_standard() };
    if (o->steps) { /* not the shipped tokenizer's recipe */
        plan.steps = plan.rate_steps = plan.finish_from = o->steps;
        plan.open_until = o->steps / 12;
    }
    return train_vq(&plan, err);
}

static tsar_status run_command(const char *command, options *o, tsar_error *err)
{
    if (!strcmp(command, "vq")) return train_tokenizer(o, err);
    if (!strcmp(command, "codes")) {
        const codes_plan plan = { o->vq, o->output, o->checkpoint, o->n ? o->n : 64000, o->threads, o->seed, o->stop_after, o->minutes };
        return o->vq ? train_codes(&plan, err) : tsar_fail(err, TSAR_USAGE, "--vq FILE is missing");
    }
    if (!strcmp(command, "gpt") || !strcmp(command, "coarse") || !strcmp(command, "fine")) return train_transformer(command, o, err);
    int score = !strcmp(command, "score"), score_vq = !strcmp(command, "score-vq");
    if (o->header && (score || score_vq)) {
        score ? score_generation_header() : score_tokenizer_header();
        return TSAR_OK;
    }
    const int loss = !strcmp(command, "loss");
    if ((score || score_vq || loss || !strcmp(command, "trace")) && !o->model) return tsar_fail(err, TSAR_USAGE, "--model FILE is missing");
    if (!strcmp(command, "trace") && !strcmp(o->part, "vq")) return train_vq_trace(o->model, o->seed, 0, o->output, o->threads, err);
    if (!strcmp(command, "trace")) return train_trace(o->model, !strcmp(o->part, "fine"), o->prompt, o->output, o->threads, err);
    if (loss) {
        const gpt_plan plan = { .vq = o->vq, .codes = o->codes, .threads = o->threads, .seed = o->seed };
        if (!o->vq || !o->codes) return tsar_fail(err, TSAR_USAGE, "--vq FILE and --codes FILE are needed");
        return train_loss(&plan, o->model, o->n ? o->n : 500, err);
    }
    if (score || score_vq) {
        o->score.model = o->model;
        o->score.output = o->output;
        o->score.n = o->n ? o->n : score ? 100 : 600;
        o->score.threads = o->threads;
        o->score.seed = o->seed;
        o->score.held_out = o->held_out;
        return score ? score_generation(&o->score, err) : score_tokenizer(&o->score, err);
    }
    if (!strcmp(command, "figure")) return train_figure(o->output, err);
    return strcmp(command, "bench") == 0 ? train_bench(o->threads, err) : draw_sheet(o, err);
}

int main(int argc, char **argv)
{
    tsar_error err = { "" };
    options o = { 0 };
    o.seed = 1;
    o.threads = 1;
    o.shuffle = 2;
    o.minutes = 10.0;
    o.score.cfg = o.score.temperature = o.score.top_k = o.score.top_p = -1.0;
    o.category = -1.0;
    o.part = "vq";
    o.rope = "1d";
    o.prompt = "three yellow stars above a blue ring";
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        fputs(help, argc < 2 ? stderr : stdout);
        return argc < 2 ? TSAR_USAGE : TSAR_OK;
    }
    tsar_system_start(&argc, &argv);
    tsar_status status = tsar_self_check(&err);
    const struct command *command = find_command(argv[1]);
    if (status == TSAR_OK && !command) status = tsar_fail(&err, TSAR_USAGE, "unknown command %s (train --help lists them)", argv[1]);
    if (status == TSAR_OK) run_catch_signals(command->what & TRAINS);
    if (status == TSAR_OK) status = parse(&o, argc, argv, &err);
    if (status == TSAR_OK) status = check_names(&o, command, &err);
    o.threads = tsar_threads_possible(o.threads);
    if (status == TSAR_OK) status = run_command(argv[1], &o, &err);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == TSAR_OK)
        status = tsar_fail(&err, TSAR_ROOM, "standard output cannot be written; is the disk full");
    if (status != TSAR_OK) fprintf(stderr, "train: %s\n", err.text);
    return (int)status;
}
