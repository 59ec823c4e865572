"""What is measured, in the order of the report."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from . import crowd, cycle, handover, held, tasks, timeouts, waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..bench import Bench
    from ..places import Place

__all__ = ["MEASURES", "Measure"]

SERVERS = ("postgresql", "mariadb", "mysql")
ALL = (*SERVERS, "sqlite")


class Measure(NamedTuple):
    """A benchmark: how it is done, where, and whether more is better."""

    how: str
    run: Callable[[Bench, Place], None]
    kinds: tuple[str, ...] = ALL
    more_is_better: bool = False


JOB = (
    "The same for a request that starts with nothing but what the process has set up: a library that borrows a "
    "connection of the engine's pool for each lock pays for it. The raw driver keeps its connection here too."
)
MEASURES = {
    "cycle": Measure(cycle.HOW, cycle.run),
    "job": Measure(JOB, cycle.run_jobs, SERVERS),
    "hand-over": Measure(handover.HOW, handover.run),
    "threads": Measure(crowd.HOW["threads"], partial(crowd.run, "threads"), more_is_better=True),
    "processes": Measure(crowd.HOW["processes"], partial(crowd.run, "processes"), more_is_better=True),
    "shares": Measure(crowd.HOW["shares"], partial(crowd.run, "shares"), more_is_better=True),
    "tasks": Measure(tasks.HOW, tasks.run, SERVERS, more_is_better=True),
    "held": Measure(held.HOW, held.run),
    "waiting": Measure(waiting.HOW, waiting.run, SERVERS),
    "timeouts": Measure(timeouts.HOW, timeouts.run),
}
