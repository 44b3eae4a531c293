/* Each worker grows by MB_PER_SECOND, from DELAY_MS after it started until LIMIT_MB. */
#include "workers.h"

#define TENTH ((size_t)(MB_PER_SECOND) * 1024 * 1024 / 10)

static void
grow(int signal_number)
{
    static size_t grown;
    char         *memory;

    (void)signal_number;
    note_bad_act();
    if (grown >= (size_t)(LIMIT_MB) * 1024 * 1024) {
        return;
    }
    memory = mmap(NULL, TENTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) {
        memset(memory, 1, TENTH);
        grown += TENTH;
    }
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
