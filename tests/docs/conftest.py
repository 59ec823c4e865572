"""A desk, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.conftest import server

from .desk import Desk

PAGES_DATABASE = "dlock_pages"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'app.db'}"
    running = server("postgresql")
    with running.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"DROP DATABASE IF EXISTS {PAGES_DATABASE} WITH (FORCE)"))
        connection.execute(sa.text(f"CREATE DATABASE {PAGES_DATABASE}"))
    return running.url("postgresql+psycopg", PAGES_DATABASE, running.address.username)


@pytest.fixture
def desk(url: str, tmp_path: Path) -> Iterator[Desk]:
    """A folder where programs find the database in `DLOCK_URL`."""
    with Desk(tmp_path, DLOCK_URL=url) as desk:
        yield desk


@pytest.fixture
def sqlite_desk(tmp_path: Path) -> Iterator[Desk]:
    """A folder for programs that name their SQLite file themselves."""
    with Desk(tmp_path, DLOCK_URL="sqlite:///shop.db") as desk:
        yield desk
