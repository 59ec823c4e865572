"""SIGTERM ends a locked command in order, and its forked children at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from signal import SIG_DFL, SIGTERM
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["sigterm_exits"]


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM end the block as `sys.exit` would, unless the program handles it in its own way."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(SIGTERM) is not SIG_DFL:
        yield
        return
    signal.signal(SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(SIGTERM, SIG_DFL)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


class _Forking(threading.local):
    """What the thread that forks had blocked before."""

    mask: set[signal.Signals | int] | None = None


_forking = _Forking()


def _before_fork() -> None:
    """Keep a SIGTERM from the child until it has the default again.

    Python runs handlers between bytecodes only: a worker that is stuck in a system call would never hear the
    terminate() of its pool, and the pool would wait for it indefinitely. One that came before the child had
    put the handler away would be lost.
    """
    if signal.getsignal(SIGTERM) is _leave:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGTERM})


def _after_fork() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)
        _forking.mask = None


def _after_fork_in_child() -> None:
    if signal.getsignal(SIGTERM) is _leave:
        signal.signal(SIGTERM, SIG_DFL)
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
