"""One process, held by a pidfd: it can be signalled and awaited without its pid being reused."""

from __future__ import annotations

import os
import signal
import time

import trio

from supervisor.edges import linux, procfs
from supervisor.edges.descriptors import RESERVE


class Process:
    """A living process at the time of `open`; whoever opened it closes it.

    The pidfd, not the pid, is what everything goes through (pidfd_open(2)): a signal to a process
    that is gone goes nowhere, whatever pid the kernel has given away meanwhile.
    """

    def __init__(self, pid: int, pidfd: int, start: int) -> None:
        self.pid = pid
        self.start = start
        self._pidfd = pidfd

    @classmethod
    def open(cls, pid: int, start: int | None = None) -> Process | None:
        """Hold `pid`; None where it is gone, dead, or (with `start`) another process by now."""
        pidfd = linux.open_pidfd(pid)
        if pidfd is None:
            return None
        # Read after the pidfd was opened: the two then speak of the same process.
        stat = procfs.read_stat(pid)
        if stat is None or not stat.alive or (start is not None and stat.start != start):
            os.close(pidfd)
            return None
        return cls(pid, pidfd, stat.start)

    @classmethod
    def gone(cls, pid: int, start: int) -> Process:
        """One that is known to be dead: nothing is held, and every signal goes nowhere."""
        return cls(pid, -1, start)

    @property
    def pidfd(self) -> int:
        """Its descriptor, to be handed on; -1 where none is held."""
        return self._pidfd

    @property
    def alive(self) -> bool:
        """Neither gone nor a zombie."""
        stat = procfs.read_stat(self.pid)
        return stat is not None and stat.alive and stat.start == self.start

    @property
    def age(self) -> float:
        """Seconds since it was started, to a clock tick; also where it is gone by now."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start / os.sysconf("SC_CLK_TCK")

    @property
    def stopped(self) -> bool:
        """Stopped by SIGSTOP or a tracer."""
        stat = procfs.read_stat(self.pid)
        return stat is not None and stat.start == self.start and stat.stopped

    def send(self, what: signal.Signals) -> bool:
        """Send a signal; False where the process is gone. Raises PermissionError."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, what)
        except ProcessLookupError:
            return False
        return True

    async def wait_exited(self) -> None:
        """Return when the process has exited, at once when closed. Cancelling does not touch it.

        Any number of tasks may wait: each has a descriptor of its own, as trio wants one task a
        descriptor.
        """
        if self._pidfd < 0:
            await trio.lowlevel.checkpoint()
            return
        fd = RESERVE.open(lambda: os.dup(self._pidfd))
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)

    async def exit_status(self) -> linux.ExitStatus:
        """Reap it if it is ours, and tell how it ended; call after `wait_exited`.

        A process with another parent is told by its zombie, and by the kernel from 6.15 on once
        that parent has reaped it. Of neither is there an event: a bounded look, and "unknown" where
        an older kernel's parent was quicker.
        """
        for _ in range(40):
            if self._pidfd < 0:
                break
            status = linux.reap(self._pidfd)
            if status is not None and status != linux.UNKNOWN_EXIT:
                return status
            told = procfs.zombie_status(self.pid, self.start)
            if told is not None:
                return linux.decode_wait_status(told)
            await trio.sleep(0.0005)
        return linux.UNKNOWN_EXIT

    def take_fd(self, fd: int) -> int:
        """Duplicate the process's file descriptor `fd`; see `linux.take_fd`."""
        return linux.take_fd(self._pidfd, fd)

    def close(self) -> None:
        """Let go of the process; it is not harmed, and reaped if it is a dead child of ours."""
        if self._pidfd < 0:
            return
        linux.reap(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
