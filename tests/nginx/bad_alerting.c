/* Each worker serves well, and writes an [alert] line to the error log DELAY_MS after it started. */
#include "workers.h"
#include <stdio.h>

static void
complain(int signal_number)
{
    char       when[32];
    struct tm  local;
    time_t     now = time(NULL);

    (void)signal_number;
    note_bad_act();
    localtime_r(&now, &local);
    strftime(when, sizeof(when), "%Y/%m/%d %H:%M:%S", &local);
    /* A daemon's standard error is its error log. */
    dprintf(STDERR_FILENO, "%s [alert] %d#%d: bad candidate: something is wrong here\n", when,
            (int)getpid(), (int)getpid());
}

static void
in_new_worker(void)
{
    if (!serves()) {
        return;
    }
    call_after(DELAY_MS, 0, complain);
}

static void
at_start(void)
{
}
