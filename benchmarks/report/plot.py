"""A bar plot of how fast each is, compared with the raw driver, as SVG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ..contenders import RAW
from ..contenders.ours import Ours
from ..measures import MEASURES, cycle
from .text import TITLES, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..figures import Figures, Series

__all__ = ["plot"]

WIDTH, LEFT, RIGHT = 900, 190, 90
TOP, BAR, GAP, HEAD = 92, 15, 7, 30
LEGEND = "1 is what the driver's plain statements reach; further right is faster; logarithmic; medians"
# Colours that keep their contrast on white and on black.
STYLE = """
  text { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #57606a }
  .title { font-size: 17px; font-weight: 600 } .head { font-weight: 600 } .small { font-size: 11px }
  .ours { fill: #2f81f7 } .other { fill: #8b949e } .grid { stroke: #8b949e; stroke-opacity: .3 }
  .raw { stroke: #d29922; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) { text { fill: #c9d1d9 } }
"""


class Panel(NamedTuple):
    """One group of bars."""

    measure: str
    setting: str
    title: str


PANELS = (
    Panel("cycle", cycle.MAIN, "a free lock, taken and given back"),
    Panel("hand-over", "", "hand-over between two processes"),
    Panel("threads", "", "16 threads on one key"),
    Panel("processes", "", "4 processes on one key"),
)


def plot(figures: Figures, kind: str = "postgresql") -> str:
    """Return the picture."""
    groups = [(panel, _bars(figures, panel, kind)) for panel in PANELS]
    groups = [(panel, bars) for panel, bars in groups if bars]
    speeds = [speed for _, bars in groups for _, speed in bars] or [1.0]
    low = 10 ** math.floor(math.log10(min(speeds)))
    high = 10 ** math.ceil(math.log10(max(*speeds, 1.01)))
    height = TOP + sum(HEAD + len(bars) * (BAR + GAP) + 12 for _, bars in groups)
    axis = _Axis(low, high)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="20" y="28">Speed compared with the raw driver, on {TITLES[kind]}</text>',
        f'<text class="small" x="20" y="47">{LEGEND}</text>',
        *axis.grid(height),
    ]
    y = TOP
    for panel, bars in groups:
        parts.append(f'<text class="head" x="20" y="{y + 14}">{panel.title}</text>')
        y += HEAD
        for series, speed in bars:
            parts.extend(axis.bar(series, speed, y))
            y += BAR + GAP
        y += 12
    return "\n".join([*parts, "</svg>", ""])


def _bars(figures: Figures, panel: Panel, kind: str) -> list[tuple[Series, float]]:
    """Return the contenders of a panel, ours first, then the fastest."""
    found = figures.settings(panel.measure).get((kind, panel.setting), [])
    more = MEASURES[panel.measure].more_is_better
    bars = [
        (series, series.ratio if more else 1 / series.ratio)
        for series in found
        if series.contender != RAW and series.ratio
    ]
    return sorted(bars, key=lambda bar: (bar[0].contender != Ours.name, -bar[1]))


def _times(speed: float) -> str:
    """Return a factor as people say it, small ones as a fraction."""
    return f"{number(speed)} ×" if speed >= 0.1 else f"1/{1 / speed:,.0f} ×"


class _Axis:
    """A logarithmic scale from left to right."""

    def __init__(self, low: float, high: float) -> None:
        self._low = low
        self._decades = math.log10(high / low)

    def x(self, speed: float) -> float:
        share = math.log10(speed / self._low) / self._decades
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def grid(self, height: int) -> Iterator[str]:
        for step in range(round(self._decades) + 1):
            speed = self._low * 10**step
            x, kind = self.x(speed), "raw" if math.isclose(speed, 1) else "grid"
            yield f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 12}" y2="{height - 8}"/>'
            label = "raw driver" if kind == "raw" else f"{speed:g} ×"
            yield f'<text class="small" x="{x:.1f}" y="{TOP - 18}" text-anchor="middle">{label}</text>'

    def bar(self, series: Series, speed: float, y: int) -> Iterator[str]:
        ours = series.contender == Ours.name
        start, end = sorted((self.x(1), self.x(speed)))
        middle = y + BAR - 3
        yield f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end">{series.contender}</text>'
        yield (
            f'<rect class="{"ours" if ours else "other"}" x="{start:.1f}" y="{y}" '
            f'width="{max(end - start, 1.5):.1f}" height="{BAR}" rx="2"/>'
        )
        outside = end + 6 if speed >= 1 else self.x(1) + 6
        yield f'<text class="small" x="{outside:.1f}" y="{middle}">{_times(speed)}</text>'
