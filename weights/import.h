/* What the rooms of the importer share: import_names.c says what a tensor is called in a model file, import_settings.c who said which key of the
 * configuration, import_config.c what a config.json says, import_infer.c what shapes tell, import.c puts a model file together. No part of
 * the library's interface: programs see tsar_import of tsar.h. */
#ifndef TSAR_IMPORT_H
#define TSAR_IMPORT_H

#include "files/files.h"

/* ---------------------------------------------------------------------------------------------- names (import_names.c) */

/* What the other names beside it say about a name. */
typedef struct {
    size_t levels;   /* of a tokenizer under taming-transformers' names, whose decoder counts its levels from the other end */
    int t5;          /* its decoder and lm_head are beside the encoder */
    int taming, gen; /* names of taming-transformers; of Janus */
} tsar_naming;

/* What comes of a name, as bits. */
enum {
    TSAR_NAME_KNOWN = 1, /* it belongs to a part of a model */
    TSAR_NAME_LEFT = 2,  /* the model can do without it: another family's module, training state */
    TSAR_NAME_HALVES = 4 /* rows of each head in the order of Hugging Face, which turns halves where tsar turns neighbours */
};

void tsar_import_naming(tsar_naming *naming, const char *name); /* learns from one name of many */
/* The name in a model file, in out [room], which also holds work: room is at least twice the name's length + 64. */
unsigned tsar_import_name(char *out, size_t room, const char *name, const tsar_naming *naming);
/* Whether name is pattern, # being one or more digits. */
int tsar_import_is_called(const char *name, const char *pattern);

/* ------------------------------------------------------------------------------------------------------------ the items */

/* A tensor under its name in a model file; wqkv may be put together from three. */
typedef struct {
    const char *name;
    const tsar_import_tensor *source[3];
    size_t n_sources;
    int halves, used;
    tsar_dtype dtype; /* of the model file, unless it is rounded */
    const char *foreign;
    size_t rank, shape[TSAR_MAX_RANK];
    uint64_t count;
} tsar_item;

/* ----------------------------------------------------------------------------------- who says what (import_settings.c) */

/* In ascending order of rank: an argument outranks a file. */
typedef enum { TSAR_ABSENT, TSAR_ASSUMED, TSAR_CONFIG_JSON, TSAR_INFERRED, TSAR_FROM_FILE, TSAR_ARGUMENT } tsar_origin;
enum { TSAR_IMPORT_VALUE = 96, TSAR_IMPORT_EVIDENCE = 200, TSAR_IMPORT_PROBLEM = 400, TSAR_IMPORT_TEXT = 12 };
typedef struct {
    tsar_origin from;
    char value[TSAR_IMPORT_VALUE], evidence[TSAR_IMPORT_EVIDENCE];
} tsar_setting;

/* One of the files that are read. */
typedef struct {
    tsar_checkpoint checkpoint;
    tsar_naming *naming; /* of its folder */
    size_t left;         /* tensors that a rule leaves out */
    size_t used;         /* tensors that the model takes */
} tsar_import_file;

typedef struct {
    const char *name; /* of the first checkpoint, for errors */
    tsar_note_fn note;
    void *context;
    tsar_error *err;
    tsar_status status;       /* of the inference: the first failure stays */
    tsar_file_list *operands; /* [n_operands] */
    size_t n_operands;
    tsar_import_file *files; /* [n_files] */
    size_t n_files;
    tsar_naming *namings; /* [n_files]; the first file of a folder has it */
    char *names;          /* of the items, one behind another */
    size_t names_used;
    tsar_item *items; /* [count], ascending by name */
    size_t count;
    const tsar_key *keys; /* [n_keys] */
    size_t n_keys;
    tsar_setting *settings;  /* [n_keys] */
    int own_model;           /* the architecture is said by a tsar model file, which lacks nothing that it does not say */
    const char *from;        /* from=KEY, or NULL */
    const char *const *drop; /* [n_drop]: drop=PREFIX */
    size_t n_drop;
    int round_bf16;
    char asked[384]; /* key=value choices that the user must add */
    size_t problems;
    char first_problem[TSAR_IMPORT_PROBLEM];
    uint64_t bytes; /* of all tensors that the model takes */
    tsar_writer *writer;
    tsar_bpe bpe;    /* what lies beside the checkpoints */
    char *spiece;    /* [n_spiece] */
    size_t n_spiece, n_pieces;
    tsar_values text[TSAR_IMPORT_TEXT]; /* [n_text]: both as tensors of the model file */
    size_t n_text;
} tsar_importer;

tsar_item *tsar_import_find(const tsar_importer *im, const char *name);
int tsar_import_has(const tsar_importer *im, const char *prefix);      /* a weight whose name starts so */
size_t tsar_import_first(const tsar_importer *im, const char *prefix); /* the first of those: they stand together */
int tsar_import_drops(const tsar_importer *im, const char *name);      /* drop=PREFIX */
int tsar_import_is_buffer(const tsar_item *item); /* state that a PyTorch module keeps beside its weights, or no number that a weight can be */

tsar_setting *tsar_import_setting(const tsar_importer *im, const char *key);
const char *tsar_import_get(const tsar_importer *im, const char *key); /* NULL if nobody says it */
size_t tsar_import_size(const tsar_importer *im, const char *key);     /* the same as a number; 0 if it is none */
/* What somebody says: `evidence` is who, for a contradiction. */
tsar_status tsar_import_give(tsar_importer *im, const char *key, const char *value, tsar_origin from, const char *evidence);
/* What a shape proves. A different value from anywhere else is a contradiction. */
void tsar_import_infer_text(tsar_importer *im, const char *key, const char *value, const char *evidence);
void tsar_import_infer(tsar_importer *im, const char *key, size_t value, const char *evidence);
/* What shapes cannot tell and `who` fixes. */
void tsar_import_assume(tsar_importer *im, const char *key, const char *value, const char *who);
/* What the user must add. */
void tsar_import_ask(tsar_importer *im, const char *format, ...) TSAR_FORMAT(2, 3);
/* TSAR_USAGE where a wrong value came from the command line, else TSAR_INPUT. */
tsar_status tsar_import_blame(const tsar_importer *im, const char *key);

/* ---------------------------------------------------------------------- config.json (import_config.c), shapes (import_infer.c) */

/* What a config.json says, if its model_type is one of those that are known. */
tsar_status tsar_import_config(tsar_importer *im, const char *path);
/* The configuration, or the status of what is missing. */
tsar_status tsar_import_infer_all(tsar_importer *im);

/* --------------------------------------------------------------------------------- tokenizers of text (import_text.c) */

extern const char *const tsar_import_beside[]; /* files that are read where they lie beside a checkpoint; NULL behind the last */

/* Finds and reads what the model's family has beside its checkpoints, once arch is known. */
tsar_status tsar_import_text(tsar_importer *im);
tsar_status tsar_import_check_text(const tsar_importer *im, const tsar_config *config); /* its ids are those of the model */
void tsar_import_close_text(tsar_importer *im);

#endif
