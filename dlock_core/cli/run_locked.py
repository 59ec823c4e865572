"""Run a program under a lock: it gets our signals and our terminal, and ends when the lock is lost.

The program runs in a process group of its own, so that a signal reaches what it has started too, and
gets the terminal as a shell would give it. When this process is killed, Linux kills the program.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from ..keys import label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from ..lock import Lock
    from ..provider import LockProvider

__all__ = ["run_locked"]

FORWARDED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")
PR_SET_PDEATHSIG = 1
LOST: Final = -1
UNKNOWN: Final = -2
STOPPED: Final = 0x7F  # as waitpid tells it


def run_locked(
    locks: LockProvider,
    key: object,
    command: Sequence[str],
    *,
    timeout: float | None = 0,
    shared: bool = False,
    grace: float = 10.0,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run a program while holding a lock.

    It finds the key in the variable `DLOCK_KEY` and, under an exclusive lock on a database that has fencing tokens,
    the number of this grant in `DLOCK_FENCING_TOKEN`, which is not set otherwise. When the lock is lost it gets
    SIGTERM, and SIGKILL if it still runs `grace` seconds later. Called in the main thread, signals to this process
    are passed on to it.

    Args:
        locks: Where the lock comes from.
        key: As for `LockProvider.lock`.
        command: The program and its arguments; no shell reads them.
        timeout: Seconds to wait for the lock; None is no limit, 0 one try.
        shared: Share the lock with others that ask for it shared.
        grace: Seconds from SIGTERM to SIGKILL.
        env: The program's environment in place of ours.

    Returns:
        Its exit status; 128 and the signal's number when a signal ended it, as shells say it.

    Raises:
        LockTimeoutError: The lock is held; the program did not run.
        LockLostError: The lock was lost before the program ended.
        LockConnectionError: The database cannot be asked; the program did not run.
        ChildProcessError: The program has ended, and its status is lost: outside the main thread, where SIGCHLD is
            ignored, or when something else in this process waits for all children.
        OSError: The program cannot be started.
    """
    child = _Child()
    fencing = not shared and locks._coordinator.locks.capabilities.fencing  # noqa: SLF001 - no public word for it
    lock = locks.lock(key, timeout=timeout, shared=shared, fencing=fencing, on_lost=child.note_loss)
    with lock, _terminal() as terminal, _forwarding(child.signal):
        child.start(command, _environment(env, lock, fencing=fencing), terminal)
        return child.wait(grace, terminal)


def _environment(env: Mapping[str, str] | None, lock: Lock, *, fencing: bool) -> dict[str, str]:
    """Return the program's variables; a token in our own environment belongs to another lock."""
    variables = {**(os.environ if env is None else env), "DLOCK_KEY": label("", lock.key)}
    variables.pop("DLOCK_FENCING_TOKEN", None)
    return {**variables, "DLOCK_FENCING_TOKEN": str(lock.fencing_token)} if fencing else variables


class _Child:
    """A program in a process group of its own."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._group: int | None = None
        self._pending: list[int] = []

    def note_loss(self, _lock: Lock) -> None:
        """Wake `wait`."""
        self._events.put(LOST)

    def signal(self, number: int) -> None:
        """Send a signal to the whole group, once there is one."""
        if self._group is None:
            self._pending.append(number)
        else:
            with suppress(ProcessLookupError):
                os.killpg(self._group, number)

    def start(self, command: Sequence[str], env: Mapping[str, str], terminal: _Terminal) -> None:
        """Start the program, in the foreground if that is where we are."""
        process = subprocess.Popen(  # noqa: S603 - to run the user's program is the purpose
            command,
            env=dict(env),
            process_group=0,
            preexec_fn=_preparation(terminal),  # noqa: PLW1509 - it calls the kernel, and nothing that locks
        )
        process.returncode = 0  # so that subprocess does not wait for it
        self._group = process.pid
        for number in self._pending:
            self.signal(number)
        self._observer = threading.Thread(target=self._observe, args=[process.pid], name="dlock-child", daemon=True)
        self._observer.start()

    def _observe(self, pid: int) -> None:
        status = STOPPED
        while os.WIFSTOPPED(status):
            try:
                _, status = os.waitpid(pid, os.WUNTRACED)
            except ChildProcessError:  # it has ended, and the kernel or another waiter took its status
                status = UNKNOWN
            self._events.put(status)

    def wait(self, grace: float, terminal: _Terminal) -> int:
        """Wait until the program ends; when the lock is lost, or we are called away, end it."""
        kill = threading.Timer(grace, self.signal, [signal.SIGKILL])
        kill.daemon = True
        try:
            while (status := self._events.get()) == LOST or os.WIFSTOPPED(status):
                if status == LOST:
                    kill.start()
                    self.signal(signal.SIGTERM)
                    self.signal(signal.SIGCONT)  # if it was stopped
                elif self._group is not None:
                    terminal.stop_with(self._group)
                    self.signal(signal.SIGCONT)
        except BaseException:
            self.signal(signal.SIGKILL)
            self._observer.join(grace)  # the lock is released only when the program has ended
            raise
        if kill.is_alive():
            kill.cancel()
            self.signal(signal.SIGKILL)  # what the program has started and left
        if status == UNKNOWN:
            raise ChildProcessError("the program has ended, and its exit status is lost: something else took it")
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


class _Terminal:
    """Our terminal, if there is one: what is in its foreground gets Ctrl-C, and may read."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._group = os.getpgrp()

    @property
    def is_ours(self) -> bool:
        """Whether we are in its foreground."""
        return self._is_in_foreground(self._group)

    def _is_in_foreground(self, group: int) -> bool:
        if self._descriptor is None:
            return False
        try:
            return os.tcgetpgrp(self._descriptor) == group
        except OSError:  # the terminal has hung up
            return False

    def give(self, group: int) -> None:
        """Put a group into the foreground; SIGTTOU would stop a process that does so from the background."""
        assert self._descriptor is not None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        with suppress(OSError):  # the terminal has hung up, or the group has ended
            os.tcsetpgrp(self._descriptor, group)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop_with(self, child: int) -> None:
        """Stop as the program did (Ctrl-Z), for the shell to see; return when the shell says so."""
        if self._descriptor is None:
            return
        if self._is_in_foreground(child):
            self.give(self._group)
        os.killpg(self._group, signal.SIGTSTP)
        if self.is_ours:
            self.give(child)


@contextmanager
def _terminal() -> Iterator[_Terminal]:
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR)
    except OSError:  # there is none: cron, a service, a container
        yield _Terminal(None)
        return
    terminal = _Terminal(descriptor)
    had = terminal.is_ours
    try:
        yield terminal
    finally:
        if had:
            terminal.give(os.getpgrp())
        os.close(descriptor)


def _preparation(terminal: _Terminal) -> Callable[[], None]:
    """Return what the program's process does before it becomes the program."""
    parent, foreground = os.getpid(), terminal.is_ours
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)
        if foreground:
            terminal.give(os.getpid())

    return prepare


@contextmanager
def _forwarding(forward: Callable[[int], None]) -> Iterator[None]:
    """Pass signals on, except those that are ignored already (nohup); only the main thread can.

    SIGCHLD is an exception: a process that ignores it, as under some supervisors, never learns a child's status.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        forward(number)

    numbers = [getattr(signal, name) for name in FORWARDED]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    before[signal.SIGCHLD] = signal.getsignal(signal.SIGCHLD)
    if before[signal.SIGCHLD] is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
