/* Pictures: binary PPM in, PNG and PPM out. A PNG is made by stb_image_write in memory; the text chunks are put in
 * behind its header, and the whole goes through tsar_output_*, so that a failure leaves an old file as it was. */
#include "files.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------------ reading */

#define FIRST_READ ((size_t)1 << 20) /* bytes of pixels that are believed before any has been seen */

/* The next byte of a header outside comments, which run from '#' to the end of their line; EOF at the end. */
static int header_byte(FILE *stream)
{
    int c = fgetc(stream);
    if (c == '#') do
            c = fgetc(stream);
        while (c != '\n' && c != '\r' && c != EOF);
    return c;
}

static int is_space(int c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f'; }

/* A decimal number below 2^31 after optional space; it must be followed by one space, which is taken. 0: it is not one. */
static size_t header_number(FILE *stream)
{
    uint32_t value = 0;
    int digits = 0, c = header_byte(stream);
    while (is_space(c)) c = header_byte(stream);
    for (; c >= '0' && c <= '9'; c = header_byte(stream), digits++) {
        if (value > 0x7FFFFFFFu / 10 - 1) return 0;
        value = value * 10 + (uint32_t)(c - '0');
    }
    return digits && is_space(c) ? value : 0;
}

/* Exactly `bytes` pixels' bytes and nothing behind them. The buffer grows with what arrives, so that a header which
 * claims more than its file holds costs nothing. */
static tsar_status read_pixels(FILE *stream, const char *name, size_t bytes, uint8_t **rgb, tsar_error *err)
{
    size_t have = 0, room = bytes < FIRST_READ ? bytes : FIRST_READ;
    uint8_t *data = tsar_alloc(room, 1, "a picture", err);
    if (!data) return TSAR_ROOM;
    for (;;) {
        size_t got = fread(data + have, 1, room - have, stream);
        have += got;
        if (have == bytes) break;
        if (got == 0) {
            int broken = ferror(stream);
            tsar_free(data);
            if (broken) return tsar_fail(err, TSAR_INPUT, "%s: cannot be read", name);
            return tsar_fail(err, TSAR_INPUT, "%s: ends after %lu of %lu bytes of pixels; it is cut short", name, (unsigned long)have,
                             (unsigned long)bytes);
        }
        if (have == room) {
            size_t wider = room > bytes / 2 ? bytes : room * 2;
            uint8_t *more = tsar_alloc(wider, 1, "a picture", err);
            if (more) memcpy(more, data, have);
            tsar_free(data);
            if (!more) return TSAR_ROOM;
            data = more, room = wider;
        }
    }
    if (fgetc(stream) != EOF) {
        tsar_free(data);
        return tsar_fail(err, TSAR_INPUT, "%s: has bytes behind its pixels; give one picture per file", name);
    }
    *rgb = data;
    return TSAR_OK;
}

static tsar_status read_ppm(FILE *stream, const char *name, uint8_t **rgb, size_t *H, size_t *W, tsar_error *err)
{
    uint8_t head[TSAR_KIND];
    size_t n = fread(head, 1, 2, stream);
    if (n < 2 || head[0] != 'P' || head[1] != '6') {
        if (n == 2) n += fread(head + 2, 1, sizeof head - 2, stream);
        const char *kind = tsar_file_kind(head, n);
        return tsar_fail(err, TSAR_INPUT, "%s: %s; give a binary PPM (P6) picture, which e.g. `magick in.png out.ppm` makes", name,
                         kind ? kind : "not a binary PPM (P6) picture");
    }
    size_t columns = header_number(stream);
    size_t rows = columns ? header_number(stream) : 0;
    size_t maximum = rows ? header_number(stream) : 0;
    if (maximum == 0) return tsar_fail(err, TSAR_INPUT, "%s: its header does not give width, height and maximum as positive numbers", name);
    if (maximum != 255)
        return tsar_fail(err, TSAR_INPUT, "%s: its maximum is %lu; only 255 (8 bits a channel) is read", name, (unsigned long)maximum);
    if (columns > (size_t)-1 / 4 / rows)
        return tsar_fail(err, TSAR_INPUT, "%s: %lu x %lu pixels are more than this machine can address", name, (unsigned long)columns,
                         (unsigned long)rows);
    *H = rows, *W = columns;
    return read_pixels(stream, name, rows * columns * 3, rgb, err);
}

tsar_status tsar_image_read(const char *path, uint8_t **rgb, size_t *H, size_t *W, tsar_error *err)
{
    int is_stdin = strcmp(path, "-") == 0;
    FILE *stream = stdin;
    tsar_status status = is_stdin ? TSAR_OK : tsar_system_open_read(&stream, path, err);
    if (status != TSAR_OK) return status;
    status = read_ppm(stream, is_stdin ? "standard input" : path, rgb, H, W, err);
    if (!is_stdin) fclose(stream);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------ writing */

/* No comment in the header, so that two programs' pictures can be compared byte for byte. */
static tsar_status put_ppm(tsar_output *output, const uint8_t *rgb, size_t H, size_t W, tsar_error *err)
{
    char header[64];
    int length = snprintf(header, sizeof header, "P6\n%lu %lu\n255\n", (unsigned long)W, (unsigned long)H);
    tsar_status status = tsar_output_write(output, header, (size_t)length, err);
    return status == TSAR_OK ? tsar_output_write(output, rgb, H * W * 3, err) : status;
}

/* Whether path ends in `ending` (lower case) in any case. */
static int ends_in(const char *path, const char *ending)
{
    const size_t n = strlen(path), m = strlen(ending);
    size_t i = 0;
    while (n >= m && i < m && (path[n - m + i] >= 'A' && path[n - m + i] <= 'Z' ? path[n - m + i] - 'A' + 'a' : path[n - m + i]) == ending[i]) i++;
    return i == m;
}

#ifdef TSAR_NO_PNG
static int is_png(const char *path) { return path == NULL; } /* none */

int tsar_image_has_text(const char *path, const char *key, const char *value)
{
    (void)path, (void)key, (void)value;
    return 0;
}

#define ENDINGS ".ppm (this tsar was built with NO_PNG=1; .png needs stb_image_write.h)"
#else
#define ENDINGS ".png or .ppm"

static int is_png(const char *path) { return ends_in(path, ".png"); }

/* stb_image_write does not survive an allocation that fails while its buffers grow. So all of its memory comes from one
 * arena, allocated before it starts and large enough for its worst case (arena_size): then it cannot run out. Its
 * allocator takes no context, so each thread has an arena of its own; where the compiler has no variables of a thread, threads that write
 * PNG files have to take turns. */
#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L && !defined(__STDC_NO_THREADS__)
#define OF_A_THREAD _Thread_local
#elif defined(__GNUC__) && (defined(__unix__) || defined(__APPLE__) || defined(_WIN32))
#define OF_A_THREAD __thread
#else
#define OF_A_THREAD
#endif
typedef struct {
    uint8_t *bytes;
    size_t used, size;
} arena;
static OF_A_THREAD arena png_arena;

static void *arena_take(size_t bytes)
{
    size_t taken = (bytes + 15) / 16 * 16;
    if (taken < bytes || taken > png_arena.size - png_arena.used) return NULL;
    void *memory = png_arena.bytes + png_arena.used;
    png_arena.used += taken;
    return memory;
}

static void *arena_grow(const void *old, size_t old_size, size_t bytes)
{
    void *memory = arena_take(bytes);
    if (memory && old) memcpy(memory, old, old_size);
    return memory;
}

#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBIW_MALLOC(bytes) arena_take((size_t)(bytes))
#define STBIW_REALLOC_SIZED(old, old_size, bytes) arena_grow((old), (size_t)(old_size), (size_t)(bytes))
#define STBIW_FREE(memory) ((void)(memory))
#include <stb_image_write.h>

/* Pictures up to this many bytes: stb counts in int, and its output buffer doubles to at most 2.25 times of it. */
#define PNG_LIMIT ((size_t)1 << 29)

/* What stb takes, none of it given back, for L = (3W + 1) H filtered bytes: L itself and one line; 16384 hash chains with their
 * table, each grown through 2, 5, 11 and 23 pointers, and 8 bytes in front of them; the compressed stream, at most
 * 9 bits for each byte and some, in a buffer that grows to 2m + 1 and so to less than twice that size, its predecessors together
 * as much again; the PNG, which is at most L and 5 bytes for each 32767 of them (stored) and its frame. */
static size_t arena_size(size_t L, size_t W)
{
    size_t chains = 16384 * (sizeof(void *) + (2 + 5 + 11 + 23) * sizeof(void *) + 4 * (8 + 15));
    size_t stream = L + L / 8 + 64;
    return L + 3 * W + chains + 4 * stream + (L + L / 32767 * 5 + 128) + 64 * 16 * 4;
}

/* CRC-32 of PNG, section 5.5: polynomial 0xEDB88320 reflected, continued from crc. */
static uint32_t crc32_of(uint32_t crc, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

/* Whether text is UTF-8 with at least one byte beyond ASCII: then it needs an iTXt chunk. Anything else is written byte by
 * byte in a tEXt chunk, whose readers take it as Latin-1. */
static int needs_utf8(const char *text)
{
    const char *p = text;
    while (*p && (unsigned char)*p < 0x80) p++;
    return *p && tsar_is_utf8(p);
}

/* What text `key` of a PNG has in front of its value, as put_text writes it: the type of its chunk, the keyword, and `gap` zeros. */
typedef struct {
    const char *type;
    size_t key, gap, value; /* bytes */
} text_layout;

static text_layout lay_text_out(const char *key, const char *value)
{
    const int utf8 = needs_utf8(value);
    const text_layout layout = { utf8 ? "iTXt" : "tEXt", strlen(key), utf8 ? 5 : 1, strlen(value) };
    return layout;
}

/* Whether the next n bytes of a file are these. */
static int next_bytes_are(FILE *stream, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    while (n > 0 && fgetc(stream) == *p) n--, p++;
    return n == 0;
}

/* Whether the file goes on with a chunk of `size` bytes that is text `key` = `value`; reads some of it. */
static int next_text_is(FILE *stream, size_t size, const char *type, const char *key, const char *value)
{
    static const uint8_t zeros[5] = { 0 };
    const text_layout layout = lay_text_out(key, value);
    return memcmp(type, layout.type, 4) == 0 && size == layout.key + layout.gap + layout.value && next_bytes_are(stream, key, layout.key) &&
           next_bytes_are(stream, zeros, layout.gap) && next_bytes_are(stream, value, layout.value);
}

int tsar_image_has_text(const char *path, const char *key, const char *value)
{
    enum { SIGNATURE = 8, CHUNK_FRAME = 12 }; /* a chunk's length, type and checksum */
    int found = 0;
    FILE *stream = is_png(path) ? tsar_system_fopen(path, "rb") : NULL;
    if (stream == NULL) return 0;
    uint8_t head[8], last[4] = { 0 };
    long at = SIGNATURE;
    while (fseek(stream, at, SEEK_SET) == 0 && fread(head, 1, 8, stream) == 8) {
        const uint32_t size = (uint32_t)head[0] << 24 | (uint32_t)head[1] << 16 | (uint32_t)head[2] << 8 | head[3];
        if (size > 0x7FFFFFFF - CHUNK_FRAME - (uint32_t)at) break;
        found |= next_text_is(stream, size, (const char *)head + 4, key, value);
        memcpy(last, head + 4, 4);
        at += CHUNK_FRAME + (long)size;
    }
    const int whole = memcmp(last, "IEND", 4) == 0 && fseek(stream, 0, SEEK_END) == 0 && ftell(stream) == at;
    (void)fclose(stream);
    return found && whole;
}

static void big_endian(uint8_t out[4], uint32_t value)
{
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(value >> (24 - 8 * i));
}

/* tEXt: keyword, 0, Latin-1 text. iTXt: keyword, 0, not compressed (0, 0), no language (0), no translated keyword (0), UTF-8 text. */
static tsar_status put_text(tsar_output *output, const char *key, const char *value, tsar_error *err)
{
    static const uint8_t zeros[5] = { 0 };
    const text_layout layout = lay_text_out(key, value);
    const size_t key_size = layout.key, value_size = layout.value, gap = layout.gap;
    if (key_size == 0 || key_size > 79 || value_size > 0x7FFFFFFF - 128)
        return tsar_fail(err, TSAR_USAGE, "the text `%.40s` does not fit a PNG; shorten it", key);
    uint8_t head[8], tail[4];
    big_endian(head, (uint32_t)(key_size + gap + value_size));
    memcpy(head + 4, layout.type, 4);
    uint32_t crc = crc32_of(0, head + 4, 4);
    crc = crc32_of(crc, key, key_size);
    crc = crc32_of(crc, zeros, gap);
    big_endian(tail, crc32_of(crc, value, value_size));
    tsar_status status = tsar_output_write(output, head, 8, err);
    if (status == TSAR_OK) status = tsar_output_write(output, key, key_size, err);
    if (status == TSAR_OK) status = tsar_output_write(output, zeros, gap, err);
    if (status == TSAR_OK) status = tsar_output_write(output, value, value_size, err);
    return status == TSAR_OK ? tsar_output_write(output, tail, 4, err) : status;
}

static tsar_status put_png(tsar_output *output, const char *path, const uint8_t *rgb, size_t H, size_t W, const char *const *keys,
                           const char *const *values, size_t n, tsar_error *err)
{
    enum { HEAD = 8 + 25 }; /* the signature and the IHDR chunk */
    if (W > PNG_LIMIT / 4 || H > PNG_LIMIT / (3 * W + 1))
        return tsar_fail(err, TSAR_USAGE, "%s: %lu x %lu pixels are too many for a PNG here; write a .ppm file", path, (unsigned long)W,
                         (unsigned long)H);
    size_t size = arena_size((3 * W + 1) * H, W);
    png_arena.bytes = tsar_alloc(size, 1, "a PNG", err);
    if (!png_arena.bytes) return TSAR_ROOM;
    png_arena.used = 0, png_arena.size = size;
    int length = 0;
    const uint8_t *png = stbi_write_png_to_mem(rgb, (int)(3 * W), (int)W, (int)H, 3, &length);
    tsar_status status =
        png ? TSAR_OK : tsar_fail(err, TSAR_ROOM, "%s: out of memory for a PNG of %lu x %lu pixels", path, (unsigned long)W, (unsigned long)H);
    if (status == TSAR_OK) status = tsar_output_write(output, png, HEAD, err);
    for (size_t i = 0; status == TSAR_OK && i < n; i++) status = put_text(output, keys[i], values[i], err);
    if (status == TSAR_OK) status = tsar_output_write(output, png + HEAD, (size_t)length - HEAD, err);
    tsar_free(png_arena.bytes);
    png_arena.bytes = NULL;
    png_arena.size = 0;
    return status;
}

#endif

int tsar_image_keeps_text(const char *path) { return is_png(path); }

tsar_status tsar_image_name_check(const char *path, tsar_error *err)
{
    if (is_png(path) || ends_in(path, ".ppm") || tsar_path_is_stream(path)) return TSAR_OK; /* a device takes PPM: -o /dev/stdout */
    return tsar_fail(err, TSAR_USAGE, "%s: the name of a picture must end in " ENDINGS, path);
}

tsar_status tsar_image_write(const char *path, const uint8_t *rgb, size_t H, size_t W, const char *const *keys, const char *const *values, size_t n,
                             tsar_error *err)
{
    tsar_output *output = NULL;
    tsar_status status = tsar_image_name_check(path, err);
    if (status == TSAR_OK && (H == 0 || W == 0)) status = tsar_fail(err, TSAR_USAGE, "%s: a picture without pixels cannot be written", path);
    if (status == TSAR_OK) status = tsar_output_open(&output, path, err);
    if (status != TSAR_OK) return status;
#ifdef TSAR_NO_PNG
    (void)keys, (void)values, (void)n;
    status = put_ppm(output, rgb, H, W, err);
#else
    status = is_png(path) ? put_png(output, path, rgb, H, W, keys, values, n, err) : put_ppm(output, rgb, H, W, err);
#endif
    if (status == TSAR_OK) return tsar_output_commit(output, err);
    tsar_output_abandon(output);
    return status;
}

/* --------------------------------------------------------------------------------------------------------------- text */

#define GLYPH_ROWS 9 /* seven above the base line, two below; TSAR_LINE leaves one more between lines */

/* The characters 32 to 126, sixteen in a band and six columns each, the last of them always blank. */
/* clang-format off */
static const char typeface[6][GLYPH_ROWS][6 * 16 + 1] = {
    {
        "      #     # #           #   ##  #  ##   #       #   #                                      #  ",
        "      #     # #    # #   #### ##  # #  #  #      #     #    # #                              #  ",
        "      #     # #   ##### # #      #  #  #  #     #       #    #      #                       #   ",
        "      #            # #   ###    #    ##         #       #   ###     #                       #   ",
        "      #           #####   # #  #    # # #       #       #    #    #####       ###          #    ",
        "                   # #  ####  #  ## #  #         #     #    # #     #                     #     ",
        "      #                   #   #  ##  ## #         #   #             #    #          #     #     ",
        "                                                                         #                      ",
        "                                                                        #                       ",
    },
    {
        " ##     #    ##    ##     ##  ####   ##   ####   ##    ##                                  ##   ",
        "#  #   ##   #  #  #  #   # #  #     #        #  #  #  #  #                 #        #     #  #  ",
        "#  #    #      #     #   # #  ###   ###     #   #  #  #  #                #          #       #  ",
        "#  #    #     #    ##   #  #     #  #  #    #    ##   #  #  #      #     #    ####    #     #   ",
        "#  #    #    #       #  ####     #  #  #   #    #  #   ###                #          #     #    ",
        "#  #    #   #     #  #     #  #  #  #  #   #    #  #     #                 #  ####  #           ",
        " ##    ###  ####   ##      #   ##    ##    #     ##    ##   #      #                       #    ",
        "                                                                   #                            ",
        "                                                                  #                             ",
    },
    {
        " ###   ###  ####   ###  ####  ####  ####   ###  #   # ###     ##  #   # #     #   # #   #  ###  ",
        "#   # #   # #   # #   # #   # #     #     #   # #   #  #       #  #  #  #     ## ## ##  # #   # ",
        "# ### #   # #   # #     #   # #     #     #     #   #  #       #  # #   #     # # # ##  # #   # ",
        "# # # #   # ####  #     #   # ###   ###   # ### #####  #       #  ##    #     # # # # # # #   # ",
        "# ### ##### #   # #     #   # #     #     #   # #   #  #       #  # #   #     #   # #  ## #   # ",
        "#     #   # #   # #   # #   # #     #     #   # #   #  #    #  #  #  #  #     #   # #  ## #   # ",
        " #### #   # ####   ###  ####  ####  #      ###  #   # ###    ##   #   # ####  #   # #   #  ###  ",
        "                                                                                                ",
        "                                                                                                ",
    },
    {
        "####   ###  ####   ###  ##### #   # #   # #   # #   # #   # ##### ##    #     ##     #          ",
        "#   # #   # #   # #   #   #   #   # #   # #   # #   # #   #     # #     #      #    # #         ",
        "#   # #   # #   # #       #   #   # #   # #   #  # #   # #     #  #      #     #                ",
        "####  #   # ####   ###    #   #   #  # #  # # #   #    # #    #   #      #     #                ",
        "#     # # # # #       #   #   #   #  # #  # # #  # #    #    #    #       #    #                ",
        "#     #  #  #  #  #   #   #   #   #   #   ## ## #   #   #   #     #        #   #                ",
        "#      ## # #   #  ###    #    ###    #   #   # #   #   #   ##### ##       #  ##                ",
        "                                                                                          ####  ",
        "                                                                                                ",
    },
    {
        "#           #              #         ##         #     #      #    #     #                       ",
        " #          #              #        #           #                 #     #                       ",
        "       ##   ###    ##    ###   ##   ###    ###  ###   #      #    #  #  #     ## #  ###    ##   ",
        "         #  #  #  #     #  #  #  #  #     #  #  #  #  #      #    # #   #     # # # #  #  #  #  ",
        "       ###  #  #  #     #  #  ####  #     #  #  #  #  #      #    ##    #     # # # #  #  #  #  ",
        "      #  #  #  #  #     #  #  #     #     #  #  #  #  #      #    # #   #     # # # #  #  #  #  ",
        "       ###  ###    ##    ###   ###  #      ###  #  #  #      #    #  #   #    # # # #  #   ##   ",
        "                                             #               #                                  ",
        "                                           ##               #                                   ",
    },
    {
        "                        #                                          ##   #     ##                ",
        "                        #                                          #    #      #                ",
        "###    ###  # #    ###  ###   #  #  #   # #   # #  #  #  #  ####   #    #      #                ",
        "#  #  #  #  ##    #     #     #  #  #   # #   # #  #  #  #     #  #     #       #    # #        ",
        "#  #  #  #  #      ##   #     #  #   # #  # # #  ##   #  #   ##    #    #      #    # #         ",
        "#  #  #  #  #        #  #     #  #   # #  # # # #  #  #  #  #      #    #      #                ",
        "###    ###  #     ###    ##    ###    #    # #  #  #   ###  ####   ##   #     ##                ",
        "#        #                                               #                                      ",
        "#        #                                             ##                                       ",
    },
};
/* clang-format on */

/* Whether character c has a point in this row and column of its cell. */
static int has_point(char c, size_t row, size_t column)
{
    const size_t glyph = (c >= ' ' && c <= '~' ? (size_t)c : (size_t)'?') - ' ';
    return typeface[glyph / 16][row][glyph % 16 * 6 + column] == '#';
}

/* Columns of a character, the blank one behind it included. */
static size_t columns_of(char c)
{
    size_t columns = c == ' ' ? 2 : 0;
    for (size_t i = 0; i < 5 * GLYPH_ROWS; i++)
        if (i % 5 >= columns && has_point(c, i / 5, i % 5)) columns = i % 5 + 1;
    return columns + 1;
}

size_t tsar_image_text_width(const char *text, size_t n)
{
    size_t width = 0;
    for (size_t i = 0; i < n; i++) width += columns_of(text[i]);
    return n ? width - 1 : 0;
}

/* Characters of text that make its first line: up to the last blank in front of which it fits into `width` points, or as many as
 * fit if there is none, but at least one. */
static size_t line_length(const char *text, size_t width)
{
    size_t fits = 1, blank = 0;
    if (!*text) return 0;
    for (size_t used = columns_of(text[0]); text[fits] && used + columns_of(text[fits]) - 1 <= width; fits++) {
        used += columns_of(text[fits]);
        if (text[fits] == ' ') blank = fits;
    }
    return !text[fits] || text[fits] == ' ' || !blank ? fits : blank;
}

static void draw_character(uint8_t *rgb, size_t H, size_t W, size_t x, size_t y, size_t dot, const uint8_t colour[3], char c)
{
    for (size_t j = 0; j < GLYPH_ROWS * dot && y + j < H; j++)
        for (size_t i = 0; i < 5 * dot && x + i < W; i++)
            if (has_point(c, j / dot, i / dot)) memcpy(rgb + ((y + j) * W + x + i) * 3, colour, 3);
}

size_t tsar_image_text(uint8_t *rgb, size_t H, size_t W, size_t x, size_t y, size_t width, size_t dot, const uint8_t colour[3], const char *text)
{
    size_t lines = 0;
    for (size_t n; *text; lines++) {
        n = line_length(text, width / dot);
        for (size_t i = 0, at = x; rgb && i < n; at += columns_of(text[i++]) * dot)
            draw_character(rgb, H, W, at, y + lines * TSAR_LINE * dot, dot, colour, text[i]);
        text += n + (text[n] == ' ');
    }
    return lines;
}

/* ---------------------------------------------------------------------------------------------------------- order maps */

/* Dark blue over green to yellow, f from 0 to 1. */
static void heat_colour(uint8_t *rgb, double f)
{
    static const double anchors[5][3] = { { 68, 1, 84 }, { 59, 82, 139 }, { 33, 145, 140 }, { 94, 201, 98 }, { 253, 231, 37 } };
    const size_t i = f >= 0.75 ? 3 : (size_t)(4 * f);
    for (size_t k = 0; k < 3; k++) rgb[k] = (uint8_t)(anchors[i][k] + (anchors[i + 1][k] - anchors[i][k]) * (4 * f - (double)i) + 0.5);
}

/* The scale below the map runs from pass 0 at the left to the last at the right. */
tsar_status tsar_order_map_write(const char *path, const int64_t *step_of, size_t rows, size_t columns, tsar_error *err)
{
    enum { BAR = 16, MAP_GAP = 8, MAP_DOT = 2, LEAST = 128 };
    static const uint8_t black[3] = { 0, 0, 0 };
    const size_t longest = rows > columns ? rows : columns, cell = longest < 512 ? 512 / longest : 1;
    const size_t W = columns * cell > LEAST ? columns * cell : LEAST, map = rows * cell, H = map + MAP_GAP + BAR + MAP_GAP + TSAR_LINE * MAP_DOT;
    int64_t last = 0;
    char number[24];
    uint8_t *rgb = tsar_alloc(H, W * 3, "the order map", err);
    if (!rgb) return TSAR_ROOM;
    memset(rgb, 255, H * W * 3);
    for (size_t t = 0; t < rows * columns; t++)
        if (step_of[t] > last) last = step_of[t];
    for (size_t i = 0; i < map * columns * cell; i++) {
        const size_t y = i / (columns * cell), x = i % (columns * cell);
        const double step = (double)step_of[y / cell * columns + x / cell];
        heat_colour(rgb + (y * W + x) * 3, last ? step / (double)last : 0);
    }
    for (size_t i = 0; i < BAR * W; i++) heat_colour(rgb + ((map + MAP_GAP + i / W) * W + i % W) * 3, (double)(i % W) / (double)(W - 1));
    const size_t length = (size_t)snprintf(number, sizeof number, "%" PRId64, last);
    const size_t x = W - tsar_image_text_width(number, length) * MAP_DOT;
    (void)tsar_image_text(rgb, H, W, 0, map + MAP_GAP + BAR + MAP_GAP, W, MAP_DOT, black, "0");
    (void)tsar_image_text(rgb, H, W, x, map + MAP_GAP + BAR + MAP_GAP, W, MAP_DOT, black, number);
    tsar_status status = tsar_image_write(path, rgb, H, W, NULL, NULL, 0, err);
    tsar_free(rgb);
    return status;
}
