/* What is read and written (weights/files): the ground that its files and those above share. No part of the library's interface: programs
 * see tsar.h only.
 *
 *     base.c          errors, memory, number formats, UTF-8        safetensors.c   the container for everything
 *     system.c        all that is not C99                          zip.c           archives, read in place
 *     output.c        files that are written whole or not at all   pickle.c        PyTorch checkpoints
 *     json.c          the one JSON reader                          npy.c           NumPy arrays
 *                                                                  picture.c       PPM, PNG, the typeface, order maps */
#ifndef TSAR_FILES_H
#define TSAR_FILES_H

#include "../../tsar.h"

#include <stdio.h>

/* ----------------------------------------------------------------------------------------------------- text (base.c) */

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
size_t tsar_path_folder(const char *path);        /* bytes of the folder's part of it, the last '/' included */
int tsar_path_target(char target[TSAR_PATH_ROOM], const char *path); /* where the name's own links lead; 0: too long or too many, errno */
int tsar_path_is_stream(const char *path);        /* written to, never replaced: a device, FIFO, socket or standard output */
int tsar_path_room(const char *path, uint64_t *bytes); /* what the disk of a file has room for; 0: unknown */

tsar_status tsar_system_status(int error); /* of an errno: TSAR_ROOM if memory, disk or descriptors are used up, else TSAR_INPUT */
/* Opens a file for reading, or says why not: TSAR_ROOM where memory or descriptors are used up, else TSAR_INPUT. */
tsar_status tsar_system_open_read(FILE **stream, const char *path, tsar_error *err);
FILE *tsar_system_create(const char *path, const char *old); /* a new file, with the mode of `old` if that exists; NULL and errno */
FILE *tsar_system_open_device(const char *path);             /* what tsar_path_is_stream tells, for writing; NULL and errno */
int tsar_system_flush(FILE *stream);                         /* down to the disk; 0 and errno */
int tsar_system_replace(const char *from, const char *to);   /* `from` takes the place of `to`, which need not exist; 0 and errno */
uint64_t tsar_system_seed(void);

/* A file that tsar_output_clean removes if a signal comes; -1 if there are too many of them. */
int tsar_temporary_add(const char *path);
void tsar_temporary_drop(int slot);

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

/* ------------------------------------------------------------------------------------------- bytes of a file (zip.c) */

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

/* Little-endian numbers. */
uint32_t tsar_get_u16(const uint8_t *bytes);
uint32_t tsar_get_u32(const uint8_t *bytes);
uint64_t tsar_get_u64(const uint8_t *bytes);

/* ------------------------------------------------------------------------------------------------- zip archives (zip.c) */

typedef struct {
    const char *name;      /* owned by the archive, a relative path */
    uint64_t header, data; /* where its local header and its first byte are in the file */
    uint64_t size;         /* bytes, stored as they are */
} tsar_zip_entry;

typedef struct {
    size_t count;
    tsar_zip_entry *entries; /* [count], ascending by name */
    char *names;
} tsar_zip;

/* Reads the directory of an archive and proves it consistent: every entry stored (neither compressed nor encrypted), inside the
 * file, overlapping no other, once only, local and central header agreeing, its name a plain relative path. Checksums are not looked at. */
tsar_status tsar_zip_open(tsar_zip *zip, tsar_source *source, tsar_error *err);
void tsar_zip_close(tsar_zip *zip);
const tsar_zip_entry *tsar_zip_find(const tsar_zip *zip, const char *name); /* NULL if absent; logarithmic */

/* ---------------------------------------------------------------------------------------------------- pickles (pickle.c) */

typedef struct tsar_value tsar_value;

/* The values of one file's pickles, in blocks that are given back together. */
typedef struct {
    struct tsar_block *blocks;
    uint64_t used, limit; /* bytes */
    tsar_value *storages; /* every persistent id, the last one first */
    size_t n_storages;
} tsar_pickle;

void tsar_pickle_close(tsar_pickle *pickle);

/* ----------------------------------------------------------------------------------------------- checkpoints (pickle.c and import.c) */

typedef struct tsar_checkpoint tsar_checkpoint;

/* One tensor of a checkpoint, proven to lie inside its storage. */
typedef struct {
    const char *name; /* as the file has it; owned by the checkpoint */
    tsar_checkpoint *checkpoint;
    tsar_dtype dtype;
    size_t rank, shape[TSAR_MAX_RANK];
    uint64_t stride[TSAR_MAX_RANK]; /* elements */
    uint64_t count;                 /* elements */
    uint64_t offset;                /* of its first element in the file */
    uint64_t span;                  /* elements from its first to its last one in the file */
    int contiguous;                 /* the file holds exactly its elements, in order */
    tsar_file *file;                /* safetensors: its shard and its entry there */
    const tsar_tensor *entry;
} tsar_import_tensor;

struct tsar_checkpoint {
    const char *path;
    tsar_source source; /* PyTorch */
    tsar_zip zip;
    tsar_pickle pickle;
    int swapped;        /* the file's byte order is not this machine's */
    tsar_file **shards; /* [n_shards] safetensors files */
    char **shard_names; /* as the index calls them; NULL for a single file */
    size_t n_shards;
    uint64_t bytes; /* of all its files */
    tsar_import_tensor *tensors;
    size_t count;
};

/* Whether a file that begins with these 16 bytes is in the legacy form. */
int tsar_torch_is_legacy(const uint8_t *head);

/* A PyTorch file, whose source is open: its state dict's tensors. The caller closes the checkpoint, whatever the status. */
tsar_status tsar_torch_open(tsar_checkpoint *checkpoint, int legacy, tsar_note_fn note, void *context, tsar_error *err);

/* A formatted line for a note function that may be NULL. */
void tsar_note(tsar_note_fn note, void *context, const char *format, ...) TSAR_FORMAT(3, 4);

#endif
