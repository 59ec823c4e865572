"""Look at the database URL of a command before anything else happens.

Whatever is wrong with it is said in one line and ends the command with status 2; a
password never reaches the screen.
"""

from __future__ import annotations

import re

import click
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    NoSuchModuleError,
    SQLAlchemyError,
)

from dlock_core import LockError, LockProvider, LockTimeoutError
from dlock_core.urls import secrets_of, shown_url

__all__ = [
    "Refusal",
    "check_target",
    "parse_target",
    "refusal_of",
    "refuse_async",
    "without_password",
]


class Refusal(click.ClickException):
    """Say in one line why the command cannot start; exit status 2."""

    exit_code = 2


def parse_target(text: str) -> URL:
    """Read a database URL that several processes of this machine can share.

    Raises:
        Refusal: it is no URL, or that of an in-memory database.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # SQLAlchemy's message repeats the text, and with it a password.
        raise Refusal("this is not a database URL; expected e.g. postgresql+psycopg://user@host/db") from None
    if _in_memory(url):
        raise Refusal(f"{shown_url(url)}: other processes cannot see an in-memory database")
    return url


def check_target(url: URL, *, key: str) -> None:
    """Take and release `key` once, so that workers start only where locks work.

    Raises:
        Refusal: the dialect, driver, server or key cannot be used.
    """
    refuse_async(url)
    try:
        _take_once(url, key)
    except LockTimeoutError:
        raise Refusal(f"someone else holds {key!r} on {shown_url(url)}; choose another with --key") from None
    except (SQLAlchemyError, LockError, ImportError, OSError) as error:
        raise refusal_of(url, error) from None


def refuse_async(url: URL) -> None:
    """Refuse the URL of an async driver, or of one that SQLAlchemy does not know."""
    try:
        is_async = url.get_dialect().is_async
    except (SQLAlchemyError, ImportError) as error:
        raise refusal_of(url, error) from None
    if is_async:
        raise Refusal(f"{shown_url(url)}: an async driver; give the URL of a sync one")


def refusal_of(url: URL, error: Exception) -> Refusal:
    """Put an error of the database or its driver into one line, without a password."""
    return Refusal(_reason(url, error))


def without_password(url: URL, text: str) -> str:
    """Hide the URL's passwords in a text that others wrote."""
    for secret in secrets_of(url):
        # Whole words only: stars inside a word would tell a short password.
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def _in_memory(url: URL) -> bool:
    if url.get_backend_name() != "sqlite":
        return False
    in_memory = ":memory:" in (url.database or ":memory:")
    return in_memory or url.query.get("mode") == "memory"


def _take_once(url: URL, key: str) -> None:
    locks = LockProvider(url.render_as_string(hide_password=False))
    try:
        with locks.lock(key, timeout=0):
            pass
    finally:
        locks.close()


def _reason(url: URL, error: Exception) -> str:
    match error:
        case LockError():
            return _one_line(url, error)
        case NoSuchModuleError():
            return f"{shown_url(url)}: SQLAlchemy knows no dialect {url.drivername!r}"
        case DBAPIError():
            return f"{shown_url(url)}: {_one_line(url, error.orig or error)}"
        case _:
            return f"{shown_url(url)}: {_one_line(url, error)}"


def _one_line(url: URL, error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return without_password(url, text)
