/* What is read and written (weights/files): the ground that its files and those above share. No part of the library's interface: programs
 * see tsar.h only.
 *
 *     base.c          errors, memory, number formats, UTF-8           zip.c         archives, read in place
 *     system.c        all that is not C99                             pickle.c      the pickle of a PyTorch file
 *     source.c        files read at any place, kinds of files         torch.c       PyTorch files and the state dicts in them
 *     output.c        files that are written whole or not at all      checkpoint.c  a checkpoint of any form, its shards and folders
 *     names.c         which files a command reads and writes          npy.c         NumPy arrays
 *     json.c          the one JSON reader                             picture.c     PPM, PNG, the typeface, order maps
 *     safetensors.c   the container for everything */
#ifndef TSAR_FILES_H
#define TSAR_FILES_H

#include "../../tsar.h"

#include <stdio.h>

/* ----------------------------------------------------------------------------------------------------- text (base.c) */

/* A formatted line for a note function that may be NULL. */
void tsar_note(tsar_note_fn note, void *context, const char *format, ...) TSAR_FORMAT(3, 4);

/* Bytes of the UTF-8 sequence at the start of `bytes` bytes of text; 0 if it is none (overlong forms and surrogates included). */
size_t tsar_utf8_length(const void *text, size_t bytes);

/* A copy to be given back by tsar_free; NULL when memory is out. */
char *tsar_copy_string(const char *string, tsar_error *err);

/* ------------------------------------------------------------------------------------------------ the system (system.c) */

enum { TSAR_PATH_ROOM = 4096, TSAR_NAME_LIMIT = 255 }; /* bytes of a path, its final 0 included; of a name in a folder */

typedef enum {
    TSAR_PATH_NOTHING, TSAR_PATH_FILE, TSAR_PATH_FOLDER, TSAR_PATH_DEVICE, TSAR_PATH_SOCKET,
    TSAR_PATH_UNKNOWN /* it cannot be looked at: errno tells why */
} tsar_path_type;

tsar_path_type tsar_path_kind(const char *path);  /* symbolic links are followed, here and below */
/* Which file a name leads to, or which place in a folder, where there is none yet. 0: neither can be told. */
typedef struct {
    uint64_t device, file, name;
} tsar_path_id;
int tsar_path_identify(tsar_path_id *id, const char *path);
int tsar_path_is_below(const char *path, const char *folder); /* in the folder, or deeper */
int tsar_path_target(char target[TSAR_PATH_ROOM], const char *path); /* where the name's own links lead; 0: too long or too many, errno */
int tsar_path_is_stream(const char *path);        /* written to, never replaced: a device, FIFO, socket or standard output */
int tsar_path_room(const char *path, uint64_t *bytes); /* what the disk of a file has room for; 0: unknown */
int tsar_memory_room(uint64_t *bytes);                 /* memory that can be had without driving others out of it; 0: unknown */

tsar_status tsar_system_status(int error); /* of an errno: TSAR_ROOM if memory, disk or descriptors are used up, else TSAR_INPUT */
/* Opens a file for reading, or says why not: TSAR_ROOM where memory or descriptors are used up, else TSAR_INPUT. */
tsar_status tsar_system_open_read(FILE **stream, const char *path, tsar_error *err);
FILE *tsar_system_fopen(const char *path, const char *mode); /* fopen, of a name in UTF-8 everywhere */
int tsar_system_seek(FILE *stream, uint64_t offset);         /* from the start, beyond 2 GiB too; 0: it cannot */
int tsar_system_size(FILE *stream, uint64_t *size);          /* goes back to the start; 0: it has none */
FILE *tsar_system_scratch(void);                              /* an empty file that goes when it is closed; NULL: there is none */
void tsar_system_remove(const char *path);
FILE *tsar_system_create(const char *path, const char *old); /* a new file, with the mode of `old` if that exists; NULL and errno */
FILE *tsar_system_open_device(const char *path);             /* what tsar_path_is_stream tells, for writing; NULL and errno */
int tsar_system_flush(FILE *stream);                         /* down to the disk; 0 and errno */
int tsar_system_replace(const char *from, const char *to);   /* `from` takes the place of `to`, which need not exist; 0 and errno */
uint64_t tsar_system_seed(void);

