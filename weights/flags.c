/* flags.c - the flags of the command line and their parser (SPEC 9). */
#include "flags.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define CONDITIONED (GENERATE | TRACE | SCORE)
#define SAMPLED (CONDITIONED | VERIFY)
#define SAMPLES (GENERATE | TRACE)
#define COMPUTES (GENERATE | ENCODE | DECODE | TRACE | VERIFY | BENCH | SCORE)

const option tsar_options[OPTIONS] = {
    /* in the order of the enum above */
    { "model", 'm', "MODEL", IS_READ, 0, 0, GENERATE | ENCODE | DECODE | TRACE | VERIFY | CLUSTER | SCORE | TEXT, VERIFY | CLUSTER,
      "model file; all but verify and cluster take the shipped " SHIPPED_MODEL " without it, from weights/ beside the program or from the data directory" },
    { "output", 'o', "FILE", IS_WRITTEN, 0, 0, GENERATE | ENCODE | DECODE | TRACE | IMPORT | SYNTH | CLUSTER | SCORE,
      ENCODE | DECODE | TRACE | IMPORT | SYNTH | CLUSTER,
      "file to write; pictures are PNG or PPM by its ending (generate: out" PICTURE_ENDING
      ", or with --codes no picture; with -n above 1 image I is out-I" PICTURE_ENDING ")" },
    { "prompt", 'p', "PROMPT", IS_TEXT, 0, 0, CONDITIONED, 0, "text prompt; llamagen-t2i needs the T5 encoder, in the model or by --text-model" },
    { "prompt-ids", 0, "IDS", IS_TEXT, 0, 0, CONDITIONED, 0, "the whole prefix as ids, <bos> (0) and <soi> (1) included: 0,7,1" },
    { "class", 0, "N", IS_COUNT, 0, INT32_MAX, CONDITIONED, 0, "class, for llamagen-c2i models" },
    { "caption", 0, "FEATURES", IS_READ, 0, 0, CONDITIONED, 0,
      "caption features, for llamagen-t2i models: safetensors with caption and mask, or LlamaGen's own .npy" },
    { "images", 'n', "IMAGES", IS_COUNT, 1, 1000000, GENERATE, 0, "number of images (1)" },
    { "seed", 0, "N", IS_COUNT, 0, UINT64_MAX, SAMPLES | VERIFY | CLUSTER, 0, "seed of the random numbers (0)" },
    { "cfg", 0, "A", IS_REAL, 0, 0, SAMPLED, 0, "scale of classifier-free guidance; 1 switches it off (the model's default; token-shuffle: 7.5)" },
    { "cfg-schedule", 0, "NAME", IS_TEXT, 0, 0, SAMPLED, 0, "constant, linear, half-linear or cosine (the model's default; token-shuffle: half-linear)" },
    { "cfg-interval", 0, "N", IS_INTEGER, 0, 0, SAMPLED, 0, "guidance ends after token N + 1, as in LlamaGen; -1: never (-1)" },
    { "temperature", 0, "T", IS_REAL, 0, 0, SAMPLES | VERIFY, 0, "divides the logits; 0 counts as 0.00001 (the model's default)" },
    { "top-k", 0, "K", IS_COUNT, 0, INT32_MAX, SAMPLES | VERIFY, 0, "draw from the K most probable codes; 0: from all (the model's default)" },
    { "top-p", 0, "P", IS_REAL, 0, 0, SAMPLES | VERIFY, 0,
      "draw from the most probable codes of total mass P; 0: keep one; 1: from all (the model's default)" },
    { "greedy", 0, NULL, IS_SWITCH, 0, 0, SAMPLES | VERIFY, 0, "take the most probable code instead of drawing" },
    { "decode", 0, "ORDER", IS_TEXT, 0, 0, SAMPLED, 0,
      "raster: one fused token in each pass; zipar:W[,first-row|,authors]: several rows at once with window W; zipar-adaptive:W (raster)" },
    { "codes", 0, "FILE", IS_WRITTEN, 0, 0, GENERATE, 0,
      "write codes, logits (after guidance), step_of and, with coarse-to-fine, coarse, the inputs and every setting to a safetensors file; with -n above 1, "
      "FILE-I" },
    { "frames", 0, "DIR", IS_TEXT, 0, 0, GENERATE, 0,
      "write the picture after every pass, what is not decoded yet in grey, to DIR, which must exist: frame-0000" PICTURE_ENDING
      ", or frame-I-0000" PICTURE_ENDING " with -n above 1" },
    { "order-map", 0, "FILE", IS_WRITTEN, 0, 0, GENERATE, 0,
      "write a heat map of the pass that decoded each fused token, with its scale; with -n above 1, FILE-I" },
    { "show", 0, NULL, IS_SWITCH, 0, 0, GENERATE | DECODE, 0, "show the picture on standard output, in a terminal with 24-bit colour" },
    { "inputs", 0, "FILE", IS_READ, 0, 0, TRACE, 0, "take input.* from a safetensors file; codes that it lacks are generated" },
    { "image", 0, "FILE", IS_READ, 0, 0, TRACE, 0, "trace the image tokenizer on this picture (binary PPM, - is standard input)" },
    { "inside", 0, NULL, IS_SWITCH, 0, 0, TRACE, 0, "also the tensors inside of blocks: .q, .k, .v, .attn, .h, .ffn" },
    { "only", 0, "PATTERN", IS_TEXT, 0, 0, TRACE, 0, "inputs, and of the other tensors those whose name fits: gpt.block.*; ? is one letter (all)" },
    { "rtol", 0, "R", IS_REAL, 0, 0, VERIFY, 0,
      "judge by the largest error alone: at most R times the RMS of the tensor (by what the file's precision cannot avoid)" },
    { "precision", 0, "P", IS_TEXT, 0, 0, VERIFY, 0, "f64, f32, f16 or bf16: what the file was computed in (the narrowest that holds all its numbers)" },
    { "strict", 0, NULL, IS_SWITCH, 0, 0, VERIFY, 0, "near-ties are differences" },
    { "other-random", 0, NULL, IS_SWITCH, 0, 0, VERIFY, 0, "decoding: the file's random numbers are others; only whether each code was allowed is judged" },
    { "json", 0, NULL, IS_SWITCH, 0, 0, VERIFY, 0, "print one JSON object" },
    { "like", 0, "FILE", IS_READ, 0, 0, SYNTH, 0, "take the configuration of a safetensors file; key=value arguments override it" },
    { "dtype", 0, "TYPE", IS_TEXT, 0, 0, SYNTH | IMPORT, 0, "f32, bf16 or f16 (f32); import: bf16 rounds the weights to it (unchanged)" },
    { "labels", 'k', "K", IS_COUNT, 1, INT32_MAX, CLUSTER, CLUSTER, "number of coarse labels" },
    { "threads", 0, "N", IS_COUNT, 1, MAX_THREADS, COMPUTES, 0, "threads, which never change a result (all of the machine's, if built with OMP=1)" },
    { "negative-ids", 0, "IDS", IS_TEXT, 0, 0, CONDITIONED, 0,
      "the whole prefix of the sequence that guidance subtracts, of any length, for models of ids (by the model's own rule)" },
    { "prompts", 0, "FILE", IS_READ, 0, 0, GENERATE, 0,
      "a list of prompts, one on each line, or a JSON object on each line with prompt, seed and n (- is standard input); line I, from 0, has the seed --seed + "
      "I unless "
      "it has its own, and the picture -o FOLDER/0000I" PICTURE_ENDING " or, with a picture's name, -o NAME-0000I" PICTURE_ENDING },
    { "shard", 0, "I/N", IS_TEXT, 0, 0, GENERATE, 0, "of the list only every N-th prompt from I on, 0/N to N-1/N or 1/N to N/N, to spread it over N machines" },
    { "resume", 0, NULL, IS_SWITCH, 0, 0, GENERATE, 0,
      "go on with images that were interrupted: those whose files are there, frames too, with the same command in their text, are left as they are (PNG or "
      "--codes)" },
    { "force", 0, NULL, IS_SWITCH, 0, 0, IMPORT | CLUSTER, 0, "let the output replace a file that is read" },
    { "grid", 0, "HxW", IS_TEXT, 0, 0, GENERATE | TRACE | VERIFY | SCORE | INFO, 0,
      "rows and columns of codes instead of the model's, for models with rope=1d (the codes of a file that is read decide before it)" },
    { "negative", 0, "TEXT", IS_TEXT, 0, 0, CONDITIONED, 0, "negative prompt, for emu3 models (the published one)" },
    { "text-model", 0, "T5", IS_READ, 0, 0, CONDITIONED, 0, "model file with the text encoder, for llamagen-t2i models that hold none" },
    { "show-ids", 0, NULL, IS_SWITCH, 0, 0, GENERATE, 0, "print the ids that the prompt became, on a line of standard output" },
    { "raw-prompt", 0, NULL, IS_SWITCH, 0, 0, CONDITIONED | TEXT, 0, "take the prompt as it is: no cleaning of captions (LlamaGen), no suffix (Emu3)" },
    { "template", 0, NULL, IS_SWITCH, 0, 0, TEXT, 0, "the ids of the whole prefix, by the template of the model's family" },
    { "to-text", 0, NULL, IS_SWITCH, 0, 0, TEXT, 0, "from ids, divided by blanks or commas, to the bytes that they stand for" },
    { "quiet", 'q', NULL, IS_SWITCH, 0, 0, EVERY, 0, "print no progress and no notes" },
    { "help", 'h', NULL, IS_SWITCH, 0, 0, EVERY, 0, "print help: tsar -h in short, tsar --help with all flags, tsar COMMAND --help for one command" },
};

