"""The command `python -m example_projects.demo`."""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from dlock_core import LockError, LockProvider, LockTimeoutError
from dlock_core.cli.source import Refusal, parse_target, refusal_of, refuse_async, without_password
from dlock_core.dialects.failures import shown_url

from .crew import Crew
from .judge import find_crashes, judge
from .live import LiveShow
from .plain import PlainShow
from .race import Plan, Race
from .report import print_report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.engine import URL

    from .events import Event

__all__ = ["demo"]

_INTERRUPTED = 130
_STDERR_LINES = 30


@click.command(short_help="Watch processes compete for one lock; some are killed.")
@click.argument("url", required=False)
@click.option(
    "--workers", type=click.IntRange(2, 50), default=5, show_default=True, help="Processes that compete for the lock."
)
@click.option("--seconds", type=click.FloatRange(1, 600), default=12, show_default=True, help="How long they compete.")
@click.option(
    "--kills",
    type=click.IntRange(0, 50),
    default=2,
    show_default=True,
    help="How many holders are killed with SIGKILL.",
)
@click.option("--key", default="dlock-demo", show_default=True, help="The key of the lock.")
def demo(url: str | None, workers: int, seconds: float, kills: int, key: str) -> None:
    """Let processes compete for one lock, and kill some while they hold it.

    URL is a database, e.g. postgresql+psycopg://user@host/db; without it the demo uses
    a SQLite file of its own. Exit status: 0 if never two processes held the lock at
    once and each kill was followed by a grant, 1 if not, 2 if the demo cannot start.
    """
    plan = Plan(workers, seconds, kills)
    with tempfile.TemporaryDirectory(prefix="dlock-demo-") as name:
        folder = Path(name)
        own_file = f"sqlite:///{folder / 'demo.db'}"
        target = parse_target(own_file if url is None else url)
        _try_lock(target, key)
        sys.exit(_run(folder, target, key, plan))


def _try_lock(url: URL, key: str) -> None:
    """Take and release the lock once, so that workers start only where locks work.

    Raises:
        Refusal: The dialect, driver, server or key cannot be used.
    """
    refuse_async(url)
    try:
        with LockProvider(url) as locks, locks.lock(key, timeout=0):
            pass
    except LockTimeoutError:
        raise Refusal(f"{key!r} is held on {shown_url(url)}; choose another with --key") from None
    except (SQLAlchemyError, LockError, ImportError, OSError) as error:
        raise refusal_of(url, error) from None


def _run(folder: Path, target: URL, key: str, plan: Plan) -> int:
    console = Console(highlight=False)
    title = f"{plan.workers} processes, one lock: {key!r} on {shown_url(target)}"
    full = target.render_as_string(hide_password=False)
    with Crew(folder, url=full, key=key) as crew, _interrupted_by_any_signal():
        with _show(console, title, plan) as show:
            race = Race(crew, plan=plan, show=show)
            complete = _run_to_the_end(race)
        race.finish()
        verdict = judge(race.events, kills=plan.kills if complete else None)
        _print_last_words(crew, target, race.events)
    print_report(console, events=race.events, verdict=verdict)
    return verdict.exit_code if complete else verdict.exit_code or _INTERRUPTED


def _run_to_the_end(race: Race) -> bool:
    try:
        race.run()
    except KeyboardInterrupt:
        return False
    return True


def _show(console: Console, title: str, plan: Plan) -> AbstractContextManager[LiveShow | PlainShow]:
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveShow(console, title=title, plan=plan)
    return nullcontext(PlainShow(title))


@contextmanager
def _interrupted_by_any_signal() -> Iterator[None]:
    """End as on Ctrl-C when a signal says so: workers, folder and cursor in order."""
    names = ("SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_last_words(crew: Crew, target: URL, events: Sequence[Event]) -> None:
    # A server that goes away ends all workers, with much the same words.
    most = _STDERR_LINES
    for event in find_crashes(events):
        lines = crew.stderr(event.worker).splitlines()[-most:]
        if lines:
            words = without_password(target, "\n".join(lines))
            click.echo(f"{event.worker} wrote to stderr:\n{words}", err=True)
            most = 1
