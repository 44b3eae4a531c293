/*
 * For candidates whose workers go wrong: in_new_worker() is called in each worker (and cache process)
 * at the end of ngx_worker_process_init(), after setuid() and before the title is set.
 */

#include "candidate.h"

static void in_new_worker(void);

/* Only there, and only in workers, does nginx replace the whole mask. */
int
sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
    int result = REAL(sigprocmask)(how, set, old);

    if (in_worker() && how == SIG_SETMASK) {
        in_new_worker();
    }
    return result;
}
