/* calloc, malloc and realloc that fail on request, for test_memory.sh. Every other file is compiled with
 * -Dcalloc=failing_calloc and so on. The environment variable FAIL_AT=N makes the N-th allocation fail; at exit the
 * number of allocations made, and of those never freed, is written to the file that ALLOCATION_LOG names. */
#include <stdio.h>
#include <stdlib.h>

void *failing_calloc(size_t count, size_t size);
void *failing_malloc(size_t size);
void *failing_realloc(void *memory, size_t size);
void failing_free(void *memory);

static long calls, live, fail_at = -1;

static void report(void)
{
    const char *path = getenv("ALLOCATION_LOG");
    FILE *log = path ? fopen(path, "w") : NULL;
    if (!log) return;
    fprintf(log, "%ld %ld\n", calls, live);
    fclose(log);
}

static int fails(void)
{
    if (fail_at < 0) {
        const char *text = getenv("FAIL_AT");
        fail_at = text ? strtol(text, NULL, 10) : 0;
        atexit(report);
    }
    return ++calls == fail_at;
}

void *failing_calloc(size_t count, size_t size)
{
    void *memory = fails() ? NULL : calloc(count, size);
    live += memory != NULL;
    return memory;
}

void *failing_malloc(size_t size) { return failing_calloc(1, size); }

void *failing_realloc(void *memory, size_t size)
{
    void *larger = fails() ? NULL : realloc(memory, size);
    live += !memory && larger;
    return larger;
}

void failing_free(void *memory)
{
    live -= memory != NULL;
    free(memory);
}
