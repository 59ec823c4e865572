"""A server that is restarted under working processes: no overlap, and all of them work again."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

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


class Crew:
    """Processes that work, and the journal that they write."""

    def __init__(self, url: str, folder: Path) -> None:
        self.journal = folder / "journal"
        command = [sys.executable, "-m", "tests.fault.worker", url, str(folder)]
        self.processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(PROCESSES)]

    def lines(self) -> list[list[str]]:
        """Return what is in the journal."""
        return [line.split() for line in self.journal.read_text().splitlines()] if self.journal.exists() else []

    def back(self, since: float) -> list[float]:
        """Return when each process did its first work after a moment."""
        first: dict[str, float] = {}
        for event, process, _, at in self.lines():
            if event == "end" and float(at) > since:
                first.setdefault(process, float(at) - since)
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
        """Let nobody outlive the test."""
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def crew(workplace: tuple[Server, str], tmp_path: Path) -> Iterator[Crew]:
    """Eight processes with two threads each, at work."""
    crew = Crew(workplace[1], tmp_path)
    yield crew
    crew.kill()


def one_at_a_time(lines: list[list[str]]) -> bool:
    """Tell whether each begin is followed by the end of the same thread."""
    work = [(event, who) for event, _, who, _ in lines if event in {"begin", "end"}]
    begun, ended = work[::2], work[1::2]
    return all(b == ("begin", e[1]) and e[0] == "end" for b, e in zip(begun, ended, strict=True))


def outcome(lines: list[list[str]], since: int, who: str) -> str:
    """Return how a thread's lock ended that it had at a line."""
    return next((event for event, _, one, _ in lines[since:] if one == who and event in {"kept", "LockLostError"}), "")


def silent_overlaps(lines: list[list[str]]) -> list[list[str]]:
    """Return the overlaps of two of whom neither was told that he had lost his lock: those would be our fault.

    A body of 1 ms that a busy machine holds up for longer than a restart takes is lost, and the next may begin.
    """
    silent = []
    for number, (event, _, who, _) in enumerate(lines):
        if event == "overlap":
            inside = next(one for began, _, one, _ in reversed(lines[:number]) if began == "begin")
            if "LockLostError" not in {outcome(lines, number, who), outcome(lines, number, inside)}:
                silent.append(lines[number])
    return silent


@pytest.mark.timeout(240)
def test_a_server_restarted_under_working_processes(
    workplace: tuple[Server, str], crew: Crew, record_property: Callable[[str, object], None]
) -> None:
    """Twenty times, once by SIGKILL: never two at work, all at work again within 2 s, no session left."""
    server, _ = workplace
    took: list[float] = []
    crew.at_work(0)
    for number in range(RESTARTS):
        server.restart("kill" if number == KILLED_AT else "clean")
        took.append(max(crew.at_work(time.monotonic())))
    crew.go_home()
    lines = crew.lines()
    events = {event: sum(line[0] == event for line in lines) for event in {line[0] for line in lines}}
    record_property("seconds until the last works again, median", round(statistics.median(took), 3))
    print(f"last at work again: median {statistics.median(took):.2f} s, worst {max(took):.2f} s; {events}")
    assert silent_overlaps(lines) == []
    assert "overlap" not in events
    assert one_at_a_time(lines)
    assert events.get("LockConnectionError", 0) > RESTARTS
    assert max(took) < BACK_AT_WORK
    with closing(witness_of(server)) as witness:
        until(lambda: witness.holders() == witness.waiters() == witness.sessions() == 0, "the last session to end")
