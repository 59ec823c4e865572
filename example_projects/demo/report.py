"""Say how a demo ended: the timeline and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from .events import Event, Kind, by_worker, origin
from .judge import Recovery, Verdict, find_holds
from .timeline import Canvas, axis, legend, overlap_row, style_of, worker_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

__all__ = ["MARGIN", "canvas_for", "counted", "print_report", "recovery_words", "verdict_line"]

MARGIN = 24
"""Columns beside the timeline: the name to its left, the state to its right."""

_WIDEST = 120


def print_report(console: Console, *, events: Sequence[Event], verdict: Verdict) -> None:
    """Print the timeline, each fault, and the verdict as the last line."""
    start = origin(events)
    if start is not None:
        end = max(event.at for event in events if event.kind is not Kind.ENDED)
        _print_timeline(console, events, verdict, canvas_for(console, start, end))
    for recovery in verdict.recoveries:
        _print(console, Text(recovery_words(recovery)))
    for fault in verdict.faults:
        _print(console, Text(f"FAULT: {fault}", style="bold red"))
    style = "bold red" if verdict.faults else "bold green"
    _print(console, Text(verdict_line(verdict), style=style))


def canvas_for(console: Console, start: float, end: float) -> Canvas:
    """Return a canvas as wide as the console allows."""
    width = max(20, min(console.width, _WIDEST) - MARGIN)
    # A race that crashed at once still needs a span to divide by.
    end = max(end, start + 0.1)
    return Canvas(start, end, width, ascii_only=console.options.ascii_only)


def verdict_line(verdict: Verdict) -> str:
    """Sum up in one line: grants, kills, whether two held at once, and recovery."""
    word = "OK" if verdict.complete else "INTERRUPTED"
    word = "FAILED" if verdict.faults else word
    grants, kills = counted(verdict.grants, "grant"), counted(verdict.kills, "kill")
    two = "TWO HOLDERS AT ONCE" if verdict.two_holders else "never two holders at once"
    line = f"{word}: {grants}, {kills}, {two}"
    times = [each.seconds for each in verdict.recoveries if each.seconds is not None]
    return f"{line}; recovery {_spread(times)}" if times else line


def recovery_words(recovery: Recovery) -> str:
    """Say which worker followed a killed holder."""
    killed = f"{recovery.victim} killed while holding"
    if recovery.seconds is None:
        return f"{killed}; no worker has the lock yet"
    return f"{killed}; {recovery.heir} got the lock {recovery.seconds * 1000:.1f} ms later"


def counted(number: int, noun: str) -> str:
    """Say a number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_timeline(console: Console, events: Sequence[Event], verdict: Verdict, canvas: Canvas) -> None:
    for worker, own in by_worker(events).items():
        row = Text(f"{worker:>4} ", style=f"bold {style_of(worker)}")
        row += worker_row(own, canvas=canvas, now=canvas.end)
        _print(console, row + Text(f"  {_summary(own)}"))
    margin = Text(" " * 5)
    if verdict.overlaps:
        row = overlap_row(verdict.overlaps, canvas=canvas)
        _print(console, margin + row + Text("  two holders"))
    _print(console, margin + axis(canvas))
    _print(console, margin + legend(ascii_only=canvas.ascii_only))
    _print(console, Text())


def _summary(own: Iterable[Event]) -> str:
    grants = counted(len(find_holds(own)), "grant")
    killed = any(event.kind is Kind.KILLED for event in own)
    return f"{grants}, killed" if killed else grants


def _spread(seconds: Sequence[float]) -> str:
    if len(seconds) <= 2:
        return " and ".join(f"{each * 1000:.1f} ms" for each in seconds)
    return f"{min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f} ms"


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)
