/*
 * Loaded into the supervisor by LD_PRELOAD: while the file FULL_DISK_FLAG exists, nothing more fits
 * into the folder FULL_DISK. A small file system would need the right to mount one.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_full(int fd)
{
    char link[64], path[4096];
    const char *folder = getenv("FULL_DISK"), *flag = getenv("FULL_DISK_FLAG");
    ssize_t length;

    if (folder == NULL || flag == NULL || access(flag, F_OK) != 0) {
        return 0;
    }
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof(path) - 1);
    if (length < 0) {
        return 0;
    }
    path[length] = '\0';
    return strncmp(path, folder, strlen(folder)) == 0;
}

#define FULL(fd) \
    if (is_full(fd)) { \
        errno = ENOSPC; \
        return -1; \
    }

ssize_t write(int fd, const void *data, size_t size)
{
    static ssize_t (*real)(int, const void *, size_t);

    FULL(fd)
    if (real == NULL) {
        *(void **) &real = dlsym(RTLD_NEXT, "write");
    }
    return real(fd, data, size);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags)
{
    static ssize_t (*real)(int, off64_t *, int, off64_t *, size_t, unsigned);

    FULL(out)
    if (real == NULL) {
        *(void **) &real = dlsym(RTLD_NEXT, "copy_file_range");
    }
    return real(in, from, out, to, size, flags);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size)
{
    static ssize_t (*real)(int, int, off_t *, size_t);

    FULL(out)
    if (real == NULL) {
        *(void **) &real = dlsym(RTLD_NEXT, "sendfile");
    }
    return real(out, in, offset, size);
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t size)
{
    return sendfile(out, in, offset, size);
}
