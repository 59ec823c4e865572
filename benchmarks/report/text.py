"""Numbers as people read them, for every report."""

from __future__ import annotations

from statistics import quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..figures import Series

__all__ = ["TITLES", "heading", "median", "notes", "number", "ratio", "spread"]

# Milliseconds: what a clock may differ by.
TOO_EARLY = 1.0
TITLES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "mysql": "MySQL", "sqlite": "SQLite"}


def number(value: float) -> str:
    """Return about three digits; two of a small number."""
    if abs(value) < 10:
        return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def median(series: Series) -> str:
    """Return the median in its unit."""
    return f"{series.value:,.0f}" if series.unit == "connections" else number(series.value)


def ratio(series: Series) -> str:
    """Return the median ratio to the raw driver, or a dash."""
    return "–" if series.ratio is None else number(series.ratio)


def spread(series: Series) -> str:
    """Return the middle half of the values; all of them when they are few."""
    values = sorted(series.values)
    if len(values) < 4:
        low, high = values[0], values[-1]
    else:
        low, _, high = quantiles(values, n=4)
    return "" if len(values) == 1 else f"{number(low)} to {number(high)}"


def notes(series: Series) -> str:
    """Return what else was seen."""
    said = []
    for name, value in series.notes.items():
        match name:
            case "smallest_share":
                said.append(f"smallest share {value:.1%}")
            case "handovers":
                said.append(f"{value:,} hand-overs")
            case "client_mb":
                said.append(f"process {value:+.0f} MB")
            case "server_mb" if value is not None:
                said.append(f"server {value:+.0f} MB")
    if series.measure == "timeouts":
        said.append(f"{number(min(series.values))} to {number(max(series.values))}")
    if min(series.values) < -TOO_EARLY:
        said.append("too early")
    return ", ".join(said)


def heading(kind: str, setting: str) -> str:
    """Return what a table is about."""
    return f"{TITLES[kind]}, {setting}" if setting else TITLES[kind]