/* A file that tsar_output_clean removes if a signal comes; -1 if there are too many of them. */
int tsar_temporary_add(const char *path);
void tsar_temporary_drop(int entry);

/* ----------------------------------------------------------------------------------------------------- JSON (json.c) */

/* A reader of JSON text. Errors read "PATH: byte 12 of WHAT should be '{' (REMEDY)". */
typedef struct {
    unsigned char *start, *at, *end;
    const char *path, *what, *remedy;
    size_t depth; /* containers that are open */
    int first;    /* a container was just entered: no comma yet */
    tsar_error *err;
} tsar_json;

typedef enum {
    TSAR_JSON_NOTHING, /* the end, or what begins no value */
    TSAR_JSON_NULL, TSAR_JSON_BOOL, TSAR_JSON_NUMBER, TSAR_JSON_STRING, TSAR_JSON_LIST, TSAR_JSON_OBJECT
} tsar_json_kind;

/* Reads `bytes` bytes of text, which belong to the caller, are changed by reading (strings are decoded in place) and outlive what was read:
 *
 *     tsar_json_open(&json, text, bytes, path, "the file", "is it a config.json", err);
 *     status = tsar_json_object(&json);
 *     while (status == TSAR_OK) {
 *         status = tsar_json_member(&json, &key, NULL);
 *         if (status != TSAR_OK || !key) break;
 *         status = strcmp(key, "hidden_size") == 0 ? tsar_json_u64(&json, &size) : tsar_json_skip(&json);
 *     }
 *     if (status == TSAR_OK) status = tsar_json_end(&json);
 *
 * Each of the functions below takes one thing from the text and refuses anything else, which leaves the reader unusable. */
void tsar_json_open(tsar_json *json, char *text, size_t bytes, const char *path, const char *what, const char *remedy, tsar_error *err);
tsar_status tsar_json_end(tsar_json *json); /* nothing but white space is left */
tsar_json_kind tsar_json_peek(tsar_json *json); /* what the next value begins like; takes nothing */
/* The error "byte ... should be `expected`", for what the caller expects beyond JSON. */
tsar_status tsar_json_refuse(const tsar_json *json, const char *expected);

/* An object is entered, then each member's key is taken and after it its value by the caller; *key = NULL behind its '}'. Whether a key comes
 * twice is the caller's business. A list is entered, then *more tells whether there is an item, whose value the caller takes. */
tsar_status tsar_json_object(tsar_json *json);
tsar_status tsar_json_member(tsar_json *json, const char **key, size_t *length);
tsar_status tsar_json_list(tsar_json *json);
tsar_status tsar_json_item(tsar_json *json, int *more);

/* A string, decoded to UTF-8 and 0-terminated; \u0000 is refused unless `length` asks for its bytes (else NULL). */
tsar_status tsar_json_string(tsar_json *json, const char **text, size_t *length);
tsar_status tsar_json_number(tsar_json *json, const char **text); /* as it is written, 0-terminated; not where it is all of the text */
tsar_status tsar_json_u64(tsar_json *json, uint64_t *value);      /* a plain integer: neither sign, fraction, exponent nor leading zero */
tsar_status tsar_json_bool(tsar_json *json, int *value);
tsar_status tsar_json_null(tsar_json *json);
tsar_status tsar_json_skip(tsar_json *json); /* any value, however deep, checked like all others */

/* ---------------------------------------------------------------------------------------- bytes of a file (source.c) */

/* A file that is read at any place. `path` belongs to the caller and outlives the source. */
typedef struct {
    const char *path;
    FILE *file;
    uint64_t size, position;
} tsar_source;

tsar_status tsar_source_open(tsar_source *source, const char *path, tsar_error *err);
void tsar_source_close(tsar_source *source);
/* Bytes offset ... offset+count-1; an error if the file does not hold them. */
tsar_status tsar_source_read(tsar_source *source, uint64_t offset, void *bytes, size_t count, tsar_error *err);

/* The whole of a text file of at most `limit` bytes, 0-terminated, the caller's to tsar_free; an error calls it `what`. */
tsar_status tsar_text_file(const char *path, size_t limit, const char *what, char **text, size_t *bytes, tsar_error *err);

/* What a file is that is no model file and begins with these n bytes (TSAR_KIND are enough), and what to do: "is a Git LFS pointer, ...". NULL if
 * that is not known. */
