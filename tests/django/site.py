"""A site: the test project with one database, and its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

__all__ = ["PROJECT", "Running", "Site"]

PROJECT = Path(__file__).parent / "project"


class Running:
    """A `manage.py` that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    @property
    def output(self) -> IO[str]:
        """What it prints."""
        assert self.process.stdout is not None
        return self.process.stdout

    def wait_in(self) -> Running:
        """Wait until the command's body runs."""
        line = self.output.readline()
        assert line.startswith("in"), line + self.process.communicate(timeout=20)[1]
        return self

    def send(self, text: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def finish(self) -> int:
        """Let the body end, and return the exit code."""
        self.out, self.err = self.process.communicate("\n", timeout=30)
        return self.process.returncode

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.communicate(timeout=20)


class Site:
    """Runs `manage.py` of the test project as real processes."""

    def __init__(self, databases: dict[str, Any], driver: str | None, **settings: Any) -> None:
        self.settings = {"DATABASES": databases, "DRIVER": driver, **settings}
        self.started: list[Running] = []

    def with_settings(self, **changes: Any) -> Site:
        """Return a site with the same databases and other settings."""
        site = Site({}, None)
        site.settings = {**self.settings, **changes}
        site.started = self.started
        return site

    @property
    def environment(self) -> dict[str, str]:
        """What its processes need."""
        root = str(Path(__file__).parents[2])
        given = {
            "DLOCK_DJANGO": json.dumps(self.settings),
            "PYTHONPATH": root,
            "DJANGO_SETTINGS_MODULE": "shop.settings",
        }
        return {**os.environ, **given, "PYTHONWARNINGS": "error"}

    def start(self, *words: str) -> Running:
        """Start a command."""
        process = subprocess.Popen(
            [sys.executable, "manage.py", *words],
            cwd=PROJECT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(Running(process))
        return self.started[-1]

    def run(self, *words: str) -> Running:
        """Run a command to its end."""
        running = self.start(*words)
        running.finish()
        return running

    def close(self) -> None:
        """End what still runs."""
        for running in self.started:
            if running.process.poll() is None:
                running.kill()
