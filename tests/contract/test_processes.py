"""Processes that compete for one key while some that hold it are killed."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .house import House, until

PROCESSES = 8
LONG_ROWS = ("postgresql-psycopg", "mysql-pymysql", "mariadb-mysqlclient", "sqlite-file")


class Contest:
    """Eight contenders and what they wrote."""

    def __init__(self, house: House, folder: Path) -> None:
        self.house = house
        self.diary = folder / "diary"
        self.diary.touch()
        self.killed: dict[int, float] = {}
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start_one(self) -> None:
        """Start a contender."""
        command = [sys.executable, "-m", "tests.contract.contender", self.house.row.api]
        command += [self.house.url, "contest", str(self.diary)]
        process = subprocess.Popen(command)
        self.running[process.pid] = process

    @property
    def everybody_was_inside(self) -> bool:
        """Whether nobody who runs starves, and nobody is still starting."""
        return {pid for _, _, pid in self.events()} >= set(self.running)

    def stop(self) -> None:
        """Let them end, and see them end well."""
        self.diary.with_name("diary.end").touch()
        for process in self.running.values():
            assert process.wait(60) == 0

    def events(self) -> list[tuple[float, str, int]]:
        """Return what was written, in the order of time."""
        lines = (line.split() for line in self.diary.read_text().splitlines())
        return sorted((float(at), event, int(pid)) for event, pid, at in lines)

    def inside(self) -> int | None:
        """Return who is inside by the last line written."""
        lines = self.diary.read_text().splitlines()
        event, pid, _ = lines[-1].split() if lines else ("leave", "0", "")
        return int(pid) if event == "enter" and int(pid) in self.running else None

    def kill_holder(self) -> None:
        """Kill whoever is inside, and start another in his place."""
        until(lambda: self.inside() is not None, "somebody to be inside")
        pid = self.inside()
        if pid is None:
            return  # he left in this moment; another will be killed
        self.killed[pid] = time.monotonic()
        process = self.running.pop(pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.start_one()

    def holds(self) -> list[tuple[float, float, int]]:
        """Return when who held; a killed holder's hold lasted at least until the kill was sent."""
        open_holds: dict[int, float] = {}
        holds = []
        for at, event, pid in self.events():
            if event == "enter":
                open_holds[pid] = at
            else:
                holds.append((open_holds.pop(pid), at, pid))
        holds += [(at, self.killed[pid], pid) for pid, at in open_holds.items()]
        return sorted(holds)


@pytest.mark.rows(lambda row: not row.in_memory)
@pytest.mark.timeout(180)
def test_no_two_processes_ever_hold_one_key(house: House, tmp_path: Path) -> None:
    """8 processes, some killed with SIGKILL while they hold: no overlap, and nothing left."""
    contest = Contest(house, tmp_path)
    for _ in range(PROCESSES):
        contest.start_one()
    chance = random.Random(3)
    kills, seconds = (15, 10) if house.row.name in LONG_ROWS else (5, 3)
    end = time.monotonic() + seconds
    while len(contest.killed) < kills or time.monotonic() < end:
        time.sleep(chance.uniform(0.1, 0.6))  # kills at random moments
        contest.kill_holder()
    until(lambda: contest.everybody_was_inside, "everybody who lives to be inside once")
    contest.stop()
    holds = contest.holds()
    for (_, left, one), (entered, _, other) in itertools.pairwise(holds):
        assert left <= entered, f"{one} left at {left}, {other} entered at {entered}"
    until(lambda: house.witness.holders() == 0)


@pytest.mark.rows(lambda row: row.name in LONG_ROWS)
def test_a_killed_holders_lock_goes_to_the_waiter(house: House) -> None:
    """The server frees the lock of a process that was killed with SIGKILL."""
    program = (
        "import sys, time; from dlock_core import LockProvider\n"
        "lock = LockProvider(sys.argv[1]).lock('k'); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, house.url], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    waiter = house.person()
    wait = waiter.begin("k", timeout=20)
    process.kill()
    assert wait.result(5)
    waiter.release()
    process.stdout.close()
    process.wait()
