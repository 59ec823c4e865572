"""How a lock is asked for."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, NamedTuple, TypeAlias

from .conflict import check_retry_after, check_status

__all__ = ["CONFIGURED", "Configured", "OnConflict", "Options", "checked", "shown"]

OnConflict: TypeAlias = Literal["abort", "raise"]
"""Whether who comes second gets an HTTP answer, or LockTimeoutError."""
# Characters of a key that a message or a log line shows.
SHOWN = 80


class _Configured(Enum):
    CONFIGURED = "DLOCK_TIMEOUT"

    def __repr__(self) -> str:
        return "<DLOCK_TIMEOUT>"


CONFIGURED: Final = _Configured.CONFIGURED
Configured: TypeAlias = Literal[_Configured.CONFIGURED]


class Options(NamedTuple):
    """How a lock was asked for."""

    timeout: float | Configured | None = CONFIGURED
    shared: bool = False
    fencing: bool = False
    bind: str | None = None
    reentrant: bool = False
    on_conflict: OnConflict | Literal["skip"] = "abort"
    status: int | None = None
    retry_after: int | None = None


def shown(key: object) -> str:
    """Return a key for a message: in one line, cut."""
    text = " ".join(repr(key).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def checked(options: Options) -> Options:
    """Return the options, or say which cannot be."""
    if options.on_conflict not in {"abort", "raise", "skip"}:
        raise ValueError(f"on_conflict={options.on_conflict!r}: give 'abort' (an HTTP answer) or 'raise'")
    if options.status is not None:
        check_status(options.status, "status")
    check_retry_after(options.retry_after, "retry_after")
    return options
