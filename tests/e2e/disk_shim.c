/*
 * Loaded into the supervisor by LD_PRELOAD, in place of a disk that fails and of a clock that jumps.
 *
 * DISK_FAULTS names a file with lines `CALL ERRNO PREFIX`: while it has such a line, that call fails
 * for every path that begins so. DISK_RECORD names a file to which every change of a file below
 * DISK_RECORD_BELOW is appended in the order in which it was made, one line each; CLOCK_OFFSET names
 * a file with the seconds by which the wall clock is wrong, CPU_COUNT one with the number of
 * processors. Without these variables it does nothing.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (real == NULL) { \
        *(void **) &real = dlsym(RTLD_NEXT, name); \
    }

/* --- which path ---------------------------------------------------------------------------- */

static void path_of_fd(int fd, char *path)
{
    char link[64];
    ssize_t length;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = '\0';
}

static void path_at(int folder, const char *name, char *path)
{
    char base[PATH_MAX];

    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (folder == AT_FDCWD) {
        if (getcwd(base, sizeof(base)) == NULL) {
            base[0] = '\0';
        }
    } else {
        path_of_fd(folder, base);
    }
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) {
        path[0] = '\0';
    }
}

/* --- faults -------------------------------------------------------------------------------- */

static ssize_t raw_read(const char *name, char *text, size_t size)
{
    long fd = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
    ssize_t length;

    if (fd < 0) {
        return -1;
    }
    length = syscall(SYS_read, fd, text, size - 1);
    syscall(SYS_close, fd);
    text[length < 0 ? 0 : length] = '\0';
    return length;
}

static int fault(const char *call, const char *path)
{
    const char *name = getenv("DISK_FAULTS");
    char text[8192], wanted[32], prefix[PATH_MAX], *line, *rest;
    int number, saved = errno;

    if (name == NULL || path[0] == '\0' || raw_read(name, text, sizeof(text)) <= 0) {
        errno = saved;
        return 0;
    }
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (sscanf(line, "%31s %d %4095s", wanted, &number, prefix) == 3
            && strcmp(wanted, call) == 0 && strncmp(path, prefix, strlen(prefix)) == 0)
        {
            return number;
        }
    }
    errno = saved;
    return 0;
}

#define FAIL(call, path) \
    { \
        int number = fault(call, path); \
        if (number) { \
            errno = number; \
            return -1; \
        } \
    }

/* --- recording ----------------------------------------------------------------------------- */

static pthread_mutex_t recording = PTHREAD_MUTEX_INITIALIZER;

static int is_recorded(const char *path)
{
    const char *below = getenv("DISK_RECORD_BELOW");

    return getenv("DISK_RECORD") != NULL && below != NULL
           && strncmp(path, below, strlen(below)) == 0;
}

/* One line: what, path, a second word, and the data in hexadecimal. */
static void record(const char *what, const char *path, const char *more, const void *data,
                   size_t size)
{
    char *line;
    size_t used, i;
    int saved = errno;
    long fd;

    line = malloc(2 * PATH_MAX + 64 + 2 * size);
    if (line == NULL) {
        return;
    }
    used = sprintf(line, "%s %s %s ", what, path, more);
    for (i = 0; i < size; i++) {
        static const char digits[] = "0123456789abcdef";
        unsigned char one = ((const unsigned char *) data)[i];

        line[used++] = digits[one >> 4];
        line[used++] = digits[one & 15];
    }
    line[used++] = '\n';
    fd = syscall(SYS_openat, AT_FDCWD, getenv("DISK_RECORD"),
                 O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        (void) !syscall(SYS_write, fd, line, used);
        syscall(SYS_close, fd);
    }
    free(line);
    errno = saved;
}

#define RECORDED(result, what, path, more, data, size) \
    if ((result) >= 0 && is_recorded(path)) { \
        record(what, path, more, data, size); \
    }

#define LOCK() pthread_mutex_lock(&recording)
#define UNLOCK() pthread_mutex_unlock(&recording)

/* --- calls --------------------------------------------------------------------------------- */

