/* unicode.c - classes of characters and normalization form C, from generated tables (weights/unicode_tables.h). */
#include "text.h"
#include "unicode_tables.h"

#include <string.h>

/* -------------------------------------------------------------------------------------------------------- UTF-8 */

/* Bytes of the sequence that begins with `first`, its smallest character, and the bits of the first byte that belong to it. */
uint32_t tsar_char_at(const char *text, size_t bytes, size_t *length)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    const unsigned char *b = (const unsigned char *)text;
    const size_t n = b[0] < 0x80 ? 1 : b[0] >= 0xC2 && b[0] < 0xE0 ? 2 : b[0] >= 0xE0 && b[0] < 0xF0 ? 3 : b[0] >= 0xF0 && b[0] < 0xF5 ? 4 : 0;
    uint32_t code = n < 2 ? b[0] : b[0] & (0x7Fu >> n);
    *length = 1;
    if (n == 0 || n > bytes) return 0xFFFD;
    for (size_t i = 1; i < n; i++) {
        if ((b[i] & 0xC0) != 0x80) return 0xFFFD;
        code = code << 6 | (b[i] & 0x3Fu);
    }
    if (code < least[n] || (code >= 0xD800 && code < 0xE000) || code > 0x10FFFF) return 0xFFFD;
    *length = n;
    return code;
}

size_t tsar_char_put(char *out, uint32_t code)
{
    const size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    if (n == 1) {
        out[0] = (char)code;
        return 1;
    }
    for (size_t i = n - 1; i > 0; i--, code >>= 6) out[i] = (char)(unsigned char)(0x80 | (code & 0x3F));
    out[0] = (char)(unsigned char)((0xF00u >> n & 0xF0) | code);
    return n;
}

/* ------------------------------------------------------------------------------------------------------ classes */

int tsar_char_is(tsar_class which, uint32_t code)
{
    const uint32_t(*ranges)[2] = classes[which].ranges;
    size_t low = 0, high = classes[which].n; /* the first range that ends at `code` or behind it */
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (ranges[middle][1] < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < classes[which].n && ranges[low][0] <= code;
}

const uint32_t (*tsar_class_ranges(tsar_class which, size_t *n))[2]
{
    *n = classes[which].n;
    return classes[which].ranges;
}

/* -------------------------------------------------------------------------------------------------- normalization form C */

/* Hangul syllables are made of a leading consonant, a vowel, and maybe a trailing consonant, by rule. */
enum { HANGUL = 0xAC00, LEADING = 0x1100, VOWEL = 0x1161, TRAILING = 0x11A7, VOWELS = 21, TRAILINGS = 28, SYLLABLES = 11172, LEADINGS = 19 };
#define COMPOSES 0x80000000u /* bit 31 of a decomposition's character */

static uint32_t combining_class(uint32_t code)
{
    size_t low = 0, high = sizeof combining / sizeof *combining;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (combining[middle][1] < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof combining / sizeof *combining && combining[low][0] <= code ? combining[low][2] : 0;
}

/* Appends the full canonical decomposition of a character to out; returns how many characters it has (at most four). */
static size_t decompose(uint32_t *out, uint32_t code)
{
    if (code >= HANGUL && code < HANGUL + SYLLABLES) {
        const uint32_t at = code - HANGUL;
        out[0] = LEADING + at / (VOWELS * TRAILINGS);
        out[1] = VOWEL + at % (VOWELS * TRAILINGS) / TRAILINGS;
        out[2] = TRAILING + at % TRAILINGS;
        return at % TRAILINGS ? 3 : 2;
    }
    size_t low = 0, high = sizeof decompositions / sizeof *decompositions;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if ((decompositions[middle][0] & ~COMPOSES) < code)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == sizeof decompositions / sizeof *decompositions || (decompositions[low][0] & ~COMPOSES) != code) {
        out[0] = code;
        return 1;
    }
    const size_t n = decompose(out, decompositions[low][1]); /* the second part is never taken apart again */
    if (decompositions[low][2] == 0) return n;
    out[n] = decompositions[low][2];
    return n + 1;
}

/* The character that a and b compose to; 0 for none. */
static uint32_t compose(uint32_t a, uint32_t b)
{
    if (a >= LEADING && a < LEADING + LEADINGS && b >= VOWEL && b < VOWEL + VOWELS) return HANGUL + ((a - LEADING) * VOWELS + (b - VOWEL)) * TRAILINGS;
    if (a >= HANGUL && a < HANGUL + SYLLABLES && (a - HANGUL) % TRAILINGS == 0 && b > TRAILING && b < TRAILING + TRAILINGS) return a + (b - TRAILING);
    size_t low = 0, high = sizeof compositions / sizeof *compositions;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const uint32_t *pair = decompositions[compositions[middle]];
        if (pair[1] < a || (pair[1] == a && pair[2] < b))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == sizeof compositions / sizeof *compositions) return 0;
    const uint32_t *pair = decompositions[compositions[low]];
    return pair[1] == a && pair[2] == b ? pair[0] & ~COMPOSES : 0;
}

/* Characters of a class that is not 0 in stable order of their classes, between starters. Text that is all marks is sorted by insertion. */
static void order_marks(uint32_t *codes, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        const uint32_t code = codes[i], mark = combining_class(code);
        size_t to = i;
        for (; mark && to > 0 && combining_class(codes[to - 1]) > mark; to--) codes[to] = codes[to - 1];
        codes[to] = code;
    }
}

/* Each mark, and a starter right behind it, composes with the last starter unless one of its own class or a higher one stands between. */
static size_t compose_all(uint32_t *codes, size_t n)
{
    size_t starter = SIZE_MAX, used = 0;
    uint32_t last = 0; /* the class before */
    for (size_t i = 0; i < n; i++) {
        const uint32_t mark = combining_class(codes[i]);
        const int open = starter != SIZE_MAX && (used == starter + 1 || (last < mark && last != 0));
        const uint32_t whole = open ? compose(codes[starter], codes[i]) : 0;
        if (whole) {
            codes[starter] = whole;
            continue;
        }
        if (mark == 0) starter = used;
        last = mark;
        codes[used++] = codes[i];
    }
    return used;
}

tsar_status tsar_nfc(const char *text, size_t bytes, char **out, size_t *out_bytes, tsar_error *err)
{
    uint32_t *codes = tsar_alloc(tsar_product(bytes, 4), sizeof *codes, "the normalised text", err); /* at most four for each character */
    size_t n = 0, length;
    *out = codes ? tsar_alloc(tsar_product(bytes, 3) + 1, 1, "the normalised text", err) : NULL; /* NFC is at most three times as long */
    *out_bytes = 0;
    for (size_t at = 0; *out && at < bytes; at += length) n += decompose(codes + n, tsar_char_at(text + at, bytes - at, &length));
    if (*out) {
        order_marks(codes, n);
        n = compose_all(codes, n);
    }
    for (size_t i = 0; *out && i < n; i++) *out_bytes += tsar_char_put(*out + *out_bytes, codes[i]);
    tsar_free(codes);
    return *out ? TSAR_OK : TSAR_ROOM;
}
