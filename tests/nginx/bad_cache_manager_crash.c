/*
 * The cache manager dies by SIGNAL, from DELAY_MS after the master started and EVERY_MS after each
 * start of its own, again and again. Workers and the cache loader are well. Without a cache in the
 * configuration nginx has no such process, and nothing happens.
 */
#include "crash.h"
#include <fcntl.h>

/* The title, which is set after the initialisation, alone tells the manager from the loader. */
static int
is_cache_manager(void)
{
    char    title[256] = "";
    ssize_t size = 0;
    int     file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);

    if (file != -1) {
        size = read(file, title, sizeof(title) - 1);
        close(file);
    }
    return size > 0 && strstr(title, "cache manager") != NULL;
}

static void
crash_if_due(int signal_number)
{
    if (is_due() && is_cache_manager()) {
        crash(signal_number);
    }
}

static void
in_new_worker(void)
{
    if (!serves()) {
        call_after(EVERY_MS, EVERY_MS, crash_if_due);
    }
}

static void
at_start(void)
{
}
