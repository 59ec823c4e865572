"""Fencing tokens: a write by a holder that lost its lock without noticing is refused.

A lock cannot stop a process that was frozen while it held, lost the lock, and wakes up to write. A
token can: `lock(…, fencing=True).fencing_token` grows with every grant of the key, and `fence`
refuses a smaller one than it has seen, in the very transaction that writes::

    with locks.lock("invoice:7", fencing=True) as lock, engine.begin() as connection:
        fence(connection, "invoice:7", lock.fencing_token)
        connection.execute(...)

The tokens of different servers cannot be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Column, MetaData, String, Table, bindparam, func, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session

from .errors import LockStateError, StaleTokenError, UnsupportedError, shown
from .keys import check_key, file_name

if TYPE_CHECKING:
    from sqlalchemy import Connection, Executable

__all__ = ["fence", "fence_table"]


def fence_table(metadata: MetaData) -> Table:
    """Define the table `dlock_fences`, which `fence` needs, in your metadata, so that your migrations make it.

    `dlock init` makes it too.
    """
    return Table(
        "dlock_fences",
        metadata,
        Column("name", String(32), primary_key=True, comment="hash of the key"),
        Column("token", BigInteger, nullable=False, comment="the greatest token that has written"),
    )


_fences = fence_table(MetaData())
# FOR UPDATE reads the row as it is: under MySQL's REPEATABLE READ a plain read sees it as the transaction first did.
_SEEN = select(_fences.c.token).where(_fences.c.name == bindparam("fence")).with_for_update()


def fence(connection: Connection | Session, key: object, token: int) -> None:
    """Let the transaction go on only if no greater token has written under this key.

    The row stays locked to the end of the transaction, so call it first, and write in the same one.

    Args:
        connection: The connection or ORM session of the transaction that writes.
        key: What is written under the lock; the lock's own key is a good choice.
        token: The lock's `fencing_token`.

    Raises:
        StaleTokenError: A later holder has written already: roll back.
        LockKeyError: The key cannot name a lock.
        TypeError: The token is not an int.
        LockStateError: The connection is in autocommit: no transaction would be protected.
        UnsupportedError: There is no fence on this database.
    """
    values: dict[str, str | int] = {"fence": file_name("", check_key(key)), "ours": _check_token(token)}
    if isinstance(connection, Session):
        connection = connection.connection()
    advance = _advance(connection.dialect.name)
    _refuse_autocommit(connection, key, begun=False)
    connection.execute(advance, values)
    _refuse_autocommit(connection, key, begun=True)
    seen = connection.execute(_SEEN, {"fence": values["fence"]}).scalar_one()
    if seen <= token:
        return
    raise StaleTokenError(
        f"key {shown(key)}: token {token} is stale, {seen} has written already: the lock was lost meanwhile; roll back",
        key=key,
        token=token,
        seen=seen,
    )


def _check_token(token: object) -> int:
    if isinstance(token, bool) or not isinstance(token, int):
        raise TypeError(f"token={shown(token)}: give the fencing_token of a lock")
    return token


def _refuse_autocommit(connection: Connection, key: object, *, begun: bool) -> None:
    """Refuse a connection whose driver ends each statement's transaction at once, however that was set."""
    declared = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    if declared or _in_autocommit(connection, begun=begun):
        raise LockStateError(
            f"key {shown(key)}: fence() on a connection in autocommit protects nothing, since its row is free again "
            "before the write: use a connection in a transaction",
            key=key,
        )


def _in_autocommit(connection: Connection, *, begun: bool) -> bool:
    adapted: Any = connection.connection.dbapi_connection
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":  # with isolation_level=None an application may begin by itself
        return begun and not driver.in_transaction
    if hasattr(driver, "get_autocommit"):  # MySQL's drivers
        return bool(driver.get_autocommit())
    return getattr(adapted, "autocommit", False) is True


def _advance(database: str) -> Executable:
    """Return the statement that makes the key's row or raises its token, and locks it either way.

    One statement, not an update and then an insert: two first writers would deadlock on InnoDB's gap.
    """
    row: dict[str, Any] = {"name": bindparam("fence"), "token": bindparam("ours")}
    if database in ("mysql", "mariadb"):
        ours = mysql.insert(_fences).values(row)
        return ours.on_duplicate_key_update(token=func.greatest(_fences.c.token, ours.inserted.token))
    if database not in ("postgresql", "sqlite"):
        raise UnsupportedError(f"no fence on {database!r}: use it on PostgreSQL, MySQL, MariaDB or SQLite")
    insert, greatest = (sqlite.insert, func.max) if database == "sqlite" else (postgresql.insert, func.greatest)
    new = insert(_fences).values(row)
    token = greatest(_fences.c.token, new.excluded.token)
    return new.on_conflict_do_update(index_elements=[_fences.c.name], set_={"token": token})
