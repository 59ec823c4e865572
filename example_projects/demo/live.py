"""Show a running demo in the terminal: holders, waiters, and the killed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.align import Align
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from .big import big
from .events import Event, Kind, by_worker, origin
from .judge import Hold, find_holds, find_recoveries
from .report import MARGIN, canvas_for, recovery_words
from .timeline import Canvas, axis, style_of, worker_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from .race import Plan

__all__ = ["LiveShow"]

_BIG_PANEL = 7
_SMALL_PANEL = 3
_OTHER_ROWS = 5
"""Rows for the title, the axis, an empty one, the counters and the cursor."""


class LiveShow:
    """Redraw the picture in place; it vanishes when the `with` block ends."""

    def __init__(self, console: Console, *, title: str, plan: Plan) -> None:
        self._console = console
        self._title = title
        self._plan = plan
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, events: Sequence[Event], *, now: float) -> None:
        """Draw the moment `now`."""
        start = origin(events)
        if start is None:
            picture: RenderableType = Text("starting the workers ...", style="dim")
        else:
            end = max(start + self._plan.seconds, now)
            canvas = canvas_for(self._console, start, end)
            scene = Scene(self._title, self._plan, events, now=now, canvas=canvas)
            picture = scene.picture(self._console.height)
        self._live.update(picture, refresh=True)


@dataclass(frozen=True)
class Scene:
    """Draw one moment of a race."""

    title: str
    plan: Plan
    events: Sequence[Event]
    now: float
    canvas: Canvas

    def picture(self, height: int) -> RenderableType:
        """Compose the picture for a terminal of so many rows."""
        recoveries = [recovery_words(each) for each in find_recoveries(self.events)]
        spare = height - _OTHER_ROWS - len(recoveries)
        workers = by_worker(self.events)
        panel = _BIG_PANEL if spare - len(workers) >= _BIG_PANEL else _SMALL_PANEL
        return Group(
            self._headline(),
            self._holder_panel(big_letters=panel == _BIG_PANEL),
            *self._rows(workers, most=max(1, spare - panel)),
            Text(" " * 5) + axis(self.canvas),
            Text(),
            self._counters(),
            *(Text(words, style="red", no_wrap=True) for words in recoveries),
        )

    def _headline(self) -> Text:
        elapsed = self.now - self.canvas.start
        clock = f"{elapsed:5.1f} of {self.plan.seconds:g} s"
        room = self.canvas.width + MARGIN - len(clock) - 1
        title = Text(self.title, style="bold", no_wrap=True)
        title.truncate(room, overflow="ellipsis", pad=True)
        return title + Text(f" {clock}")

    def _holder_panel(self, *, big_letters: bool) -> Panel:
        holds = find_holds(self.events, now=self.now)
        holders = [hold for hold in holds if hold.end == self.now]
        body = Text("no worker holds the lock", style="dim")
        # Three have no room; that they are three is loud enough in small letters.
        if big_letters and 0 < len(holders) < 3:
            body = self._big(holders)
        elif holders:
            body = Text(" and ".join(hold.worker for hold in holders), style="bold")
        return Panel(
            Align.center(body, vertical="middle"),
            title="TWO HOLDERS" if len(holders) > 1 else "holds the lock",
            subtitle=self._pids(holders),
            height=_BIG_PANEL if big_letters else _SMALL_PANEL,
            width=self.canvas.width + MARGIN,
        )

    def _pids(self, holders: Sequence[Hold]) -> str | None:
        names = {hold.worker for hold in holders}
        pids = [event.note for event in self.events if event.kind is Kind.STARTED and event.worker in names]
        return f"pid {' and '.join(pids)}" if pids else None

    def _big(self, holders: Sequence[Hold]) -> Text:
        name = " ".join(hold.worker for hold in holders)
        letters = big(name, ascii_only=self.canvas.ascii_only)
        return Text(letters, style=style_of(holders[-1].worker), no_wrap=True)

    def _rows(self, workers: dict[str, list[Event]], *, most: int) -> Iterable[Text]:
        alive = [own for own in workers.values() if not _is_dead(own)]
        shown = list(workers.values())
        if len(shown) > most:
            shown = alive[: most - 1]
        for own in shown:
            name = own[0].worker
            row = Text(f"{name:>4} ", style=f"bold {style_of(name)}", no_wrap=True)
            row += worker_row(own, canvas=self.canvas, now=self.now)
            yield row + self._state(own)
        if len(shown) < len(alive):
            yield Text(f"     and {len(alive) - len(shown)} more", style="dim")

    def _state(self, own: Sequence[Event]) -> Text:
        killed = [event.at for event in own if event.kind is Kind.KILLED]
        if killed:
            when = killed[0] - self.canvas.start
            return Text(f"  killed at {when:.1f} s", style="bold red")
        last = next(event for event in reversed(own) if event.kind is not Kind.MET)
        seconds = f"{self.now - last.at:6.2f} s"
        match last.kind:
            case Kind.HOLDING:
                return Text(f"  holds {seconds}", style="bold")
            case Kind.WAITING:
                return Text(f"  waits {seconds}")
            case Kind.RELEASED:
                return Text("  rests", style="dim")
            case _:
                return Text("  starts", style="dim")

    def _counters(self) -> Text:
        grants = len(find_holds(self.events))
        kills = len(find_recoveries(self.events))
        return Text(f"grants {grants}   kills {kills} of {self.plan.kills}", style="bold")


def _is_dead(own: Iterable[Event]) -> bool:
    return any(event.kind in {Kind.KILLED, Kind.ENDED} for event in own)
