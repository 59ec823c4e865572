"""Tell a running demo in plain lines, for pipes and logs of CI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .events import Event, Kind, origin
from .judge import find_holds, find_recoveries
from .report import counted, recovery_words

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PlainShow"]

_PAUSE = 2.0


class PlainShow:
    """Write a line at each kill and recovery, and every two seconds the count."""

    def __init__(self, title: str) -> None:
        click.echo(title)
        self._reported = 0
        self._counted_at = 0.0

    def update(self, events: Sequence[Event], *, now: float) -> None:
        """Write what is new since the last time."""
        start = origin(events)
        if start is None:
            return
        self._tell_recoveries(events, start)
        if now - self._counted_at >= _PAUSE:
            self._counted_at = now
            _tell(now - start, _count(events, now))

    def _tell_recoveries(self, events: Sequence[Event], start: float) -> None:
        done = [recovery for recovery in find_recoveries(events) if recovery.heir]
        for recovery in done[self._reported :]:
            _tell(recovery.killed_at - start, recovery_words(recovery))
        self._reported = len(done)


def _count(events: Sequence[Event], now: float) -> str:
    holds = find_holds(events, now=now)
    holders = [hold.worker for hold in holds if hold.end == now]
    holding = " and ".join(holders) or "no worker"
    grants = counted(len(holds), "grant")
    return f"{grants} so far, {holding} holds, {_waiters(events)} wait"


def _waiters(events: Sequence[Event]) -> int:
    last = {event.worker: event.kind for event in events}
    return sum(kind is Kind.WAITING for kind in last.values())


def _tell(seconds: float, words: str) -> None:
    click.echo(f"{seconds:6.1f} s  {words}")
