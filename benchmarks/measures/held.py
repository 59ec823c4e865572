"""Held: what a thousand locks cost that one process holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench import progress
from ..observers import Observer

if TYPE_CHECKING:
    from ..bench import Bench
    from ..crew import Crew, Desk
    from ..places import Place

__all__ = ["HOW", "NAME", "run"]

NAME = "held"
HOW = (
    "One process takes 1,000 keys (200 with `--quick`) and holds them, each with what its documentation gives a lock. "
    "Connections are the server's own count (Redis' for locks in Redis; on SQLite, the process' open files); memory is "
    "what the process and the server's processes grew by."
)


def run(bench: Bench, place: Place) -> None:
    """Measure connections and memory."""
    progress(f"{NAME} · {place.title}")
    connections, client, server = {}, {}, {}
    for crew in bench.fresh_crews(place, NAME, None, 1):
        try:
            counts = _hold(crew, bench.sizes.many, place)
        except Exception as error:
            bench.figures.fail(NAME, place.kind, crew.name, error)
        else:
            connections[crew.name], client[crew.name], server[crew.name] = [counts[0]], counts[1], counts[2]
    bench.figures.add(
        NAME, place.kind, f"{bench.sizes.many} locks", "connections", connections, client_mb=client, server_mb=server
    )


def _hold(crew: Crew, count: int, place: Place) -> tuple[float, float, float | None]:
    observer = Observer(place, crew)
    before, memory_before = observer.settled(), place.memory()
    files_before, own_before = crew.run(usage)[0]
    files, own = crew.run(hold, count)[0]
    memory = place.memory()
    after = observer.settled()
    opened = files - files_before if place.kind == "sqlite" else after - before
    grown = None if memory is None or memory_before is None else (memory - memory_before) / 2**20
    return opened, (own - own_before) / 2**20, grown


def usage(desk: Desk) -> tuple[int, int]:  # noqa: ARG001
    """Return this process' open files and resident bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(list(Path("/proc/self/fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE")


def hold(desk: Desk, count: int) -> tuple[int, int]:
    """Take so many keys."""
    shared = desk.contender.seat() if desk.contender.one_seat else None
    for number in range(count):
        seat = shared or desk.contender.seat()
        desk.held.enter_context(seat.lock(desk.contender.key(f"held-{number}")))
    return usage(desk)
