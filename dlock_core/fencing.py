"""Fencing tokens: a write by a holder who lost his lock without noticing is refused.

A lock cannot stop a process that was frozen while it held, lost the lock, and wakes up to write. A
token can: `lock(…, fencing=True).fencing_token` grows with every grant of the key, and `fence`
refuses a smaller one than it has seen, in the very transaction that writes.

    with locks.lock("invoice:7", fencing=True) as lock, engine.begin() as connection:
        fence(connection, "invoice:7", lock.fencing_token)
        connection.execute(...)

The tokens of different servers cannot be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Column, MetaData, String, Table, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from .errors import StaleTokenError, shown
from .keys import check_key, file_name

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["fence", "fence_table"]


def fence_table(metadata: MetaData) -> Table:
    """Define the table that `fence` needs, in your metadata, so that your migrations make it."""
    return Table(
        "dlock_fences",
        metadata,
        Column("name", String(32), primary_key=True, comment="hash of the key"),
        Column("token", BigInteger, nullable=False, comment="the greatest token that has written"),
    )


_fences = fence_table(MetaData())
_ADVANCE = (
    update(_fences)
    .where(_fences.c.name == bindparam("fence"), _fences.c.token <= bindparam("ours"))
    .values(token=bindparam("ours"))
)
_FIRST = insert(_fences).values(name=bindparam("fence"), token=bindparam("ours"))
_SEEN = select(_fences.c.token).where(_fences.c.name == bindparam("fence"))


def fence(connection: Connection | Session, key: object, token: int) -> None:
    """Let the transaction go on only if nobody with a greater token has written under this key.

    The row stays locked to the end of the transaction, so call it first, and write in the same one.

    Args:
        connection: The connection or ORM session of the transaction that writes.
        key: What is written under the lock; the lock's own key is a good choice.
        token: The lock's `fencing_token`.

    Raises:
        StaleTokenError: A later holder has written already: roll back.
        LockKeyError: The key is none.
    """
    values: dict[str, str | int] = {"fence": file_name("", check_key(key)), "ours": _check_token(token)}
    if isinstance(connection, Session):
        connection = connection.connection()
    if _advances(connection, values) or _is_first(connection, values) or _advances(connection, values):
        return
    seen = connection.execute(_SEEN, {"fence": values["fence"]}).scalar_one()
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


def _advances(connection: Connection, values: dict[str, str | int]) -> bool:
    return bool(connection.execute(_ADVANCE, values).rowcount)


def _is_first(connection: Connection, values: dict[str, str | int]) -> bool:
    """Make the key's row; False when somebody else has made it."""
    try:
        with connection.begin_nested():
            connection.execute(_FIRST, values)
    except IntegrityError:
        return False
    return True