int tsar_is_setting(const char *operand)
{
    const size_t length = strspn(operand, "abcdefghijklmnopqrstuvwxyz_0123456789");
    return length > 0 && operand[length] == '=';
}

/* Decimal digits only, at most `most`. */
int tsar_parse_count(const char *text, uint64_t most, uint64_t *out)
{
    uint64_t value = 0;
    if (!*text) return 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9') return 0;
        const uint64_t digit = (uint64_t)(*text - '0');
        if (value > (UINT64_MAX - digit) / 10) return 0;
        value = value * 10 + digit;
    }
    *out = value;
    return value <= most;
}

/* A finite decimal number and nothing else. */
static int parse_real(const char *text, double *out) { return tsar_real_read(out, text, NULL) && fabs(*out) < INFINITY; }

/* "--prompt wants ..." for a value that does not fit its flag. */
static tsar_status set_option(arguments *a, int index, const char *text, tsar_error *err)
{
    const option *o = &tsar_options[index];
    option_value *v = &a->at[index];
    const int negative = text && text[0] == '-' && o->kind == IS_INTEGER;
    v->text = text ? text : "";
    switch (o->kind) {
    case IS_COUNT:
        if (tsar_parse_count(v->text, o->most, &v->count) && v->count >= o->least) return TSAR_OK;
        return tsar_fail(err, TSAR_USAGE, "--%s %s: give a whole number from %" PRIu64 " to %" PRIu64, o->name, v->text, o->least, o->most);
    case IS_INTEGER:
        if (tsar_parse_count(v->text + negative, negative ? 1 : INT64_MAX - 1, &v->count)) {
            v->integer = negative ? -(int64_t)v->count : (int64_t)v->count;
            return TSAR_OK;
        }
        return tsar_fail(err, TSAR_USAGE, "--%s %s: give a whole number from -1 on", o->name, v->text);
    case IS_REAL:
        if (parse_real(v->text, &v->real)) return TSAR_OK;
        return tsar_fail(err, TSAR_USAGE, "--%s %s: give a finite decimal number", o->name, v->text);
    case IS_TEXT:
    case IS_READ:
    case IS_WRITTEN:
        if (*v->text || index == O_PROMPT) return TSAR_OK;
        return tsar_fail(err, TSAR_USAGE, "--%s: its value is empty; give %s", o->name, o->value);
    default: return TSAR_OK;
    }
}

