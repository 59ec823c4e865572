"""Runs many simulations, and makes one that fails small and readable."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from .core import Core
from .plan import Token, make_plan
from .simulation import Outcome, quiet, simulate

__all__ = ["Search", "find", "shrink", "story"]

# In how many orders a smaller plan is tried before its parts are taken to be needed.
ORDERS = 25
# Lines of a story: its beginning is cut.
LINES = 60


class Search(NamedTuple):
    """What came of many simulations."""

    runs: int
    steps: int
    seconds: float
    failed: Token | None
    failure: str | None

    def __str__(self) -> str:
        return (
            f"{self.runs:,} schedules, {self.steps:,} steps in {self.seconds:.1f} s ({self.runs / self.seconds:.0f}/s)"
        )


def find(core: Core, seeds: Iterable[int], *, until: float | None = None) -> Search:
    """Run the simulations of some seeds, until one fails or time is over (on the monotonic clock)."""
    began, runs, steps = time.monotonic(), 0, 0
    with quiet():
        for seed in seeds:
            outcome = simulate(core, Token(seed))
            runs, steps = runs + 1, steps + outcome.steps
            if outcome.failure is not None:
                return Search(runs, steps, time.monotonic() - began, Token(seed), outcome.failure)
            if until is not None and time.monotonic() > until:
                break
    return Search(runs, steps, time.monotonic() - began, None, None)


def shrink(core: Core, token: Token) -> Token:
    """Drop the parts of a failing plan that it fails without, in some order of its threads."""
    kind = _kind(simulate(core, token))
    parts = make_plan(token.seed).size
    again = True
    while again:
        again = False
        for part in range(parts):
            if part in token.dropped:
                continue
            for smaller in _orders(replace(token, dropped=token.dropped | {part})):
                if _kind(simulate(core, smaller)) == kind:
                    token, again = smaller, True
                    break
    return token


def _orders(token: Token) -> Iterator[Token]:
    yield token
    for order in range(1, ORDERS):
        yield replace(token, order=order)


def _kind(outcome: Outcome) -> str:
    """Return the failure without the names in it, which change with the order."""
    words = (outcome.failure or "").split()
    return " ".join(word for word in words if word.isalpha() and word.islower())[:40]


def story(core: Core, token: Token) -> str:
    """Tell what happens in one simulation, and how it ends."""
    with quiet():
        outcome = simulate(core, token, tells=True)
    plan = make_plan(token.seed).without(token.dropped)
    head = [f"provider {number}: {provider}" for number, provider in enumerate(plan.providers)]
    lines, cut = outcome.story, len(outcome.story) - LINES
    if cut > 0:
        lines = [f"... {cut} lines", *lines[-LINES:]]
    end = [f"NO: {outcome.failure}", *outcome.stacks] if outcome.failure else ["all is well"]
    return "\n".join([f"simulation {token}", *head, "", *lines, "", *end])


def seeds_from(first: int) -> Iterator[int]:
    """Return seeds without an end."""
    return count(first)
