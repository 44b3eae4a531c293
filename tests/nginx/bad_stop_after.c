/* The master stops itself (SIGSTOP) after DELAY_MS; its workers go on serving. */
#include "candidate.h"

static void
stop(int signal_number)
{
    (void)signal_number;
    note_bad_act();
    kill(getpid(), SIGSTOP);
}

static void
at_start(void)
{
    call_after(DELAY_MS, 0, stop);
}
