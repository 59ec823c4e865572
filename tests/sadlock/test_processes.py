"""Ctrl-C, forks and processes that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dlock_core import create_sadlock
from tests.contract.house import until
from tests.pace import promptly
from tests.servers.proxy import Proxy

from .scene import Scene

pytestmark = pytest.mark.rows(lambda row: row.api == "sync" and not row.in_memory)


@contextmanager
def waiting(url: str, kind: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process with a connection or session of its own; see `interrupted.py`."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.sadlock.interrupted", url, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.fixture
def program(scene: Scene) -> Iterator[subprocess.Popen[str]]:
    """A process that waits."""
    with waiting(scene.house.url, scene.kind) as program:
        yield program


def _hears(program: subprocess.Popen[str], event: str) -> float:
    assert program.stdout is not None
    said, at = program.stdout.readline().split()
    assert said == event
    return float(at)


@pytest.mark.kinds("connection", "session")
def test_ctrl_c_ends_a_wait(scene: Scene, program: subprocess.Popen[str]) -> None:
    """Within half a second, whatever the driver does in C; nothing is held or queued, and the client goes on."""
    held = scene.client().lock("k")
    assert held.acquire()
    _hears(program, "asks")
    until(lambda: scene.witness.waiters() == 1 or not scene.row.is_server)
    sent = time.monotonic()
    program.send_signal(signal.SIGINT)
    assert _hears(program, "KeyboardInterrupt") - sent < 0.5
    until(lambda: scene.witness.waiters() == 0)
    assert time.monotonic() - sent < 2
    assert scene.holders == 1
    held.release()
    assert scene.holders == 0
    program.communicate("\n", timeout=15)
    assert program.returncode == 0


@pytest.mark.kinds("connection", "session")
@pytest.mark.rows(lambda row: row.is_server and row.server != "mssql")
def test_ctrl_c_ends_a_wait_over_a_silent_network(scene: Scene) -> None:
    """The program has its exception at once; the server hears of it when the network is back."""
    assert scene.house.server is not None
    held = scene.client().lock("k")
    assert held.acquire()
    with Proxy(scene.house.server) as proxy, waiting(proxy.url(scene.row.drivername), scene.kind) as program:
        _hears(program, "asks")
        until(lambda: scene.witness.waiters() == 1)
        proxy.cut()
        sent = time.monotonic()
        program.send_signal(signal.SIGINT)
        assert promptly(_hears(program, "KeyboardInterrupt") - sent, 2)
        proxy.restore()
        until(lambda: scene.witness.waiters() == 0)
    held.release()
    assert scene.holders == 0


@pytest.mark.kinds("connection", "session")
def test_a_holder_that_dies_leaves_nothing(scene: Scene, program: subprocess.Popen[str]) -> None:
    """The next one waits no longer than the server needs to see it."""
    client = scene.client()
    held = client.lock("k")
    assert held.acquire()
    _hears(program, "asks")
    until(lambda: scene.witness.waiters() == 1 or not scene.row.is_server)
    held.release()
    until(lambda: scene.holders == 1)
    program.kill()
    with client.lock("k", 10):
        assert scene.holders == 1


@pytest.mark.kinds("connection", "session")
def test_a_forked_child_does_not_release_its_parents_lock(scene: Scene) -> None:
    """There `locked` is False, and the end of `with` says nothing to the server."""
    client = scene.client()
    with create_sadlock(client.target, "k") as lock:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                lock.__exit__(None, None, None)
                lock.close()
                code = 2 if lock.locked else 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lock.locked
        assert scene.holders == 1
    assert scene.holders == 0
