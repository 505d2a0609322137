/* What tsar takes from the operating system beyond C99, all of it in this file, and what stands in its place where there is none of it:
 *
 *     function                 for                                     POSIX                       Windows                   plain C
 *     tsar_path_kind           what a name stands for                  stat                        GetFileAttributes         fopen
 *     tsar_path_identify       which file a name leads to              device and inode            GetFullPathName           the name itself
 *     tsar_path_is_below       whether a file is in a folder           its folders' inodes         GetFullPathName           how the name begins
 *     tsar_path_target         where symbolic links lead               readlink                    the name itself           the name itself
 *     tsar_path_room           bytes that a disk has room for          statvfs, getrlimit          GetDiskFreeSpaceEx        unknown
 *     tsar_memory_room         bytes of memory to be had               Linux: /proc/meminfo        unknown                   unknown
 *     tsar_system_fopen        a file by its name in UTF-8             fopen                       _wfopen                   fopen
 *     tsar_system_seek, _size  files above 2 GiB where long is short   fseeko, ftello              _fseeki64, _ftelli64      fseek in steps, ftell
 *     tsar_system_create       a file that nobody else has             open with O_EXCL            the same                  fopen, once nothing is there
 *     tsar_system_open_device  a device, FIFO, socket, standard output open, connect, dup          fopen                     fopen
 *     tsar_system_flush        bytes that outlive a power failure      fsync                       _commit                   fflush
 *     tsar_system_scratch      a file without a name                   tmpfile                     tmpfile                   tmpfile
 *     tsar_system_replace      a file in the place of another          rename                      MoveFileEx                remove, rename
 *     tsar_temporary_*         which files a signal has to remove      atomic builtins, unlink     plain variables, remove   plain variables, remove
 *     tsar_seconds             a clock that is never set               clock_gettime               QueryPerformanceCounter   time
 *     tsar_processor_seconds   what this process has computed          clock_gettime               GetProcessTimes           clock
 *     tsar_is_terminal         whether a bar can be drawn              isatty                      GetConsoleMode            no
 *     tsar_threads_possible    how many threads can be had             pthread_create (OpenMP)     as many as asked for      as many as asked for
 *     tsar_system_start        descriptors 0 to 2; names in UTF-8      fcntl                       CommandLineToArgvW        nothing
 *
 * WASI has POSIX's clocks and its fseeko, and otherwise counts as plain C. */
#if defined(__unix__) || defined(__APPLE__)
#define HAVE_POSIX
#endif
#if defined(HAVE_POSIX) || defined(__wasi__)
#define HAVE_CLOCKS /* and off_t */
#define _POSIX_C_SOURCE 200809L
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#endif
#include "files.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <time.h>
#ifdef HAVE_POSIX
#include <fcntl.h>
#ifdef _OPENMP
#include <pthread.h>
#endif
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>
#elif defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <sys/stat.h>
#include <windows.h>
#include <shellapi.h>
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

#ifdef _WIN32
enum { WIDE_ROOM = 2048 }; /* of a name; Windows itself takes 260 as a rule */

/* A name as Windows takes it; an empty one, which names no file, if it is no UTF-8 or too long. */
static const wchar_t *widen(wchar_t wide[WIDE_ROOM], const char *path)
{
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, WIDE_ROOM) == 0) wide[0] = 0;
    return wide;
}
#endif

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
#elif defined(_WIN32)
    wchar_t wide[WIDE_ROOM];
    const DWORD bits = GetFileAttributesW(widen(wide, path));
    return bits == INVALID_FILE_ATTRIBUTES ? TSAR_PATH_NOTHING : bits & FILE_ATTRIBUTE_DIRECTORY ? TSAR_PATH_FOLDER : TSAR_PATH_FILE;
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

#if !defined(HAVE_POSIX) || defined(__APPLE__)
static unsigned lower(unsigned letter) { return letter >= 'A' && letter <= 'Z' ? letter + 'a' - 'A' : letter; }
#endif

