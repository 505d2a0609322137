/* Tests of weights/files/json.c: what JSON is and what it is not, text decoded, numbers as they are written, every prefix and every changed
 * byte of a document, and a text as large as a tokenizer's. */
#include "../weights/files/files.h"
#include "test.h"

#include <stdlib.h>
#include <time.h>

static tsar_error err;

/* A reader over a copy of the text that is exactly as long, so that a step beyond it is seen by the sanitizers. */
static tsar_json reader_of(char **copy, const char *text, size_t bytes)
{
    tsar_json json;
    *copy = malloc(bytes + !bytes);
    if (*copy) memcpy(*copy, text, bytes);
    tsar_json_open(&json, *copy, *copy ? bytes : 0, "test", "the text", "a test", &err);
    return json;
}

static int is_json(const char *text, size_t bytes)
{
    char *copy;
    tsar_json json = reader_of(&copy, text, bytes);
    tsar_status status = tsar_json_skip(&json);
    if (status == TSAR_OK) status = tsar_json_end(&json);
    free(copy);
    return status == TSAR_OK;
}

static void test_grammar(void)
{
    static const char *const good[] = { "{}",
                                        "[]",
                                        " [ ] ",
                                        "[1]",
                                        "[1,2]",
                                        "[[],[[]],{}]",
                                        "{\"a\":1}",
                                        "{\"a\":{\"b\":[]},\"c\":\"\"}",
                                        "\"\"",
                                        "true",
                                        "null",
                                        "false",
                                        "[true,false,null]",
                                        "[0,-0,1.5,1e5,1E+5,1.25e-5,-12]",
                                        "0",
                                        "12.5",
                                        "{\"\":0}",
                                        "\t\r\n[\t]\n",
                                        "[\"\\u0000\"]" };
    static const char *const bad[] = { "",
                                       "{",
                                       "}",
                                       "[",
                                       "]",
                                       "[1",
                                       "[1,",
                                       "[1,]",
                                       "[,1]",
                                       "[1 2]",
                                       "{\"a\"}",
                                       "{\"a\":}",
                                       "{\"a\":1,}",
                                       "{,}",
                                       "{a:1}",
                                       "{1:1}",
                                       "'a'",
                                       "\"",
                                       "\"a",
                                       "\"\\\"",
                                       "\"\\x\"",
                                       "[01]",
                                       "[-]",
                                       "[+1]",
                                       "[1.]",
                                       "[.5]",
                                       "[1e]",
                                       "[1e+]",
                                       "[00]",
                                       "tru",
                                       "True",
                                       "nul",
                                       "NaN",
                                       "[1]x",
                                       "[1],",
                                       "\"\t\"",
                                       "\"\n\"",
                                       "{\"a\":1]",
                                       "[1}",
                                       "\"\\u12\"",
                                       "\"\\ud800\"",
                                       "\"\\udc00\"",
                                       "\"\\ud800\\u0041\"",
                                       "\"\x80\"",
                                       "\"\xc0\x80\"",
                                       "\"\xed\xa0\x80\"",
                                       "\"\xf5\x80\x80\x80\"",
                                       "[1]\xff",
                                       "//",
                                       "[\"a\":1]",
                                       "{\"a\":1 \"b\":2}",
                                       "{\"a\",1}",
                                       "[\"\\ud83d\\ude0\"]" };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) CHECK(is_json(good[i], strlen(good[i])), "%s: %s", good[i], err.text);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(!is_json(bad[i], strlen(bad[i])), "%s was taken for JSON", bad[i]);
    CHECK(!is_json("[1]\0", 4), "a byte 0 behind the text");

    char deep[400];
    for (size_t levels = 60; levels < 70; levels++) {
        memset(deep, '[', levels), memset(deep + levels, ']', levels);
        CHECK(is_json(deep, 2 * levels) == (levels <= 64), "%zu levels", levels);
        for (size_t i = 0; i < levels; i++) memcpy(deep + 5 * i, "{\"a\":", 5);
        memcpy(deep + 5 * levels, "0", 1), memset(deep + 5 * levels + 1, '}', levels < 399 - 5 * levels ? levels : 0);
        if (6 * levels < sizeof deep) CHECK(is_json(deep, 6 * levels + 1) == (levels <= 64), "%zu objects", levels);
    }
}

