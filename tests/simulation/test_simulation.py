"""The core keeps its promises in every schedule that was tried, and the simulator finds defects that break them."""

from __future__ import annotations

import secrets
from itertools import chain

import pytest

from .core import SOURCE, Core, load
from .mutants import MUTANTS, SEEN
from .plan import Token, make_plan
from .search import find, shrink, story
from .simulation import quiet, simulate

# How many schedules `make test` runs, always the same ones and fresh ones; and `make test-all`, in so many parts.
FIRST, FRESH = 150, 20
COARSE, PARTS, LINES = 20_000, 8, 500
# How many may be needed to find a mutant.
BUDGET = 8_000
QUICK = ("C2", "D1", "E4", "mode-mixed-up")


@pytest.fixture(scope="module")
def core() -> Core:
    """The core of today."""
    return load()


def assert_sound(core: Core, first: int, runs: int, option: str = "") -> None:
    """Run so many schedules from a seed on."""
    search = find(core, range(first, first + runs))
    assert search.failed is None, f"{search.failure}: make simulate SEED={search.failed}{option}"
    assert search.runs == runs


def test_no_schedule_breaks_a_promise(core: Core) -> None:
    """The first seeds, the same in every run."""
    assert_sound(core, 0, FIRST)


def test_no_fresh_schedule_breaks_a_promise(core: Core) -> None:
    """Other seeds in every run."""
    assert_sound(core, secrets.randbelow(10**9), FRESH)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_of_many_breaks_a_promise(core: Core, part: int) -> None:
    """Some thousands of seeds."""
    share = COARSE // PARTS
    assert_sound(core, FIRST + part * share, share)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_switch_between_two_lines_breaks_a_promise() -> None:
    """Threads switch at every line of the core, and not at its locks and statements only."""
    assert_sound(load(lines=True), 0, LINES, " ARGS=--lines")


def test_a_seed_replays_the_same_schedule(core: Core) -> None:
    """Nothing but the seed decides: addresses, hashes and real time do not."""
    with quiet():
        first, again = (simulate(core, Token(4), tells=True) for _ in range(2))
    assert first == again
    assert first.story


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fits_the_source(name: str) -> None:
    """What the table of mutants changes is there, once; it follows the core."""
    for edit in MUTANTS[name].edits:
        assert (SOURCE / edit.path).read_text().count(edit.old) == 1, edit


def is_found(name: str) -> bool:
    """Tell whether a defect is found."""
    mutant = MUTANTS[name]
    seeds = chain((SEEN[name],) if name in SEEN else (), range(BUDGET))
    return find(load(*mutant.edits, lines=mutant.lines), seeds).failed is not None


@pytest.mark.parametrize("name", QUICK)
def test_a_defect_is_found_at_once(name: str) -> None:
    """A few defects that the core once had, or could have, break an invariant soon."""
    assert is_found(name)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(set(MUTANTS) - set(QUICK)))
def test_a_defect_is_found(name: str) -> None:
    """One that is not shows a hole in the invariants."""
    assert is_found(name)


def test_a_failing_seed_is_shrunk_and_told() -> None:
    """What is left of it fails in the same way, and is short enough to be read."""
    core = load(*MUTANTS["mode-mixed-up"].edits)
    large = (seed for seed in range(BUDGET) if make_plan(seed).size >= 10)
    failed = find(core, large).failed
    assert failed is not None
    with quiet():
        small = shrink(core, failed)
    assert len(small.dropped) > make_plan(failed.seed).size // 3
    told = story(core, Token.parse(str(small)))
    assert "NO: " in told
    assert len(told.splitlines()) < 80
