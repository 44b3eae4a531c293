/* The first worker dies by SIGNAL, DELAY_MS after it started; its successor and the others are well. */
#include "crash.h"

static int *taken; /* shared by all workers */

static void
in_new_worker(void)
{
    if (serves() && __sync_bool_compare_and_swap(taken, 0, 1)) {
        call_after(DELAY_MS, 0, crash);
    }
}

static void
at_start(void)
{
    taken = mmap(NULL, sizeof(*taken), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (taken == MAP_FAILED) {
        abort();
    }
}
