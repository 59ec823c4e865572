"""A server that is restarted under working processes: nothing loses a lock silently, and all work again."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.contract.house import until
from tests.contract.witnesses import witness_of
from tests.servers import MariaDB, PostgreSQL, Server
from tests.servers.required import require

PROCESSES = 8
RESTARTS = 20
KILLED_AT = 10
BACK_AT_WORK = 2.0


@pytest.fixture(params=["postgresql+psycopg2", "mysql+pymysql"])
def workplace(request: pytest.FixtureRequest) -> Iterator[tuple[Server, str]]:
    """A server for this test alone, and the URL that its workers use."""
    find = PostgreSQL.find if request.param.startswith("postgresql") else MariaDB.find
    server: Server = require(find())()
    with server:
        yield server, server.url(request.param)


class Try(NamedTuple):
    """One try of a worker: what became of it, and when it worked, 0 if it did not."""

    event: str
    process: str
    began: float
    ended: float

    @property
    def worked(self) -> bool:
        """Tell whether the worker got the lock."""
        return self.began > 0


class Crew:
    """Processes that work, and the journal that they write."""

    def __init__(self, url: str, folder: Path) -> None:
        self.journal = folder / "journal"
        command = [sys.executable, "-m", "tests.fault.worker", url, str(folder)]
        self.processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(PROCESSES)]

    def tries(self) -> list[Try]:
        """Return what is in the journal."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [
            Try(event, process, float(began), float(ended)) for event, process, began, ended in map(str.split, lines)
        ]

    def back(self, since: float) -> list[float]:
        """Return when each process first ended work that began after a moment."""
        first: dict[str, float] = {}
        for one in self.tries():
            if one.began > since:
                first.setdefault(one.process, one.ended - since)
        return list(first.values())

    def at_work(self, since: float) -> list[float]:
        """Wait until every process has done some work after a moment, and return how long each took."""
        until(lambda: len(self.back(since)) == PROCESSES, "all to work")
        return self.back(since)

    def go_home(self) -> None:
        """Let them end, which they must do well."""
        for process in self.processes:
            process.communicate(b"", timeout=20)
            assert process.returncode == 0

    def kill(self) -> None:
        """Let nothing outlive the test."""
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def crew(workplace: tuple[Server, str], tmp_path: Path) -> Iterator[Crew]:
    """Eight processes with two threads each, at work."""
    crew = Crew(workplace[1], tmp_path)
    yield crew
    crew.kill()


def overlaps(tries: list[Try]) -> list[tuple[Try, Try]]:
    """Return the pairs that worked at one time."""
    works = sorted((one for one in tries if one.worked), key=lambda one: one.began)
    return [(one, other) for one, other in pairwise(works) if other.began < one.ended]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_server_restarted_under_working_processes(
    workplace: tuple[Server, str], crew: Crew, record_property: Callable[[str, object], None]
) -> None:
    """Twenty times, once by SIGKILL: all at work again within 2 s, no session left, never two that keep their locks.

    A server that shuts down ends one session and may grant its lock to the next, which it ends only then. So the work
    of two may overlap, if the first learns that its lock was lost while it worked: no lock of a session gives more.
    """
    server, _ = workplace
    took: list[float] = []
    crew.at_work(0)
    for number in range(RESTARTS):
        server.restart("kill" if number == KILLED_AT else "clean")
        took.append(max(crew.at_work(time.monotonic())))
    crew.go_home()
    tries = crew.tries()
    events = Counter(one.event for one in tries)
    record_property("seconds until the last works again, median", round(statistics.median(took), 3))
    print(f"last at work again: median {statistics.median(took):.2f} s, worst {max(took):.2f} s; {events}")
    print("overlaps:", *overlaps(tries), sep="\n")
    assert not overlaps([one for one in tries if one.event == "kept"])
    assert {one.event for one in tries if one.worked} <= {"kept", "LockLostError"}
    assert events["LockConnectionError"] > RESTARTS
    assert max(took) < BACK_AT_WORK
    with closing(witness_of(server)) as witness:
        until(lambda: witness.holders() == witness.waiters() == witness.sessions() == 0, "the last session to end")