enum { TSAR_KIND = 64 };
const char *tsar_file_kind(const uint8_t *head, size_t n);

/* Bytes with which a file in the legacy form begins, of `n` at `head`; 0 if it is none. */
size_t tsar_torch_legacy(const uint8_t *head, size_t n);

/* Little-endian numbers. */
uint32_t tsar_get_u16(const uint8_t *bytes);
uint32_t tsar_get_u32(const uint8_t *bytes);
uint64_t tsar_get_u64(const uint8_t *bytes);

/* ------------------------------------------------------------------------------------------------- zip archives (zip.c) */

typedef struct {
    const char *name;      /* owned by the archive, a relative path */
    uint64_t header, data; /* where its local header and its first byte are in the file */
    uint64_t size;         /* bytes in the file */
    int packed;            /* it is compressed, as torch.save never does: tsar_zip_check refuses it where it is needed */
} tsar_zip_entry;

typedef struct {
    size_t count;
    tsar_zip_entry *entries; /* [count], ascending by name */
    char *names;
    uint64_t behind; /* bytes of the file that follow the archive */
} tsar_zip;

/* Reads the directory of an archive and proves it consistent: every entry inside the
 * file, overlapping no other, once only, local and central header agreeing, its name a plain relative path. Checksums are not looked at. */
tsar_status tsar_zip_open(tsar_zip *zip, tsar_source *source, tsar_error *err);
void tsar_zip_close(tsar_zip *zip);
tsar_status tsar_zip_check(const tsar_zip_entry *entry, const tsar_source *source, tsar_error *err); /* whether its bytes are the content */
const tsar_zip_entry *tsar_zip_find(const tsar_zip *zip, const char *name); /* NULL if absent; logarithmic */

/* ---------------------------------------------------------------------------------------------------- pickles (pickle.c) */

typedef enum {
    TSAR_P_NONE,
    TSAR_P_INTEGER,
    TSAR_P_TEXT,
    TSAR_P_TUPLE,
    TSAR_P_LIST,
    TSAR_P_DICT,
    TSAR_P_GLOBAL,  /* the name of a class or function; never looked up anywhere but in a table of pickle.c */
    TSAR_P_STORAGE, /* the persistent id of a run of elements */
    TSAR_P_TENSOR,  /* a call of one of torch's rebuild functions: items are storage, first element, shape, strides */
    TSAR_P_INERT,   /* anything without a meaning here: floats, sets, long integers, objects of any class */
    TSAR_P_MARK     /* on the stack only */
} tsar_pickle_kind;

typedef struct tsar_value tsar_value;
struct tsar_value {
    tsar_pickle_kind kind;
    int meaning;          /* GLOBAL: what pickle.c makes of it */
    int visited;          /* DICT, INERT: torch.c has been here */
    tsar_dtype dtype;     /* STORAGE, TENSOR; GLOBAL of a dtype or a storage class */
    size_t size;          /* the same: bytes of an element */
    const char *foreign;  /* the same: what it is if no dtype of a model file, else NULL */
    int64_t integer;      /* INTEGER (booleans are 0 and 1); STORAGE: elements */
    int64_t first, seen;  /* STORAGE: the part that is seen through a view (legacy files), else 0 and `integer` */
    const char *text;     /* TEXT; STORAGE: its key; GLOBAL, INERT: the name of what it is, or NULL; 0-terminated, without control characters */
    tsar_value **items;   /* TUPLE, LIST, TENSOR: [count]; DICT, INERT: keys and values in turn */
    size_t count, room;
    tsar_value *next;     /* STORAGE: the one seen before it; GLOBAL: the stranger told before it */
};

enum { TSAR_STRANGERS = 8 }; /* names without a meaning that are kept for a note */

/* The values of one file's pickles, in slabs of memory that are given back together. */
typedef struct {
    struct tsar_slab *slabs;
    uint64_t used, limit; /* bytes */
    tsar_value *storages; /* every persistent id, the last one first */
    size_t n_storages;
    tsar_value *strangers; /* names of classes and functions that have no meaning here, at most TSAR_STRANGERS of them */
    size_t n_strangers;
} tsar_pickle;

