/* Which files a command reads and writes, so that none is both and none is written twice. Names are compared by the files that they lead to: through
 * links, other names of one file, and folders; one that is not there yet is its place in its folder. */
#include "files.h"

#include <string.h>

typedef struct {
    tsar_path_id id;
    size_t name; /* of it in text, from 1; 0: the bucket is empty */
    int written;
} bucket;

struct tsar_names {
    bucket *buckets; /* [mask + 1], open addressing, at most half of them taken */
    size_t n, mask;
    char *text; /* all names, each with its 0 */
    size_t used, room;
    size_t *folders; /* those that are read: offsets in text */
    size_t n_folders, room_folders;
};

tsar_status tsar_names_open(tsar_names **names, tsar_error *err)
{
    enum { FIRST_BUCKETS = 64 };
    tsar_names *opened = *names = tsar_alloc(1, sizeof *opened, "the names of files", err);
    if (opened == NULL) return TSAR_ROOM;
    opened->mask = FIRST_BUCKETS - 1;
    opened->buckets = tsar_alloc(FIRST_BUCKETS, sizeof *opened->buckets, "the names of files", err);
    if (opened->buckets != NULL) return TSAR_OK;
    tsar_names_close(opened);
    *names = NULL;
    return TSAR_ROOM;
}

void tsar_names_close(tsar_names *names)
{
    if (names == NULL) return;
    tsar_free(names->buckets);
    tsar_free(names->text);
    tsar_free(names->folders);
    tsar_free(names);
}

/* The bucket of a file, or the empty one that it would take. */
static bucket *find(const tsar_names *names, const tsar_path_id *id)
{
    size_t at = (size_t)((id->file * 31 + id->device + id->name) * UINT64_C(0x9E3779B97F4A7C15) >> 32); /* Knuth's multiplicative hashing */
    while (names->buckets[at & names->mask].name != 0 && memcmp(&names->buckets[at & names->mask].id, id, sizeof *id) != 0) at++;
    return &names->buckets[at & names->mask];
}

/* Room for one more of `n` elements of `size` bytes; *room grows. */
static tsar_status reserve(void **memory, size_t *room, size_t n, size_t size, tsar_error *err)
{
    if (n <= *room) return TSAR_OK;
    const size_t more = tsar_product(n, 2);
    void *larger = tsar_alloc(more, size, "the names of files", err);
    if (larger == NULL) return TSAR_ROOM;
    if (*room > 0) memcpy(larger, *memory, *room * size);
    tsar_free(*memory);
    *memory = larger;
    *room = more;
    return TSAR_OK;
}

static tsar_status keep_text(tsar_names *names, const char *path, tsar_error *err)
{
    const size_t length = strlen(path) + 1;
    void *text = names->text;
    const tsar_status status = reserve(&text, &names->room, names->used + length, 1, err);
    names->text = text;
    if (status != TSAR_OK) return status;
    memcpy(names->text + names->used, path, length);
    names->used += length;
    return TSAR_OK;
}

static tsar_status grow(tsar_names *names, tsar_error *err)
{
    bucket *old = names->buckets;
    const size_t buckets = names->mask + 1;
    if (2 * (names->n + 1) <= buckets) return TSAR_OK;
    names->buckets = tsar_alloc(tsar_product(buckets, 2), sizeof *old, "the names of files", err);
    if (names->buckets == NULL) {
        names->buckets = old;
        return TSAR_ROOM;
    }
    names->mask = 2 * buckets - 1;
    for (size_t i = 0; i < buckets; i++)
        if (old[i].name != 0) *find(names, &old[i].id) = old[i];
    tsar_free(old);
    return TSAR_OK;
}

static tsar_status add(tsar_names *names, const char *path, const tsar_path_id *id, int written, tsar_error *err)
{
    tsar_status status = grow(names, err);
    const size_t name = names->used + 1;
    bucket *s = find(names, id);
    if (status != TSAR_OK || s->name != 0) return status;
    status = keep_text(names, path, err);
    if (status != TSAR_OK) return status;
    s->id = *id, s->name = name, s->written = written;
    names->n++;
    return TSAR_OK;
}

tsar_status tsar_names_read(void *context, const char *path, tsar_error *err)
{
    tsar_names *names = context;
    tsar_path_id id;
    if (tsar_path_is_stream(path) || !tsar_path_identify(&id, path)) return TSAR_OK;
    if (tsar_path_kind(path) != TSAR_PATH_FOLDER) return add(names, path, &id, 0, err);
    void *folders = names->folders;
    tsar_status status = reserve(&folders, &names->room_folders, names->n_folders + 1, sizeof *names->folders, err);
    names->folders = folders;
    if (status == TSAR_OK) names->folders[names->n_folders++] = names->used;
    return status == TSAR_OK ? keep_text(names, path, err) : status;
}

tsar_status tsar_names_may_write(const tsar_names *names, const char *path, tsar_error *err)
{
    tsar_path_id id;
    if (tsar_path_is_stream(path) || !tsar_path_identify(&id, path)) return TSAR_OK; /* opening it tells why */
    const bucket *s = find(names, &id);
    const char *other = s->name != 0 ? names->text + s->name - 1 : NULL;
    if (other && s->written) return tsar_fail(err, TSAR_USAGE, "%s would be written twice, also as %s: give the outputs different names", path, other);
    if (other) return tsar_fail(err, TSAR_USAGE, "%s would be overwritten, but is read as %s: give the output another name", path, other);
    for (size_t i = 0; i < names->n_folders && tsar_path_kind(path) == TSAR_PATH_FILE; i++)
        if (tsar_path_is_below(path, names->text + names->folders[i]))
            return tsar_fail(err, TSAR_USAGE, "%s would be overwritten, but belongs to the folder %s, which is read: give the output another name", path,
                             names->text + names->folders[i]);
    return TSAR_OK;
}

tsar_status tsar_names_write(tsar_names *names, const char *path, tsar_error *err)
{
    tsar_path_id id;
    const tsar_status status = tsar_names_may_write(names, path, err);
    if (status != TSAR_OK || tsar_path_is_stream(path) || !tsar_path_identify(&id, path)) return status;
    return add(names, path, &id, 1, err);
}
