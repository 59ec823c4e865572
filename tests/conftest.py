"""What all tests share: the private servers, and a plain word about what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers import Factory, Server, available

AVAILABLE = available()
REQUIRED_BY_CI = ("postgresql", "mariadb", "mssql")
_running: dict[str, Server] = {}


def missing() -> dict[str, str]:
    """Return the servers that this machine lacks, each with the reason."""
    return {kind: found for kind, found in AVAILABLE.items() if isinstance(found, str)}


def server(kind: str) -> Server:
    """Return the running server of a kind; skip without one, but fail in CI."""
    factory = AVAILABLE[kind]
    if isinstance(factory, str):
        if os.environ.get("CI") == "true" and kind in REQUIRED_BY_CI:
            pytest.fail(f"CI needs {kind}: {factory}")
        pytest.skip(f"{kind}: {factory}")
    if kind not in _running:
        _running[kind] = factory()
        _running[kind].start()
    return _running[kind]


@pytest.fixture(scope="session", autouse=True)
def _end_servers() -> Iterator[None]:
    """End the shared servers after the last test."""
    yield
    for running in _running.values():
        running.stop(final=True)


@pytest.fixture
def postgresql() -> Server:
    """The shared PostgreSQL server."""
    return server("postgresql")


def _describe(found: Factory[Server] | str) -> str:
    return f"MISSING ({found})" if isinstance(found, str) else found.description


def pytest_report_header() -> list[str]:
    """Say which servers the tests run on."""
    return [f"{kind}: {_describe(found)}" for kind, found in AVAILABLE.items()]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Iterator[None]:
    """Repeat in the last lines, after pytest's own summary, what was not tested."""
    yield
    for kind, reason in missing().items():
        terminalreporter.write_sep("!", f"NOT TESTED on {kind}", red=True, bold=True)
        terminalreporter.write_line(reason, red=True)
