"""Tell the exception of a signal handler from those of the code that it interrupted.

A handler may raise anything, at any line of the main thread: a task queue's time limit, a TimeoutError
by `signal.alarm`. That is an answer to the signal, for the user alone; it says nothing about the
database, and must not reach him in the dress of a lost connection.
"""

from __future__ import annotations

import signal
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import CodeType

__all__ = ["from_handler"]


def from_handler(error: BaseException) -> bool:
    """Tell whether one of this process's signal handlers raised an exception."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in walk_tb(error.__traceback__))


def _code(handler: Any) -> CodeType | None:
    handler = getattr(handler, "func", handler)  # functools.partial
    call = vars(type(handler)).get("__call__")  # an object that can be called
    return getattr(handler, "__code__", None) or getattr(call, "__code__", None)
