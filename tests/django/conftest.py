"""Sites, one for each database and driver, and the servers asked after each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connections

from tests.conftest import server
from tests.contract.witnesses import Witness
from tests.servers import wait_until

from .databases import Row, entry, prepare, sqlite_entry, witness
from .inside import set_up
from .site import Site


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that wants a row on those that its module names."""
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", metafunc.module.ROWS, ids=str, indirect=True, scope="module")


@pytest.fixture(scope="module")
def row(request: pytest.FixtureRequest) -> Row:
    """A database and driver."""
    found: Row = request.param
    if found.driver == "mysqlclient":
        _require_mysqlclient()
    return found


def _require_mysqlclient() -> None:
    """Skip without what has to be built, but fail in CI."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("MySQLdb", reason="mysqlclient is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a site keeps its files."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def module_site(row: Row, folder: Path) -> Iterator[Site]:
    """A migrated site for the tests of a module."""
    database = sqlite_entry(folder) if row.kind == "sqlite" else entry(prepare(row.kind))
    site = Site({"default": database}, row.driver)
    migrated = site.run("migrate", "--verbosity", "0")
    assert migrated.process.returncode == 0, migrated.err
    yield site
    site.close()


@pytest.fixture
def asked(row: Row, folder: Path) -> Iterator[Witness]:
    """The server itself."""
    found = witness(row.kind, folder)
    yield found
    found.close()


@pytest.fixture
def site(module_site: Site, asked: Witness) -> Iterator[Site]:
    """A site, after whose use the server is asked what is left."""
    sessions = asked.sessions()
    yield module_site
    try:
        wait_until(lambda: asked.holders() == 0, "the last lock to be free", 5)
        wait_until(lambda: asked.waiters() == 0, "the last waiter to leave", 5)
    finally:
        module_site.close()
    wait_until(lambda: asked.sessions() <= sessions, "the last session to end", 5)


@pytest.fixture(scope="session")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Django in this process; returns the folder of its files."""
    folder = tmp_path_factory.mktemp("inside")
    set_up(folder)
    return folder


@pytest.fixture(params=["default", "postgresql", "mariadb", "mysql"])
def alias(request: pytest.FixtureRequest, inside: Path) -> Iterator[str]:
    """A database of the Django in this process, and afterwards nothing that is left there."""
    name: str = request.param
    if name != "default":
        server(name)  # or skip, saying why
    yield from watched(name, inside)


@pytest.fixture
def postgresql_alias(inside: Path) -> Iterator[str]:
    """The same, for what only PostgreSQL can."""
    server("postgresql")
    yield from watched("postgresql", inside)


@pytest.fixture
def default_alias(inside: Path) -> Iterator[str]:
    """The same, for what does not depend on the database."""
    yield from watched("default", inside)


def watched(alias: str, folder: Path) -> Iterator[str]:
    """Lend a database, and ask it afterwards what is left."""
    asked = witness("sqlite" if alias == "default" else alias, folder)
    connections.close_all()
    sessions = asked.sessions()
    try:
        yield alias
        connections.close_all()
        wait_until(lambda: asked.holders() == 0, "the last lock to be free", 5)
        wait_until(lambda: asked.sessions() <= sessions, "the last session to end", 5)
    finally:
        asked.close()


@pytest.fixture
def server_of(alias: str, inside: Path) -> Iterator[Witness]:
    """The server that the alias leads to."""
    found = witness("sqlite" if alias == "default" else alias, inside)
    yield found
    found.close()
