"""A table that names locks: PostgreSQL knows a lock by a number only, from which no key can be read."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import Column, String, Table, bindparam, text
from sqlalchemy.exc import DBAPIError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import MetaData

    from .dialects.views import Run

__all__ = ["known_names", "name_table", "remember"]

FORGET = text("DELETE FROM dlock_names WHERE actual_key = :name")
NOTE = text("INSERT INTO dlock_names (actual_key, readable) VALUES (:name, :key)")
KNOWN = text("SELECT actual_key, readable FROM dlock_names WHERE actual_key IN :names").bindparams(
    bindparam("names", expanding=True)
)
READABLE = 255


def name_table(metadata: MetaData) -> Table:
    """Define the table `dlock_names` in your metadata, so that your migrations make it.

    It is optional: `LockProvider.remember` writes keys there, by which `inspect` names locks on PostgreSQL.
    `dlock init` makes it too.
    """
    return Table(
        "dlock_names",
        metadata,
        Column("actual_key", String(255), primary_key=True),
        Column("readable", String(READABLE), nullable=False),
    )


def remember(run: Run, name: int | str, key: str) -> None:
    """Write the readable key of a name of the database's."""
    run(FORGET, name=str(name))
    with suppress(IntegrityError):  # another process has just written the same
        run(NOTE, name=str(name), key=key[:READABLE])


def known_names(run: Run, names: Iterable[int | str]) -> dict[str, str]:
    """Read what the table knows of these locks; nothing where there is no table, or no right to read it."""
    wanted = sorted({str(name) for name in names})
    if not wanted:
        return {}
    try:
        return dict(map(tuple, run(KNOWN, names=wanted)))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return {}
