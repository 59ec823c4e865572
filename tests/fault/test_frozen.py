"""A process that is frozen and an event loop that is blocked: without a lease both keep their locks, and know it.

The server keeps a session open whose client is silent, however long. It was the client's own watch that
took the silence for a loss when it went on, and ended the session with all locks.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.contract.house import House
from tests.servers import Proxy

from .freezing import freeze

pytestmark = pytest.mark.slow  # it waits for what takes a minute

# Longer than the default heartbeat and its deadline together.
LONG = 45.0
# How long a heartbeat of one second may take, and what a watch may be late.
A_WHILE = 4.0
LEASE = 2


class Program:
    """The program that holds the lock, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def said(self) -> str:
        """Return the next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def does(self, line: str) -> str:
        """Tell it to do something, and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.said()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it during a `with` block."""
        freeze(self.process)
        yield
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def believer(url: str, **options: Any) -> Iterator[Program]:
    """A process that holds the lock."""
    command = [sys.executable, "-m", "tests.fault.believing", url, json.dumps(options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        program = Program(process)
        try:
            assert program.said() == "holds"
            yield program
        finally:
            process.kill()


def _still_holds(house: House, program: Program) -> None:
    assert house.witness.holders() == 1
    stranger = house.stranger()
    assert not stranger.acquire("k", timeout=0)
    assert program.does("release") == "released"
    assert stranger.acquire("k", timeout=5)
    stranger.release()


@pytest.mark.rows(lambda row: row.name == "postgresql-psycopg")
def test_a_process_that_was_frozen_for_long_holds_its_lock(house: House) -> None:
    """A3, with default settings: at the thaw, and for longer than any statement may take from then on."""
    with believer(house.url) as program:
        with program.frozen():
            time.sleep(LONG)
        assert program.does("watch 13") == "held not-lost"
        _still_holds(house, program)


@pytest.mark.rows(lambda row: row.name == "postgresql-asyncpg")
def test_an_event_loop_that_was_blocked_for_long_holds_its_lock(house: House) -> None:
    """A3, with default settings: meanwhile, and when it goes on."""
    with believer(house.url) as program:
        assert program.does(f"block {LONG}") == "blocks"
        assert program.does(f"watch {LONG + 13}") == "held not-lost"
        _still_holds(house, program)


@pytest.fixture
def proxy(house: House) -> Iterator[Proxy]:
    """A network between the program and the server."""
    assert house.server is not None
    with Proxy(house.server) as proxy:
        yield proxy


@pytest.mark.rows(
    lambda row: row.name in {"postgresql-psycopg", "mariadb-mysqlclient", "postgresql-asyncpg", "mariadb-aiomysql"}
)
def test_a_heartbeat_under_way_when_the_process_froze_is_answered_after_the_thaw(house: House, proxy: Proxy) -> None:
    """Its deadline is over by then, and the answer lies there unread."""
    with believer(proxy.url(house.row.drivername), heartbeat=1) as program:
        proxy.cut()
        assert program.does("asked") == "asked"
        with program.frozen():
            proxy.restore()
            time.sleep(A_WHILE)
        assert program.does(f"watch {A_WHILE}") == "held not-lost"
        _still_holds(house, program)


@pytest.mark.rows(lambda row: row.name in {"postgresql-asyncpg", "mariadb-aiomysql", "mysql-asyncmy"})
def test_a_heartbeat_under_way_when_the_loop_is_blocked_is_answered_when_it_goes_on(house: House, proxy: Proxy) -> None:
    """Its deadline is over by then, and the answer lies there unread; the watch's thread ran all the while."""
    with believer(proxy.url(house.row.drivername), heartbeat=1) as program:
        proxy.cut()
        assert program.does("asked") == "asked"
        assert program.does(f"block {A_WHILE}") == "blocks"
        proxy.restore()
        assert program.does(f"watch {2 * A_WHILE}") == "held not-lost"
        _still_holds(house, program)


@pytest.mark.rows(
    lambda row: row.name in {"postgresql-psycopg", "mariadb-mysqlclient", "postgresql-asyncpg", "mariadb-aiomysql"}
)
def test_a_network_that_stays_silent_after_the_thaw_is_a_loss(house: House, proxy: Proxy) -> None:
    """What the process did not see while it was frozen it sees soon after."""
    with believer(proxy.url(house.row.drivername), heartbeat=1) as program:
        proxy.cut()
        assert program.does("asked") == "asked"
        with program.frozen():
            time.sleep(A_WHILE)
        assert program.does(f"watch {A_WHILE}") == "not-held lost"
        proxy.restore()
        assert program.does("release") == "LockLostError"


@pytest.mark.rows(lambda row: row.name in {"postgresql-asyncpg", "mariadb-aiomysql"})
def test_an_event_loop_that_is_blocked_for_longer_than_the_lease_loses_its_lock(house: House) -> None:
    """And it is known while the loop is blocked: the server may have given the lock to another one."""
    with believer(house.url, lease=LEASE) as program:
        assert program.does(f"watch {LEASE}") == "held not-lost"  # it renews itself
        assert program.does(f"block {3 * LEASE}") == "blocks"
        began = time.monotonic()
        assert program.does(f"watch {2 * LEASE}") == "not-held lost"
        assert time.monotonic() - began < LEASE + 1
        stranger = house.stranger()
        assert stranger.acquire("k", timeout=5)
        assert program.does("release") == "LockLostError"
        stranger.release()
