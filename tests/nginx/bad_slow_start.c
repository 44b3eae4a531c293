/* Takes DELAY_MS before it starts, then all is well. */
#include "candidate.h"

static void
at_start(void)
{
    wait_ms(DELAY_MS);
}
