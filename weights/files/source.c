/* Files that are read at any place, and what files of other kinds are called. */
#include "files.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

uint32_t tsar_get_u16(const uint8_t *bytes) { return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8; }

uint32_t tsar_get_u32(const uint8_t *bytes) { return tsar_get_u16(bytes) | tsar_get_u16(bytes + 2) << 16; }

uint64_t tsar_get_u64(const uint8_t *bytes) { return (uint64_t)tsar_get_u32(bytes) | (uint64_t)tsar_get_u32(bytes + 4) << 32; }

tsar_status tsar_source_open(tsar_source *source, const char *path, tsar_error *err)
{
    memset(source, 0, sizeof *source);
    source->path = path;
    const tsar_status status = tsar_system_open_read(&source->file, path, err);
    if (status != TSAR_OK) return status;
    setvbuf(source->file, NULL, _IONBF, 0); /* callers read into buffers of their own */
    if (!tsar_system_size(source->file, &source->size)) {
        tsar_source_close(source);
        return tsar_fail(err, TSAR_INPUT, "%s: has no size that this system can tell; give a regular file", path);
    }
    return TSAR_OK;
}

void tsar_source_close(tsar_source *source)
{
    if (source->file) fclose(source->file);
    source->file = NULL;
}

tsar_status tsar_source_read(tsar_source *source, uint64_t offset, void *bytes, size_t count, tsar_error *err)
{
    if (offset > source->size || count > source->size - offset)
        return tsar_fail(err, TSAR_INPUT, "%s: ends at byte %" PRIu64 ", inside the %zu bytes wanted at %" PRIu64 "; the file is cut or damaged", source->path,
                         source->size, count, offset);
    if (offset != source->position && !tsar_system_seek(source->file, offset))
        return tsar_fail(err, TSAR_INPUT, "%s: cannot be read at byte %" PRIu64, source->path, offset);
    size_t got = fread(bytes, 1, count, source->file);
    source->position = offset + got;
    if (got != count) return tsar_fail(err, TSAR_INPUT, "%s: cannot be read at byte %" PRIu64, source->path, source->position);
    return TSAR_OK;
}

tsar_status tsar_text_file(const char *path, size_t limit, const char *what, char **text, size_t *bytes, tsar_error *err)
{
    tsar_source source;
    *text = NULL;
    tsar_status status = tsar_source_open(&source, path, err);
    if (status != TSAR_OK) return status;
    if (source.size > limit) status = tsar_fail(err, TSAR_INPUT, "%s: holds %" PRIu64 " bytes, more than %s has", path, source.size, what);
    *bytes = status == TSAR_OK ? (size_t)source.size : 0;
    if (status == TSAR_OK && !(*text = tsar_alloc(*bytes + 1, 1, what, err))) status = TSAR_ROOM;
    if (status == TSAR_OK) status = tsar_source_read(&source, 0, *text, *bytes, err);
    tsar_source_close(&source);
    const char *kind = status == TSAR_OK ? tsar_file_kind((const uint8_t *)*text, *bytes < TSAR_KIND ? *bytes : TSAR_KIND) : NULL;
    if (kind) status = tsar_fail(err, TSAR_INPUT, "%s: %s", path, kind);
    if (status == TSAR_OK) return TSAR_OK;
    tsar_free(*text);
    *text = NULL;
    return status;
}

/* ------------------------------------------------------------------------------------------------------- other people's files */

#define PICKLED "is a plain pickle, which holds no storages; load it in Python, and write its state dict by torch.save"

/* How files begin that are taken for a model by mistake, and what to do. */
static const struct {
    const char *magic;
    size_t bytes;
    const char *kind;
} KINDS[] = {
    { "version https://git-lfs.github.com/spec/", 40, "is a Git LFS pointer, not the file that it stands for; run git lfs pull, or download the file itself" },
    { "PK\3\4", 4, "is a zip archive; if torch.save wrote it, tsar import makes a model file of it" },
    { "\x93NUMPY", 6, "is a NumPy array (.npy); only --caption takes one" },
    { "GGUF", 4, "is a GGUF file; give the checkpoint from which it was made" },
    { "\x89HDF", 4, "is an HDF5 file; give a checkpoint of PyTorch or safetensors" },
    { "\x89PNG", 4, "is a PNG picture; pictures are read as PPM" },
    { "\xff\xd8\xff", 3, "is a JPEG picture; pictures are read as PPM" },
    { "\x1f\x8b", 2, "is compressed with gzip; unpack it first" },
    { "BZh", 3, "is compressed with bzip2; unpack it first" },
    { "\xfd"
      "7zXZ",
      5, "is compressed with xz; unpack it first" },
    { "\x28\xb5\x2f\xfd", 4, "is compressed with zstd; unpack it first" },
    { "7z\xbc\xaf", 4, "is a 7z archive; unpack it first" },
    { "\x80\4\x95", 3, PICKLED },
    { "\x80\5\x95", 3, PICKLED },
    { "\x80\2}q", 4, PICKLED },
    { "\x80\3}q", 4, PICKLED },
    { "Rar!", 4, "is a rar archive; unpack it first" },
};

