/* base.c - the ground: errors, memory, and the number formats of files: exact widening, rounding to nearest even, rows of a table; shapes
 * and numbers as text (tsar.h, sections 1 and 2). */
#include "files.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- errors and memory */

/* Cuts a sentence that is longer than `room` bytes, final 0 included, in its middle, where long paths are: the file's beginning, the reason
 * and the remedy stay. Characters are not cut in two. */
static void shorten(char *text, size_t room)
{
    static const char gap[] = " ... ";
    const size_t length = strlen(text), head = room / 3;
    if (length < room) return;
    size_t from = head, to = length - (room - 1 - head - (sizeof gap - 1));
    while (from > 0 && ((unsigned char)text[from] & 0xC0) == 0x80) from--;
    while (((unsigned char)text[to] & 0xC0) == 0x80) to++;
    memcpy(text + from, gap, sizeof gap - 1);
    memmove(text + from + sizeof gap - 1, text + to, length - to + 1);
}

tsar_status tsar_fail(tsar_error *err, tsar_status status, const char *format, ...)
{
    enum { LONGEST_ERROR = 10000 }; /* two paths of 4096 bytes and a sentence */
    char text[LONGEST_ERROR];
    va_list arguments;
    if (err == NULL) return status;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    shorten(text, sizeof err->text);
    (void)tsar_plain_text(err->text, sizeof err->text, text); /* a hostile name must not break the one line */
    return status;
}

void tsar_note(tsar_note_fn note, void *context, const char *format, ...)
{
    char line[512];
    va_list arguments;
    if (!note) return;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    note(context, line);
}

/* The memory of calloc stays untouched but for the pointer to its start, which stands in front of the aligned bytes:
 * pages that nobody writes to cost nothing. */
void *tsar_alloc(size_t count, size_t size, const char *what, tsar_error *err)
{
    const size_t extra = 64 + sizeof(void *);
    char *start = NULL;
    if (size == 0 || count <= (SIZE_MAX - extra) / size) start = calloc(1, count * size + extra);
    if (start == NULL) {
        (void)tsar_fail(err, TSAR_ROOM, "out of memory for %s (%.0f MB)", what, (double)count * (double)size / 1e6);
        return NULL;
    }
    char *memory = start + sizeof(void *);
    memory += (64 - (uintptr_t)memory % 64) % 64;
    memcpy(memory - sizeof(void *), &start, sizeof(void *));
    return memory;
}

void tsar_free(void *memory)
{
    if (memory != NULL) {
        void *start;
        memcpy(&start, (char *)memory - sizeof(void *), sizeof(void *));
        free(start);
    }
}

char *tsar_copy_string(const char *string, tsar_error *err)
{
    const size_t length = strlen(string) + 1;
    char *copy = tsar_alloc(length, 1, "a name", err);
    if (copy) memcpy(copy, string, length);
    return copy;
}

/* -------------------------------------------------------------------------------------------------------------- text */

size_t tsar_utf8_length(const void *text, size_t bytes)
{
    static const uint32_t smallest[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    const unsigned char *s = text;
    if (bytes == 0) return 0;
    if (s[0] < 0x80) return 1;
    const size_t length = s[0] >= 0xF8 ? 0 : s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : s[0] >= 0xC0 ? 2 : 0;
    if (length == 0 || length > bytes) return 0;
    uint32_t point = s[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        point = point << 6 | (s[i] & 0x3Fu);
    }
    return point < smallest[length] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000) ? 0 : length;
}

int tsar_is_utf8(const char *string)
{
    size_t rest = strlen(string);
    while (rest) {
        const size_t length = tsar_utf8_length(string, rest);
        if (length == 0) return 0;
        string += length;
        rest -= length;
    }
    return 1;
}

/* Not plain: control characters, U+0080 to U+009F, which many terminals take for such, separators of lines and paragraphs, and what turns the
 * direction of writing around. */
