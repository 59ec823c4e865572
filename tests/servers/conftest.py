"""Servers for the tests of the servers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from . import PostgreSQL, PrivateServer
from .required import FINDERS, require

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", params=FINDERS)
def kept_server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    """Provide one server of each kind for all tests."""
    with require(FINDERS[request.param]())() as server:
        yield server


@pytest.fixture
def server(kept_server: PrivateServer) -> PrivateServer:
    """Provide a server that runs, whatever the last test did to it."""
    kept_server.thaw()
    kept_server.start()
    return kept_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Provide any PostgreSQL there is, to tests that do it no harm."""
    with require(PostgreSQL.find())() as server:
        yield server


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Provide a thread for a query that hangs."""
    with ThreadPoolExecutor(1) as executor:
        yield executor
