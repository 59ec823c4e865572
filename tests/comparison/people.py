"""Persons, each a process of its own that uses one library, and the servers that know the holders."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any, Protocol

import redis

from tests.contract.witnesses import PostgreSQLWitness

from .program import main

__all__ = ["Person", "PostgreSQLPlace", "RedisPlace", "Server"]

# Each is forked by a server that has imported what it needs: real processes, and as many as we like.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.comparison.program", "psycopg", "django.db", "sqlalchemy_dlock"])


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
    """A process that locks when it is asked to."""

    def __init__(self, library: str, url: str, name: str) -> None:
        self.connection, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=main, args=(theirs, library, url, name), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, command: str, *arguments: Any) -> None:
        """Tell it to do something, and do not wait for it."""
        self.connection.send([command, *arguments])

    def answered(self, seconds: float = 0) -> bool:
        """Tell whether an answer is there, or comes in time."""
        return self.connection.poll(seconds)

    def answer(self) -> Any:
        """Return what it answers."""
        assert self.answered(30), "no answer"
        return self.connection.recv()

    def ask(self, command: str, *arguments: Any) -> Any:
        """Tell it to do something, and return its answer."""
        self.begin(command, *arguments)
        return self.answer()

    def kill(self) -> None:
        """Kill it with SIGKILL, and see it dead."""
        self.process.kill()
        self.process.join()

    def freeze(self) -> None:
        """Halt it with SIGSTOP."""
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGSTOP)

    def close(self) -> None:
        """End it."""
        self.kill()
        self.process.close()
        self.connection.close()
