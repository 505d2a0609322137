/* What tsar takes from the operating system beyond C99, all of it in this file, and what stands in its place where there is none of it:
 *
 *     function                 for                                     POSIX                       elsewhere
 *     tsar_path_kind           what a name stands for                  stat                        fopen
 *     tsar_path_same           whether two names are one file          device and inode            the same name
 *     tsar_path_target         where symbolic links lead               readlink                    the name itself
 *     tsar_path_room           bytes that a disk has room for          statvfs, getrlimit          unknown
 *     tsar_system_open_read    a file to read, and why not             fopen, errno                fopen
 *     tsar_system_create       a file that nobody else has             open with O_EXCL            fopen, once nothing is there
 *     tsar_system_open_device  a device, FIFO, socket, standard output open, connect, dup          fopen
 *     tsar_system_flush        bytes that outlive a power failure      fsync                       fflush
 *     tsar_system_replace      a file in the place of another          rename                      remove, rename
 *     tsar_temporary_*         which files a signal has to remove      atomic builtins, unlink     plain variables, remove
 *     tsar_seconds             a clock that is never set               clock_gettime               time
 *     tsar_is_terminal         whether a bar can be drawn              isatty                      no
 *     tsar_system_start        descriptors 0 to 2 are there            fcntl                       nothing */
#if defined(__unix__) || defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#define HAVE_POSIX
#endif
#include "files.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#ifdef HAVE_POSIX
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>
#endif

tsar_status tsar_system_status(int error)
{
    switch (error) {
#ifdef ENOMEM
    case ENOMEM:
#endif
#ifdef ENOSPC
    case ENOSPC:
#endif
#ifdef EDQUOT
    case EDQUOT:
#endif
#ifdef EFBIG
    case EFBIG:
#endif
#ifdef EMFILE
    case EMFILE:
#endif
#ifdef ENFILE
    case ENFILE:
#endif
        return TSAR_ROOM;
    default: return TSAR_INPUT;
    }
}

/* -------------------------------------------------------------------------------------------------------------- names */

#ifdef HAVE_POSIX
static tsar_path_type type_of(const struct stat *info)
{
    return S_ISREG(info->st_mode) ? TSAR_PATH_FILE : S_ISDIR(info->st_mode) ? TSAR_PATH_FOLDER : S_ISSOCK(info->st_mode) ? TSAR_PATH_SOCKET : TSAR_PATH_DEVICE;
}
#endif

tsar_path_type tsar_path_kind(const char *path)
{
#ifdef HAVE_POSIX
    struct stat info;
    if (stat(path, &info) == 0) return type_of(&info);
    return errno == ENOENT ? TSAR_PATH_NOTHING : TSAR_PATH_UNKNOWN;
#else
    FILE *stream = fopen(path, "rb");
    if (stream == NULL) return TSAR_PATH_NOTHING;
    (void)fclose(stream);
    return TSAR_PATH_FILE;
#endif
}

/* Bytes of the folder's name in front of a file's, the last separator included; 0: the current folder. */
size_t tsar_path_folder(const char *path)
{
    size_t length = strlen(path);
#ifdef _WIN32
    while (length > 0 && path[length - 1] != '/' && path[length - 1] != '\\' && path[length - 1] != ':') length--;
#else
    while (length > 0 && path[length - 1] != '/') length--;
#endif
    return length;
}

#ifdef HAVE_POSIX
/* The folder that a name stands in; 0 if there is none. */
static int folder_stat(const char *path, struct stat *info)
{
    char folder[TSAR_PATH_ROOM];
    const size_t length = tsar_path_folder(path);
    if (length >= sizeof folder) return 0;
    memcpy(folder, length ? path : ".", length ? length : 2);
    if (length) folder[length] = 0;
    return stat(folder, info) == 0;
}
#endif

int tsar_path_same(const char *a, const char *b)
{
#ifdef HAVE_POSIX
    char x[TSAR_PATH_ROOM], y[TSAR_PATH_ROOM];
    struct stat p, q;
    const int first = stat(a, &p) == 0, second = stat(b, &q) == 0;
    if (first && second) return p.st_dev == q.st_dev && p.st_ino == q.st_ino;
    if (first || second || !tsar_path_target(x, a) || !tsar_path_target(y, b)) return 0;
    return folder_stat(x, &p) && folder_stat(y, &q) && p.st_dev == q.st_dev && p.st_ino == q.st_ino &&
           strcmp(x + tsar_path_folder(x), y + tsar_path_folder(y)) == 0; /* neither exists: the same name in the same folder */
#else
    return strcmp(a, b) == 0;
#endif
}

