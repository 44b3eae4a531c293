/* From DELAY_MS on no worker comes back from epoll_wait(): clients wait, and only SIGKILL ends it.
   With a delay it hangs in its loop alone: its initialisation tries epoll_wait() with room for one
   event (ngx_epoll_test_rdhup), which on a busy machine comes after the delay. */
#include "candidate.h"
#include <sys/epoll.h>

static void
hang_if_due(void)
{
    while (in_worker() && is_due()) {
        note_bad_act();
        pause();
    }
}

int
epoll_wait(int epoll, struct epoll_event *events, int size, int timeout)
{
    int ready;

    if (DELAY_MS > 0 && size == 1) {
        return REAL(epoll_wait)(epoll, events, size, timeout);
    }
    hang_if_due();
    ready = REAL(epoll_wait)(epoll, events, size, timeout);
    hang_if_due();
    return ready;
}

static void
at_start(void)
{
}
