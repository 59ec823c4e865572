"""What was measured: numbers of each round, and what they are compared with."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Self

from .contenders import RAW

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Figures", "Series"]

# Units of which a ratio tells something.
COMPARABLE = frozenset({"µs", "ms", "grants/s"})


@dataclass
class Series:
    """One contender in one setting: a number for each round."""

    measure: str
    kind: str
    """The kind of database."""
    setting: str
    contender: str
    unit: str
    values: list[float]
    ratios: list[float] = field(default_factory=list)
    """To the raw driver, round by round; empty where it is no contender."""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median of all rounds."""
        return median(self.values)

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios."""
        return median(self.ratios) if self.ratios else None


@dataclass
class Figures:
    """All that a run has measured."""

    about: dict[str, str] = field(default_factory=dict)
    """Machine and versions."""
    left_out: dict[str, str] = field(default_factory=dict)
    """The contenders that did not take part, and why."""
    failures: list[str] = field(default_factory=list)
    overlaps: dict[str, int] = field(default_factory=dict)
    """How often two held a contender's lock at once, where the referee looked."""
    series: list[Series] = field(default_factory=list)

    def add(
        self, measure: str, kind: str, setting: str, unit: str, rounds: dict[str, list[float]], **notes: dict[str, Any]
    ) -> None:
        """Add the numbers of all contenders; each note maps contenders to something to say about them."""
        base = rounds.get(RAW) if unit in COMPARABLE else None
        for contender, values in rounds.items():
            if values:
                ratios = [value / raw for value, raw in zip(values, base, strict=False) if raw] if base else []
                said = {name: of[contender] for name, of in notes.items() if contender in of}
                self.series.append(Series(measure, kind, setting, contender, unit, values, ratios, said))

    def fail(self, measure: str, kind: str, contender: str, error: object) -> None:
        """Note that a contender could not do it."""
        name = type(error).__name__
        text = str(error).strip().partition("\n")[0]
        self.failures.append(f"{measure}, {kind}, {contender}: {text if name == 'CrewError' else f'{name}: {text}'}")

    def watch(self, contender: str, overlaps: int) -> None:
        """Note what the referee saw."""
        self.overlaps[contender] = self.overlaps.get(contender, 0) + overlaps

    def find(self, measure: str, kind: str, setting: str, contender: str) -> Series | None:
        """Return one series, None when it was not measured."""
        wanted = (measure, kind, setting, contender)
        return next((s for s in self.series if (s.measure, s.kind, s.setting, s.contender) == wanted), None)

    def settings(self, measure: str) -> dict[tuple[str, str], list[Series]]:
        """Return the series of a measure by database and setting."""
        found: dict[tuple[str, str], list[Series]] = defaultdict(list)
        for series in self.series:
            if series.measure == measure:
                found[series.kind, series.setting].append(series)
        return found

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        return cls(**{**data, "series": [Series(**series) for series in data["series"]]})
