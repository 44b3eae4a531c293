"""The first lines of `nginx-supervisor`: signals wait until somebody handles them.

The kernel throws away what is sent to PID 1 of a container as long as there is no handler for it
(SIGNAL_UNKILLABLE, kernel/signal.c), and loading the supervisor takes some tenths of a second: a
`docker stop` in that time would be lost, and answered by SIGKILL ten seconds later. What is blocked
is kept, and heard when the handlers are set (`handover.let_signals_come`). So this module loads
nothing else before. Who must not lose one in the interpreter's own first milliseconds either has
the program started by `env --block-signal=TERM,...` (docs/containers.md).

Any other process is ended by such a signal, as everybody expects who presses Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

_WAIT = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """See `supervisor.daemon.main`."""
    if os.getpid() == 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAIT)
    from supervisor.daemon import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
