/*
 * After DELAY_MS the master never comes back to its loop: its handlers run, and log the signals that
 * arrive, but nothing acts on them. It naps as it spins, to leave the processor to the tests, unless
 * BURNS: then it uses a whole CPU.
 */
#include "candidate.h"

static void
spin(int signal_number)
{
    (void)signal_number;
    note_bad_act();
    for (;;) {
        if (!BURNS) {
            wait_ms(1);
        }
    }
}

static void
at_start(void)
{
    call_after(DELAY_MS, 0, spin);
}
