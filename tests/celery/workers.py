"""Workers of Celery in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

from tests.servers import wait_until

from .project import CONFIGURATION

__all__ = ["ROOT", "Worker", "environment"]

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 30.0


def environment(configuration: dict[str, Any]) -> dict[str, str]:
    """Return what a process needs to run the app of the tests."""
    return {**os.environ, CONFIGURATION: json.dumps(configuration), "PYTHONWARNINGS": "ignore"}


class Worker:
    """`celery worker`; use it as a context manager."""

    def __init__(
        self, name: str, configuration: dict[str, Any], folder: Path, *arguments: str, app: str = "tests.celery.project"
    ) -> None:
        self.name = f"{name}@test"
        self.log = folder / f"{name}.log"
        self._command = [
            *(sys.executable, "-m", "celery", "-A", app, "worker", "-n", self.name, "-l", "INFO"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat", *arguments),
        ]
        self._environment = environment(configuration)

    def start(self) -> None:
        """Start it and wait until it takes messages."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(self._ready, f"{self.name} to start", START_SECONDS)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.text()
        return f"{self.name} ready" in self.text()

    def text(self) -> str:
        """Return what it has logged."""
        return self.log.read_text(errors="replace")

    def lines(self, *words: str) -> list[str]:
        """Return the lines of its log that contain all these words."""
        return [line for line in self.text().splitlines() if all(word in line for word in words)]

    def children(self) -> set[int]:
        """Return the processes of its pool."""
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def stop(self) -> None:
        """End it like an init system does: SIGTERM, and SIGKILL for those that do not hear."""
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                for member in family:
                    with suppress(psutil.NoSuchProcess):
                        member.kill()
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
