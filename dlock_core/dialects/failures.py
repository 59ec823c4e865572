"""What an error of the database or its driver means, and what a user sees of it and of the URL.

A signal handler may raise anything, at any line of the main thread: a task queue's time limit, a TimeoutError by
`signal.alarm`. That is an answer to the signal, for the user; it says nothing about the database, and must not
reach the user in the dress of a lost connection.
"""

from __future__ import annotations

import re
import signal
from contextlib import contextmanager
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from ..errors import LockConnectionError, LockError, LockLostError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from sqlalchemy import URL

__all__ = [
    "StatementCancelledError",
    "answered",
    "connecting",
    "connection_lost",
    "first_line",
    "from_handler",
    "lost",
    "named",
    "secrets_of",
    "shown_url",
]


class StatementCancelledError(LockConnectionError):
    """The server, or a driver that waited for the server, says that a statement was cancelled; its session is sound.

    The caller of a lock sees a LockConnectionError.
    """


def connection_lost(error: BaseException) -> bool:
    """Tell whether an error of a statement means that the session is gone."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    if isinstance(error, StatementCancelledError):
        return False
    return isinstance(error, OSError) and not from_handler(error)


def answered(error: BaseException) -> bool:
    """Tell whether an error is the server's own answer to a statement, so that its session can be used again."""
    return isinstance(error, StatementCancelledError) or (
        isinstance(error, DBAPIError) and not error.connection_invalidated
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what the driver or another library said."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or type(error).__name__


def named(error: BaseException, key: object) -> BaseException:
    """Return the error as the user should see it: it names the key, and is ours if the session is gone."""
    if isinstance(error, LockError):
        kind = LockConnectionError if isinstance(error, StatementCancelledError) else type(error)
        return kind(f"key {shown(key)}: {error}", key=key)
    if connection_lost(error):
        return LockConnectionError(
            f"key {shown(key)}: lost the database while asking for it: {first_line(error)}", key=key
        )
    return error


def lost(key: object, reason: str) -> LockLostError:
    """Return the error of a lock that the server no longer held for us."""
    return LockLostError(
        f"key {shown(key)}: the lock was lost, {reason}: another holder may have had it since", key=key
    )


@contextmanager
def connecting(failure: str, hint: str = "") -> Iterator[None]:
    """Say why there is no connection, whatever says no: a driver, SQLAlchemy, or the engine's `creator`.

    Raises:
        LockConnectionError: There is none.
    """
    try:
        yield
    except Exception as error:
        # An assertion is about the program: a guard of a test framework, say.
        if isinstance(error, LockError | AssertionError) or from_handler(error):
            raise
        raise LockConnectionError(f"{failure}: {first_line(error)}{hint}") from error


def from_handler(error: BaseException) -> bool:
    """Tell whether one of this process's signal handlers raised an exception."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in walk_tb(error.__traceback__))


def _code(handler: Any) -> CodeType | None:
    handler = getattr(handler, "func", handler)  # functools.partial
    call = vars(type(handler)).get("__call__")  # an object that can be called
    return getattr(handler, "__code__", None) or getattr(call, "__code__", None)


# Drivers take passwords in the query too, which SQLAlchemy shows; pyodbc a whole connection string.
_SECRET = re.compile("pass|pwd|odbc_connect", re.IGNORECASE)


def shown_url(url: URL) -> str:
    """Render a URL, its passwords hidden."""
    hidden = {name: "***" for name in url.query if _SECRET.search(name)}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def secrets_of(url: URL) -> list[str]:
    """Return the passwords in a URL."""
    found = [url.password, *(value for name, value in url.query.items() if _SECRET.search(name))]
    return [str(secret) for secret in found if secret]
