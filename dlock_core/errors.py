"""What can go wrong with a lock; in parentheses the built-in errors that catch it too.

::

    LockError
    ├── LockTimeoutError        (TimeoutError)         `with` waited in vain
    ├── LockStateError          (ValueError)           acquire on a held lock, release on an unheld one
    ├── LockLostError                                  the session died while it held the lock
    ├── LockConnectionError     (ConnectionError)      the database cannot be reached, or ended our session
    ├── DeadlockError                                  the wait could never end
    ├── LockKeyError            (ValueError)           a key that no lock can have
    │   ├── LockKeyTypeError    (TypeError)
    │   └── LockKeyRangeError   (OverflowError)
    ├── UnsupportedError        (NotImplementedError)  this database or driver cannot do it
    ├── NotPermittedError       (PermissionError)      the database user may not look, or not end a session
    ├── StaleTokenError                                a fencing token older than one that has written
    └── UnsafeEnvironmentError                         a lock taken here would protect nothing

Errors of SQLAlchemy that a lock's own statement ends in, and that are not about the connection, pass through unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DeadlockError",
    "LockConnectionError",
    "LockError",
    "LockKeyError",
    "LockKeyRangeError",
    "LockKeyTypeError",
    "LockLostError",
    "LockStateError",
    "LockTimeoutError",
    "NotPermittedError",
    "StaleTokenError",
    "UnsafeEnvironmentError",
    "UnsupportedError",
]

# Characters of a user's value that a message or a log line shows.
SHOWN = 80


def shown(key: object) -> str:
    """Return a user's value for a message or a log: its repr in one line, cut."""
    try:
        text = " ".join(repr(key).split())
    except Exception:  # noqa: BLE001 - a huge int refuses, and a user's __repr__ may do anything
        text = object.__repr__(key)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


class LockError(Exception):
    """Base of all errors of this library.

    Attributes:
        key: The key that was given, where one is concerned.
    """

    key: object

    def __init__(self, message: str, *, key: object = None) -> None:
        super().__init__(message)
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the one positional message and all attributes (Celery sends errors over a wire)."""
        return (type(self), (str(self),), self.__dict__)


class LockTimeoutError(LockError, TimeoutError):
    """The lock was not free in time.

    Attributes:
        timeout: Seconds that it was to be waited for.
        waited: Seconds that it was waited for.
    """

    timeout: float | None
    waited: float | None

    def __init__(
        self, message: str, *, key: object = None, timeout: float | None = None, waited: float | None = None
    ) -> None:
        super().__init__(message, key=key)
        self.timeout = timeout
        self.waited = waited


class LockStateError(LockError, ValueError):
    """The lock object, or its provider, is not in a state that allows the call."""


class LockLostError(LockError):
    """The server no longer held the lock for us: work done since then was unprotected."""


class LockConnectionError(LockError, ConnectionError):
    """The database could not be asked for the lock; `__cause__` is the driver's own error."""


class DeadlockError(LockError):
    """The wait could never end: the asker holds the key, or the holder waits for the asker."""


class LockKeyError(LockError, ValueError):
    """The key cannot name a lock."""


class LockKeyTypeError(LockKeyError, TypeError):
    """The key is not a str, bytes, int or tuple of them."""


class LockKeyRangeError(LockKeyError, OverflowError):
    """The integer key does not fit in 64 bits with sign."""


class UnsupportedError(LockError, NotImplementedError):
    """This database or driver cannot do what was asked; the message says what can."""


class NotPermittedError(LockError, PermissionError):
    """This user may not see all locks, or may not end a session; the message says what to change.

    Attributes:
        found: What it did show: a list of `LockInfo`.
    """

    found: Sequence[Any]

    def __init__(self, message: str, *, key: object = None, found: Sequence[Any] = ()) -> None:
        super().__init__(message, key=key)
        self.found = found


class StaleTokenError(LockError):
    """A later holder has written already: roll back.

    Attributes:
        token: Ours.
        seen: That of the later holder.
    """

    token: int | None
    seen: int | None

    def __init__(self, message: str, *, key: object = None, token: int | None = None, seen: int | None = None) -> None:
        super().__init__(message, key=key)
        self.token = token
        self.seen = seen


class UnsafeEnvironmentError(LockError):
    """A lock taken in this environment would protect nothing, so it is refused."""
