/*
 * From DELAY_MS after the master started, one worker after the other ends with CODE, EVERY_MS apart,
 * though nobody told it to; the master starts another each time.
 */
#include "workers.h"

static long *turn; /* shared by all workers: how many have left */

static void
leave(int signal_number)
{
    struct timespec now;
    long            ms, left = *turn;

    (void)signal_number;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ms = (now.tv_sec - started.tv_sec) * 1000 + (now.tv_nsec - started.tv_nsec) / 1000000;
    if (ms >= DELAY_MS + left * EVERY_MS && __sync_bool_compare_and_swap(turn, left, left + 1)) {
        note_bad_act();
        _exit(CODE);
    }
}

static void
in_new_worker(void)
{
    if (serves()) {
        call_after(20, 20, leave);
    }
}

static void
at_start(void)
{
    turn = mmap(NULL, sizeof(*turn), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (turn == MAP_FAILED) {
        abort();
    }
}
