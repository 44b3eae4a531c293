/*
 * Hangs before its pid file. The old master had most signals blocked when it started this one, so
 * only SIGKILL reaches it.
 */
#include "candidate.h"

static void
at_start(void)
{
    note_bad_act();
    for (;;) {
        pause();
    }
}