/* FNV-1a of a name; of what systems that do not tell the case of letters take for one name, the same. Never 0. */
static uint64_t hash_name(const char *name)
{
    uint64_t hash = UINT64_C(0xCBF29CE484222325);
    for (; *name; name++) {
        unsigned byte = (unsigned char)*name;
#if defined(__APPLE__) || defined(_WIN32)
        byte = lower(byte);
#endif
        hash = (hash ^ byte) * UINT64_C(0x100000001B3);
    }
    return hash | 1;
}

#ifdef _WIN32
/* The whole path of a name in UTF-8; "" if it has none. */
static const char *whole_path(char whole[TSAR_PATH_ROOM], const char *path)
{
    wchar_t wide[WIDE_ROOM], full[WIDE_ROOM];
    if (GetFullPathNameW(widen(wide, path), WIDE_ROOM, full, NULL) == 0 || WideCharToMultiByte(CP_UTF8, 0, full, -1, whole, TSAR_PATH_ROOM, NULL, NULL) == 0)
        whole[0] = 0;
    return whole;
}
#endif

int tsar_path_identify(tsar_path_id *id, const char *path)
{
    memset(id, 0, sizeof *id);
#ifdef HAVE_POSIX
    char target[TSAR_PATH_ROOM];
    struct stat info;
    if (stat(path, &info) != 0) { /* its place: a name in a folder */
        if (!tsar_path_target(target, path) || !folder_stat(target, &info)) return 0;
        id->name = hash_name(target + tsar_path_folder(target));
    }
    id->device = (uint64_t)info.st_dev, id->file = (uint64_t)info.st_ino;
    return 1;
#elif defined(_WIN32)
    char whole[TSAR_PATH_ROOM];
    id->name = hash_name(whole_path(whole, path));
    return whole[0] != 0;
#else
    id->name = hash_name(path);
    return *path != 0;
#endif
}

int tsar_path_is_below(const char *path, const char *folder)
{
#ifdef HAVE_POSIX
    enum { DEEP = 100 };
    char at[TSAR_PATH_ROOM];
    struct stat wanted, here, last = { 0 };
    if (stat(folder, &wanted) != 0 || !tsar_path_target(at, path)) return 0;
    size_t length = tsar_path_folder(at);
    if (length == 0) length = (size_t)(strcpy(at, "./") - at) + 2;
    for (int i = 0; i < DEEP; i++, length += 3) { /* upwards to the root, which is its own folder */
        at[length] = 0;
        if (stat(at, &here) != 0 || (i > 0 && here.st_dev == last.st_dev && here.st_ino == last.st_ino)) return 0;
        if (here.st_dev == wanted.st_dev && here.st_ino == wanted.st_ino) return 1;
        last = here;
        if (length + 4 > sizeof at) return 0;
        memcpy(at + length, "../", 4);
    }
    return 0;
#else
    char x[TSAR_PATH_ROOM], y[TSAR_PATH_ROOM];
#ifdef _WIN32
    whole_path(x, path), whole_path(y, folder);
#else
    if (strlen(path) >= sizeof x || strlen(folder) >= sizeof y) return 0;
    strcpy(x, path), strcpy(y, folder);
#endif
    size_t i = 0;
    while (y[i] && lower((unsigned char)x[i]) == lower((unsigned char)y[i])) i++;
    return i > 0 && !y[i] && (x[i] == '/' || x[i] == '\\' || y[i - 1] == '/' || y[i - 1] == '\\');
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
    const uint64_t blocks = (uint64_t)(geteuid() == 0 ? disk.f_bfree : disk.f_bavail), size = disk.f_frsize ? disk.f_frsize : disk.f_bsize;
    *bytes = size != 0 && blocks > UINT64_MAX / size ? UINT64_MAX : blocks * size;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < *bytes) *bytes = limit.rlim_cur;
    return 1;
