"""The page in the docs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contenders import ASYNC, SYNC
from ..measures import MEASURES
from .aims import judged
from .text import heading, median, notes, ratio, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..figures import Figures, Series

__all__ = ["page"]

INTRODUCTION = """\
# Benchmarks

*Written by `make bench`; do not edit.*

![How fast, compared with the raw driver](benchmarks.svg)

All figures are medians. All contenders of a measure act in the same small rounds, in changing order, and a **ratio** is
the median of each round's ratio to the raw driver: the plain statements of a lock, sent by the driver with nothing
around them. Where less is better a ratio of 1.2 means 20 % slower than raw; where more is better (grants/s) it means
20 % more. Bodies are empty, so these are extremes: the more a program does under its lock, the nearer all come to 1.
Every wait has a limit of 30 s, as waits in a program should. Servers run on the same machine as their clients, so
a round trip takes about a tenth of a millisecond; over a network it takes longer, and what a library adds weighs
less."""


def page(figures: Figures) -> str:
    """Return the page."""
    return "\n".join(_lines(figures)).rstrip() + "\n"


def _lines(figures: Figures) -> Iterator[str]:
    yield INTRODUCTION
    if remark := figures.about.get("remark"):
        yield from ("", f"**{remark}**")
    yield from _section("Aims and figures", _aims(figures))
    for measure, what in MEASURES.items():
        settings = figures.settings(measure)
        if settings:
            better = "More is better." if what.more_is_better else "Less is better."
            yield from _section(measure.capitalize(), [f"{what.how} {better}"])
            for (kind, setting), series in settings.items():
                yield from _table(heading(kind, setting), series)
    yield from _section("Does each exclude?", _exclusion(figures))
    yield from _section("How each is used", _uses(figures))
    yield from _section(
        "With what", [f"- **{name}**: {text}" for name, text in figures.about.items() if name != "remark"]
    )


def _section(title: str, lines: Iterator[str] | list[str]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield from lines


def _aims(figures: Figures) -> Iterator[str]:
    yield "| aim | database | wanted | measured | |"
    yield "| --- | --- | ---: | ---: | --- |"
    for aim in judged(figures):
        verdict = "met" if aim.met else "**missed**"
        yield f"| {aim.what} | {aim.where} | {aim.wanted} | {aim.measured} | {verdict} |"


def _table(title: str, series: list[Series]) -> Iterator[str]:
    yield from ("", f"### {title}", "")
    remarks = any(notes(one) for one in series)
    yield f"| contender | {series[0].unit} | ratio to raw | middle half |{' |' if remarks else ''}"
    yield f"| --- | ---: | ---: | ---: |{' --- |' if remarks else ''}"
    for one in series:
        cells = [one.contender, median(one), ratio(one), spread(one), *([notes(one)] if remarks else [])]
        yield f"| {' | '.join(cells)} |"


def _exclusion(figures: Figures) -> Iterator[str]:
    yield "In hand-over, threads, tasks, processes and shares a shared counter looks whether two are ever inside."
    yield ""
    for contender, overlaps in figures.overlaps.items():
        yield f"- {contender}: {f'**two at once, {overlaps} times**' if overlaps else 'never two at once'}"
    if figures.failures:
        yield from ("", "What failed:", "")
        yield from (f"- {failure}" for failure in figures.failures)


def _uses(figures: Figures) -> Iterator[str]:
    for kind in (*SYNC, *ASYNC):
        if kind.name not in figures.left_out:
            api = " (async)" if kind in ASYNC else ""
            where = " on SQLite" if kind.kinds == {"sqlite"} and kind.name == "raw driver" else ""
            yield f"- **{kind.name}**{where}{api}: {kind.use}"
    for name, reason in figures.left_out.items():
        yield f"- {name}: left out, {reason}"
