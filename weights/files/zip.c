/* Zip archives as torch.save writes them since version 1.6 (APPNOTE.TXT, the zip specification, sections 4.3 to 4.5): all entries
 * stored, local headers without sizes, everything that counts in the central directory at the end; zip64 for files over 4 GB. */
#include "files.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------ the directory */

enum {
    END_SIZE = 22,
    END64_SIZE = 56,
    LOCATOR_SIZE = 20,
    CENTRAL_SIZE = 46,
    LOCAL_SIZE = 30,
    MAX_BEHIND = 1 << 20, /* an end record is looked for in so many bytes at the end: a comment of 65535, and what pads a file */
    MAX_DIRECTORY = 1 << 26,
    ENCRYPTED = 1,
    SIZES_FOLLOW = 8 /* bits of the flags */
};

typedef struct {
    uint64_t count, offset, size, end, behind;
} directory; /* end: where what follows it begins; behind: bytes behind the archive */

static tsar_status damaged(const tsar_source *source, tsar_error *err, const char *what)
{
    return tsar_fail(err, TSAR_INPUT, "%s: damaged zip archive: %s", source->path, what);
}

/* APPNOTE 4.3.14 and 4.3.15: the zip64 end record, if a locator stands in front of the end record at `end`. */
static tsar_status find_directory64(tsar_source *source, uint64_t end, directory *out, tsar_error *err)
{
    uint8_t locator[LOCATOR_SIZE], record[END64_SIZE];
    if (end < LOCATOR_SIZE) return TSAR_OK;
    tsar_status status = tsar_source_read(source, end - LOCATOR_SIZE, locator, sizeof locator, err);
    if (status != TSAR_OK || memcmp(locator, "PK\6\7", 4) != 0) return status;
    uint64_t at = tsar_get_u64(locator + 8);
    if (tsar_get_u32(locator + 4) != 0 || tsar_get_u32(locator + 16) > 1) return damaged(source, err, "it is one part of several");
    if (at > end - LOCATOR_SIZE || end - LOCATOR_SIZE - at < END64_SIZE) return damaged(source, err, "the zip64 end record lies outside the file");
    status = tsar_source_read(source, at, record, sizeof record, err);
    if (status != TSAR_OK) return status;
    if (memcmp(record, "PK\6\6", 4) != 0) return damaged(source, err, "the zip64 end record is not where its locator says");
    if (tsar_get_u32(record + 16) != 0 || tsar_get_u32(record + 20) != 0 || tsar_get_u64(record + 24) != tsar_get_u64(record + 32))
        return damaged(source, err, "it is one part of several");
    out->count = tsar_get_u64(record + 32);
    out->size = tsar_get_u64(record + 40);
    out->offset = tsar_get_u64(record + 48);
    out->end = at;
    return TSAR_OK;
}

/* APPNOTE 4.3.16: the end record is the last thing in the file but for a comment, whose length it tells; what pads the file follows. The last
 * one whose directory ends where it, or its zip64 record, begins. `at`: where in tail, the last `count` bytes of the file. */
static tsar_status read_end(tsar_source *source, const uint8_t *tail, size_t count, size_t at, directory *out, tsar_error *err)
{
    if (tsar_get_u32(tail + at + 4) != 0 || tsar_get_u16(tail + at + 8) != tsar_get_u16(tail + at + 10))
        return damaged(source, err, "it is one part of several");
    const size_t comment = tsar_get_u16(tail + at + 20), left = count - END_SIZE - at;
    out->end = source->size - count + at;
    out->behind = comment <= left ? left - comment : 0;
    out->count = tsar_get_u16(tail + at + 10);
    out->size = tsar_get_u32(tail + at + 12);
    out->offset = tsar_get_u32(tail + at + 16);
    tsar_status status = find_directory64(source, out->end, out, err);
    if (status == TSAR_OK && (out->offset > out->end || out->size != out->end - out->offset))
        return damaged(source, err, "the directory does not reach from its start to the end record");
    if (status == TSAR_OK && (out->size > MAX_DIRECTORY || out->count > out->size / CENTRAL_SIZE))
        return damaged(source, err, "the directory is too large or too small for its entries");
    return status;
}

static tsar_status find_directory(tsar_source *source, directory *out, tsar_error *err)
{
    size_t count = source->size < MAX_BEHIND ? (size_t)source->size : MAX_BEHIND, at;
    if (count < END_SIZE) return damaged(source, err, "it is too short to hold an end record; the file is cut");
    uint8_t *tail = tsar_alloc(count, 1, "the end of a zip archive", err);
    if (!tail) return TSAR_ROOM;
    tsar_status status = tsar_source_read(source, source->size - count, tail, count, err);
    if (status == TSAR_OK) {
        for (at = count - END_SIZE; at > 0 && memcmp(tail + at, "PK\5\6", 4) != 0; at--) continue;
        status = memcmp(tail + at, "PK\5\6", 4) == 0 ? read_end(source, tail, count, at, out, err)
                                                     : damaged(source, err, "no end record in its last megabyte; the file is cut");
    }
    tsar_free(tail);
    return status;
}