#elif defined(_WIN32)
    char folder[TSAR_PATH_ROOM];
    wchar_t wide[WIDE_ROOM];
    ULARGE_INTEGER room;
    const size_t length = tsar_path_folder(path);
    if (length >= sizeof folder) return 0;
    memcpy(folder, length ? path : ".", length ? length : 2);
    if (length) folder[length] = 0;
    if (!GetDiskFreeSpaceExW(widen(wide, folder), &room, NULL, NULL)) return 0;
    *bytes = room.QuadPart;
    return 1;
#else
    (void)path, (void)bytes;
    return 0;
#endif
}

/* The line "MemAvailable:   23968920 kB": free, and what caches would give back. */
int tsar_memory_room(uint64_t *bytes)
{
    int known = 0;
#ifdef __linux__
    char line[128];
    FILE *stream = fopen("/proc/meminfo", "r");
    while (stream != NULL && !known && fgets(line, sizeof line, stream) != NULL) {
        const char *at = line + strlen("MemAvailable:");
        if (strncmp(line, "MemAvailable:", strlen("MemAvailable:")) != 0) continue;
        while (*at == ' ') at++;
        for (*bytes = 0; *at >= '0' && *at <= '9' && *bytes < UINT64_MAX / 20480; at++) *bytes = *bytes * 10 + (uint64_t)(*at - '0');
        *bytes *= 1024;
        known = 1;
    }
    if (stream != NULL) fclose(stream);
#else
    (void)bytes;
#endif
    return known;
}

/* -------------------------------------------------------------------------------------------------------------- files */

FILE *tsar_system_fopen(const char *path, const char *mode)
{
#ifdef _WIN32
    wchar_t wide[WIDE_ROOM], wide_mode[8] = { 0 };
    for (size_t i = 0; mode[i] != 0 && i < 7; i++) wide_mode[i] = (wchar_t)mode[i];
    return _wfopen(widen(wide, path), wide_mode);
#else
    return fopen(path, mode);
#endif
}

int tsar_path_is_file(const char *path) { return tsar_path_kind(path) == TSAR_PATH_FILE; }

int tsar_path_is_readable(const char *path)
{
    FILE *stream = tsar_system_fopen(path, "rb");
    if (stream != NULL) (void)fclose(stream);
    return stream != NULL;
}

int tsar_system_seek(FILE *stream, uint64_t offset)
{
#if defined(HAVE_CLOCKS)
    const off_t place = (off_t)offset;
    return place >= 0 && (uint64_t)place == offset && fseeko(stream, place, SEEK_SET) == 0;
#elif defined(_WIN32)
    return offset <= INT64_MAX && _fseeki64(stream, (int64_t)offset, SEEK_SET) == 0;
#else /* a step is a long, and a byte is read at each, so that a false offset ends at the end of the file */
    uint64_t step = offset < (uint64_t)LONG_MAX ? offset : (uint64_t)LONG_MAX;
    if (fseek(stream, (long)step, SEEK_SET) != 0) return 0;
    for (offset -= step; offset > 0; offset -= step) {
        if (getc(stream) == EOF) return 0;
        offset--;
        step = offset < (uint64_t)LONG_MAX ? offset : (uint64_t)LONG_MAX;
        if (step > 0 && fseek(stream, (long)step, SEEK_CUR) != 0) return 0;
    }
    return 1;
#endif
}

int tsar_system_size(FILE *stream, uint64_t *size)
{
    const int at_end = fseek(stream, 0, SEEK_END) == 0;
#if defined(HAVE_CLOCKS)
    const int64_t end = at_end ? (int64_t)ftello(stream) : -1;
#elif defined(_WIN32)
    const int64_t end = at_end ? _ftelli64(stream) : -1;
#else
    const int64_t end = at_end ? ftell(stream) : -1;
#endif
    *size = (uint64_t)end;
    return end >= 0 && end < INT64_MAX && fseek(stream, 0, SEEK_SET) == 0; /* folders end at the largest number */
}

