/* test.h - what the test programs share: CHECK, which counts, test_end, which reports, and synthetic models.
 *
 *     CHECK(sum == 5, "sum of %d terms is %g", n, sum);
 *     ...
 *     return test_end();                               prints "N passed, N failed"; 0 if none failed */
#ifndef TSAR_TEST_H
#define TSAR_TEST_H

#include "../tsar.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static size_t test_passed, test_failed;

/* Counts a check; prints the place and the description of one that failed. */
static inline int test_check(int condition, const char *file, int line, const char *format, ...)
{
    va_list arguments;
    if (condition) {
        ++test_passed;
        return 1;
    }
    ++test_failed;
    printf("FAILED %s:%d: ", file, line);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    return 0;
}

#define CHECK(condition, ...) test_check((condition) ? 1 : 0, __FILE__, __LINE__, __VA_ARGS__)

static inline int test_end(void)
{
    printf("%lu passed, %lu failed\n", (unsigned long)test_passed, (unsigned long)test_failed);
    return test_failed == 0 ? 0 : 1;
}

/* "key=value key=value ..." taken apart. */
typedef struct {
    char text[1000];
    const char *keys[60], *values[60];
    size_t n;
} test_settings;

static inline void test_split(test_settings *s, const char *text)
{
    s->n = 0;
    snprintf(s->text, sizeof s->text, "%s", text);
    for (char *pair = strtok(s->text, " "); pair != NULL && s->n < 60; pair = strtok(NULL, " ")) {
        char *equals = strchr(pair, '=');
        *equals = '\0';
        s->keys[s->n] = pair;
        s->values[s->n++] = equals + 1;
    }
}

/* The synthetic model of "key=value key=value ...", by way of the file `path`, which is removed again. */
static inline tsar_status test_synthesise(tsar_model **model, const char *path, const char *text, tsar_dtype dtype, size_t threads, tsar_error *err)
{
    test_settings s;
    test_split(&s, text);
    tsar_status status = tsar_synth(path, s.keys, s.values, s.n, dtype, err);
    if (status == TSAR_OK) status = tsar_model_open(model, path, TSAR_PART_ALL, threads, err);
    remove(path);
    return status;
}

/* Writes to `path` the synthetic model that the metadata of the file `like` describe. */
static inline tsar_status test_synth_like(const char *path, const char *like, tsar_dtype dtype, tsar_error *err)
{
    const char *keys[60], *values[60];
    tsar_file *file = NULL;
    size_t n = 0;
    tsar_status status = tsar_file_open(&file, like, err);
    if (status != TSAR_OK) return status;
    for (; n < tsar_file_meta_count(file) && n < 60; n++) tsar_file_meta_at(file, n, &keys[n], &values[n]);
    status = tsar_synth(path, keys, values, n, dtype, err);
    tsar_file_close(file);
    return status;
}

#endif