size_t tsar_character(const char *text, uint32_t *point, int *is_plain)
{
    static const struct {
        uint32_t first, last;
    } refused[] = { { 0, 0x1F }, { 0x7F, 0x9F }, { 0x61C, 0x61C }, { 0x200E, 0x200F }, { 0x2028, 0x202E }, { 0x2066, 0x2069 }, { 0xFFFD, 0xFFFD } };
    static const unsigned char lead[5] = { 0, 0x7F, 0x1F, 0x0F, 0x07 };
    size_t rest = 0;
    while (rest < 4 && text[rest]) rest++;
    const size_t length = tsar_utf8_length(text, rest);
    uint32_t c = length ? (unsigned char)text[0] & lead[length] : 0xFFFD;
    for (size_t i = 1; i < length; i++) c = c << 6 | ((unsigned char)text[i] & 0x3Fu);
    *is_plain = 1;
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (c >= refused[i].first && c <= refused[i].last) *is_plain = 0;
    if (point != NULL) *point = c;
    return length ? length : 1;
}

const char *tsar_plain_text(char *plain, size_t size, const char *text)
{
    (void)snprintf(plain, size, "%s", text);
    for (size_t at = 0, length; plain[at]; at += length) {
        int is_plain;
        length = tsar_character(plain + at, NULL, &is_plain);
        if (!is_plain) memset(plain + at, '?', length);
    }
    return plain;
}

/* ---------------------------------------------------------------------------------------------------- number formats */

size_t tsar_dtype_size(tsar_dtype dtype)
{
    static const size_t sizes[TSAR_DTYPES] = { 8, 4, 2, 2, 8, 4, 2, 1, 8, 4, 2, 1, 1, 8, 1, 1 };
    return sizes[dtype];
}

const char *tsar_dtype_name(tsar_dtype dtype)
{
    static const char *const names[TSAR_DTYPES] = { "F64", "F32", "F16", "BF16", "I64",  "I32", "I16",     "I8",
                                                    "U64", "U32", "U16", "U8",   "BOOL", "C64", "F8_E4M3", "F8_E5M2" };
    return names[dtype];
}

int tsar_dtype_is_float(tsar_dtype dtype) { return dtype <= TSAR_BF16; } /* they come first in tsar_dtype */

const char *tsar_shape_text(char *text, size_t size, size_t rank, const size_t *shape)
{
    size_t used = (size_t)snprintf(text, size, "[");
    for (size_t i = 0; i < rank && used < size; i++) used += (size_t)snprintf(text + used, size - used, i ? ", %zu" : "%zu", shape[i]);
    if (used < size) snprintf(text + used, size - used, "]");
    return text;
}

static float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t bits_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* F16 is 1 sign, 5 exponent (bias 15) and 10 fraction bits. Moved to where F32 keeps them they are the same number with
 * an exponent smaller by 127 - 15 = 112, subnormals included; exponent 31 is infinity or NaN. */
double tsar_widen_f16(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    return float_of_bits(sign | magnitude << 13) * 0x1p112f;
}

/* BF16 is the upper half of F32. */
double tsar_widen_bf16(uint16_t bits) { return float_of_bits((uint32_t)bits << 16); }

/* Adding just under half of the last place that is kept, and its own bit, rounds to nearest even; a carry moves into
 * the exponent, as it should. */
static uint32_t round_shift(uint32_t x, unsigned shift) { return (x + ((1u << (shift - 1)) - 1) + (x >> shift & 1u)) >> shift; }

uint16_t tsar_round_f16(float x)
{
    const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x47800000u) /* 65536 and more */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude >= 0x38800000u) /* 2^-14, the least normal F16; rounding up may give infinity */
        return (uint16_t)(sign | round_shift(magnitude - (112u << 23), 13));
    if (magnitude < 0x33000000u) /* below 2^-25 */
        return (uint16_t)sign;
    /* Subnormal: count units of 2^-24. */
    const unsigned exponent = magnitude >> 23;
    return (uint16_t)(sign | round_shift((magnitude & 0x7fffffu) | 0x800000u, 126u - exponent));
}

uint16_t tsar_round_bf16(float x)
{
    const uint32_t bits = bits_of_float(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)round_shift(bits, 16);
}

void tsar_table_row(double *out, const tsar_table *table, size_t row)
{
    const size_t cols = table->cols, first = row * cols;
    for (size_t k = 0; k < cols; k++) {
        switch (table->dtype) {
        case TSAR_F64: out[k] = ((const double *)table->values)[first + k]; break;
        case TSAR_F32: out[k] = ((const float *)table->values)[first + k]; break;
        case TSAR_F16: out[k] = tsar_widen_f16(((const uint16_t *)table->values)[first + k]); break;
        default: out[k] = tsar_widen_bf16(((const uint16_t *)table->values)[first + k]); break;
        }
    }
}
