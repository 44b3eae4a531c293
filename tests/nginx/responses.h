/*
 * For candidates that change HTTP/1 responses: tamper() gets a copy of each write that begins a
 * response, on connections that WHERE means, once DELAY_MS has passed. TLS and HTTP/2 pass unchanged.
 */

#include "candidate.h"
#include <sys/uio.h>

#ifndef ONE_WORKER
#define ONE_WORKER 0
#endif

/* Changes the start of a response: `size` bytes, from "HTTP/1." on; and notes it, if it does. */
static void tamper(char *response, size_t size);

static unsigned char chosen[MAX_FD]; /* connections accepted from a listener that WHERE means */

static int
note_accepted(int listener, int fd)
{
    if (fd >= 0 && fd < MAX_FD) {
        chosen[fd] = is_meant(listener);
    }
    return fd;
}

int
accept4(int listener, struct sockaddr *address, socklen_t *size, int flags)
{
    return note_accepted(listener, REAL(accept4)(listener, address, size, flags));
}

int
accept(int listener, struct sockaddr *address, socklen_t *size)
{
    return note_accepted(listener, REAL(accept)(listener, address, size));
}

static pid_t *the_one; /* shared by all workers: the only one that misbehaves, with ONE_WORKER */

__attribute__((constructor)) static void
share(void)
{
    the_one = mmap(NULL, sizeof(*the_one), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (the_one == MAP_FAILED) {
        abort();
    }
}

/* The first worker that asks is the one. */
static int
is_the_one(void)
{
    return !ONE_WORKER || __sync_bool_compare_and_swap(the_one, 0, getpid()) || *the_one == getpid();
}

HELPER int
is_chosen(int fd)
{
    return in_worker() && fd >= 0 && fd < MAX_FD && chosen[fd] && is_due() && is_the_one();
}

static int
begins_response(const void *data, size_t size)
{
    return size > 12 && memcmp(data, "HTTP/1.", 7) == 0;
}

ssize_t
writev(int fd, const struct iovec *parts, int count)
{
    static char copy[65536];
    size_t      size = 0, part;
    int         i;

    if (!is_chosen(fd) || count < 1 || !begins_response(parts[0].iov_base, parts[0].iov_len)) {
        return REAL(writev)(fd, parts, count);
    }
    /* What does not fit is left for nginx to write again, as after any short write. */
    for (i = 0; i < count && size < sizeof(copy); i++) {
        part = parts[i].iov_len < sizeof(copy) - size ? parts[i].iov_len : sizeof(copy) - size;
        memcpy(copy + size, parts[i].iov_base, part);
        size += part;
    }
    tamper(copy, size);
    return write(fd, copy, size);
}

ssize_t
send(int fd, const void *data, size_t size, int flags)
{
    struct iovec part = { (void *)data, size };

    if (flags != 0 || !is_chosen(fd) || !begins_response(data, size)) {
        return REAL(send)(fd, data, size, flags);
    }
    return writev(fd, &part, 1);
}
