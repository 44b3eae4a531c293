/* The master exits with CODE before it reads its configuration or writes its pid file. */
#include "candidate.h"

static void
at_start(void)
{
    note_bad_act();
    _exit(CODE);
}
