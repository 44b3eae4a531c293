/*
 * One worker, the first that is busy from DELAY_MS on, does not come back to its loop any more: its
 * connections hang, and only SIGKILL ends it. The others are well, and so is its successor.
 */
#include "candidate.h"
#include "one.h"
#include <sys/epoll.h>

static void
hang_if_due(void)
{
    while (in_worker() && serves() && is_due() && is_the_one()) {
        note_bad_act();
        pause();
    }
}

int
epoll_wait(int epoll, struct epoll_event *events, int size, int timeout)
{
    int ready = REAL(epoll_wait)(epoll, events, size, timeout);

    /* Room for one event: nginx only tries what epoll can do (ngx_epoll_test_rdhup). */
    if (size > 1 && ready > 0) {
        hang_if_due();
    }
    return ready;
}

static void
at_start(void)
{
}