/* Names are never used as paths, but one that could be misused as a path is a sign of a hostile file. A folder's name ends in '/'. */
static int plain_name(const char *name, size_t length)
{
    if (length == 0 || name[0] == '/' || memchr(name, '\\', length)) return 0;
    if (length > 1 && name[1] == ':') return 0; /* a drive; other colons stand in times of day */
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)name[i] < 32) return 0;
    for (size_t start = 0, i = 0; i <= length; i++)
        if (i == length || name[i] == '/') {
            size_t part = i - start;
            if ((part == 0 && i < length) || (part == 1 && name[start] == '.') || (part == 2 && name[start] == '.' && name[start + 1] == '.')) return 0;
            start = i + 1;
        }
    return 1;
}

/* APPNOTE 4.5.3: the 64-bit values of the fields that are all ones in a central header: size, stored size, header offset, in this order. */
static int central_sizes64(const uint8_t *extra, size_t length, uint64_t *size, uint64_t *stored, uint64_t *header)
{
    uint64_t *fields[3] = { size, stored, header };
    while (length >= 4) {
        size_t id = tsar_get_u16(extra), room = tsar_get_u16(extra + 2);
        if (room > length - 4) return 0;
        if (id == 1) {
            size_t at = 4;
            for (int i = 0; i < 3; i++)
                if (*fields[i] == 0xFFFFFFFF) {
                    if (at + 8 > room + 4) return 0;
                    *fields[i] = tsar_get_u64(extra + at);
                    at += 8;
                }
        }
        extra += 4 + room;
        length -= 4 + room;
    }
    return 1;
}

/* The local header in front of the data (APPNOTE 4.3.7) must tell the same as the directory; with SIZES_FOLLOW it tells no sizes. */
static tsar_status check_local(tsar_source *source, tsar_zip_entry *entry, uint64_t limit, tsar_error *err)
{
    uint8_t local[LOCAL_SIZE];
    char name[1024];
    size_t length = strlen(entry->name);
    if (length >= sizeof name) return damaged(source, err, "an entry's name is longer than 1023 bytes");
    if (entry->header > limit || limit - entry->header < LOCAL_SIZE + length)
        return tsar_fail(err, TSAR_INPUT, "%s: damaged zip archive: entry %s lies outside the file", source->path, entry->name);
    tsar_status status = tsar_source_read(source, entry->header, local, sizeof local, err);
    if (status == TSAR_OK) status = tsar_source_read(source, entry->header + LOCAL_SIZE, name, length, err);
    if (status != TSAR_OK) return status;
    uint32_t flags = tsar_get_u16(local + 6), stored = tsar_get_u32(local + 18), size = tsar_get_u32(local + 22);
    if (memcmp(local, "PK\3\4", 4) != 0 || tsar_get_u16(local + 26) != length || memcmp(name, entry->name, length) != 0 || (flags & ENCRYPTED) ||
        (tsar_get_u16(local + 8) != 0 && !entry->packed))
        return tsar_fail(err, TSAR_INPUT, "%s: damaged zip archive: entry %s has another header than the directory says", source->path, entry->name);
    int silent = (flags & SIZES_FOLLOW) && stored == 0 && size == 0, in_extra = stored == 0xFFFFFFFF && size == 0xFFFFFFFF;
    if (!silent && !in_extra && !entry->packed && (stored != entry->size || size != entry->size))
        return tsar_fail(err, TSAR_INPUT, "%s: damaged zip archive: entry %s has two different sizes", source->path, entry->name);
    entry->data = entry->header + LOCAL_SIZE + length + tsar_get_u16(local + 28);
    if (entry->data > limit || entry->size > limit - entry->data)
        return tsar_fail(err, TSAR_INPUT, "%s: damaged zip archive: entry %s lies outside the file", source->path, entry->name);
    return TSAR_OK;
}

