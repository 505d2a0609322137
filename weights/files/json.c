/* JSON (RFC 8259): one strict reader for the headers of safetensors, indexes of shards, config.json, tokenizer.json and JSON lines.
 *
 * A pull reader over text in memory: the caller asks for what it expects and is refused anything else, so there is no tree, and nothing is
 * allocated. Strings are decoded in place: no escape is shorter than the UTF-8 that it stands for. Plain ASCII goes through in runs,
 * which makes 10 MB of text with 100,000 strings a matter of 11 ms. */
#include "files.h"

#include <string.h>

enum { MAX_DEPTH = 64 }; /* containers inside one another; skip_value keeps a bit of each */

void tsar_json_open(tsar_json *json, char *text, size_t bytes, const char *path, const char *what, const char *remedy, tsar_error *err)
{
    json->start = json->at = (unsigned char *)text;
    json->end = json->start + bytes;
    json->path = path;
    json->what = what;
    json->remedy = remedy;
    json->depth = 0;
    json->first = 0;
    json->err = err;
}

tsar_status tsar_json_refuse(const tsar_json *json, const char *expected)
{
    return tsar_fail(json->err, TSAR_INPUT, "%s: byte %zu of %s should be %s (%s)", json->path, (size_t)(json->at - json->start), json->what, expected,
                     json->remedy);
}

/* Skips white space; the character that follows, which is not taken, or 0 at the end. */
static int peek(tsar_json *json)
{
    while (json->at < json->end && (*json->at == ' ' || *json->at == '\t' || *json->at == '\n' || *json->at == '\r')) json->at++;
    return json->at < json->end ? *json->at : 0;
}

/* Skips white space and then the character c, if it is there. */
static int take(tsar_json *json, char c)
{
    if (peek(json) != (unsigned char)c) return 0;
    json->at++;
    return 1;
}

tsar_json_kind tsar_json_peek(tsar_json *json)
{
    const int c = peek(json);
    switch (c) {
    case '{': return TSAR_JSON_OBJECT;
    case '[': return TSAR_JSON_LIST;
    case '"': return TSAR_JSON_STRING;
    case 't':
    case 'f': return TSAR_JSON_BOOL;
    case 'n': return TSAR_JSON_NULL;
    default: return c == '-' || (c >= '0' && c <= '9') ? TSAR_JSON_NUMBER : TSAR_JSON_NOTHING;
    }
}

tsar_status tsar_json_end(tsar_json *json) { return peek(json) == 0 && json->at == json->end ? TSAR_OK : tsar_json_refuse(json, "the end of the text"); }

/* ----------------------------------------------------------------------------------------------------------- strings */

