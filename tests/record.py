"""Where the time of a run goes: the slowest tests, and the sum of each folder."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Record"]

SLOWEST = 30


class Record:
    """Sums up what the tests took, setup and teardown included."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        failures = os.environ.get("DLOCK_FAILURES")
        self._failures = Path(failures) if failures else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase of a test, and note a failure where `make test-all` collects them for its last lines."""
        self._seconds[report.nodeid] += report.duration
        if report.failed and self._failures is not None:
            with self._failures.open("a") as noted:
                noted.write(f"FAILED {report.nodeid} ({report.when}): {str(report.longrepr)[-800:]}\n\n")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show the figures, when there are enough tests for them to mean something."""
        if len(self._seconds) <= SLOWEST:
            return
        terminalreporter.write_sep("=", f"slowest {SLOWEST} tests, seconds")
        for name, seconds in sorted(self._seconds.items(), key=lambda pair: -pair[1])[:SLOWEST]:
            terminalreporter.write_line(f"{seconds:8.2f}  {name}")
        terminalreporter.write_sep("=", "folders: seconds of all workers together, tests")
        for folder, tests in sorted(self._folders().items(), key=lambda pair: -sum(pair[1])):
            terminalreporter.write_line(f"{sum(tests):8.1f}  {len(tests):5}  {folder}")

    def _folders(self) -> dict[str, list[float]]:
        folders: dict[str, list[float]] = defaultdict(list)
        for name, seconds in self._seconds.items():
            folders[name.partition("::")[0].rpartition("/")[0]].append(seconds)
        return folders
