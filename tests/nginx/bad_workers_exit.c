/* Each worker exits with CODE, DELAY_MS after it started; the master starts another, for ever. */
#include "workers.h"

static void
leave(int signal_number)
{
    (void)signal_number;
    note_bad_act();
    _exit(CODE);
}

static void
in_new_worker(void)
{
    if (!serves()) {
        return;
    }
    call_after(DELAY_MS, 0, leave);
}

static void
at_start(void)
{
}