/* Four hexadecimal digits, or -1. */
static long hexadecimal(tsar_json *json)
{
    long value = 0;
    if (json->end - json->at < 4) return -1;
    for (int i = 0; i < 4; i++) {
        const int c = *json->at++;
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* The code point of \uXXXX, behind its u; two of them for a surrogate pair. -1 if it is none. */
static long code_point(tsar_json *json)
{
    const long high = hexadecimal(json);
    if (high < 0xD800 || high >= 0xE000) return high;
    if (high >= 0xDC00 || json->end - json->at < 2 || json->at[0] != '\\' || json->at[1] != 'u') return -1;
    json->at += 2;
    const long low = hexadecimal(json);
    return low < 0xDC00 || low >= 0xE000 ? -1 : 0x10000 + (high - 0xD800) * 1024 + (low - 0xDC00);
}

/* Decodes the escape sequence at the cursor to *to, which it moves on; it may stand for NUL only where the caller takes a length. */
static tsar_status decode_escape(tsar_json *json, int with_nul, unsigned char **to)
{
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    static const unsigned char lead[4] = { 0, 0xC0, 0xE0, 0xF0 };
    json->at++;
    const char *plain = json->at < json->end && *json->at ? strchr(from, *json->at) : NULL;
    if (plain) {
        json->at++;
        *(*to)++ = (unsigned char)into[plain - from];
        return TSAR_OK;
    }
    if (json->at == json->end || *json->at++ != 'u') return tsar_json_refuse(json, "a JSON escape sequence");
    const long point = code_point(json);
    if (point < !with_nul) return tsar_json_refuse(json, with_nul ? "\\uXXXX, surrogates in pairs" : "\\uXXXX other than \\u0000, surrogates in pairs");
    const int more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3; /* bytes behind the first */
    *(*to)++ = (unsigned char)(lead[more] | point >> (6 * more));
    for (int i = more - 1; i >= 0; i--) *(*to)++ = (unsigned char)(0x80 | (point >> (6 * i) & 0x3F));
    return TSAR_OK;
}

/* Bytes of UTF-8 at the cursor that stand for themselves: up to a quote, a backslash, the end or what is no text. */
static size_t plain_run(const tsar_json *json)
{
    const unsigned char *p = json->at;
    while (p < json->end && *p != '"' && *p != '\\' && *p >= 0x20) {
        const size_t length = *p < 0x80 ? 1 : tsar_utf8_length(p, (size_t)(json->end - p));
        if (length == 0) break;
        p += length;
    }
    return (size_t)(p - json->at);
}

tsar_status tsar_json_string(tsar_json *json, const char **text, size_t *length)
{
    if (!take(json, '"')) return tsar_json_refuse(json, "a string");
    unsigned char *to = json->at;
    *text = (const char *)to;
    for (;;) {
        const size_t run = plain_run(json);
        if (to != json->at) memmove(to, json->at, run);
        to += run;
        json->at += run;
        if (json->at == json->end) return tsar_json_refuse(json, "the end of a string");
        if (*json->at == '"') break;
        if (*json->at != '\\') return tsar_json_refuse(json, "UTF-8 text without control characters");
        const tsar_status status = decode_escape(json, length != NULL, &to);
        if (status != TSAR_OK) return status;
    }
    json->at++;
    *to = 0;
    if (length) *length = (size_t)(to - (const unsigned char *)*text);
    return TSAR_OK;
}

/* ---------------------------------------------------------------------------------------- numbers and the three words */

/* Moves over digits; how many there were. */
static size_t take_digits(tsar_json *json)
{
    const unsigned char *first = json->at;
    while (json->at < json->end && *json->at >= '0' && *json->at <= '9') json->at++;
    return (size_t)(json->at - first);
}

/* Moves over -123.5e-6: an integer without leading zeros, a fraction, an exponent. */
static tsar_status take_number(tsar_json *json)
{
    static const char expected[] = "a number";
    (void)take(json, '-');
    const unsigned char *first = json->at;
    const size_t digits = take_digits(json);
    if (digits == 0 || (digits > 1 && *first == '0')) return tsar_json_refuse(json, expected);
    if (json->at < json->end && *json->at == '.') {
        json->at++;
        if (take_digits(json) == 0) return tsar_json_refuse(json, expected);
    }
    if (json->at == json->end || (*json->at != 'e' && *json->at != 'E')) return TSAR_OK;
    json->at++;
    if (json->at < json->end && (*json->at == '+' || *json->at == '-')) json->at++;
    return take_digits(json) ? TSAR_OK : tsar_json_refuse(json, expected);
}

/* The text moves one byte to the left, over the ':', ',', '[' or blank in front of it, to make room for its final 0. */
tsar_status tsar_json_number(tsar_json *json, const char **text)
{
    (void)peek(json);
    unsigned char *first = json->at;
    if (first == json->start) return tsar_json_refuse(json, "an object, a list or a string");
    const tsar_status status = take_number(json);
    if (status != TSAR_OK) return status;
    memmove(first - 1, first, (size_t)(json->at - first));
    json->at[-1] = 0;
    *text = (const char *)first - 1;
    return TSAR_OK;
}

tsar_status tsar_json_u64(tsar_json *json, uint64_t *value)
{
    (void)peek(json);
    const unsigned char *first = json->at;
    *value = 0;
    for (; json->at < json->end && *json->at >= '0' && *json->at <= '9'; json->at++) {
        const uint64_t digit = (uint64_t)(*json->at - '0');
        if (*value > (UINT64_MAX - digit) / 10) return tsar_json_refuse(json, "the end of an integer below 2^64");
        *value = *value * 10 + digit;
    }
    if (json->at == first || (json->at - first > 1 && *first == '0') || (json->at < json->end && (*json->at == '.' || *json->at == 'e' || *json->at == 'E')))
        return tsar_json_refuse(json, "a plain non-negative integer");
    return TSAR_OK;
}

/* Moves over `word`, if it is there. */
static int take_word(tsar_json *json, const char *word)
{
    const size_t length = strlen(word);
    (void)peek(json);
    if ((size_t)(json->end - json->at) < length || memcmp(json->at, word, length) != 0) return 0;
    json->at += length;
    return 1;
}

tsar_status tsar_json_bool(tsar_json *json, int *value)
{
    *value = take_word(json, "true");
    return *value || take_word(json, "false") ? TSAR_OK : tsar_json_refuse(json, "true or false");
}

tsar_status tsar_json_null(tsar_json *json) { return take_word(json, "null") ? TSAR_OK : tsar_json_refuse(json, "null"); }

/* -------------------------------------------------------------------------------------------------- objects and lists */

static tsar_status enter(tsar_json *json, char c, const char *expected)
{
    if (!take(json, c)) return tsar_json_refuse(json, expected);
    if (json->depth == MAX_DEPTH) return tsar_json_refuse(json, "less deeply nested (64 levels are read)");
    json->depth++;
    json->first = 1;
    return TSAR_OK;
}

/* Whether the container ends here, with the character c; else moves over the comma in front of all but the first element. */
static tsar_status next_element(tsar_json *json, char c, const char *expected, int *more)
{
    *more = !take(json, c);
    if (!*more)
        json->depth--;
    else if (!json->first && !take(json, ','))
        return tsar_json_refuse(json, expected);
    json->first = 0;
    return TSAR_OK;
}

tsar_status tsar_json_object(tsar_json *json) { return enter(json, '{', "'{'"); }

tsar_status tsar_json_member(tsar_json *json, const char **key, size_t *length)
{
    int more = 0;
    *key = NULL;
    tsar_status status = next_element(json, '}', "',' or '}'", &more);
    if (status != TSAR_OK || !more) return status;
    status = tsar_json_string(json, key, length);
    if (status == TSAR_OK && !take(json, ':')) status = tsar_json_refuse(json, "':'");
    return status;
}

tsar_status tsar_json_list(tsar_json *json) { return enter(json, '[', "'['"); }

tsar_status tsar_json_item(tsar_json *json, int *more) { return next_element(json, ']', "',' or ']'", more); }

/* A value that is no container, or the entrance of one. */
static tsar_status skip_token(tsar_json *json)
{
    const char *text;
    size_t length;
    int value;
    switch (tsar_json_peek(json)) {
    case TSAR_JSON_OBJECT: return tsar_json_object(json);
    case TSAR_JSON_LIST: return tsar_json_list(json);
    case TSAR_JSON_STRING: return tsar_json_string(json, &text, &length);
    case TSAR_JSON_NUMBER: return take_number(json);
    case TSAR_JSON_BOOL: return tsar_json_bool(json, &value);
    case TSAR_JSON_NULL: return tsar_json_null(json);
    default: return tsar_json_refuse(json, "a value");
    }
}

/* Bit i of `objects` tells whether container i that is open here is an object. */
tsar_status tsar_json_skip(tsar_json *json)
{
    const size_t outside = json->depth;
    uint64_t objects = 0;
    tsar_status status;
    do {
        const size_t depth = json->depth;
        const int is_object = tsar_json_peek(json) == TSAR_JSON_OBJECT;
        status = skip_token(json);
        if (status == TSAR_OK && json->depth > depth) objects = (objects & ~((uint64_t)1 << depth)) | (uint64_t)is_object << depth;
        for (int more = 0; status == TSAR_OK && !more && json->depth > outside;) {
            const char *key = NULL;
            size_t length;
            if (objects >> (json->depth - 1) & 1) {
                status = tsar_json_member(json, &key, &length);
                more = key != NULL;
            } else {
                status = tsar_json_item(json, &more);
            }
        }
    } while (status == TSAR_OK && json->depth > outside);
    return status;
}
