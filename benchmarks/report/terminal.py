"""Tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..measures import MEASURES
from .aims import judged
from .text import heading, median, notes, ratio, spread

if TYPE_CHECKING:
    from ..figures import Figures, Series

__all__ = ["print_tables"]


def print_tables(figures: Figures) -> None:
    """Print all that was measured."""
    console = Console()
    for measure in MEASURES:
        for (kind, setting), series in figures.settings(measure).items():
            console.print(_table(f"{measure} · {heading(kind, setting)}", series))
    aims = Table(title="aims", title_justify="left")
    for column in ("aim", "database", "wanted", "measured", ""):
        aims.add_column(column)
    for aim in judged(figures):
        aims.add_row(aim.what, aim.where, aim.wanted, aim.measured, "met" if aim.met else "[bold red]missed")
    console.print(aims)
    for failure in figures.failures:
        console.print(f"failed: {failure}", style="red", markup=False)
    for contender, overlaps in figures.overlaps.items():
        if overlaps:
            console.print(f"{contender} let two in at once, {overlaps} times", style="bold red", markup=False)


def _table(title: str, series: list[Series]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    for column in (f"median, {series[0].unit}", "to raw", "middle half"):
        table.add_column(column, justify="right")
    table.add_column("")
    for one in series:
        table.add_row(one.contender, median(one), ratio(one), spread(one), notes(one))
    return table
