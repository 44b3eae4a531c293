/* Takes DELAY_MS before it starts, then all is well. */
#include "candidate.h"

static void
at_start(void)
{
    note_bad_act();
    wait_ms(DELAY_MS);
}
