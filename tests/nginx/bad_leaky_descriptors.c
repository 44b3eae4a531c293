/* Each worker opens PER_SECOND descriptors, from DELAY_MS after it started until LIMIT of them. */
#include "workers.h"
#include <fcntl.h>

#define TENTH ((PER_SECOND) / 10 > 0 ? (PER_SECOND) / 10 : 1)

static void
leak(int signal_number)
{
    static int opened;
    int        i;

    (void)signal_number;
    note_bad_act();
    for (i = 0; i < TENTH && opened < LIMIT; i++) {
        if (open("/dev/null", O_RDONLY | O_CLOEXEC) == -1) {
            return;
        }
        opened++;
    }
}

static void
in_new_worker(void)
{
    if (!serves()) {
        return;
    }
    call_after(DELAY_MS, 100, leak);
}

static void
at_start(void)
{
}
