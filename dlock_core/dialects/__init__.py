"""Databases that lend their locks, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from .postgresql import PostgreSQL
from .sqlite import SQLite

if TYPE_CHECKING:
    from .base import ServerDialect

__all__ = ["find_dialect"]


def find_dialect(name: str) -> ServerDialect | SQLite:
    """Return the locks of a database, by SQLAlchemy's name of the dialect.

    Raises:
        UnsupportedError: There are none for it.
    """
    match name:
        case "postgresql":
            return PostgreSQL()
        case "sqlite":
            return SQLite()
        case _:
            raise UnsupportedError(
                f"no locks for the database {name!r}: use an engine for PostgreSQL or SQLite",
            )
