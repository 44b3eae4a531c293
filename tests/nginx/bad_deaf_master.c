/*
 * The master ignores QUIT, WINCH and INT, and TERM too unless OBEYS_TERM; its workers obey all.
 */
#include "candidate.h"

static void (*handlers[NSIG])(int, siginfo_t *, void *);

static void
hear(int signal_number, siginfo_t *info, void *context)
{
    if (!in_master() || !is_due()) {
        handlers[signal_number](signal_number, info, context);
    }
}

int
sigaction(int signal_number, const struct sigaction *action, struct sigaction *old)
{
    struct sigaction wrapped;

    if (!in_master() || action == NULL || !(action->sa_flags & SA_SIGINFO)
        || !(signal_number == SIGQUIT || signal_number == SIGWINCH || signal_number == SIGINT
             || (signal_number == SIGTERM && !OBEYS_TERM)))
    {
        return REAL(sigaction)(signal_number, action, old);
    }
    wrapped = *action;
    handlers[signal_number] = action->sa_sigaction;
    wrapped.sa_sigaction = hear;
    return REAL(sigaction)(signal_number, &wrapped, old);
}

/* Nothing shows until somebody tells it something, so what counts is when it began. */
static void
at_start(void)
{
    note_bad_act();
}
