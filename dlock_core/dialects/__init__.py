"""Databases that lend their locks, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from .mssql import MSSQL
from .mysql import MySQL
from .oracle import Oracle
from .postgresql import PostgreSQL
from .sqlite import SQLite

if TYPE_CHECKING:
    from .base import ServerDialect

__all__ = ["find_dialect", "refusal_to_fence", "refusal_to_share"]

Kind = type[PostgreSQL | MySQL | MSSQL | Oracle | SQLite]
# By SQLAlchemy's name of the dialect.
DATABASES: dict[str, tuple[str, Kind]] = {
    "postgresql": ("PostgreSQL", PostgreSQL),
    "mysql": ("MySQL", MySQL),
    "mariadb": ("MariaDB", MySQL),
    "mssql": ("SQL Server", MSSQL),
    "oracle": ("Oracle", Oracle),
    "sqlite": ("SQLite", SQLite),
}


def find_dialect(name: str) -> ServerDialect | SQLite:
    """Return the locks of a database, by SQLAlchemy's name of the dialect.

    Raises:
        UnsupportedError: There are none for it.
    """
    if name in DATABASES:
        return DATABASES[name][1]()
    known = ", ".join(database for database, _ in DATABASES.values())
    raise UnsupportedError(f"no locks for the database {name!r}: use an engine for {known}")


def refusal_to_share(locks: ServerDialect | SQLite) -> str:
    """Say that a database has no shared locks, and which ones have."""
    return _refusal(locks, "shared locks", [name for name, kind in DATABASES.values() if kind.capabilities.shared])


def refusal_to_fence(locks: ServerDialect | SQLite) -> str:
    """Say that a database has no fencing tokens, and which ones have."""
    return _refusal(locks, "fencing tokens", [name for name, kind in DATABASES.values() if kind.capabilities.fencing])


def _refusal(locks: ServerDialect | SQLite, what: str, able: list[str]) -> str:
    return f"{locks.capabilities.mechanism} has no {what}; {', '.join(able[:-1])} and {able[-1]} have"