int tsar_path_target(char target[TSAR_PATH_ROOM], const char *path)
{
    enum { LINKS = 40 }; /* as many as Linux follows */
    if (strlen(path) >= TSAR_PATH_ROOM) return 0;
    strcpy(target, path);
#ifdef HAVE_POSIX
    char link[TSAR_PATH_ROOM];
    for (int i = 0; i < LINKS; i++) {
        const ssize_t length = readlink(target, link, sizeof link - 1);
        if (length < 0) return errno == EINVAL || errno == ENOENT; /* no link, or nothing there yet */
        const size_t folder = link[0] == '/' ? 0 : tsar_path_folder(target);
        if (folder + (size_t)length >= TSAR_PATH_ROOM) return 0;
        memcpy(target + folder, link, (size_t)length);
        target[folder + (size_t)length] = 0;
    }
    errno = ELOOP;
    return 0;
#else
    return (int)LINKS;
#endif
}

int tsar_path_room(const char *path, uint64_t *bytes)
{
#ifdef HAVE_POSIX
    struct statvfs disk;
    struct rlimit limit;
    char folder[TSAR_PATH_ROOM];
    const size_t length = tsar_path_folder(path);
    if (length >= sizeof folder) return 0;
    memcpy(folder, length ? path : ".", length ? length : 2);
    if (length) folder[length] = 0;
    if (statvfs(folder, &disk) != 0 || disk.f_blocks == 0) return 0; /* some network file systems do not tell */
    const uint64_t blocks = geteuid() == 0 ? disk.f_bfree : disk.f_bavail, size = disk.f_frsize ? disk.f_frsize : disk.f_bsize;
    *bytes = size != 0 && blocks > UINT64_MAX / size ? UINT64_MAX : blocks * size;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < *bytes) *bytes = limit.rlim_cur;
    return 1;
#else
    (void)path, (void)bytes;
    return 0;
#endif
}

/* -------------------------------------------------------------------------------------------------------------- files */

tsar_status tsar_system_open_read(FILE **stream, const char *path, tsar_error *err)
{
    if (tsar_path_kind(path) == TSAR_PATH_FOLDER) return tsar_fail(err, TSAR_INPUT, "cannot open %s: it is a folder (give the name of a file)", path);
    errno = 0;
    *stream = fopen(path, "rb");
    if (*stream != NULL) return TSAR_OK;
    const tsar_status status = tsar_system_status(errno);
    return tsar_fail(err, status, "cannot open %s: %s (%s)", path, errno ? strerror(errno) : "the system gives no reason",
                     status == TSAR_ROOM ? "memory or descriptors are used up" : "check the path");
}

FILE *tsar_system_create(const char *path, const char *old)
{
#ifdef HAVE_POSIX
    struct stat info;
    const int is_new = stat(old, &info) != 0, descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, is_new ? 0666 : 0600);
    if (descriptor < 0) return NULL;
    FILE *stream = fdopen(descriptor, "wb");
    if (stream != NULL && (is_new || fchmod(descriptor, info.st_mode & 0777) == 0)) return stream;
    const int error = errno;
    if (stream != NULL)
        (void)fclose(stream);
    else
        (void)close(descriptor);
    (void)unlink(path);
    errno = error;
    return NULL;
#else
    (void)old;
    FILE *taken = fopen(path, "rb");
    if (taken == NULL) return fopen(path, "wb");
    (void)fclose(taken);
    return NULL;
#endif
}

#ifdef HAVE_POSIX
/* A descriptor of what listens at a socket's name; -1 if nothing does. */
static int connect_to(const char *path)
{
    struct sockaddr_un address = { 0 };
    address.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    const int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
    if (descriptor < 0 || connect(descriptor, (const struct sockaddr *)&address, sizeof address) == 0) return descriptor;
    const int error = errno;
    (void)close(descriptor);
    errno = error;
    return -1;
}

/* Standard output or standard error, if that is what the name stands for: it may be a file or a socket that cannot be opened again. */
static int standard_descriptor(const struct stat *info)
{
    struct stat standard;
    for (int descriptor = 1; descriptor <= 2; descriptor++)
        if (fstat(descriptor, &standard) == 0 && standard.st_dev == info->st_dev && standard.st_ino == info->st_ino) return descriptor;
    return -1;
}
#endif

