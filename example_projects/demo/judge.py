"""The judge: decides from the events alone whether the lock did its work.

It trusts no word of the library. A hold lasts from the stamp after `acquire` returned
to the stamp before `release` was called, or until the kill was sent: always a part of
the true hold, so two that overlap are two holders, never an error of measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .events import Event, Kind, in_order, origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Hold",
    "Overlap",
    "Recovery",
    "Verdict",
    "find_crashes",
    "find_holds",
    "find_overlaps",
    "find_recoveries",
    "judge",
]


@dataclass(frozen=True, slots=True)
class Hold:
    """State which worker held the lock from when to when."""

    worker: str
    start: float
    end: float
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Overlap:
    """Name two holds that were in force at the same time; `second` began later."""

    first: Hold
    second: Hold

    @property
    def end(self) -> float:
        """Tell when the earlier of the two ended."""
        return min(self.first.end, self.second.end)

    @property
    def seconds(self) -> float:
        """Tell for how long both held."""
        return self.end - self.second.start


@dataclass(frozen=True, slots=True)
class Recovery:
    """State which worker got the lock after its holder was killed, and how many seconds later."""

    victim: str
    killed_at: float
    heir: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Sum up a demo: the lock did its work if there are no `faults`."""

    grants: int
    kills: int
    overlaps: tuple[Overlap, ...]
    encounters: tuple[Event, ...]
    recoveries: tuple[Recovery, ...]
    faults: tuple[str, ...]
    complete: bool = True

    @property
    def two_holders(self) -> bool:
        """Tell whether either witness saw two hold the lock at once."""
        return bool(self.overlaps or self.encounters)

    @property
    def exit_code(self) -> int:
        """Return the exit status of the demo."""
        return 1 if self.faults else 0


def judge(events: Iterable[Event], *, kills: int | None) -> Verdict:
    """Judge a demo in which `kills` holders were to be killed.

    `None`: it was cut short. Then only what did happen is judged, not what is missing.
    """
    events = in_order(events)
    holds = find_holds(events)
    overlaps = find_overlaps(holds)
    encounters = tuple(_encounters(events))
    recoveries = find_recoveries(events)
    start = origin(events) or 0.0
    faults = [
        *_first(_overlap_faults(overlaps, start)),
        *_first(_encounter_faults(encounters, start)),
        *_unexpected_ends(events),
    ]
    if kills is not None:
        faults += _no_heir(recoveries)
        faults += _too_little(len(holds), len(recoveries), kills)
    return Verdict(
        grants=len(holds),
        kills=len(recoveries),
        overlaps=overlaps,
        encounters=encounters,
        recoveries=recoveries,
        faults=tuple(faults),
        complete=kills is not None,
    )


def find_holds(events: Iterable[Event], *, now: float | None = None) -> list[Hold]:
    """List all holds by their start; one that still lasts ends `now`.

    A hold without a stamped end (its worker crashed) counts as ended at its start:
    how long it lasted is not known.
    """
    held: dict[str, float] = {}
    holds: list[Hold] = []
    for event in in_order(events):
        if event.kind is Kind.HOLDING:
            held[event.worker] = event.at
        elif event.kind in {Kind.RELEASED, Kind.KILLED} and event.worker in held:
            start = held.pop(event.worker)
            killed = event.kind is Kind.KILLED
            holds.append(Hold(event.worker, start, event.at, killed))
        elif event.kind is Kind.ENDED and event.worker in held:
            start = held.pop(event.worker)
            holds.append(Hold(event.worker, start, start))
    holds += [Hold(worker, start, start if now is None else now) for worker, start in held.items()]
    return sorted(holds, key=lambda hold: hold.start)


def find_overlaps(holds: Iterable[Hold]) -> tuple[Overlap, ...]:
    """List each two holds of different workers that were in force at once."""
    overlaps: list[Overlap] = []
    active: list[Hold] = []
    for hold in sorted(holds, key=lambda hold: hold.start):
        active = [earlier for earlier in active if earlier.end > hold.start]
        overlaps += [Overlap(earlier, hold) for earlier in active]
        active.append(hold)
    return tuple(overlap for overlap in overlaps if overlap.seconds > 0)


def find_recoveries(events: Iterable[Event]) -> tuple[Recovery, ...]:
    """List the kills that struck a holder, each with the grant that came next."""
    holds = find_holds(events)
    return tuple(_recovery(hold, holds) for hold in holds if hold.killed)


def _recovery(killed: Hold, holds: Sequence[Hold]) -> Recovery:
    for hold in holds:
        if hold.start > killed.end:
            seconds = hold.start - killed.end
            return Recovery(killed.worker, killed.end, hold.worker, seconds)
    return Recovery(killed.worker, killed.end)


def _overlap_faults(overlaps: Iterable[Overlap], start: float) -> Iterable[str]:
    for overlap in overlaps:
        since = overlap.second.start - start
        yield (
            f"{overlap.first.worker} and {overlap.second.worker} both held the lock "
            f"for {overlap.seconds * 1000:.3f} ms from {since:.3f} s"
        )


def _encounter_faults(encounters: Iterable[Event], start: float) -> Iterable[str]:
    for event in encounters:
        yield (
            f"{event.worker} got the lock and found the marker of {event.note}, "
            f"which still held it, at {event.at - start:.3f} s"
        )


def _first(faults: Iterable[str], *, most: int = 5) -> list[str]:
    """Keep a few of a kind: without any lock there would be hundreds."""
    faults = list(faults)
    more = len(faults) - most
    return [*faults[:most], f"... and {more} more of that kind"] if more > 0 else faults


def _encounters(events: Sequence[Event]) -> Iterable[Event]:
    """Yield the markers met that no kill and no crash explains."""
    excused = {event.worker: event.at for event in events if event.kind is Kind.KILLED}
    # When a crashed worker died is not known, so its marker proves nothing.
    excused |= {event.worker: 0.0 for event in find_crashes(events)}
    for event in events:
        if event.kind is Kind.MET and event.at < excused.get(event.note, float("inf")):
            yield event


def _unexpected_ends(events: Sequence[Event]) -> Iterable[str]:
    for event in find_crashes(events):
        yield f"{event.worker} ended by itself with status {event.note}"


def find_crashes(events: Iterable[Event]) -> list[Event]:
    """List the ends of workers that were neither killed nor asked to end."""
    events = in_order(events)
    killed = {event.worker for event in events if event.kind is Kind.KILLED}
    stops = (event.at for event in events if event.kind is Kind.STOPPED)
    stopped = min(stops, default=float("inf"))
    return [
        event
        for event in events
        if event.kind is Kind.ENDED and event.worker not in killed and (event.note != "0" or event.at < stopped)
    ]


def _no_heir(recoveries: Iterable[Recovery]) -> Iterable[str]:
    for recovery in recoveries:
        if recovery.heir is None:
            yield f"no worker got the lock after {recovery.victim} was killed"


def _too_little(grants: int, struck: int, kills: int) -> Iterable[str]:
    if grants < 2:
        yield f"only {grants} grants: the lock was hardly used"
    if struck < kills:
        yield f"only {struck} of {kills} kills struck a holder"
