/*
 * The listeners that WHERE means are open, but no worker ever accepts from them: their clients connect
 * and get no answer. The workers obey all signals. With LOOPBACK only those on 127.0.0.LOOPBACK.
 */
#include "loopback.h"
#include <sys/epoll.h>

static int
is_listening(int fd)
{
    int       listening = 0;
    socklen_t size = sizeof(listening);

    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening;
}

static int
is_bound_as_meant(int fd)
{
    struct sockaddr_storage address;
    socklen_t               size = sizeof(address);

    return LOOPBACK == 0
           || (getsockname(fd, (struct sockaddr *)&address, &size) == 0
               && is_loopback((struct sockaddr *)&address, LOOPBACK));
}

int
epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    if (in_worker() && is_listening(fd) && is_meant(fd) && is_bound_as_meant(fd)) {
        note_bad_act();
        return 0;
    }
    return REAL(epoll_ctl)(epoll, operation, fd, event);
}

static void
at_start(void)
{
}
