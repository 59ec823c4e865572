"""Ctrl-C, forks and processes that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dlock_core import create_sadlock
from tests.contract.house import until

from .scene import Scene

pytestmark = pytest.mark.rows(lambda row: row.api == "sync" and not row.in_memory)


@pytest.fixture
def program(scene: Scene) -> Iterator[subprocess.Popen[str]]:
    """A process with a connection or session of its own; see `interrupted.py`."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.sadlock.interrupted", scene.house.url, scene.kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield started
    started.kill()
    started.communicate()


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