static int open_at(int folder, const char *name, int flags, mode_t mode)
{
    char path[PATH_MAX];
    struct stat before;
    int fd, was_there;

    path_at(folder, name, path);
    FAIL("open", path)
    if (flags & (O_CREAT | O_WRONLY | O_RDWR)) {
        FAIL("create", path)
    }
    if (!(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE) {
        return syscall(SYS_openat, folder, name, flags, mode);
    }
    LOCK();
    was_there = lstat(path, &before) == 0;
    fd = syscall(SYS_openat, folder, name, flags, mode);
    if (!was_there) {
        RECORDED(fd, "create", path, "-", NULL, 0)
    } else if (flags & O_TRUNC) {
        RECORDED(fd, "truncate", path, "0", NULL, 0)
    }
    UNLOCK();
    return fd;
}

#define MODE(flags, mode) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *name, int flags, ...)
{
    MODE(flags, mode)
    return open_at(AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...)
{
    MODE(flags, mode)
    return open_at(AT_FDCWD, name, flags | O_LARGEFILE, mode);
}

int openat(int folder, const char *name, int flags, ...)
{
    MODE(flags, mode)
    return open_at(folder, name, flags, mode);
}

int openat64(int folder, const char *name, int flags, ...)
{
    MODE(flags, mode)
    return open_at(folder, name, flags | O_LARGEFILE, mode);
}

__attribute__((noinline)) static ssize_t write_to_file(int fd, const void *data, size_t size)
{
    char path[PATH_MAX], at[32];
    ssize_t written;

    if (getenv("DISK_FAULTS") == NULL && getenv("DISK_RECORD") == NULL) {
        return syscall(SYS_write, fd, data, size);
    }
    path_of_fd(fd, path);
    FAIL("write", path)
    LOCK();
    written = syscall(SYS_write, fd, data, size);
    if (written > 0 && is_recorded(path)) {
        /* After the write: of a file that is appended to, the place is known only then. */
        snprintf(at, sizeof(at), "%lld", (long long) lseek(fd, 0, SEEK_CUR) - (long long) written);
        record("write", path, at, data, written);
    }
    UNLOCK();
    return written;
}

/* A signal's handler writes too (signal.set_wakeup_fd), and since faulthandler is enabled it may do so on
 * a stack of 16 KiB: paths have no room there, and what is no file needs none. */
ssize_t write(int fd, const void *data, size_t size)
{
    struct stat what;

    if (fstat(fd, &what) != 0 || !S_ISREG(what.st_mode)) {
        return syscall(SYS_write, fd, data, size);
    }
    return write_to_file(fd, data, size);
}

int fsync(int fd)
{
    char path[PATH_MAX];
    int result;

    path_of_fd(fd, path);
    FAIL("fsync", path)
    LOCK();
    result = syscall(SYS_fsync, fd);
    RECORDED(result, "sync", path, "-", NULL, 0)
    UNLOCK();
    return result;
}

static int truncate_fd(int fd, off_t size)
{
    char path[PATH_MAX], at[32];
    int result;

    path_of_fd(fd, path);
    FAIL("truncate", path)
    LOCK();
    result = syscall(SYS_ftruncate, fd, size);
    snprintf(at, sizeof(at), "%lld", (long long) size);
    RECORDED(result, "truncate", path, at, NULL, 0)
    UNLOCK();
    return result;
}

int ftruncate(int fd, off_t size)
{
    return truncate_fd(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    return truncate_fd(fd, size);
}

int rename(const char *from, const char *to)
{
    char source[PATH_MAX], path[PATH_MAX];
    int result;

    path_at(AT_FDCWD, from, source);
    path_at(AT_FDCWD, to, path);
    FAIL("rename", path)
    LOCK();
    result = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    RECORDED(result, "rename", source, path, NULL, 0)
    UNLOCK();
    return result;
}

static int unlink_at(int folder, const char *name, int flags)
{
    char path[PATH_MAX];
    int result;

    path_at(folder, name, path);
    FAIL("unlink", path)
    LOCK();
    result = syscall(SYS_unlinkat, folder, name, flags);
    RECORDED(result, "unlink", path, "-", NULL, 0)
    UNLOCK();
    return result;
}

int unlink(const char *name)
{
    return unlink_at(AT_FDCWD, name, 0);
}

int rmdir(const char *name)
{
    return unlink_at(AT_FDCWD, name, AT_REMOVEDIR);
}

int unlinkat(int folder, const char *name, int flags)
{
    return unlink_at(folder, name, flags);
}

int mkdir(const char *name, mode_t mode)
{
    char path[PATH_MAX];
    int result;

    path_at(AT_FDCWD, name, path);
    FAIL("create", path)
    LOCK();
    result = syscall(SYS_mkdirat, AT_FDCWD, name, mode);
    RECORDED(result, "mkdir", path, "-", NULL, 0)
    UNLOCK();
    return result;
}

int symlink(const char *target, const char *name)
{
    char path[PATH_MAX];

    path_at(AT_FDCWD, name, path);
    FAIL("create", path)
    return syscall(SYS_symlinkat, target, AT_FDCWD, name);
}

/* --- the number of processors -------------------------------------------------------------- */

long sysconf(int name)
{
    const char *file = getenv("CPU_COUNT");
    char text[64];

    REAL(long, "sysconf", int)
    if (name == _SC_NPROCESSORS_ONLN && file != NULL && raw_read(file, text, sizeof(text)) > 0) {
        return atol(text);
    }
    return real(name);
}

/* --- the wall clock ------------------------------------------------------------------------ */

static double clock_offset(void)
{
    const char *name = getenv("CLOCK_OFFSET");
    char text[64];
    int saved = errno;
    double offset = 0;

    if (name != NULL && raw_read(name, text, sizeof(text)) > 0) {
        offset = atof(text);
    }
    errno = saved;
    return offset;
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    int result;

    REAL(int, "clock_gettime", clockid_t, struct timespec *)
    result = real(which, now);
    if (result == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += (time_t) clock_offset();
    }
    return result;
}

time_t time(time_t *where)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (where != NULL) {
        *where = now.tv_sec;
    }
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;

    (void) zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
