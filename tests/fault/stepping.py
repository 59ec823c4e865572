"""Interrupts the main thread at its n-th moment: wherever a signal handler could raise.

CPython runs signal handlers after calls, when a function begins and when a loop goes round, and
nowhere else: not between `with`'s `__enter__` and its block, for example.
https://github.com/python/cpython/blob/3.11/Python/ceval.c (CHECK_EVAL_BREAKER)
"""

from __future__ import annotations

import dis
import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "interrupted_at"]

MOMENTS = {
    dis.opmap[name]
    for name in ("CALL", "CALL_FUNCTION_EX", "CALL_KW", "RESUME", "JUMP_BACKWARD", "FOR_ITER", "SEND")
    if name in dis.opmap
}


class Interrupted(BaseException):
    """What the handler raises, like KeyboardInterrupt out of Exception's reach."""


class _Stepper:
    def __init__(self, at: int) -> None:
        self._left = at
        self._last: dict[int, int] = {}
        self.where = ""

    @property
    def hit(self) -> bool:
        return self._left <= 0

    def enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self.step

    def step(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "return":
            self._last.pop(id(frame), None)
        if event == "opcode":
            before = self._last.get(id(frame))
            self._last[id(frame)] = frame.f_code.co_code[frame.f_lasti]
            if before in MOMENTS and not self.hit:
                self._left -= 1
                if self.hit:
                    self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
                    sys.settrace(None)
                    raise Interrupted(self.where)
        return self.step


@contextmanager
def interrupted_at(moment: int) -> Iterator[_Stepper]:
    """Interrupt what is called inside at that moment, counted from 1; `hit` tells whether it lasted so long."""
    stepper = _Stepper(moment)
    collects = gc.isenabled()
    gc.disable()  # it would run at any moment, and what a finaliser raises is dropped
    sys._getframe().f_trace_opcodes = True  # Python 3.12 must have seen one when the tracing begins
    sys.settrace(stepper.enter)
    try:
        yield stepper
    except Interrupted as error:
        assert stepper.hit
        traceback.clear_frames(error.__traceback__)  # from Python 3.12 on its tracing keeps them alive
    finally:
        sys.settrace(None)
        if collects:
            gc.enable()
