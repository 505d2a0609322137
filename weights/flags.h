/* The flags of the command line (SPEC 9) as a table, from which the parser, the short and long help and the manual page are made, so that no flag
 * can be missing anywhere. No part of the library's interface: main.c reads it, and the page. */
#ifndef TSAR_FLAGS_H
#define TSAR_FLAGS_H

#include "../tsar.h"

#ifdef TSAR_NO_PNG
#define PICTURE_ENDING ".ppm"
#else
#define PICTURE_ENDING ".png"
#endif
#define SHIPPED_MODEL "tsar-s2.safetensors" /* what is used without -m */
#define MAX_THREADS 1024

enum {
    GENERATE = 1, ENCODE = 2, DECODE = 4, TRACE = 8, VERIFY = 16, IMPORT = 32, SYNTH = 64,
    INFO = 128, BENCH = 256, CLUSTER = 512, SCORE = 1024, TEXT = 2048, EVERY = 4095
};

/* clang-format off */
enum { O_MODEL, O_OUTPUT, O_PROMPT, O_PROMPT_IDS, O_CLASS, O_CAPTION, O_IMAGES, O_SEED, O_CFG, O_SCHEDULE, O_INTERVAL, O_TEMPERATURE, O_TOP_K,
       O_TOP_P, O_GREEDY, O_DECODE, O_CODES, O_FRAMES, O_ORDER_MAP, O_SHOW, O_INPUTS, O_IMAGE, O_INSIDE, O_ONLY, O_RTOL, O_PRECISION, O_STRICT, O_OTHER, O_JSON,
       O_LIKE, O_DTYPE, O_LABELS, O_THREADS, O_NEGATIVE_IDS, O_PROMPTS, O_SHARD, O_RESUME, O_FORCE, O_GRID, O_NEGATIVE, O_TEXT_MODEL, O_SHOW_IDS,
       O_RAW_PROMPT, O_TEMPLATE, O_TO_TEXT, O_QUIET, O_HELP, OPTIONS };
/* clang-format on */

typedef enum { IS_SWITCH, IS_TEXT, IS_COUNT, IS_INTEGER, IS_REAL, IS_READ, IS_WRITTEN } option_kind; /* READ, WRITTEN: the name of a file that is */

typedef struct {
    const char *name;
    char letter;
    const char *value; /* its name in the help */
    option_kind kind;
    uint64_t least, most;        /* of an IS_COUNT */
    unsigned commands, required; /* masks: which take it, which need it */
    const char *help;
} option;

typedef struct {
    const char *text;
    uint64_t count;
    int64_t integer;
    double real;
} option_value; /* text NULL: not given */

typedef struct {
    const char *program; /* argv[0] */
    unsigned command;    /* its bit */
    option_value at[OPTIONS];
    char **operands;
    size_t n;
    tsar_model *model, *text_model; /* that commands of a list share; NULL: each opens its own */
    size_t index, listed; /* of the list: which command this is, how many there are */
} arguments;

typedef struct {
    unsigned bit;
    const char *name, *operands;
    size_t least, most; /* operands */
    tsar_status (*run)(const arguments *a, tsar_error *err);
    const char *help;
} command;

extern const option tsar_options[OPTIONS];

/* Decimal digits only, at most `most`; returns 0 for anything else. */
int tsar_parse_count(const char *text, uint64_t most, uint64_t *out);
/* The arguments behind a command: flags into a->at, the rest into a->operands. TSAR_USAGE for what does not fit. */
tsar_status tsar_parse_arguments(arguments *a, const command *c, int argc, char **argv, tsar_error *err);
/* Whether an operand is KEY=VALUE: what stands in front of '=' looks like a key of SPEC 2. */
int tsar_is_setting(const char *operand);
/* The flags of the sampler over what stands in *s. */
tsar_status tsar_flag_settings(const option_value *at, tsar_settings *settings, tsar_error *err);
/* A comma-separated list of ids: *ids [*n] is the caller's to tsar_free. */
tsar_status tsar_parse_ids(const char *flag, const char *text, int64_t **ids, size_t *n, tsar_error *err);

#endif