/* Interprets one pickle, which starts at *offset and must stop before `end`; *offset then follows it. Several may be loaded into one. */
tsar_status tsar_pickle_load(tsar_pickle *pickle, tsar_source *source, uint64_t *offset, uint64_t end, tsar_value **root, tsar_error *err);
void tsar_pickle_close(tsar_pickle *pickle);

/* ------------------------------------------------------------------------------- checkpoints (torch.c, checkpoint.c) */

typedef struct tsar_checkpoint tsar_checkpoint;

/* One tensor of a checkpoint, proven to lie inside its storage; or what stands in its place under a name. */
typedef struct {
    const char *name; /* as the file has it; owned by the checkpoint */
    tsar_checkpoint *checkpoint;
    const char *foreign; /* NULL; else what it is: a type that no model file has ("complex64"), an object of a class, "no tensor" */
    tsar_dtype dtype;
    size_t size; /* bytes of an element */
    size_t rank, shape[TSAR_MAX_RANK];
    uint64_t stride[TSAR_MAX_RANK]; /* elements */
    uint64_t count;                 /* elements */
    uint64_t offset;                /* of its first element in the file */
    uint64_t span;                  /* elements from its first to its last one in the file */
    int contiguous;                 /* the file holds exactly its elements, in order */
    const tsar_tensor *entry;       /* safetensors: its entry there */
} tsar_import_tensor;

/* A dictionary with tensors in it. */
typedef struct {
    char *path;       /* where it is: "model", "a.state_dict", "" on top */
    tsar_value *dict;
    size_t n_tensors;
} tsar_state_dict;

/* One file: its tensors are those of one of its state dicts (PyTorch), or all (safetensors). */
struct tsar_checkpoint {
    const char *path;
    tsar_source source; /* PyTorch */
    tsar_zip zip;
    tsar_pickle pickle;
    tsar_value *root;
    struct tsar_storage *storages; /* [n_storages], ascending by key */
    size_t n_storages;
    int swapped; /* the file's byte order is not this machine's */
    tsar_state_dict *states; /* [n_states]: PyTorch */
    size_t n_states;
    tsar_file *file; /* safetensors */
    uint64_t bytes;
    tsar_import_tensor *tensors;
    size_t count;
};

/* A PyTorch file, whose source is open: finds its state dicts. legacy: what tsar_torch_legacy said. */
tsar_status tsar_torch_open(tsar_checkpoint *checkpoint, size_t legacy, tsar_note_fn note, void *context, tsar_error *err);
void tsar_torch_close(tsar_checkpoint *checkpoint);
/* The names of a state dict's tensors one after another, from *at = 0 on; NULL behind the last. */
const char *tsar_torch_name(const tsar_state_dict *state, size_t *at);
/* The tensors of one of its state dicts, under every name that is a text. */
tsar_status tsar_torch_take(tsar_checkpoint *checkpoint, size_t state, tsar_error *err);
/* What the file holds instead of a state dict, for an error: up to five keys of its top, or what its top is. */
void tsar_torch_describe(const tsar_checkpoint *checkpoint, char *text, size_t room);

/* A file of any form by its first bytes. `path` must outlive the checkpoint. On failure there is nothing to close. */
tsar_status tsar_checkpoint_open(tsar_checkpoint *checkpoint, const char *path, tsar_note_fn note, void *context, tsar_error *err);
void tsar_checkpoint_close(tsar_checkpoint *checkpoint);

/* Reads a tensor from front to back, or at any place, in its dtype and native byte order. */
typedef struct {
    const tsar_import_tensor *tensor;
    uint8_t *span; /* of a tensor that is not contiguous: all of it, in order */
} tsar_tensor_reader;
tsar_status tsar_tensor_open(tsar_tensor_reader *reader, const tsar_import_tensor *tensor, tsar_error *err);
tsar_status tsar_tensor_read(tsar_tensor_reader *reader, uint64_t first, size_t count, void *out, tsar_error *err);
void tsar_tensor_close(tsar_tensor_reader *reader);

/* The files of which an operand consists: itself, the shards of an index (.json), or what a folder holds. */
typedef struct {
    char **paths; /* [n]; owned */
    size_t n;
    char *config; /* the path of the config.json beside them, or NULL; owned */
} tsar_file_list;
tsar_status tsar_file_list_open(tsar_file_list *list, const char *path, tsar_error *err);
void tsar_file_list_close(tsar_file_list *list);

#endif
