"""The worker processes: started, listened to, killed, ended. None is left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Self, cast

from .events import Event, Kind, parse
from .worker import GRACE, Brief

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

__all__ = ["WORKER_COMMAND", "Crew"]

WORKER_COMMAND = (sys.executable, "-m", "example_projects.demo.worker")


class Crew:
    """Own the worker processes of one demo; leaving the `with` block ends them all."""

    def __init__(self, folder: Path, *, url: str, key: str, command: Sequence[str] | None = None) -> None:
        self._folder = folder
        self._markers = folder / "markers"
        self._markers.mkdir()
        self._url = url
        self._key = key
        self._command = tuple(command or WORKER_COMMAND)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._readers: list[threading.Thread] = []
        self._events: SimpleQueue[Event] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> str:
        """Start one more worker and return its name; names are never used twice."""
        name = f"W{len(self._processes) + 1}"
        with self._stderr_file(name).open("wb") as stderr:
            process = self._spawn(stderr)
        self._processes[name] = process
        self._put(name, Kind.STARTED, str(process.pid))
        self._brief(name, process)
        reader = threading.Thread(target=self._listen, args=(name, process))
        reader.start()
        self._readers.append(reader)
        return name

    def next_event(self, *, timeout: float) -> Event | None:
        """Return the next event, or `None` if none comes within `timeout` seconds."""
        try:
            return self._events.get(timeout=timeout)
        except Empty:
            return None

    def kill(self, name: str) -> None:
        """Kill a worker with SIGKILL, at once and without warning."""
        # Stamped before the signal leaves: its hold lasts at least until here, and
        # the grant that follows from it is stamped later.
        self._put(name, Kind.KILLED)
        self._processes[name].kill()

    def stop(self) -> None:
        """End all workers: ask first, kill those that do not listen."""
        for process in self._processes.values():
            _close_stdin(process)
        deadline = time.monotonic() + GRACE + 1
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for reader in self._readers:
            reader.join()

    def stderr(self, name: str) -> str:
        """Return what a worker wrote to its stderr."""
        return self._stderr_file(name).read_text(errors="replace")

    def _spawn(self, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in the terminal is for the parent, which then
        # ends the workers in order.
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )

    def _brief(self, name: str, process: subprocess.Popen[bytes]) -> None:
        brief = Brief(name, self._url, self._key, str(self._markers))
        stdin = _pipe(process.stdin)
        # If it died at birth, its end and its stderr tell the story.
        with suppress(BrokenPipeError):
            stdin.write(brief.line())
            stdin.flush()

    def _listen(self, name: str, process: subprocess.Popen[bytes]) -> None:
        with _pipe(process.stdout) as lines:
            for line in lines:
                event = parse(name, line)
                if event is not None:
                    self._events.put(event)
        status = process.wait()
        (self._markers / name).unlink(missing_ok=True)
        self._put(name, Kind.ENDED, str(status))

    def _put(self, name: str, kind: Kind, note: str = "") -> None:
        self._events.put(Event(time.monotonic(), name, kind, note))

    def _stderr_file(self, name: str) -> Path:
        return self._folder / f"{name}.stderr"


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    # A worker that died leaves what was buffered for it, and with it this error.
    with suppress(BrokenPipeError):
        _pipe(process.stdin).close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    # Popen's type cannot tell that PIPE was asked for.
    return cast("IO[bytes]", stream)