tsar_status tsar_system_open_read(FILE **stream, const char *path, tsar_error *err)
{
    if (tsar_path_kind(path) == TSAR_PATH_FOLDER) return tsar_fail(err, TSAR_INPUT, "cannot open %s: it is a folder (give the name of a file)", path);
    errno = 0;
    *stream = tsar_system_fopen(path, "rb");
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
#elif defined(_WIN32)
    wchar_t wide[WIDE_ROOM];
    (void)old;
    const int descriptor = _wopen(widen(wide, path), _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE);
    return descriptor < 0 ? NULL : _fdopen(descriptor, "wb");
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
#elif defined(_WIN32)
    return _stricmp(path, "NUL") == 0 || _stricmp(path, "CON") == 0;
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
    return tsar_system_fopen(path, "wb");
#endif
}

int tsar_system_flush(FILE *stream)
{
    if (fflush(stream) != 0 || ferror(stream)) return 0;
#ifdef HAVE_POSIX
    if (fsync(fileno(stream)) != 0 && (errno == EIO || tsar_system_status(errno) == TSAR_ROOM)) return 0; /* others: what cannot be flushed */
#elif defined(_WIN32)
    if (_commit(_fileno(stream)) != 0 && (errno == EIO || tsar_system_status(errno) == TSAR_ROOM)) return 0;
#endif
    return 1;
}

int tsar_system_replace(const char *from, const char *to)
{
#ifdef _WIN32
    wchar_t x[WIDE_ROOM], y[WIDE_ROOM];
    if (MoveFileExW(widen(x, from), widen(y, to), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) return 1;
    errno = EACCES;
    return 0;
#else
#ifndef HAVE_POSIX
    (void)remove(to); /* C leaves it to the system whether rename replaces a file */
#endif
    return rename(from, to) == 0;
#endif
}

FILE *tsar_system_scratch(void)
{
#ifdef __wasi__
    return NULL;
#else
    return tmpfile();
#endif
}

/* Safe in a signal handler where there is POSIX. */
void tsar_system_remove(const char *path)
{
#if defined(HAVE_POSIX)
    (void)unlink(path);
#elif defined(_WIN32)
    wchar_t wide[WIDE_ROOM];
    (void)_wremove(widen(wide, path));
#else
    (void)remove(path);
#endif
}

/* --------------------------------------------------------------------------------- temporary files, for signal handlers */

/* The names of the temporary files now open, which must be readable from a signal handler at any moment: so they are here, and not in memory
 * that another thread may give back. `taken` is claimed before a name is written and `used` set behind it. */
enum { TEMPORARIES = 16 };
static struct {
    int taken, used;
    char path[TSAR_PATH_ROOM];
} temporaries[TEMPORARIES];

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
    for (int i = 0; i < TEMPORARIES && length < TSAR_PATH_ROOM; i++)
        if (claim(&temporaries[i].taken)) {
            memcpy(temporaries[i].path, path, length + 1);
            set(&temporaries[i].used, 1);
            return i;
        }
    return -1;
}

void tsar_temporary_drop(int entry)
{
    if (entry < 0) return;
    set(&temporaries[entry].used, 0);
    set(&temporaries[entry].taken, 0);
}

void tsar_output_clean(void)
{
    for (int i = 0; i < TEMPORARIES; i++)
        if (get(&temporaries[i].used)) tsar_system_remove(temporaries[i].path);
}

/* A number that no other process and no other moment has. */
uint64_t tsar_system_seed(void)
{
    uint64_t seed = (uint64_t)time(NULL) << 20;
#if defined(HAVE_CLOCKS)
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) == 0) seed ^= (uint64_t)now.tv_nsec << 32;
#elif defined(_WIN32)
    LARGE_INTEGER ticks;
    if (QueryPerformanceCounter(&ticks)) seed ^= (uint64_t)ticks.QuadPart << 32;
    seed ^= (uint64_t)GetCurrentProcessId() << 44;
#endif
#ifdef HAVE_POSIX
    seed ^= (uint64_t)getpid() << 44;
#endif
    return seed;
}

/* --------------------------------------------------------------------------------------------------- clock and terminal */

