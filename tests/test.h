/* test.h - what every test program shares: CHECK, which counts, and test_end, which reports.
 *
 *     CHECK(sum == 5, "sum of %d terms is %g", n, sum);
 *     ...
 *     return test_end();                               prints "N passed, N failed"; 0 if none failed */
#ifndef TSAR_TEST_H
#define TSAR_TEST_H

#include <stdarg.h>
#include <stdio.h>

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

#endif
