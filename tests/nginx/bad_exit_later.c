/* The master exits with CODE after DELAY_MS; its workers stay behind as orphans that go on accepting. */
#include "candidate.h"

static void
leave(int signal_number)
{
    (void)signal_number;
    note_bad_act();
    _exit(CODE);
}

static void
at_start(void)
{
    call_after(DELAY_MS, 0, leave);
}
