"""What an error of the database or its driver means, and what a user should see of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from .errors import LockConnectionError, LockError, LockLostError, shown
from .signals import from_handler

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["connecting", "connection_lost", "first_line", "lost", "named"]


def connection_lost(error: BaseException) -> bool:
    """Tell whether an error of a statement means that the session is gone."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return isinstance(error, OSError) and not from_handler(error)


def first_line(error: BaseException) -> str:
    """Return the first line of what the driver, or whoever else, said."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or type(error).__name__


def named(error: BaseException, key: object) -> BaseException:
    """Return the error as the user should see it: it names the key, and is ours if the session is gone."""
    if isinstance(error, LockError):
        return type(error)(f"key {shown(key)}: {error}", key=key)
    if connection_lost(error):
        return LockConnectionError(
            f"key {shown(key)}: lost the database while asking for it: {first_line(error)}", key=key
        )
    return error


def lost(key: object, reason: str) -> LockLostError:
    """Return the error of a lock that the server no longer held for us."""
    return LockLostError(
        f"key {shown(key)}: the lock was lost, {reason}: somebody else may have held it since", key=key
    )


@contextmanager
def connecting(failure: str, hint: str = "") -> Iterator[None]:
    """Say why there is no connection, whoever says no: a driver, SQLAlchemy, or the engine's `creator`.

    Raises:
        LockConnectionError: There is none.
    """
    try:
        yield
    except Exception as error:
        # Whoever asserts means the program: a guard of a test framework, say.
        if isinstance(error, LockError | AssertionError) or from_handler(error):
            raise
        raise LockConnectionError(f"{failure}: {first_line(error)}{hint}") from error
