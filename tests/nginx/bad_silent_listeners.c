/*
 * The listeners that WHERE means are open, but no worker ever accepts from them: their clients connect
 * and get no answer. The workers obey all signals.
 */
#include "candidate.h"
#include <sys/epoll.h>

static int
is_listening(int fd)
{
    int       listening = 0;
    socklen_t size = sizeof(listening);

    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening;
}

int
epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    if (in_worker() && is_listening(fd) && is_meant(fd)) {
        return 0;
    }
    return REAL(epoll_ctl)(epoll, operation, fd, event);
}

static void
at_start(void)
{
}
