/* Each worker grows by MB_PER_SECOND, from DELAY_MS after it started until LIMIT_MB. */
#include "workers.h"

#define TENTH ((size_t)(MB_PER_SECOND) * 1024 * 1024 / 10)

static void
grow(int signal_number)
{
    static size_t grown;
    static int    growing;

    (void)signal_number;
    /* On a busy machine the pages may take longer than to the next time: it has to answer as well. */
    if (growing || grown >= (size_t)(LIMIT_MB) * 1024 * 1024) {
        return;
    }
    note_bad_act();
    growing = 1;
    if (mmap(NULL, TENTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)
        != MAP_FAILED)
    {
        grown += TENTH;
    }
    growing = 0;
}

static void
in_new_worker(void)
{
    if (!serves()) {
        return;
    }
    call_after(DELAY_MS, 100, grow);
}

static void
at_start(void)
{
}