/* The magic number 0x1950a86a20f9469cfc6c as every legacy file begins with it: LONG1 of 10 bytes and STOP, behind PROTO (2 to 5) and, from
 * protocol 4 on, FRAME of 13 bytes; with protocol 1 as a line of digits. */
static const uint8_t MAGIC[13] = { 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, '.' };
static const uint8_t FRAME[9] = { 0x95, sizeof MAGIC };
static const char MAGIC_LINE[] = "L119547037146038801333356L\n.";

size_t tsar_torch_legacy(const uint8_t *head, size_t n)
{
    size_t at = n > 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5 ? 2 : 0;
    if (at == 0) return n >= sizeof MAGIC_LINE - 1 && memcmp(head, MAGIC_LINE, sizeof MAGIC_LINE - 1) == 0 ? sizeof MAGIC_LINE - 1 : 0;
    if (n - at >= sizeof FRAME && memcmp(head + at, FRAME, sizeof FRAME) == 0) at += sizeof FRAME;
    return n - at >= sizeof MAGIC && memcmp(head + at, MAGIC, sizeof MAGIC) == 0 ? at + sizeof MAGIC : 0;
}

/* Whether text begins with `word`, whatever the case of its letters. */
static int begins(const uint8_t *text, size_t n, const char *word)
{
    for (; *word; word++, text++, n--)
        if (n == 0 || tolower(*text) != *word) return 0;
    return 1;
}

const char *tsar_file_kind(const uint8_t *head, size_t n)
{
    static const char *const html[] = { "<!doctype html", "<html", "<head", "<body", "<?xml", "<!--" };
    if (tsar_torch_legacy(head, n)) return "is a PyTorch checkpoint; tsar import makes a model file of it"; /* which begins as a pickle does */
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (n >= KINDS[i].bytes && memcmp(head, KINDS[i].magic, KINDS[i].bytes) == 0) return KINDS[i].kind;
    if (n >= 3 && memcmp(head, "\xef\xbb\xbf", 3) == 0) head += 3, n -= 3; /* a byte order mark */
    while (n > 0 && (*head == ' ' || (*head >= '\t' && *head <= '\r'))) head++, n--;
    for (size_t i = 0; i < sizeof html / sizeof *html; i++)
        if (begins(head, n, html[i])) return "is an HTML page, not the file: a download that ended at a page of login or error; download the file itself";
    return NULL;
}

tsar_status tsar_read_whole(const char *path, const char *what, char **bytes, size_t *size, tsar_error *err)
{
    FILE *stream = strcmp(path, "-") == 0 ? stdin : NULL;
    size_t room = 0, got = 1;
    *bytes = NULL;
    *size = 0;
    tsar_status status = stream ? TSAR_OK : tsar_system_open_read(&stream, path, err);
    while (status == TSAR_OK && got > 0) {
        if (*size + 1 >= room) { /* one more for the 0 behind them */
            const size_t more = tsar_product(room + 4096, 2);
            char *larger = tsar_alloc(more, 1, what, err);
            if (larger && *size > 0) memcpy(larger, *bytes, *size);
            tsar_free(*bytes);
            *bytes = larger;
            room = more;
            if (!larger) status = TSAR_ROOM;
        }
        got = status == TSAR_OK ? fread(*bytes + *size, 1, room - 1 - *size, stream) : 0;
        *size += got;
    }
    if (status == TSAR_OK && ferror(stream)) status = tsar_fail(err, TSAR_INPUT, "%s: %s cannot be read: %s", path, what, strerror(errno));
    if (stream && stream != stdin) fclose(stream);
    if (status != TSAR_OK) {
        tsar_free(*bytes);
        *bytes = NULL;
    }
    return status;
}
