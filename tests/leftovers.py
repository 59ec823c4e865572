"""Whatever a test starts ends with it, also when the test fails, and with the run, also when this is killed.

A program inherits the environment of the test that starts it, and so do the programs that it starts: a variable marks
them all, whatever their parents, groups and sessions become. The servers have an environment and a guard of their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from tests.servers import guard, sandbox

__all__ = ["ended", "watch_run"]

OF_THE_RUN = "DLOCK_TEST_RUN"
OF_THE_TEST = "DLOCK_TEST_RUNNING"
_started: set[str] = set()
"""The marks of tests that have started something."""


def _note(event: str, _arguments: tuple[object, ...]) -> None:
    if event == "subprocess.Popen" and OF_THE_TEST in os.environ:
        _started.add(os.environ[OF_THE_TEST])


def watch_run() -> None:
    """Mark what this process and its workers start, so that their guards end it after them."""
    os.environ[OF_THE_RUN] = uuid4().hex
    sandbox.marks[os.getpid()] = f"{OF_THE_RUN}={os.environ[OF_THE_RUN]}"
    sys.addaudithook(_note)
    sandbox.base_folder()


@contextmanager
def ended() -> Iterator[None]:
    """End what is started inside."""
    outer, mark = os.environ.get(OF_THE_TEST), uuid4().hex
    os.environ[OF_THE_TEST] = mark
    try:
        yield
    finally:
        if outer is None:
            del os.environ[OF_THE_TEST]
        else:
            os.environ[OF_THE_TEST] = outer
        if mark in _started:
            guard.kill_marked(f"{OF_THE_TEST}={mark}")
