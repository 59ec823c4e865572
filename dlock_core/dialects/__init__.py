"""Databases that lend their locks, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite

if TYPE_CHECKING:
    from .base import ServerDialect

__all__ = ["find_dialect", "refusal_to_share"]

DATABASES: dict[str, type[PostgreSQL | MySQL | SQLite]] = {
    "PostgreSQL": PostgreSQL,
    "MySQL": MySQL,
    "MariaDB": MySQL,
    "SQLite": SQLite,
}


def find_dialect(name: str) -> ServerDialect | SQLite:
    """Return the locks of a database, by SQLAlchemy's name of the dialect.

    Raises:
        UnsupportedError: There are none for it.
    """
    for database, locks in DATABASES.items():
        if database.lower() == name:
            return locks()
    raise UnsupportedError(f"no locks for the database {name!r}: use an engine for {', '.join(DATABASES)}")


def refusal_to_share(locks: ServerDialect | SQLite) -> str:
    """Say that a database has no shared locks, and which ones have."""
    able = [database for database, kind in DATABASES.items() if kind.capabilities.shared]
    return f"{locks.capabilities.mechanism} has no shared locks; {' and '.join(able)} have"
