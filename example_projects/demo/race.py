"""Run a demo: start the workers, kill holders at their time, tell when it is over."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .events import Event, Kind, origin
from .judge import find_recoveries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .crew import Crew

__all__ = ["Plan", "Race", "Show"]

_START_LIMIT = 60.0
_OVERTIME = 10.0
_TICK = 0.02
_FRAME = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """Say how many workers compete, for how many seconds, and how many are killed."""

    workers: int
    seconds: float
    kills: int

    def kill_time(self, number: int) -> float:
        """Return when kill `number` (from 0) is due, in seconds from the start."""
        return self.seconds * (number + 1) / (self.kills + 1)


class Show(Protocol):
    """Show a race while it runs."""

    def update(self, events: Sequence[Event], *, now: float) -> None:
        """Show what has happened until `now`."""


class Race:
    """Let a crew compete by a plan; `events` is the record of it."""

    def __init__(self, crew: Crew, *, plan: Plan, show: Show) -> None:
        self.events: list[Event] = []
        self._crew = crew
        self._plan = plan
        self._show = show
        self._began = time.monotonic()
        self._shown = 0.0
        self._dying = ""
        self._struck = 0
        self._crashed = False

    def run(self) -> None:
        """Run until the time is over and each kill has had its next holder."""
        for _ in range(self._plan.workers):
            self._crew.start()
        while not self._over():
            self._listen(_TICK)
            self._kill_if_due()
            self._refresh()

    def finish(self) -> None:
        """End all workers and hear their last words."""
        self.events.append(Event(time.monotonic(), "", Kind.STOPPED))
        self._crew.stop()
        while (event := self._crew.next_event(timeout=0)) is not None:
            self.events.append(event)

    def _listen(self, timeout: float) -> None:
        event = self._crew.next_event(timeout=timeout)
        while event is not None:
            self.events.append(event)
            if event.kind is Kind.ENDED:
                self._bury(event.worker)
            event = self._crew.next_event(timeout=0)

    def _bury(self, worker: str) -> None:
        if worker != self._dying:
            self._crashed = True
            return
        self._dying = ""
        self._struck = len(find_recoveries(self.events))
        self._crew.start()

    def _over(self) -> bool:
        if self._crashed:
            return True
        start = origin(self.events)
        if start is None:
            return time.monotonic() > self._began + _START_LIMIT
        elapsed = time.monotonic() - start
        if elapsed > self._plan.seconds + _OVERTIME:
            return True
        return elapsed > self._plan.seconds and self._all_kills_done()

    def _all_kills_done(self) -> bool:
        recoveries = find_recoveries(self.events)
        heirs = [recovery for recovery in recoveries if recovery.heir]
        return len(heirs) >= self._plan.kills

    def _kill_if_due(self) -> None:
        # Until the last words of the one killed are read, it is open whether the
        # kill struck it as the holder or has to be repeated.
        if self._dying or self._struck == self._plan.kills:
            return
        start = origin(self.events)
        if start is None:
            return
        if time.monotonic() >= start + self._plan.kill_time(self._struck):
            self._kill_in_the_middle_of_work()

    def _kill_in_the_middle_of_work(self) -> None:
        hold = self._current_hold()
        if hold is None:
            return
        done = (time.monotonic() - hold.at) / float(hold.note)
        if 0.4 < done < 0.8:
            self._dying = hold.worker
            self._crew.kill(hold.worker)

    def _current_hold(self) -> Event | None:
        for event in reversed(self.events):
            if event.kind is Kind.HOLDING:
                return event
            if event.kind in {Kind.RELEASED, Kind.KILLED}:
                return None
        return None

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._shown >= _FRAME:
            self._shown = now
            self._show.update(self.events, now=now)
