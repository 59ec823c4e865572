"""What a lock of sqlalchemy-dlock 0.9's interface asks for: its name at the server, its options, and where.

The name is as 0.9 maps a key, so that both libraries exclude each other: that of `dlock_core.keys` for a provider
without prefix. What 0.9 accepts beyond that (bytearray, memoryview, float, the empty text, bool as int) is brought into
that form first.

Each option belongs to some databases, and elsewhere it is an error: an ignored one would be another lock than was
asked for.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from .. import keys
from ..coordination.contexts import BLOCKING
from ..dialects import find_dialect, refusal_to_share
from ..dialects.base import SESSION, TRANSACTION, Scope
from ..dialects.sqlite import SQLite
from ..errors import (
    DeadlockError,
    LockKeyError,
    LockKeyRangeError,
    LockKeyTypeError,
    LockLostError,
    UnsupportedError,
    shown,
)
from ..sessions.timeouts import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect, Engine
    from sqlalchemy.orm import Session

    from ..coordination.contexts import Context
    from ..coordination.state import Request
    from ..dialects.base import ServerDialect

__all__ = ["KNOWN_BY", "Options", "Place", "Wanted", "actual_key", "readable", "server_dialect"]


# What `convert` must make for a database; MariaDB's is MySQL's.
CONVERTED = {
    "postgresql": (int, "an int", "PostgreSQL"),
    "oracle": (int, "an int", "Oracle"),
    "mssql": (str, "a str", "SQL Server"),
    "mysql": (str, "a str", "MySQL and MariaDB"),
}


def actual_key(dialect: Dialect, key: object, convert: Callable[[Any], int | str] | None) -> int | str:
    """Map a key to the database's name for the lock.

    Raises:
        LockKeyTypeError: The key, or what `convert` made of it, is of a type that cannot be a name.
        LockKeyRangeError: An int does not fit in 64 bits with sign.
        LockKeyError: `convert` made a name that the database cannot have.
    """
    if convert is not None and dialect.name != "sqlite":
        name = _checked_name(dialect.name, key, convert(key))
        return keys.oracle_id("", name) if dialect.name == "oracle" else name
    match dialect.name:
        case "postgresql":
            return keys.int64("", _fitting(key))
        case "oracle":
            return keys.oracle_id("", str(key) if isinstance(key, float) else _plain(key, key))
        case "sqlite":
            return keys.file_name("", _plain(key if convert is None else convert(key), key))
        case "mssql":
            return keys.mssql_name("", _textual(key))
        case _:
            return keys.mysql_name("", _textual(key))


def readable(key: object) -> str:
    """Return the key as the server's views show it to people."""
    raw = bytes(key) if isinstance(key, bytearray | memoryview) else key
    return keys.label("", raw if isinstance(raw, str | bytes | int) else str(raw))


def _fitting(key: object) -> str | bytes | int:
    plain = _plain(key, key)
    if isinstance(plain, int) and plain not in keys.INT64:
        raise LockKeyRangeError(f"key {shown(key)}: an int must fit in 64 bits with sign; use its text", key=key)
    return plain


def _textual(key: object) -> str | bytes | int:
    plain = str(key) if isinstance(key, int | float) else _plain(key, key)
    if isinstance(plain, bytes):
        with suppress(UnicodeDecodeError):
            return plain.decode()
    return plain


def _plain(key: object, given: object) -> str | bytes | int:
    match key:
        case int():
            return int(key)
        case bytes() | bytearray() | memoryview():
            return bytes(key)
        case str():
            return _encodable(key, given)
        case _:
            kind = type(key).__name__
            raise LockKeyTypeError(f"key {shown(given)}: {kind} is not a key; give a str, bytes or int", key=given)


def _encodable(text: str, given: object) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LockKeyError(f"key {shown(given)}: lone surrogates have no UTF-8 form; give bytes", key=given) from error
    return str.__str__(text)


def _checked_name(database: str, key: object, name: object) -> int | str:
    """Take a name as `convert` made it; on MySQL and MariaDB, whether it minds case is then the user's business."""
    kind, called, users = CONVERTED.get(database, CONVERTED["mysql"])
    if not isinstance(name, kind):
        raise LockKeyTypeError(
            f"key {shown(key)}: convert must return {called} for {users}, not {type(name).__name__}", key=key
        )
    if isinstance(name, int):
        if int(name) not in keys.INT64:
            raise LockKeyRangeError(
                f"key {shown(key)}: convert returned an int of more than 64 bits with sign", key=key
            )
        return int(name)
    text = str.__str__(name)
    if database == "mssql":
        fits = 0 < len(_encodable(text, key).encode()) <= keys.MSSQL_MAX
        limits = f"1 to {keys.MSSQL_MAX} bytes of UTF-8, beyond which some servers would cut it"
    else:
        fits = 0 < len(text) <= keys.MYSQL_MAX and "\0" not in text
        limits = f"1 to {keys.MYSQL_MAX} characters and no NUL, at which the server would cut it"
    if not fits:
        raise LockKeyError(f"key {shown(key)}: convert returned {shown(text)}; a name has {limits}", key=key)
    return text


