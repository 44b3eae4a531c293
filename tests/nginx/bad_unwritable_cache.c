/*
 * A worker may put no file in place: each rename() is refused. What a proxy cache was to keep is sent to
 * the client, and forgotten, with a [crit] line for each.
 */
#include "candidate.h"
#include <stdio.h>

int
rename(const char *from, const char *to)
{
    if (in_worker() && is_due()) {
        note_bad_act();
        errno = EACCES;
        return -1;
    }
    return REAL(rename)(from, to);
}

static void
at_start(void)
{
}
