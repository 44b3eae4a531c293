/* No connection to 127.0.0.LOOPBACK comes about: what nginx passes on to a backend there is 502. */
#include "loopback.h"

int
connect(int fd, const struct sockaddr *address, socklen_t size)
{
    if (in_worker() && is_due() && is_loopback(address, LOOPBACK)) {
        note_bad_act();
        errno = ECONNREFUSED;
        return -1;
    }
    return REAL(connect)(fd, address, size);
}

static void
at_start(void)
{
}