/* The flag that argument `text` names, -1 if none; *value is what stands behind '=', or NULL. */
static int find_option(const command *c, const char *text, const char **value)
{
    const int is_long = text[1] == '-';
    const char *name = text + 1 + is_long, *equals = strchr(name, '=');
    const size_t length = equals ? (size_t)(equals - name) : strlen(name);
    *value = equals ? equals + 1 : NULL;
    for (int i = 0; i < OPTIONS; i++) {
        const int fits = is_long ? strlen(tsar_options[i].name) == length && strncmp(tsar_options[i].name, name, length) == 0
                                 : length == 1 && tsar_options[i].letter == name[0];
        if (fits && (tsar_options[i].commands & c->bit)) return i;
    }
    return -1;
}

tsar_status tsar_parse_arguments(arguments *a, const command *c, int argc, char **argv, tsar_error *err)
{
    int only_operands = 0;
    a->operands = argv, a->n = 0;
    for (int i = 0; i < argc; i++) {
        const char *text = argv[i], *value;
        if (only_operands || text[0] != '-' || text[1] == 0) {
            a->operands[a->n++] = argv[i];
            continue;
        }
        if (strcmp(text, "--") == 0) {
            only_operands = 1;
            continue;
        }
        const int index = find_option(c, text, &value);
        if (index < 0) return tsar_fail(err, TSAR_USAGE, "%s: tsar %s has no such flag; tsar %s --help lists those it has", text, c->name, c->name);
        const option *o = &tsar_options[index];
        if (o->kind == IS_SWITCH && value) return tsar_fail(err, TSAR_USAGE, "--%s takes no value", o->name);
        if (o->kind != IS_SWITCH && !value && ++i >= argc) return tsar_fail(err, TSAR_USAGE, "%s: give its value %s", text, o->value);
        tsar_status status = set_option(a, index, o->kind == IS_SWITCH ? NULL : value ? value : argv[i], err);
        if (status != TSAR_OK) return status;
    }
    if (a->at[O_HELP].text) return TSAR_OK;
    for (int i = 0; i < OPTIONS; i++)
        if ((tsar_options[i].required & c->bit) && !a->at[i].text)
            return tsar_fail(err, TSAR_USAGE, "tsar %s needs -%c %s; see tsar %s --help", c->name, tsar_options[i].letter, tsar_options[i].value, c->name);
    if (a->n < c->least) return tsar_fail(err, TSAR_USAGE, "tsar %s needs %s; see tsar %s --help", c->name, c->operands, c->name);
    if (a->n > c->most) return tsar_fail(err, TSAR_USAGE, "%s: tsar %s takes no such argument; see tsar %s --help", a->operands[c->most], c->name, c->name);
    return TSAR_OK;
}

