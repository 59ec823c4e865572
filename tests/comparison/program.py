"""What a process does that locks with one of the libraries, at the word of a test."""

from __future__ import annotations

import threading
from multiprocessing.connection import Connection
from queue import Queue
from typing import Any

from tests.comparison.libraries import Library, make


class Crowd:
    """Threads that hold a lock each, until the program ends."""

    def __init__(self, library: str, url: str, name: str) -> None:
        self._with = (library, url, name)

    def hold(self, key: str, count: int) -> int:
        """Let so many threads take a lock each; return how many hold."""
        return sum(self._hold_one(f"{key}-{number}") for number in range(count))

    def _hold_one(self, key: str) -> bool:
        granted: Queue[bool] = Queue()

        def hold() -> None:
            mine = make(*self._with)
            granted.put(mine.acquire(key, 10))
            threading.Event().wait()  # indefinitely, with all that is mine

        threading.Thread(target=hold, daemon=True).start()
        return granted.get(timeout=20)


def close_old_connections() -> None:
    """Do what Django does at the beginning and end of each request, and what long-running programs are asked to do."""
    from django import db  # Django is set up

    db.close_old_connections()


def answer(mine: Library, crowd: Crowd, command: str, *arguments: Any) -> Any:
    """Do what is asked."""
    if command == "hold":
        return crowd.hold(*arguments)
    if command == "close_old_connections":
        return close_old_connections()
    return getattr(mine, command)(*arguments)


def main(connection: Connection[Any, Any], library: str, url: str, name: str) -> None:
    """Answer until nothing asks any more: each command is a list, and each answer a value or an error's name."""
    mine, crowd = make(library, url, name), Crowd(library, url, name)
    while True:
        command = connection.recv()
        try:
            said = answer(mine, crowd, *command)
        except Exception as error:
            said = type(error).__name__
        connection.send(said)
