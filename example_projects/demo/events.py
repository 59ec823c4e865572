"""What happens in a demo: events stamped on the clock that all processes share.

`time.monotonic()` is system-wide, so stamps of different processes can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Event", "Kind", "by_worker", "in_order", "origin", "parse"]


class Kind(StrEnum):
    """Say what happened: first the words of a worker, then those of its parent."""

    WAITING = "waiting"
    HOLDING = "holding"
    MET = "met"
    RELEASED = "released"
    STARTED = "started"
    KILLED = "killed"
    ENDED = "ended"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Event:
    """State one fact about one worker.

    `note` is, for `HOLDING`, the seconds the worker means to work; for `MET`, whose
    marker it found; for `STARTED`, its pid; for `ENDED`, its exit status. `STOPPED` is
    about all workers: from here on they may end.
    """

    at: float
    worker: str
    kind: Kind
    note: str = ""

    def line(self) -> bytes:
        """Encode for the pipe: one line, far below PIPE_BUF, so never torn."""
        return f"{self.kind} {self.at!r} {self.note}\n".encode()


def parse(worker: str, line: bytes) -> Event | None:
    """Decode a worker's line; `None` for what is no event (a chatty driver)."""
    try:
        kind, at, note = line.decode().rstrip("\n").split(" ", 2)
        return Event(float(at), worker, Kind(kind), note)
    except ValueError:
        return None


def origin(events: Iterable[Event]) -> float | None:
    """Tell when the race began: when a worker was first heard to wait."""
    for event in events:
        if event.kind is Kind.WAITING:
            return event.at
    return None


def by_worker(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Group events by worker, in the order in which the workers were started."""
    groups: dict[str, list[Event]] = {}
    for event in in_order(events):
        if event.worker:
            groups.setdefault(event.worker, []).append(event)
    return groups


def in_order(events: Iterable[Event]) -> list[Event]:
    """Sort by stamp: a killed worker's last words are read after the kill was noted."""
    return sorted(events, key=lambda event: event.at)