static void test_strings(void)
{
    static const struct {
        const char *json, *text;
    } cases[] = { { "\"abc\"", "abc" },
                  { "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t" },
                  { "\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00z\"", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z" },
                  { "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\\n\x7f\"", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\n\x7f" },
                  { "\"\\u007f\\u0080\\u07ff\\u0800\\uffff\"", "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf" },
                  { "\"\\udbff\\udfff\"", "\xf4\x8f\xbf\xbf" } };
    const char *text = NULL;
    char *copy;
    size_t length = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tsar_json json = reader_of(&copy, cases[i].json, strlen(cases[i].json));
        const tsar_status status = tsar_json_string(&json, &text, &length);
        CHECK(status == TSAR_OK && strcmp(text, cases[i].text) == 0 && length == strlen(cases[i].text), "%s gives %s", cases[i].json,
              status == TSAR_OK ? text : err.text);
        CHECK(tsar_json_end(&json) == TSAR_OK, "%s is not read to its end", cases[i].json);
        free(copy);
    }
    tsar_json json = reader_of(&copy, "\"a\\u0000b\"", 10);
    CHECK(tsar_json_string(&json, &text, &length) == TSAR_OK && length == 3 && memcmp(text, "a\0b", 4) == 0, "a NUL, with its length");
    free(copy);
    json = reader_of(&copy, "\"a\\u0000b\"", 10);
    CHECK(tsar_json_string(&json, &text, NULL) == TSAR_INPUT && strstr(err.text, "test: byte 8 of the text should be") && strstr(err.text, "(a test)"),
          "a NUL: %s", err.text);
    free(copy);
}

static void test_values(void)
{
    static const char text[] = "{\"a\" : -1.50e+3, \"b\":[18446744073709551615,0, 7],\"c\":true,\"d\":null,\"e\":{\"f\":[{}]},\"g\":\"\"}";
    const char *key, *number;
    char *copy;
    uint64_t value[3] = { 0 };
    int more, yes;
    tsar_json json = reader_of(&copy, text, sizeof text - 1);
    CHECK(tsar_json_peek(&json) == TSAR_JSON_OBJECT && tsar_json_object(&json) == TSAR_OK, "the object");
    CHECK(tsar_json_member(&json, &key, NULL) == TSAR_OK && strcmp(key, "a") == 0 && tsar_json_peek(&json) == TSAR_JSON_NUMBER, "a");
    CHECK(tsar_json_number(&json, &number) == TSAR_OK && strcmp(number, "-1.50e+3") == 0, "a is %s", number);
    CHECK(tsar_json_member(&json, &key, NULL) == TSAR_OK && strcmp(key, "b") == 0 && tsar_json_list(&json) == TSAR_OK, "b");
    for (size_t i = 0; i < 3; i++) CHECK(tsar_json_item(&json, &more) == TSAR_OK && more && tsar_json_u64(&json, &value[i]) == TSAR_OK, "item %zu", i);
    CHECK(value[0] == UINT64_MAX && value[1] == 0 && value[2] == 7 && tsar_json_item(&json, &more) == TSAR_OK && !more, "the list");
    CHECK(tsar_json_member(&json, &key, NULL) == TSAR_OK && tsar_json_bool(&json, &yes) == TSAR_OK && yes, "c");
    CHECK(tsar_json_member(&json, &key, NULL) == TSAR_OK && tsar_json_peek(&json) == TSAR_JSON_NULL && tsar_json_null(&json) == TSAR_OK, "d");
    CHECK(tsar_json_member(&json, &key, NULL) == TSAR_OK && strcmp(key, "e") == 0 && tsar_json_skip(&json) == TSAR_OK, "e");
    CHECK(tsar_json_member(&json, &key, NULL) == TSAR_OK && tsar_json_string(&json, &number, NULL) == TSAR_OK && *number == 0, "g");
    CHECK(tsar_json_member(&json, &key, NULL) == TSAR_OK && key == NULL && tsar_json_end(&json) == TSAR_OK && json.depth == 0, "the end");
    free(copy);
    static const char *const integers[] = { "[18446744073709551616]", "[1.0]", "[1e2]", "[-1]", "[01]", "[]", "[\"1\"]" };
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
        json = reader_of(&copy, integers[i], strlen(integers[i]));
        tsar_status status = tsar_json_list(&json);
        if (status == TSAR_OK) status = tsar_json_u64(&json, value);
        CHECK(status == TSAR_INPUT, "%s holds a plain integer", integers[i]);
        free(copy);
    }
}

/* No prefix of a document is one, and no changed byte leads the reader out of its text. */
static void test_damage(void)
{
    static const char text[] = "{\"a\":[1,-2.5e3,true,false,null,\"\\u00e9\\ud83d\\ude00\xc3\xa9\"],\"b\":{\"c\":{},\"d\":[]},\"e\":\"\\n\"}";
    char damaged[sizeof text];
    size_t good = 0;
    CHECK(is_json(text, sizeof text - 1), "the document: %s", err.text);
    for (size_t n = 0; n + 1 < sizeof text; n++) CHECK(!is_json(text, n), "its first %zu bytes", n);
    for (size_t i = 0; i + 1 < sizeof text; i++)
        for (int value = 0; value < 256; value++) {
            memcpy(damaged, text, sizeof text);
            damaged[i] = (char)value;
            good += (size_t)is_json(damaged, sizeof text - 1);
        }
    CHECK(good > sizeof text && good < 256 * sizeof text / 2, "%zu of the damaged documents are JSON", good);
}

/* 10 MB and 100,000 entries, as a tokenizer has. */
static void test_large(void)
{
    enum { ENTRIES = 100000, TEXT_ROOM = 110 };
    char *text = malloc((size_t)ENTRIES * TEXT_ROOM + 16), *end = text;
    const char *key;
    uint64_t value, sum = 0;
    size_t n = 0;
    if (!CHECK(text != NULL, "out of memory")) return;
    *end++ = '{';
    for (int i = 0; i < ENTRIES; i++) end += sprintf(end, "%s\"\xc4\xa0token%080d\\u0120\":%d", i ? ", " : "", i, i);
    *end++ = '}';
    tsar_json json;
    const clock_t start = clock();
    tsar_json_open(&json, text, (size_t)(end - text), "test", "the text", "a test", &err);
    tsar_status status = tsar_json_object(&json);
    while (status == TSAR_OK) {
        status = tsar_json_member(&json, &key, NULL);
        if (status != TSAR_OK || !key) break;
        status = tsar_json_u64(&json, &value);
        sum += value, n++;
    }
    const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECK(status == TSAR_OK && n == ENTRIES && sum == (uint64_t)ENTRIES * (ENTRIES - 1) / 2, "%zu entries, %s", n, err.text);
    CHECK(seconds < 1, "%.1f MB in %.3f s", (double)(end - text) / 1e6, seconds); /* 0.011 s on a machine of 2023; room for sanitizers */
    printf("%.1f MB with %d entries in %.3f s\n", (double)(end - text) / 1e6, ENTRIES, seconds);
    free(text);
}

int main(void)
{
    test_grammar();
    test_strings();
    test_values();
    test_damage();
    test_large();
    return test_end();
}