# The databases, by SQLAlchemy's name of the dialect, that know each option.
KNOWN_BY = {
    "xact": {"postgresql": "PostgreSQL", "mssql": "SQL Server"},
    "update": {"mssql": "SQL Server", "oracle": "Oracle"},
    "lock_mode": {"mssql": "SQL Server", "oracle": "Oracle"},
    "release_on_commit": {"oracle": "Oracle"},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a lock is to be held."""

    shared: bool = False
    xact: bool = False
    update: bool = False
    lock_mode: str | None = None
    release_on_commit: bool = False

    def check(self, dialect: Dialect, key: object) -> None:
        """Refuse what the database does not know.

        Raises:
            UnsupportedError: The option, or the database itself, is not supported.
        """
        locks = find_dialect(dialect.name)
        if self.shared and not locks.capabilities.shared:
            raise UnsupportedError(f"key {shown(key)}: shared={self.shared!r}: {refusal_to_share(locks)}", key=key)
        for option, databases in KNOWN_BY.items():
            value = getattr(self, option)
            if value not in (None, False) and dialect.name not in databases:
                raise UnsupportedError(
                    f"key {shown(key)}: {option}={value!r} means nothing to {dialect.name}: "
                    f"it is an option of {' and '.join(databases.values())}; leave it out",
                    key=key,
                )

    def mode(self, dialect: Dialect, key: object) -> str:
        """Return the mode that the options mean, by the database's own name if it has one.

        Raises:
            ValueError: There is no such mode.
        """
        locks = find_dialect(dialect.name)
        if isinstance(locks, SQLite):
            return "shared" if self.shared else "exclusive"
        if self.lock_mode is None:
            return locks.update if self.update else locks.shared if self.shared else locks.exclusive
        known = {mode.lower(): mode for mode in locks.modes}
        try:
            return known[self.lock_mode.strip().lower()]
        except (KeyError, AttributeError):
            raise ValueError(
                f"key {shown(key)}: lock_mode={shown(self.lock_mode)}: give one of {', '.join(known.values())}"
            ) from None

    @property
    def scope(self) -> Scope:
        """What the lock ends with, if it is not released before."""
        return TRANSACTION if self.xact or self.release_on_commit else SESSION

    @property
    def named_mode(self) -> bool:
        """Whether the lock is in another mode than shared or exclusive."""
        return self.update or self.lock_mode is not None


class Place:
    """The caller's connection or session, brought into the state that the question for a lock needs.

    This is SQLAlchemy's own work, which may wait for its pool. It is done in the caller's thread, since a session may
    belong to it, even when a helper thread asks the server then.

    Args:
        subject: What the caller gave.
        in_transaction: Whether the lock ends with the transaction, which begins now if there is none.
    """

    def __init__(self, subject: Connection | Session, *, in_transaction: bool) -> None:
        self.subject = subject
        self._begun = in_transaction and not subject.in_transaction()
        # A connection to lock on, or the engine of locks with sessions of their own.
        self.bind: Connection | Engine
        if not isinstance(subject, Connection):
            self.bind = subject.connection() if in_transaction else subject.get_bind()
        else:
            self.bind = subject
            if self._begun:
                subject.begin()

    def connect(self) -> None:
        """Connect anew if the connection was invalidated; in a thread of ours, where no signal disturbs the pool."""
        if isinstance(self.bind, Connection):
            _ = self.bind.connection

    def leave(self) -> None:
        """Leave no transaction behind where there was none.

        Closing it, unlike a rollback, does not expire what an ORM session has loaded.
        """
        begun, self._begun = self._begun, False
        transaction = self.subject.get_transaction() if begun else None
        if transaction is not None:
            transaction.close()


@dataclass(kw_only=True, eq=False)
class Wanted:
    """What one lock object asks for; and, while it does so, where it waits, how long, and what ends the wait."""

    request: Request
    mode: str
    options: Options
    context: Context = BLOCKING
    timeout: float | None = None
    """Seconds; None is without limit."""
    stop: Callable[[], object] | None = None
    """Ends the question, for a thread that is to withdraw it."""

    def ask(self, session: Any, locks: ServerDialect) -> bool:
        """Ask the server for the lock."""
        name, scope = self.request.name, self.options.scope
        return self._in_rounds(partial(locks.acquire, session, name, mode=self.mode, scope=scope, label=None))

    def ask_upgrade(self, session: Any, locks: ServerDialect) -> bool:
        """Ask the server for the exclusive mode of what is held.

        Raises:
            LockLostError: Nothing is.
        """

        def question(*, timeout: float | None) -> bool:
            granted = locks.upgrade(session, self.request.name, scope=self.options.scope, timeout=timeout)
            if granted is None:
                raise LockLostError("the lock was lost: the server says that our session does not hold it")
            return granted

        return self._in_rounds(question)

    def _in_rounds(self, question: Callable[..., bool]) -> bool:
        """Ask until the time is over: the longest waits need several statements."""
        if self.timeout == 0:
            return question(timeout=0)
        deadline = Deadline(self.timeout)
        while not deadline.passed:
            if question(timeout=deadline.remaining()):
                return True
        return False

    def refuse_second(self) -> None:
        """Refuse a key whose asker holds it already: the server would count a second hold, not wait.

        Raises:
            DeadlockError: A wait was asked for; a try is just refused.
        """
        if self.timeout != 0:
            key = self.request.key
            raise DeadlockError(
                f"key {shown(key)}: this connection or session holds it already and would wait for itself; "
                "release it first, or use another one",
                key=key,
            )


def server_dialect(name: str) -> ServerDialect:
    """Return the locks of a database server, by SQLAlchemy's name of the dialect."""
    locks = find_dialect(name)
    assert not isinstance(locks, SQLite), "SQLite's locks are on no connection"
    return locks
