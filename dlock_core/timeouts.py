"""Timeouts are parsed once at the door; from there on there are only deadlines."""

from __future__ import annotations

import math
import time
from numbers import Real

from .errors import shown

__all__ = ["FOR_EVER", "Deadline", "parse_timeout"]

NEAR = 0.01


def parse_timeout(value: object) -> float | None:
    """Check a timeout: None waits for ever, 0 tries once, else seconds.

    Raises:
        ValueError: It is negative, not a number, or not a number at all.
    """
    if value is None or (type(value) is float and 0 <= value < math.inf):  # the common case
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(_refusal(value))  # noqa: TRY004 - threading.Lock raises it too
    try:
        seconds = float(value)
    except OverflowError:
        raise ValueError(_refusal(value)) from None
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(_refusal(value))
    return None if math.isinf(seconds) else seconds


def _refusal(value: object) -> str:
    return f"timeout={shown(value)}: give None (wait for ever), 0 (one try) or a number of seconds above 0"


class Deadline:
    """A moment on the monotonic clock, or never."""

    __slots__ = ("at", "started")

    def __init__(self, timeout: float | None) -> None:
        self.started = time.monotonic()
        self.at = None if timeout is None else self.started + timeout

    def remaining(self) -> float | None:
        """Return the seconds left, not below 0; None is for ever."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at

    @property
    def near(self) -> bool:
        """Whether little time is left: a hundredth of a second."""
        return self.at is not None and time.monotonic() >= self.at - NEAR

    @property
    def waited(self) -> float:
        """Seconds since this deadline was set."""
        return time.monotonic() - self.started


FOR_EVER = Deadline(None)
