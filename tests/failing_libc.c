/* For test_libc_memory.sh, with LD_PRELOAD under glibc: allocation FAIL_AT of the whole process fails, libc's own (fopen, printf's buffers)
 * included; ALLOCATION_LOG is given their number. */
#include <stddef.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern char *getenv(const char *name);
extern int *__errno_location(void);

enum { NO_MEMORY = 12 }; /* ENOMEM */

static long calls, fail_at = -1;

static int fails(void)
{
    if (fail_at < 0) {
        const char *text = getenv("FAIL_AT");
        for (fail_at = 0; text && *text; text++) fail_at = fail_at * 10 + (*text - '0');
    }
    if (++calls != fail_at) return 0;
    *__errno_location() = NO_MEMORY;
    return 1;
}

void *malloc(size_t size) { return fails() ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return fails() ? NULL : __libc_calloc(count, size); }
void *realloc(void *memory, size_t size) { return fails() ? NULL : __libc_realloc(memory, size); }
