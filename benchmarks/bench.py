"""What every measure works with: sizes, figures, crews, and rounds in which all take part."""

from __future__ import annotations

import random
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from .contenders import async_contenders, contenders
from .crew import Crew

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from .contenders import AsyncContender, Contender
    from .figures import Figures
    from .places import Place
    from .sizes import Sizes

__all__ = ["Bench", "progress", "shuffled"]

# Processes that contend for one key.
CREW = 4
# Seconds between two polls from which on a round has to wait long for its end.
SLOW = 0.5
_STARTED = time.monotonic()


def progress(text: str) -> None:
    """Say on standard error what happens now."""
    print(f"[{time.monotonic() - _STARTED:4.0f} s] {text}", file=sys.stderr, flush=True)


class Bench:
    """One run on one database after another."""

    def __init__(self, sizes: Sizes, figures: Figures) -> None:
        self.sizes = sizes
        self.figures = figures
        self._crews: dict[str, Crew] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for crew in self._crews.values():
            self.figures.watch(crew.name, crew.referee.overlaps)
        self._crews.clear()
        self._stack.close()

    def crews(self, place: Place, measure: str, only: Collection[str] | None = None) -> dict[str, Crew]:
        """Return the processes of each contender for threads, started when first needed."""
        kinds = contenders(place.address, measure)
        return {kind.name: self._crew(place, kind) for kind in kinds if only is None or kind.name in only}

    @staticmethod
    def slow(place: Place) -> set[str]:
        """Return those that poll so seldom that a round lasts for seconds."""
        return {kind.name for kind in contenders(place.address, "") if kind.poll(place.kind) >= SLOW}

    def _crew(self, place: Place, kind: type[Contender]) -> Crew:
        if kind.name not in self._crews:
            crew = Crew(place.address, kind, place.driver, CREW)
            self._crews[kind.name] = self._stack.enter_context(crew)
        return self._crews[kind.name]

    def fresh_crews(self, place: Place, measure: str, driver: str | None, size: int) -> Iterator[Crew]:
        """Yield a crew for each contender, of tasks if an async driver is given; it ends before the next comes."""
        kinds: list[type[Contender]] | list[type[AsyncContender]]
        kinds = async_contenders(place.address, measure) if driver else contenders(place.address, measure)
        for kind in kinds:
            with Crew(place.address, kind, driver or place.driver, size) as crew:
                yield crew
                self.figures.watch(crew.name, crew.referee.overlaps)

    def rounds(
        self,
        measure: str,
        place: Place,
        actions: Mapping[str, Callable[[], float]],
        count: int,
        slow: Collection[str] = (),
    ) -> dict[str, list[float]]:
        """Let all act in each round, in changing order, the slow in half of them; one that fails is out."""
        found: dict[str, list[float]] = {name: [] for name in actions}
        for number in range(count):
            for name in shuffled(found):
                if name in slow and number >= max(1, count // 2):
                    continue
                try:
                    found[name].append(actions[name]())
                except Exception as error:
                    self.figures.fail(measure, place.kind, name, error)
                    del found[name]
        return found


def shuffled(names: dict[str, list[float]]) -> list[str]:
    """Return the names in an order of chance."""
    return random.sample(list(names), len(names))
