/* Each worker exits with code 2 in its start: the master logs "fatal code 2", and lives on without any. */
#include "workers.h"

static void
in_new_worker(void)
{
    note_bad_act();
    _exit(2);
}

static void
at_start(void)
{
}
