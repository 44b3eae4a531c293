/* Workers reset each connection to the listeners that WHERE means, from DELAY_MS on. */
#include "candidate.h"

static int
reset_if_meant(int listener, int fd)
{
    struct linger at_once = { 1, 0 };

    if (fd < 0 || !in_worker() || !is_meant(listener) || !is_due()) {
        return fd;
    }
    note_bad_act();
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(fd);
    errno = ECONNABORTED;
    return -1;
}

int
accept4(int listener, struct sockaddr *address, socklen_t *size, int flags)
{
    return reset_if_meant(listener, REAL(accept4)(listener, address, size, flags));
}

int
accept(int listener, struct sockaddr *address, socklen_t *size)
{
    return reset_if_meant(listener, REAL(accept)(listener, address, size));
}

static void
at_start(void)
{
}
