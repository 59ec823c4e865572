"""What we aimed at, beside what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..contenders.ours import Ours
from ..measures import cycle
from .text import TITLES, number

if TYPE_CHECKING:
    from ..figures import Figures

__all__ = ["Judged", "judged"]


class Aim(NamedTuple):
    """A bound for one figure of ours."""

    what: str
    measure: str
    setting: str
    """Empty: any."""
    bound: float
    at_least: bool = False
    ratio: bool = True


class Judged(NamedTuple):
    """An aim and what became of it."""

    what: str
    where: str
    wanted: str
    measured: str
    met: bool


AIMS = (
    Aim("cycle, sync, {setting}", "cycle", cycle.MAIN, 1.3),
    Aim("cycle, sync, {setting}", "cycle", cycle.THREAD, 1.3),
    Aim("cycle, async, {setting}", "cycle", "async", 2.0),
    Aim("hand-over between processes", "hand-over", "", 1.2),
    Aim("16 threads, grants/s", "threads", "", 6, at_least=True),
    Aim("4 processes, grants/s", "processes", "", 0.9, at_least=True),
    Aim("connections: {setting} held", "held", "locks", 2, ratio=False),
    Aim("connections: {setting}", "waiting", "one key", 2, ratio=False),
    Aim("connections: {setting}", "waiting", "0 keys", 10, ratio=False),
)
SERVERS = ("postgresql", "mariadb", "mysql")


def judged(figures: Figures) -> list[Judged]:
    """Return every aim for every server where it was measured."""
    return [one for aim in AIMS for kind in SERVERS for one in _judge(aim, kind, figures)]


def _judge(aim: Aim, kind: str, figures: Figures) -> list[Judged]:
    found = []
    for series in figures.series:
        exactly = aim.setting in (cycle.MAIN, cycle.THREAD)
        fits = series.setting == aim.setting if exactly else series.setting.endswith(aim.setting)
        if (series.measure, series.kind, series.contender) != (aim.measure, kind, Ours.name) or not fits:
            continue
        value = series.ratio if aim.ratio else series.value
        if value is None:
            continue
        sign = "≥" if aim.at_least else "≤"
        times = " × raw" if aim.ratio else ""
        met = value >= aim.bound if aim.at_least else value <= aim.bound
        what = aim.what.format(setting=series.setting.removesuffix(", async"))
        found.append(
            Judged(
                what,
                TITLES[kind],
                f"{sign} {aim.bound:g}{times}",
                f"{number(value) if aim.ratio else round(value)}{times}",
                met,
            )
        )
    return found
