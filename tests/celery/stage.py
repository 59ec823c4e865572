"""Where bodies of tasks play: they write down when they ran, and the test says when they go on."""

from __future__ import annotations

import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.servers import wait_until

__all__ = ["Run", "Stage", "begin", "end", "wait_for_gate", "work"]

PATIENCE = 60.0


class Run(NamedTuple):
    """One run of a body, and when it was last seen at work, for a process may be killed.

    The times are of the machine's monotonic clock, the same for all processes.
    """

    task_id: str | None
    pid: int
    began: float
    seen: float
    ended: bool


def _write(stage: str, **line: Any) -> None:
    """Append a line; a short write to a file opened for appending is not torn."""
    handle = os.open(Path(stage, "journal"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps({**line, "at": time.monotonic(), "pid": os.getpid()}) + "\n").encode())
    finally:
        os.close(handle)


def begin(stage: str, run: str, task_id: str | None) -> None:
    """Write down that a body begins."""
    _write(stage, run=run, task_id=task_id)


def end(stage: str, run: str) -> None:
    """Write down that it has ended."""
    _write(stage, ended=run)


def work(stage: str, run: str, seconds: float) -> None:
    """Show signs of life for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _write(stage, seen=run)
        time.sleep(0.01)


def wait_for_gate(stage: str, run: str) -> None:
    """Show signs of life until the test opens the gate."""
    deadline = time.monotonic() + PATIENCE
    while not Path(stage, "gate").exists():
        assert time.monotonic() < deadline, "the gate was not opened"
        work(stage, run, 0.01)


class Stage:
    """The test's side; its path is also the key of the lock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = str(folder)

    def _lines(self) -> list[dict[str, Any]]:
        journal = Path(self.path, "journal")
        return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []

    def runs(self) -> list[Run]:
        """Return all runs so far, in the order of their beginnings."""
        lines = self._lines()
        seen = {line.get("run") or line.get("seen") or line.get("ended"): line["at"] for line in lines}
        ended = {line.get("ended") for line in lines}
        return [
            Run(line["task_id"], line["pid"], line["at"], seen[line["run"]], line["run"] in ended)
            for line in lines
            if "run" in line
        ]

    def signs(self) -> list[float]:
        """Return when the first body showed signs of life."""
        lines = self._lines()
        return [line["at"] for line in lines if line.get("seen") == lines[0]["run"]]

    def wait_for_runs(self, count: int, *, ended: bool = False, seconds: float = 30) -> list[Run]:
        """Wait until so many bodies have begun, or ended."""

        def there() -> bool:
            return len([run for run in self.runs() if run.ended or not ended]) >= count

        wait_until(there, f"{count} bodies to {'end' if ended else 'begin'}", seconds)
        return self.runs()

    def open(self) -> None:
        """Let the bodies that hold end."""
        Path(self.path, "gate").touch()

    def assert_no_overlap(self) -> None:
        """No process saw one body at work when the next had begun."""
        runs = sorted(self.runs(), key=lambda run: run.began)
        overlaps = [(one, other) for one, other in pairwise(runs) if one.seen > other.began]
        assert not overlaps, overlaps
