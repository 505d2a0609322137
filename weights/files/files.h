/* What the parts of the importer share: zip.c reads archives, pickle.c PyTorch files, import.c safetensors; import.c
 * finds out which model their tensors are and writes it. No part of the library's
 * interface: other code sees tsar_import and tsar_caption_read of tsar.h only. */
#ifndef TSAR_IMPORT_H
#define TSAR_IMPORT_H

#include "../../tsar.h"

#include <stdio.h>

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
