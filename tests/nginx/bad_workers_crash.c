/* Each worker dies by SIGNAL, DELAY_MS after it started; the master starts another, for ever. */
#include "crash.h"

static void
in_new_worker(void)
{
    call_after(DELAY_MS, 0, crash);
}

static void
at_start(void)
{
}
