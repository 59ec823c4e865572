"""The timeline and the verdict as they are printed."""

from __future__ import annotations

import io

from rich.console import Console

from example_projects.demo.events import Event, Kind
from example_projects.demo.judge import judge
from example_projects.demo.live import Scene
from example_projects.demo.race import Plan
from example_projects.demo.report import canvas_for, print_report

EVENTS = [
    Event(100.0, "W1", Kind.WAITING),
    Event(100.0, "W2", Kind.WAITING),
    Event(100.0, "W1", Kind.HOLDING, "4"),
    Event(102.0, "W1", Kind.KILLED),
    Event(102.1, "W1", Kind.ENDED, "-9"),
    Event(102.5, "W2", Kind.HOLDING, "4"),
    Event(105.0, "W2", Kind.RELEASED),
    Event(110.0, "", Kind.STOPPED),
]


def console(encoding: str, *, height: int = 24) -> tuple[Console, io.BytesIO]:
    """Return a console of 80 columns, and the bytes that it writes."""
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding=encoding, write_through=True)
    return Console(file=file, width=80, height=height), written


def report(encoding: str, events: list[Event]) -> list[str]:
    """Print a report and return its lines."""
    target, written = console(encoding)
    print_report(target, events=events, verdict=judge(events, kills=1))
    return written.getvalue().decode(encoding).splitlines()


def test_the_timeline_shows_holds_waits_and_kills() -> None:
    """56 columns for 10 seconds: 2 seconds held are 11 columns."""
    first, second = report("utf-8", EVENTS)[:2]
    assert first.startswith("  W1 " + "█" * 11)
    assert first[5 + 11] == "x"
    assert second.startswith("  W2 " + "─" * 14 + "█" * 14)


def test_the_timeline_is_plain_ascii_where_the_encoding_is() -> None:
    """Not a single sign is lost or replaced."""
    lines = report("ascii", EVENTS)
    assert lines[0].startswith("  W1 " + "#" * 11)
    assert lines[1].startswith("  W2 " + "-" * 14 + "#" * 14)
    assert not any("?" in line for line in lines)


def test_the_timeline_fits_into_80_columns() -> None:
    """Neither a row nor the verdict wraps."""
    assert max(len(line) for line in report("utf-8", EVENTS)) <= 80


def test_the_last_line_is_the_verdict() -> None:
    """Grants, kills, whether two held at once, and the time to the next holder."""
    expected = "OK: 2 grants, 1 kill, never two holders at once; recovery 500.0 ms"
    assert report("utf-8", EVENTS)[-1] == expected


def test_two_holders_are_marked_in_the_timeline() -> None:
    """A reader sees where, and the verdict says that it failed."""
    early = Event(101.0, "W2", Kind.HOLDING, "4")
    lines = report("utf-8", [*EVENTS[:5], early, *EVENTS[6:]])
    assert lines[2].startswith(" " * 10 + "!!!!!!!")
    assert "FAULT: W1 and W2 both held the lock for 1000.000 ms" in "\n".join(lines)
    assert lines[-1].startswith("FAILED: ")


def test_the_live_view_fits_however_small_the_terminal_is() -> None:
    """Fifty workers do not push the holder out of sight."""
    target, written = console("ascii", height=14)
    crowd = [Event(100.0, f"W{number}", Kind.WAITING) for number in range(3, 51)]
    canvas = canvas_for(target, 100.0, 110.0)
    events = [*EVENTS[:6], *crowd]
    scene = Scene("crowd", Plan(50, 10, 1), events, now=103.0, canvas=canvas)
    target.print(scene.picture(14))
    lines = written.getvalue().decode().splitlines()
    assert len(lines) < 14
    assert any("W2" in line for line in lines[:4])
    assert any(line.strip().startswith("and ") for line in lines)
