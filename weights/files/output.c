/* Output files: written beside their name and renamed over it when they are whole, so that a failure leaves the old file as it was. */
#include "files.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct tsar_output {
    FILE *stream;
    char *path;
    char *temporary; /* what is written until the commit; NULL: path itself */
};

/* Devices are written in place: renaming a file over /dev/null would replace it. */
static int is_device(const char *path)
{
    while (path[0] == '/' && path[1] == '/') path++;
    return (!strncmp(path, "/dev/", 5) && strncmp(path, "/dev/shm/", 9)) || !strncmp(path, "/proc/", 6);
}

static int is_directory(const char *path)
{
#ifdef EISDIR
    errno = 0;
    FILE *stream = fopen(path, "r+b");
    if (stream) fclose(stream);
    return !stream && errno == EISDIR;
#else
    (void)path;
    return 0;
#endif
}

/* A name beside path that no file has, from the time of day, so that two processes can write the same path. The file's
 * own name is cut to 200 bytes in it, because systems limit names to 255. */
static char *temporary_name(const char *path, tsar_error *err)
{
    const char *slash = strrchr(path, '/');
    const size_t folder = slash ? (size_t)(slash - path) + 1 : 0, room = strlen(path) + 32;
    char *name = tsar_alloc(room, 1, "a name", err);
    if (!name) return NULL;
    uint64_t state = (uint64_t)time(NULL) << 20 ^ (uint64_t)clock() ^ (uint64_t)(uintptr_t)name;
    FILE *taken;
    memcpy(name, path, folder);
    do {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407; /* the LCG of MMIX: any other name will do */
        snprintf(name + folder, room - folder, "%.200s.%08" PRIx32 ".tmp", path + folder, (uint32_t)(state >> 32));
        taken = fopen(name, "rb");
        if (taken) fclose(taken);
    } while (taken);
    return name;
}

static void output_release(tsar_output *output)
{
    tsar_free(output->path);
    tsar_free(output->temporary);
    tsar_free(output);
}

static tsar_status write_failed(const tsar_output *output, tsar_error *err)
{
    return tsar_fail(err, TSAR_ROOM, "cannot write %s: %s", output->path, errno ? strerror(errno) : "no room on the device");
}

static int out_of_room(int error)
{
#ifdef ENOSPC
    return error == ENOSPC;
#else
    return error != 0;
#endif
}

tsar_status tsar_output_open(tsar_output **output, const char *path, tsar_error *err)
{
    const int device = is_device(path);
    *output = NULL;
    if (!*path || (!device && is_directory(path)))
        return tsar_fail(err, TSAR_INPUT, "cannot write '%s': it is %s (give the name of a file)", path, *path ? "a directory" : "an empty name");
    tsar_output *opened = tsar_alloc(1, sizeof *opened, "an output file", err);
    if (!opened) return TSAR_ROOM;
    opened->path = tsar_copy_string(path, err);
    if (opened->path && !device) opened->temporary = temporary_name(path, err);
    if (!opened->path || (!opened->temporary && !device)) {
        output_release(opened);
        return TSAR_ROOM;
    }
    errno = 0;
    opened->stream = fopen(opened->temporary ? opened->temporary : path, "wb");
    if (!opened->stream) {
        const int error = errno;
        output_release(opened);
        return tsar_fail(err, out_of_room(error) ? TSAR_ROOM : TSAR_INPUT, "cannot create %s: %s (check the folder and its permissions)", path,
                         strerror(error));
    }
    *output = opened;
    return TSAR_OK;
}

tsar_status tsar_output_write(tsar_output *output, const void *bytes, size_t count, tsar_error *err)
{
    errno = 0;
    return count == 0 || fwrite(bytes, 1, count, output->stream) == count ? TSAR_OK : write_failed(output, err);
}

tsar_status tsar_output_commit(tsar_output *output, tsar_error *err)
{
    tsar_status status = TSAR_OK;
    errno = 0;
    if (fflush(output->stream) || ferror(output->stream)) status = write_failed(output, err);
    if (fclose(output->stream) && status == TSAR_OK) status = write_failed(output, err);
    if (status == TSAR_OK && output->temporary) {
#ifdef _WIN32
        remove(output->path); /* rename does not replace a file there */
#endif
        errno = 0;
        if (rename(output->temporary, output->path))
            status = tsar_fail(err, out_of_room(errno) ? TSAR_ROOM : TSAR_INPUT, "cannot write %s: %s", output->path, strerror(errno));
    }
    if (status != TSAR_OK && output->temporary) remove(output->temporary);
    output_release(output);
    return status;
}

void tsar_output_abandon(tsar_output *output)
{
    if (!output) return;
    fclose(output->stream);
    if (output->temporary) remove(output->temporary);
    output_release(output);
}
