"""Draw the holds: one row per worker, time from left to right.

Legible without colour and in plain ASCII. The ends of a hold are rounded to half
columns (in ASCII to columns), so where two rows are filled at once, two held at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from .events import Event, Kind
from .judge import Hold, Overlap, find_holds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Canvas", "axis", "legend", "overlap_row", "style_of", "worker_row"]

_STYLES = ("green", "cyan", "magenta", "yellow", "blue")
_KILLED = "bold red"


@dataclass(frozen=True, slots=True)
class Canvas:
    """Map a span of time onto columns."""

    start: float
    end: float
    width: int
    ascii_only: bool = False

    def column(self, at: float) -> int:
        """Return the column of a moment; the last one for what comes later."""
        return min(self.width - 1, int(self.position(at, cells=self.width)))

    def position(self, at: float, *, cells: int) -> float:
        """Return where a moment lies, clipped, in a span cut into `cells` cells."""
        part = (at - self.start) / (self.end - self.start)
        return min(1.0, max(0.0, part)) * cells


@dataclass(frozen=True, slots=True)
class _Glyphs:
    full: str
    left: str
    right: str
    sliver: str
    waiting: str

    @property
    def holding(self) -> str:
        return self.full + self.left + self.right + self.sliver

    def block(self, *, from_left: bool, to_right: bool) -> str:
        if from_left and to_right:
            return self.full
        return self.left if from_left else self.right

    def joined(self, before: str, block: str) -> str:
        """Fill a column whose halves belong to two holds of one worker."""
        return self.full if {before, block} == {self.left, self.right} else block


_UNICODE = _Glyphs("█", "▌", "▐", "│", "─")
_ASCII = _Glyphs("#", "#", "#", "|", "-")


def style_of(worker: str) -> str:
    """Return the colour of a worker."""
    return _STYLES[int(worker[1:]) % len(_STYLES)]


def worker_row(own: Sequence[Event], *, canvas: Canvas, now: float) -> Text:
    """Draw the row of one worker, from its own events, up to `now`."""
    glyphs = _ASCII if canvas.ascii_only else _UNICODE
    cells = _waiting_cells(_waits(own, now), canvas, glyphs)
    for hold in find_holds(own, now=now):
        _draw_hold(cells, hold, canvas, glyphs)
    for event in own:
        if event.kind is Kind.KILLED:
            _draw_death(cells, event.at, canvas, glyphs)
    return _coloured(cells, own[0].worker, glyphs)


def overlap_row(overlaps: Iterable[Overlap], *, canvas: Canvas) -> Text:
    """Draw a row that points at the moments when two held at once."""
    cells = [" "] * canvas.width
    for overlap in overlaps:
        first, last = canvas.column(overlap.second.start), canvas.column(overlap.end)
        cells[first : last + 1] = "!" * (last + 1 - first)
    return Text("".join(cells), style=_KILLED)


def axis(canvas: Canvas) -> Text:
    """Draw the time axis: seconds from the start."""
    cells = [" "] * (canvas.width + 8)
    seconds = canvas.end - canvas.start
    step = _step(seconds, canvas.width)
    tick = 0.0
    while tick <= seconds:
        label = f"{tick:g}" if tick else "0 s"
        first = canvas.column(canvas.start + tick)
        cells[first : first + len(label)] = label
        tick += step
    return Text("".join(cells).rstrip(), style="dim")


def legend(*, ascii_only: bool) -> Text:
    """Explain the signs of the timeline."""
    glyphs = _ASCII if ascii_only else _UNICODE
    return Text(f"{glyphs.full} holds the lock  {glyphs.waiting} waits  x killed  (seconds)", style="dim")


def _waiting_cells(waits: Iterable[tuple[float, float]], canvas: Canvas, glyphs: _Glyphs) -> list[str]:
    cells = [" "] * canvas.width
    for since, until in waits:
        first = round(canvas.position(since, cells=canvas.width))
        last = round(canvas.position(until, cells=canvas.width))
        cells[first:last] = glyphs.waiting * (last - first)
    return cells


def _waits(own: Iterable[Event], now: float) -> Iterator[tuple[float, float]]:
    since: float | None = None
    for event in own:
        if since is not None:
            yield since, event.at
        since = event.at if event.kind is Kind.WAITING else None
    if since is not None:
        yield since, now


def _draw_hold(cells: list[str], hold: Hold, canvas: Canvas, glyphs: _Glyphs) -> None:
    parts = 1 if canvas.ascii_only else 2
    first = round(canvas.position(hold.start, cells=canvas.width * parts))
    last = round(canvas.position(hold.end, cells=canvas.width * parts))
    if first == last:
        cells[canvas.column(hold.start)] = glyphs.sliver
        return
    for column in range(first // parts, -(-last // parts)):
        from_left = first <= column * parts
        to_right = last >= (column + 1) * parts
        block = glyphs.block(from_left=from_left, to_right=to_right)
        cells[column] = glyphs.joined(cells[column], block)


def _draw_death(cells: list[str], at: float, canvas: Canvas, glyphs: _Glyphs) -> None:
    column = canvas.column(at)
    # To the right of the hold it ended, which may be but one column wide.
    while cells[column] in glyphs.holding and column < canvas.width - 1:
        column += 1
    cells[column] = "x"


def _coloured(cells: list[str], worker: str, glyphs: _Glyphs) -> Text:
    row = Text()
    for cell in cells:
        if cell == "x":
            row.append(cell, style=_KILLED)
        else:
            row.append(cell, style_of(worker) if cell in glyphs.holding else "dim")
    return row


def _step(seconds: float, width: int) -> float:
    """Return the smallest round step that leaves eight columns per label."""
    steps = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
    for step in steps:
        if width * step / seconds >= 8:
            return step
    return seconds
