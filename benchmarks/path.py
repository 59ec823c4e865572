"""Measures how far it is from `with lock:` to the driver: frames, calls and files of a free acquire, in a thread.

    python -m benchmarks.path

The driver is scripted and answers at once; between it and us is SQLAlchemy's own dialect of PostgreSQL.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

from sqlalchemy import create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGDialect

import dlock_core
from dlock_core import LockProvider

__all__ = ["Figures", "measure", "measure_release"]


CORE = str(Path(dlock_core.__file__).parent)


class Figures(NamedTuple):
    """What lies between a user's line and the driver."""

    frames: int
    """How deep the stack gets, the driver's frame included."""
    calls: int
    """How many Python functions are called, the standard library's counted, the driver's not."""
    files: int
    """Through how many files of dlock_core this goes."""


def measure() -> Figures:
    """Measure a free acquire on a session that is open."""
    return _measured()[0]


def measure_release() -> Figures:
    """Measure the release after it."""
    return _measured()[1]


def _measured() -> tuple[Figures, Figures]:
    registry.register("postgresql.scripted", __name__, "ScriptedDialect")
    with LockProvider(create_engine("postgresql+scripted://"), allow_unsafe=True) as locks:
        with locks.lock("warm"):
            pass
        lock = locks.lock("k")
        paths: list[Figures] = []

        def run() -> None:
            paths.append(_traced(lock.__enter__))
            paths.append(_traced(partial(lock.__exit__, None, None, None)))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    return paths[0], paths[1]


def _traced(function: Callable[[], object]) -> Figures:
    depth = deepest = calls = 0
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal depth, deepest, calls
        if event == "return":
            depth -= 1
        elif event == "call":
            depth += 1
            name = frame.f_code.co_filename
            if name != __file__:
                calls += 1
            elif frame.f_code.co_name != DRIVERS_OWN:
                return
            deepest = max(deepest, depth)
            if name.startswith(CORE):
                files.add(name)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return Figures(deepest, calls, len(files))


# What the driver answers, by a word of the statement.
ANSWERS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("pg_is_in_recovery", (1, False, "PostgreSQL 16.0")),
    ("version()", ("PostgreSQL 16.0",)),
    ("current_schema", ("public",)),
    ("show", ("read committed",)),
    ("standard_conforming_strings", ("on",)),
    ("", (True,)),
)


class _Cursor:
    description = (("answer", *[None] * 6),)
    rowcount = 1

    def execute(self, statement: str, _parameters: object = None) -> None:
        self._row = next(row for word, row in ANSWERS if word in statement)

    def fetchone(self) -> tuple[Any, ...]:
        return self._row

    def fetchall(self) -> list[tuple[Any, ...]]:
        return [self._row]

    def close(self) -> None:
        """Close nothing."""


DRIVERS_OWN = _Cursor.execute.__name__


class _Connection:
    def cursor(self) -> _Cursor:
        return _Cursor()

    def commit(self) -> None:
        """Commit nothing."""

    rollback = close = commit


class ScriptedDialect(PGDialect):
    """SQLAlchemy's dialect over the scripted driver."""

    driver = "scripted"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        """Return the driver."""
        return SimpleNamespace(paramstyle="pyformat", Error=Exception, connect=lambda **_: _Connection())


def main() -> None:
    """Print the figures."""
    for what, path in zip(("acquire", "release"), _measured(), strict=True):
        print(f"{what}: {path.frames} frames deep, {path.calls} calls, {path.files} files")


if __name__ == "__main__":
    main()