/* One central header (APPNOTE 4.3.12) at `bytes`, of which `left` are there; *used is its length. */
static tsar_status read_central(tsar_source *source, const uint8_t *bytes, size_t left, tsar_zip_entry *entry, char *name, size_t *used, tsar_error *err)
{
    if (left < CENTRAL_SIZE || memcmp(bytes, "PK\1\2", 4) != 0) return damaged(source, err, "the directory ends before its last entry");
    size_t length = tsar_get_u16(bytes + 28), extra = tsar_get_u16(bytes + 30), comment = tsar_get_u16(bytes + 32);
    *used = CENTRAL_SIZE + length + extra + comment;
    if (*used > left) return damaged(source, err, "the directory ends inside an entry");
    if (!plain_name((const char *)bytes + CENTRAL_SIZE, length)) return damaged(source, err, "an entry's name is no plain relative path");
    memcpy(name, bytes + CENTRAL_SIZE, length);
    name[length] = '\0';
    uint64_t stored = tsar_get_u32(bytes + 20);
    entry->name = name;
    entry->size = tsar_get_u32(bytes + 24);
    entry->header = tsar_get_u32(bytes + 42);
    if (!central_sizes64(bytes + CENTRAL_SIZE + length, extra, &entry->size, &stored, &entry->header))
        return tsar_fail(err, TSAR_INPUT, "%s: damaged zip archive: entry %s has a damaged zip64 field", source->path, name);
    if (tsar_get_u16(bytes + 8) & ENCRYPTED) return tsar_fail(err, TSAR_INPUT, "%s: entry %s is encrypted; torch.save never writes that", source->path, name);
    entry->packed = tsar_get_u16(bytes + 10) != 0;
    if (entry->packed) entry->size = stored;
    if (stored != entry->size) return tsar_fail(err, TSAR_INPUT, "%s: damaged zip archive: entry %s has two different sizes", source->path, name);
    if (tsar_get_u16(bytes + 34) != 0) return damaged(source, err, "it is one part of several");
    return TSAR_OK;
}

static int by_name(const void *a, const void *b) { return strcmp(((const tsar_zip_entry *)a)->name, ((const tsar_zip_entry *)b)->name); }

static int by_header(const void *a, const void *b)
{
    uint64_t x = ((const tsar_zip_entry *)a)->header, y = ((const tsar_zip_entry *)b)->header;
    return x < y ? -1 : x > y;
}

static tsar_status read_directory(tsar_zip *zip, tsar_source *source, const directory *where, const uint8_t *bytes, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    size_t at = 0, used = 0, written = 0;
    for (size_t i = 0; i < (size_t)where->count; i++) {
        tsar_zip_entry *entry = &zip->entries[i];
        status = read_central(source, bytes + at, (size_t)where->size - at, entry, zip->names + written, &used, err);
        if (status == TSAR_OK) status = check_local(source, entry, where->offset, err);
        if (status != TSAR_OK) return status;
        at += used;
        written += strlen(entry->name) + 1; /* a header is longer than the 0, so the names fit */
    }
    if (at != where->size) return damaged(source, err, "the directory is longer than its entries");
    zip->count = (size_t)where->count;
    qsort(zip->entries, zip->count, sizeof *zip->entries, by_header);
    for (size_t i = 1; i < zip->count; i++)
        if (zip->entries[i].header < zip->entries[i - 1].data + zip->entries[i - 1].size)
            return tsar_fail(err, TSAR_INPUT, "%s: damaged zip archive: entries %s and %s overlap", source->path, zip->entries[i - 1].name,
                             zip->entries[i].name);
    qsort(zip->entries, zip->count, sizeof *zip->entries, by_name);
    for (size_t i = 1; i < zip->count; i++)
        if (strcmp(zip->entries[i].name, zip->entries[i - 1].name) == 0)
            return tsar_fail(err, TSAR_INPUT, "%s: damaged zip archive: two entries are called %s", source->path, zip->entries[i].name);
    return TSAR_OK;
}

tsar_status tsar_zip_open(tsar_zip *zip, tsar_source *source, tsar_error *err)
{
    directory where = { 0 };
    memset(zip, 0, sizeof *zip);
    tsar_status status = find_directory(source, &where, err);
    if (status != TSAR_OK) return status;
    uint8_t *bytes = tsar_alloc((size_t)where.size, 1, "a zip directory", err);
    zip->names = tsar_alloc((size_t)where.size, 1, "a zip directory", err);
    zip->entries = tsar_alloc((size_t)where.count, sizeof *zip->entries, "a zip directory", err);
    if (!bytes || !zip->names || !zip->entries) status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_source_read(source, where.offset, bytes, (size_t)where.size, err);
    if (status == TSAR_OK) status = read_directory(zip, source, &where, bytes, err);
    zip->behind = where.behind;
    tsar_free(bytes);
    if (status != TSAR_OK) tsar_zip_close(zip);
    return status;
}

void tsar_zip_close(tsar_zip *zip)
{
    tsar_free(zip->names);
    tsar_free(zip->entries);
    memset(zip, 0, sizeof *zip);
}

tsar_status tsar_zip_check(const tsar_zip_entry *entry, const tsar_source *source, tsar_error *err)
{
    if (!entry->packed) return TSAR_OK;
    return tsar_fail(err, TSAR_INPUT, "%s: entry %s is compressed; repack the archive with its entries stored, as torch.save writes them", source->path,
                     entry->name);
}

const tsar_zip_entry *tsar_zip_find(const tsar_zip *zip, const char *name)
{
    tsar_zip_entry wanted = { 0 };
    wanted.name = name;
    return zip->count ? bsearch(&wanted, zip->entries, zip->count, sizeof wanted, by_name) : NULL;
}