/* Names below /proc and /dev/fd are descriptors: what they stand for is open already, and may have no name to be renamed to. */
int tsar_path_is_stream(const char *path)
{
    while (path[0] == '/' && path[1] == '/') path++;
    if (strncmp(path, "/proc/", 6) == 0 || strncmp(path, "/dev/fd/", 8) == 0) return 1;
#ifdef HAVE_POSIX
    struct stat info;
    if (stat(path, &info) != 0) return 0;
    return type_of(&info) == TSAR_PATH_DEVICE || type_of(&info) == TSAR_PATH_SOCKET || standard_descriptor(&info) >= 0;
#else
    return strncmp(path, "/dev/", 5) == 0;
#endif
}

FILE *tsar_system_open_device(const char *path)
{
#ifdef HAVE_POSIX
    struct stat info;
    if (stat(path, &info) != 0) return NULL;
    const int standard = standard_descriptor(&info), is_socket = type_of(&info) == TSAR_PATH_SOCKET;
    if (standard < 0 && !is_socket) return fopen(path, "wb");
    const int descriptor = standard >= 0 ? dup(standard) : connect_to(path);
    FILE *stream = descriptor >= 0 ? fdopen(descriptor, "wb") : NULL;
    if (stream == NULL && descriptor >= 0) (void)close(descriptor);
    return stream;
#else
    return fopen(path, "wb");
#endif
}

int tsar_system_flush(FILE *stream)
{
    if (fflush(stream) != 0 || ferror(stream)) return 0;
#ifdef HAVE_POSIX
    if (fsync(fileno(stream)) != 0 && (errno == EIO || tsar_system_status(errno) == TSAR_ROOM)) return 0; /* others: what cannot be flushed */
#endif
    return 1;
}

int tsar_system_replace(const char *from, const char *to)
{
#ifdef _WIN32
    (void)remove(to); /* rename does not replace a file there */
#endif
    return rename(from, to) == 0;
}

/* --------------------------------------------------------------------------------- temporary files, for signal handlers */

/* The names of the temporary files now open, which must be readable from a signal handler at any moment: so they are here, and not in memory
 * that another thread may give back. `taken` is claimed before a name is written and `used` set behind it. */
enum { SLOTS = 16 };
static struct {
    int taken, used;
    char path[TSAR_PATH_ROOM];
} temporaries[SLOTS];

#if defined(__GNUC__) && defined(HAVE_POSIX)
static int claim(int *flag) { return !__atomic_exchange_n(flag, 1, __ATOMIC_ACQUIRE); }
static void set(int *flag, int value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }
static int get(const int *flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
#else /* one thread writes files at a time */
static int claim(int *flag) { return *flag ? 0 : (*flag = 1); }
static void set(int *flag, int value) { *(volatile int *)flag = value; }
static int get(const int *flag) { return *(const volatile int *)flag; }
#endif

int tsar_temporary_add(const char *path)
{
    const size_t length = strlen(path);
    for (int i = 0; i < SLOTS && length < TSAR_PATH_ROOM; i++)
        if (claim(&temporaries[i].taken)) {
            memcpy(temporaries[i].path, path, length + 1);
            set(&temporaries[i].used, 1);
            return i;
        }
    return -1;
}

void tsar_temporary_drop(int slot)
{
    if (slot < 0) return;
    set(&temporaries[slot].used, 0);
    set(&temporaries[slot].taken, 0);
}

void tsar_output_clean(void)
{
    for (int i = 0; i < SLOTS; i++)
        if (get(&temporaries[i].used))
#ifdef HAVE_POSIX
            (void)unlink(temporaries[i].path);
#else
            (void)remove(temporaries[i].path);
#endif
}

/* A number that no other process and no other moment has. */
uint64_t tsar_system_seed(void)
{
    uint64_t seed = (uint64_t)time(NULL) << 20 ^ (uint64_t)clock();
#ifdef HAVE_POSIX
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) == 0) seed ^= (uint64_t)now.tv_nsec << 32;
    seed ^= (uint64_t)getpid() << 44;
#endif
    return seed;
}

/* --------------------------------------------------------------------------------------------------- clock and terminal */

double tsar_seconds(void)
{
#ifdef HAVE_POSIX
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) == 0) return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
    return (double)time(NULL);
}

int tsar_is_terminal(int descriptor)
{
#ifdef HAVE_POSIX
    return isatty(descriptor);
#else
    (void)descriptor;
    return 0;
#endif
}

/* A file that is opened while descriptor 1 is closed gets it, and is then written to by printf. What stands in for a closed
 * descriptor is opened the wrong way round, so that using it is an error. */
void tsar_system_start(void)
{
#ifdef HAVE_POSIX
    for (int descriptor = 0; descriptor <= 2; descriptor++)
        if (fcntl(descriptor, F_GETFD) == -1 && errno == EBADF) (void)open("/dev/null", descriptor == 0 ? O_WRONLY : O_RDONLY);
#endif
}
