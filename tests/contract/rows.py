"""The table: every database x driver x way of waiting that the contract must hold for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    server: str
    drivername: str
    api: Literal["sync", "async", "alock"] = "sync"
    in_memory: bool = False

    @property
    def is_server(self) -> bool:
        """Whether a server process holds the locks."""
        return self.server != "sqlite"


ROWS = (
    Row("postgresql-psycopg", "postgresql", "postgresql+psycopg"),
    Row("postgresql-psycopg2", "postgresql", "postgresql+psycopg2"),
    Row("postgresql-psycopg-async", "postgresql", "postgresql+psycopg", "async"),
    Row("postgresql-asyncpg", "postgresql", "postgresql+asyncpg", "async"),
    Row("postgresql-psycopg-alock", "postgresql", "postgresql+psycopg", "alock"),
    Row("sqlite-file", "sqlite", "sqlite"),
    Row("sqlite-memory", "sqlite", "sqlite", in_memory=True),
    Row("sqlite-aiosqlite", "sqlite", "sqlite+aiosqlite", "async"),
)