double tsar_seconds(void)
{
#if defined(HAVE_CLOCKS)
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) == 0) return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#elif defined(_WIN32)
    LARGE_INTEGER ticks, rate;
    if (QueryPerformanceCounter(&ticks) && QueryPerformanceFrequency(&rate)) return (double)ticks.QuadPart / (double)rate.QuadPart;
#endif
    return (double)time(NULL);
}

double tsar_processor_seconds(void)
{
#if defined(HAVE_POSIX)
    struct timespec now;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now) == 0) return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#elif defined(_WIN32)
    FILETIME start, end, kernel, user; /* in units of 100 ns */
    if (GetProcessTimes(GetCurrentProcess(), &start, &end, &kernel, &user))
        return 1e-7 * ((double)kernel.dwLowDateTime + (double)user.dwLowDateTime + 0x1p32 * ((double)kernel.dwHighDateTime + (double)user.dwHighDateTime));
#endif
#ifdef __wasi__
    return tsar_seconds();
#else
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}

int tsar_is_terminal(int descriptor)
{
#if defined(HAVE_POSIX)
    return isatty(descriptor);
#elif defined(_WIN32) /* a console that understands escape sequences, as from Windows 10 on */
    const HANDLE console = (HANDLE)_get_osfhandle(descriptor);
    DWORD mode;
    return GetConsoleMode(console, &mode) && SetConsoleMode(console, mode | 4 /* ENABLE_VIRTUAL_TERMINAL_PROCESSING */);
#else
    (void)descriptor;
    return 0;
#endif
}

#if defined(HAVE_POSIX) && defined(_OPENMP)
static void *wait_for(void *gate)
{
    (void)pthread_mutex_lock(gate);
    (void)pthread_mutex_unlock(gate);
    return NULL;
}

/* OpenMP's runtime ends the process where it cannot have its threads; so as many are had beforehand, all at the same time. */
size_t tsar_threads_possible(size_t threads)
{
    enum { PROBES = 1024 };
    pthread_t made[PROBES];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    size_t n = 0;
    (void)pthread_mutex_lock(&gate);
    while (n + 1 < threads && n < PROBES && pthread_create(&made[n], NULL, wait_for, &gate) == 0) n++;
    (void)pthread_mutex_unlock(&gate);
    for (size_t i = 0; i < n; i++) (void)pthread_join(made[i], NULL);
    return n + 1;
}
#else
size_t tsar_threads_possible(size_t threads) { return threads; }
#endif

#ifdef _WIN32
/* The command line's arguments in UTF-8, for as long as the program runs; what the C library made of them if memory is out. */
static void take_arguments(int *argc, char ***argv)
{
    int n = 0;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &n);
    char **list = wide != NULL ? tsar_alloc((size_t)n + 1, sizeof *list, "arguments", NULL) : NULL;
    for (int i = 0; i < n && list != NULL; i++) {
        const int length = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
        if ((list[i] = tsar_alloc((size_t)length, 1, "arguments", NULL)) == NULL) return;
        (void)WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, list[i], length, NULL, NULL);
    }
    if (list == NULL) return;
    list[n] = NULL;
    *argc = n;
    *argv = list;
}
#endif

/* A file that is opened while descriptor 1 is closed gets it, and is then written to by printf. What stands in for a closed
 * descriptor is opened the wrong way round, so that using it is an error. */
void tsar_system_start(int *argc, char ***argv)
{
#if defined(_WIN32)
    take_arguments(argc, argv);
    for (int descriptor = 0; descriptor <= 2; descriptor++) (void)_setmode(descriptor, _O_BINARY); /* pictures from standard input */
#else
    (void)argc, (void)argv;
#endif
#ifdef HAVE_POSIX
    for (int descriptor = 0; descriptor <= 2; descriptor++)
        if (fcntl(descriptor, F_GETFD) == -1 && errno == EBADF) (void)open("/dev/null", descriptor == 0 ? O_WRONLY : O_RDONLY);
#endif
}
