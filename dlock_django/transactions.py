"""Locks that last until a transaction has committed."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction

from dlock_core import DeadlockError, Lock, LockStateError, LockTimeoutError, UnsupportedError
from dlock_core.adapters import UNSET, Unset, shown, xact_statement

from .blocks import LockBlock
from .conf import timeout_of
from .locks import Wish, taking
from .providers import provider

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from dlock_core.adapters import Key, KeySource

__all__ = ["locked_atomic", "xact_lock"]


def locked_atomic(
    key: KeySource,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    atomic_using: str | None = None,
) -> LockBlock[Lock]:
    """Hold a lock around a transaction: lock, begin, commit, release, in that order, on every database.

    The transaction is a durable one, so this cannot be used inside another `atomic`.

    Args:
        key: As for `lock`.
        using: The alias of the database that lends the lock; default: DLOCK_DATABASE.
        timeout: As for `lock`.
        shared: As for `lock`.
        atomic_using: The alias of the transaction's database; default: that of `using`, else "default".

    Raises:
        LockTimeoutError: It was not free in time.
        LockStateError: Inside another `atomic`.
        LockLostError: At the end, when the server took the lock away meanwhile; the transaction has committed.
    """
    atomic_alias = atomic_using or using or DEFAULT_DB_ALIAS
    return LockBlock(partial(_around_atomic, Wish(using, timeout, shared), atomic_alias), key)


@contextmanager
def _around_atomic(wish: Wish, atomic_alias: str, key: Any) -> Iterator[Lock]:
    with taking(wish, key) as held, transaction.atomic(using=atomic_alias, durable=True):
        yield held


def xact_lock(
    key: Key, *, using: str | None = None, timeout: float | Unset | None = UNSET, shared: bool = False
) -> None:
    """Take a lock that belongs to Django's current transaction and ends with it, by commit or rollback.

    It runs on Django's own connection, and so it is the one lock that works behind a pooler in transaction
    mode. It excludes `lock` with the same key. The same transaction may take it again.
    https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS

    Args:
        key: str, bytes, int, or a tuple of them.
        using: The alias of the transaction's database; default: "default".
        timeout: Seconds to wait; 0 tries once, None is no limit. Default: DLOCK_TIMEOUT, which is 0.
        shared: Share it with others that ask for it shared (readers); exclusive otherwise.

    Raises:
        LockTimeoutError: It was not free in time; the transaction can go on.
        DeadlockError: PostgreSQL chose this wait as the victim of a deadlock; the transaction can go on.
        LockStateError: There is no transaction.
        UnsupportedError: The database is not PostgreSQL; `locked_atomic` does it there.
    """
    alias = using or DEFAULT_DB_ALIAS
    connection = connections[alias]
    if connection.vendor != "postgresql":
        raise UnsupportedError(
            f"key {shown(key)}: {connection.display_name} has no locks that belong to a transaction; "
            "use locked_atomic()",
            key=key,
        )
    if not connection.in_atomic_block:
        raise LockStateError(f"key {shown(key)}: xact_lock() needs a transaction; call it inside atomic()", key=key)
    seconds = timeout_of(timeout)
    started = time.monotonic()
    with provider(alias) as locks:
        name = locks.lock(key, timeout=seconds).actual_key
    if not (_try(connection, name, shared) if seconds == 0 else _wait(connection, name, shared, seconds)):
        raise LockTimeoutError(
            f"key {shown(key)}: not free within {seconds} s; try again later, or wait longer",
            key=key,
            timeout=seconds,
            waited=time.monotonic() - started,
        )


def _try(connection: BaseDatabaseWrapper, name: int | str, shared: bool) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(*xact_statement(name, shared=shared, timeout=0))
        return bool(cursor.fetchone()[0])


def _wait(connection: BaseDatabaseWrapper, name: int | str, shared: bool, seconds: float | None) -> bool:
    """Wait at the server, behind a savepoint: an error would end the user's transaction."""
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute(*xact_statement(name, shared=shared, timeout=seconds))
    except DatabaseError as error:
        match _sqlstate(error):
            case "55P03":  # lock_not_available
                return False
            case "40P01":  # deadlock_detected
                raise DeadlockError("PostgreSQL chose this wait as the victim of a deadlock") from error
            case _:
                raise
    return True


def _sqlstate(error: DatabaseError) -> str | None:
    driver: Any = error.__cause__
    return getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
