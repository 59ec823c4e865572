"""Processes that compete for one key while some that hold it are killed."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.conftest import Forks

from . import contender
from .house import House, until

PROCESSES = 8
ROW_OF_EACH = ("postgresql-psycopg", "mysql-pymysql", "mariadb-pymysql", "sqlite-file")


class Contest:
    """Eight contenders and what they wrote."""

    def __init__(self, house: House, folder: Path, forks: Forks) -> None:
        self.house = house
        self.forks = forks
        self.diary = folder / "diary"
        self.diary.touch()
        self.killed: dict[int, float] = {}
        self.running: dict[int, ForkServerProcess] = {}

    def start_one(self) -> None:
        """Start a contender."""
        arguments = (self.house.row.api, self.house.url, "contest", str(self.diary))
        process = self.forks.Process(target=contender.main, args=arguments, daemon=True)
        process.start()
        assert process.pid is not None
        self.running[process.pid] = process

    @property
    def all_were_inside(self) -> bool:
        """Whether nothing that runs starves, and nothing is still starting."""
        return {pid for _, _, pid in self.events()} >= set(self.running)

    def stop(self) -> None:
        """Let them end, and see them end well."""
        self.diary.with_name("diary.end").touch()
        for process in self.running.values():
            process.join(60)
            assert process.exitcode == 0

    def end(self) -> None:
        """Kill those that still run, since the test has failed."""
        for process in self.running.values():
            process.kill()
            process.join()

    def events(self) -> list[tuple[float, str, int]]:
        """Return what was written, in the order of time."""
        lines = (line.split() for line in self.diary.read_text().splitlines())
        return sorted((float(at), event, int(pid)) for event, pid, at in lines)

    def inside(self) -> int | None:
        """Return the contender that is inside by the last line written."""
        lines = self.diary.read_text().rpartition("\n")[0].splitlines()  # the last may be half written
        event, pid, _ = lines[-1].split() if lines else ("leave", "0", "")
        return int(pid) if event == "enter" and int(pid) in self.running else None

    def kill_holder(self) -> None:
        """Kill one that is inside, and start another in its place."""
        until(lambda: self.inside() is not None, "one to be inside")
        pid = self.inside()
        if pid is None:
            return  # it left in this moment; another will be killed
        self.killed[pid] = time.monotonic()
        process = self.running.pop(pid)
        process.kill()  # SIGKILL
        process.join()
        self.start_one()

    def holds(self) -> list[tuple[float, float, int]]:
        """Return when each contender held; a killed holder's hold lasted at least until the kill was sent."""
        open_holds: dict[int, float] = {}
        holds = []
        for at, event, pid in self.events():
            if event == "enter":
                open_holds[pid] = at
            else:
                holds.append((open_holds.pop(pid), at, pid))
        holds += [(at, self.killed[pid], pid) for pid, at in open_holds.items()]
        return sorted(holds)


@pytest.fixture
def contest(house: House, tmp_path: Path, forks: Forks) -> Iterator[Contest]:
    """Contenders, which end with the test."""
    contest = Contest(house, tmp_path, forks)
    try:
        for _ in range(PROCESSES):
            contest.start_one()
        yield contest
    finally:
        contest.end()


@pytest.mark.rows(lambda row: not row.in_memory)
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("kills", "seconds"), [pytest.param(3, 2, id="short"), pytest.param(15, 10, id="long", marks=pytest.mark.slow)]
)
def test_no_two_processes_ever_hold_one_key(contest: Contest, kills: int, seconds: float) -> None:
    """8 processes, some killed with SIGKILL while they hold: no overlap, and nothing left."""
    house = contest.house
    until(lambda: contest.all_were_inside, "all to have started")
    chance = random.Random(3)
    end = time.monotonic() + seconds
    while len(contest.killed) < kills or time.monotonic() < end:
        time.sleep(chance.uniform(0.1, 0.6))  # kills at random moments
        contest.kill_holder()
    until(lambda: contest.all_were_inside, "all that live to be inside once")
    contest.stop()
    holds = contest.holds()
    for (_, left, one), (entered, _, other) in itertools.pairwise(holds):
        assert left <= entered, f"{one} left at {left}, {other} entered at {entered}"
    until(lambda: house.witness.holders() == 0)


@pytest.mark.rows(lambda row: row.name in ROW_OF_EACH)
def test_a_killed_holders_lock_goes_to_the_waiter(house: House) -> None:
    """The server frees the lock of a process that was killed with SIGKILL."""
    program = (
        "import sys, time; from dlock_core import LockProvider\n"
        "lock = LockProvider(sys.argv[1]).lock('k'); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, house.url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        waiter = house.person()
        wait = waiter.begin("k", timeout=20)
        process.kill()
        assert wait.result(5)
        waiter.release()
