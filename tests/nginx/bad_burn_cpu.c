/*
 * A thread in one worker spins, from DELAY_MS after the master started: the worker answers on, and
 * uses a whole CPU. It begins in the first worker, and in no other when that one is gone.
 */
#include "workers.h"
#include "one.h"
#include <pthread.h>

static void *
burn(void *nothing)
{
    while (!is_due()) {
        wait_ms(10);
    }
    note_bad_act();
    for (;;) {
        __asm__ volatile("");
    }
    return nothing;
}

static void
in_new_worker(void)
{
    pthread_t thread;
    sigset_t  all, before;

    if (!serves() || !is_the_one()) {
        return;
    }
    /* The thread takes none of nginx's signals. Not by sigprocmask(), which is ours. */
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before) != 0
        || pthread_create(&thread, NULL, burn, NULL) != 0
        || pthread_sigmask(SIG_SETMASK, &before, NULL) != 0)
    {
        abort();
    }
}

static void
at_start(void)
{
}
