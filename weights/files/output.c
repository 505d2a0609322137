/* Output files. What is written stands beside its target under another name until it is whole and on the disk; then it takes the target's
 * place at once. So a failure, a signal or a power cut leaves the old file as it was. */
#include "files.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

struct tsar_output {
    FILE *stream;
    char *path;      /* as it was given */
    char *target;    /* where its symbolic links lead: what is replaced */
    char *temporary; /* what is written until the commit; NULL: a device, FIFO or socket, written to directly */
    int entry;        /* of the temporary file, for signal handlers */
};

/* The reason that the system gives for the last failure. */
static const char *reason(void) { return errno ? strerror(errno) : "no room on the device"; }

static tsar_status write_failed(const tsar_output *output, tsar_error *err)
{
    return tsar_fail(err, TSAR_ROOM, "cannot write %s: %s (make room, or write elsewhere)", output->path, reason());
}

static void output_release(tsar_output *output)
{
    tsar_free(output->path);
    tsar_free(output->target);
    tsar_free(output->temporary);
    tsar_free(output);
}

/* Opens a file that no other process has, beside the target. The target's own name is cut to 200 bytes in its name, because systems
 * limit names to 255. */
static tsar_status open_temporary(tsar_output *output, tsar_error *err)
{
    enum { TRIES = 100 };
    const size_t folder = tsar_path_folder(output->target), room = strlen(output->target) + 32;
    uint64_t state = tsar_system_seed() ^ (uint64_t)(uintptr_t)output;
    output->temporary = tsar_alloc(room, 1, "a name", err);
    if (output->temporary == NULL) return TSAR_ROOM;
    memcpy(output->temporary, output->target, folder);
    for (int i = 0; i < TRIES && output->stream == NULL; i++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407; /* the LCG of MMIX */
        (void)snprintf(output->temporary + folder, room - folder, "%.200s.%08" PRIx32 ".tmp", output->target + folder, (uint32_t)(state >> 32));
        output->entry = tsar_temporary_add(output->temporary); /* before there is a file, so that a signal cannot come in between */
        errno = 0;
        output->stream = tsar_system_create(output->temporary, output->target);
        const int error = errno;
        if (output->stream == NULL) tsar_temporary_drop(output->entry);
        errno = error;
        if (output->stream == NULL && error != 0 && error != EEXIST) break;
    }
    if (output->stream != NULL) return TSAR_OK;
    return tsar_fail(err, tsar_system_status(errno), "cannot create %s: %s (check the folder and its permissions)", output->path, reason());
}

tsar_status tsar_output_open(tsar_output **output, const char *path, tsar_error *err)
{
    char target[TSAR_PATH_ROOM];
    tsar_status status = TSAR_OK;
    *output = NULL;
    if (*path == 0 || tsar_path_kind(path) == TSAR_PATH_FOLDER)
        return tsar_fail(err, TSAR_INPUT, "cannot write '%s': it is %s (give the name of a file)", path, *path ? "a folder" : "an empty name");
    errno = 0;
    const int is_stream = tsar_path_is_stream(path);
    if (!is_stream && (!tsar_path_target(target, path) || tsar_path_kind(path) == TSAR_PATH_UNKNOWN))
        return tsar_fail(err, TSAR_INPUT, "cannot write %s: %s (check the folder and its permissions)", path, errno ? strerror(errno) : "the name is too long");
    tsar_output *opened = tsar_alloc(1, sizeof *opened, "an output file", err);
    if (opened == NULL) return TSAR_ROOM;
    opened->entry = -1;
    opened->path = tsar_copy_string(path, err);
    opened->target = tsar_copy_string(is_stream ? path : target, err);
    if (opened->path == NULL || opened->target == NULL)
        status = TSAR_ROOM;
    else if (!is_stream)
        status = open_temporary(opened, err);
    else if ((opened->stream = tsar_system_open_device(path)) == NULL)
        status = tsar_fail(err, tsar_system_status(errno), "cannot write to %s: %s (check the name and its permissions)", path, reason());
    if (status == TSAR_OK)
        *output = opened;
    else
        output_release(opened);
    return status;
}

tsar_status tsar_output_reserve(const tsar_output *output, uint64_t bytes, tsar_error *err)
{
    uint64_t room = 0;
    if (output->temporary == NULL || !tsar_path_room(output->target, &room)) room = INT64_MAX; /* no file is larger */
    if (bytes <= room) return TSAR_OK;
    return tsar_fail(err, TSAR_ROOM, "cannot write %s: it takes %.1f MB, and there is room for %.1f MB (make room, or write elsewhere)", output->path,
                     (double)bytes / 1e6, (double)room / 1e6);
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
    if (output->temporary != NULL ? !tsar_system_flush(output->stream) : fflush(output->stream) != 0) status = write_failed(output, err);
    if (fclose(output->stream) != 0 && status == TSAR_OK) status = write_failed(output, err);
    errno = 0;
    if (status == TSAR_OK && output->temporary != NULL && !tsar_system_replace(output->temporary, output->target))
        status = tsar_fail(err, tsar_system_status(errno), "cannot write %s: %s (check the folder and its permissions)", output->path, reason());
    if (status != TSAR_OK && output->temporary != NULL) tsar_system_remove(output->temporary);
    tsar_temporary_drop(output->entry);
    output_release(output);
    return status;
}

void tsar_output_abandon(tsar_output *output)
{
    if (output == NULL) return;
    (void)fclose(output->stream);
    if (output->temporary != NULL) tsar_system_remove(output->temporary);
    tsar_temporary_drop(output->entry);
    output_release(output);
}

/* Opening what will be written shows more than asking whether it could be; a FIFO would wait for its reader. */
tsar_status tsar_output_check(const char *path, tsar_error *err)
{
    tsar_output *output = NULL;
    const size_t folder = tsar_path_folder(path);
    if (*path != 0 && tsar_path_is_stream(path)) return TSAR_OK;
    if (*path != 0 && strlen(path + folder) > TSAR_NAME_LIMIT)
        return tsar_fail(err, TSAR_INPUT, "cannot write %s: the name has more than %d bytes (give a shorter one)", path, TSAR_NAME_LIMIT);
    const tsar_status status = tsar_output_open(&output, path, err);
    tsar_output_abandon(output);
    return status;
}