/* A comma-separated list of ids. */
tsar_status tsar_parse_ids(const char *flag, const char *text, int64_t **ids, size_t *n, tsar_error *err)
{
    size_t count = 1;
    for (const char *p = text; *p; p++) count += *p == ',';
    *n = 0;
    *ids = tsar_alloc(count, sizeof **ids, "the prompt", err);
    if (!*ids) return TSAR_ROOM;
    for (const char *p = text; *n < count; (*n)++) {
        char digits[24] = "";
        const size_t length = strcspn(p, ",");
        uint64_t id;
        if (length < sizeof digits) memcpy(digits, p, length);
        if (!tsar_parse_count(digits, INT64_MAX, &id))
            return tsar_fail(err, TSAR_USAGE, "--%s %s: give ids as whole numbers separated by commas, for example 0,7,1", flag, text);
        (*ids)[*n] = (int64_t)id;
        p += length + (p[length] == ',');
    }
    return TSAR_OK;
}

tsar_status tsar_flag_settings(const option_value *at, tsar_settings *settings, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    if (at[O_SEED].text) settings->seed = at[O_SEED].count;
    if (at[O_CFG].text) settings->cfg = at[O_CFG].real;
    if (at[O_INTERVAL].text) settings->cfg_interval = at[O_INTERVAL].integer;
    if (at[O_TEMPERATURE].text) settings->temperature = at[O_TEMPERATURE].real;
    if (at[O_TOP_K].text) settings->top_k = (size_t)at[O_TOP_K].count;
    if (at[O_TOP_P].text) settings->top_p = at[O_TOP_P].real;
    if (at[O_GREEDY].text) settings->greedy = 1;
    if (at[O_SCHEDULE].text) status = tsar_schedule_parse(&settings->schedule, at[O_SCHEDULE].text, err);
    if (status == TSAR_OK && at[O_DECODE].text) status = tsar_order_parse(settings, at[O_DECODE].text, err);
    return status == TSAR_OK ? tsar_settings_check(settings, err) : status;
}
