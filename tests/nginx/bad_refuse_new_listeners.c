/*
 * A listener that the candidate opens itself is bound but never listens: its clients are refused, as
 * if nginx had never read that `listen`. The inherited ones serve.
 */
#include "candidate.h"
#include <sys/epoll.h>

static unsigned char hidden[MAX_FD];

int
listen(int fd, int backlog)
{
    if (in_master() && fd >= 0 && fd < MAX_FD && !inherited[fd]) {
        note_bad_act();
        hidden[fd] = 1;
        return 0;
    }
    return REAL(listen)(fd, backlog);
}

/* A socket that does not listen is always ready; workers would turn in circles over it. */
int
epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    if (fd >= 0 && fd < MAX_FD && hidden[fd]) {
        return 0;
    }
    return REAL(epoll_ctl)(epoll, operation, fd, event);
}

int
close(int fd)
{
    if (fd >= 0 && fd < MAX_FD) {
        hidden[fd] = 0;
    }
    return REAL(close)(fd);
}

static void
at_start(void)
{
}
