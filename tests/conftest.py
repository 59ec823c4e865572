"""What all tests share: the private servers, what runs, and a plain word about what is missing."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest
from hypothesis import settings

from tests import leftovers, record, selection
from tests.ids import ADDRESS
from tests.servers import Factory, Server, available

AVAILABLE = available()
REQUIRED_BY_CI = ("postgresql", "mariadb", "mssql")
FORKED = ["tests.contract.contender", "tests.comparison.program"]
Forks = ForkServerContext
_running: dict[str, Server] = {}

settings.register_profile("few", max_examples=10, deadline=None)
settings.register_profile("many", max_examples=100, deadline=None)


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


@pytest.fixture(scope="session")
def forks() -> Forks:
    """What forks a process for a test from one that has imported what it needs; it outlives the test."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*FORKED, "psycopg", "django.db", "sqlalchemy_dlock"])
    forkserver.ensure_running()
    return context


@pytest.fixture(autouse=True)
def _end_programs() -> Iterator[None]:
    """End what a test has started, however it ended."""
    with leftovers.ended():
        yield


@pytest.fixture
def postgresql() -> Server:
    """The shared PostgreSQL server."""
    return server("postgresql")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the command line choose a set of tests."""
    parser.addoption("--set", choices=[*selection.SETS], help=selection.__doc__)


def pytest_configure(config: pytest.Config) -> None:
    """Take as many examples as the set deserves, and note where the time goes."""
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("few" if selection.chosen_set(config) in {"fast", "quick"} else "many")
    leftovers.watch_run()
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(record.Record())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the chosen set, and those together on a worker that share something slow to start."""
    chosen = selection.chosen_set(config)
    selection.leave_one_database(items, missing().keys())
    kept = [item for item in items if selection.SETS[chosen](item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept
    for item in items:
        if ADDRESS.search(item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} has another name in each process: use ids=stable")
        if group := selection.group_of(item, chosen):
            item.add_marker(pytest.mark.xdist_group(group))


def _describe(found: Factory[Server] | str) -> str:
    return f"MISSING ({found})" if isinstance(found, str) else found.description


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which tests run, and on which servers."""
    servers = [f"{kind}: {_describe(found)}" for kind, found in AVAILABLE.items()]
    return [f"set: {selection.chosen_set(config)}", *servers]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Iterator[None]:
    """Repeat in the last lines, after pytest's own summary, what was not tested."""
    yield
    for kind, reason in missing().items():
        terminalreporter.write_sep("!", f"NOT TESTED on {kind}", red=True, bold=True)
        terminalreporter.write_line(reason, red=True)
