"""The databases of the test project: an entry of DATABASES for each server, and the witness of its locks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.conftest import server
from tests.contract.witnesses import FileWitness, Witness, witness_of
from tests.servers import Server

__all__ = ["ALL_ROWS", "ENGINES", "NAME", "ONE_OF_EACH", "Row", "entry", "prepare", "sqlite_entry", "witness"]

NAME = "dlock_django"
ENGINES = {"postgresql": "django.db.backends.postgresql", "mariadb": "django.db.backends.mysql"}
ENGINES["mysql"] = ENGINES["mariadb"]


@dataclass(frozen=True)
class Row:
    """One server and driver that a project may have."""

    name: str
    kind: str
    driver: str | None = None

    def __str__(self) -> str:
        return self.name


ONE_OF_EACH = (
    Row("sqlite", "sqlite"),
    Row("postgresql-psycopg", "postgresql"),
    Row("mariadb-mysqlclient", "mariadb", "mysqlclient"),
)
ALL_ROWS = (
    *ONE_OF_EACH,
    Row("postgresql-psycopg2", "postgresql", "psycopg2"),
    Row("mariadb-pymysql", "mariadb", "pymysql"),
    Row("mysql-pymysql", "mysql", "pymysql"),
    Row("mysql-mysqlclient", "mysql", "mysqlclient"),
)


def entry(running: Server, **changes: Any) -> dict[str, Any]:
    """Return an entry of DATABASES for a server."""
    address = running.address
    found = {
        "ENGINE": ENGINES[running.kind],
        "NAME": NAME,
        "USER": address.username or "",
        "PASSWORD": address.password or "",
        "HOST": running.host,
        "PORT": str(running.port),
    }
    return {**found, **changes}


def sqlite_entry(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return an entry of DATABASES for a file."""
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "app.db"), **changes}


def prepare(kind: str, name: str = NAME) -> Server:
    """Return the running server, with an empty database for the project."""
    running = server(kind)
    with running.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    return running


def witness(kind: str, folder: Path) -> Witness:
    """Return the witness that can be asked what is held."""
    return FileWitness(folder / "app.db") if kind == "sqlite" else witness_of(server(kind))
