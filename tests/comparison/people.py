"""Persons, each a process of its own that uses one library, and the servers that know who holds."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import redis

from tests.contract.witnesses import PostgreSQLWitness

__all__ = ["Person", "PostgreSQLPlace", "RedisPlace", "Server"]

ROOT = Path(__file__).parents[2]


class Server(Protocol):
    """Where the locks of a test are."""

    url: str

    def holders(self) -> int:
        """Return how many of the test's locks are held."""
        ...

    def waiters(self) -> int:
        """Return how many requests are queued at the server."""
        ...

    def sessions(self) -> int:
        """Return how many connections the test's persons have."""
        ...

    def break_lock(self) -> None:
        """Take the held locks away from their holders."""
        ...


class PostgreSQLPlace(PostgreSQLWitness):
    """PostgreSQL, with a look at its sessions."""

    def __init__(self, running: Any) -> None:
        super().__init__(running)
        self.url = running.url(self.drivername)


class RedisPlace:
    """Redis; what a test has there bears its name."""

    def __init__(self, client: redis.Redis, url: str, name: str) -> None:
        self.client = client
        self.url = url
        self.name = name

    def keys(self) -> list[str]:
        return [key.decode() for key in self.client.scan_iter(match=f"*{self.name}*", count=1000)]

    def holders(self) -> int:
        return len(self.keys())

    def waiters(self) -> int:
        return 0

    def sessions(self) -> int:
        return sum(one["name"] == self.name for one in self.client.client_list())

    def break_lock(self) -> None:
        self.client.delete(*self.keys())

    def clean(self) -> None:
        """Leave nothing behind."""
        for key in self.keys():
            self.client.delete(key)


class Person:
    """A process that locks when it is told to."""

    def __init__(self, library: str, url: str, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.comparison.program", library, url, name],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ready = False

    def begin(self, command: str, *arguments: Any) -> None:
        """Tell it to do something, and do not wait for it."""
        if not self._ready:
            assert self.answer() == "ready"
            self._ready = True
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps([command, *arguments])}\n".encode())
        self.process.stdin.flush()

    def answered(self, seconds: float = 0) -> bool:
        """Tell whether an answer is there, or comes in time."""
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def answer(self) -> Any:
        """Return what it answers."""
        assert self.answered(30), "no answer"
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, command: str, *arguments: Any) -> Any:
        """Tell it to do something, and return its answer."""
        self.begin(command, *arguments)
        return self.answer()

    def kill(self) -> None:
        """Kill it with SIGKILL, and see it dead."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Halt it with SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
