"""Timeouts: checked once at the door, then deadlines on the monotonic clock."""

from __future__ import annotations

import math
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlock_core.sessions import timeouts
from dlock_core.sessions.timeouts import Deadline, parse_timeout
from tests.ids import stable


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(timeouts, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The only clock that deadlines can see."""
    return Clock(monkeypatch)


@given(st.floats(min_value=0, allow_infinity=False) | st.integers(0, 2**62) | st.fractions(0, 10**6))
def test_a_number_of_seconds_is_kept(value: Any) -> None:
    """Fractions of a second too; the answer is a float whatever kind of number came."""
    seconds = parse_timeout(value)
    assert isinstance(seconds, float)
    assert seconds == float(value)


@pytest.mark.parametrize("value", [None, math.inf])
def test_none_and_infinity_wait_for_ever(value: float | None) -> None:
    """Infinity would overflow in a server's milliseconds."""
    assert parse_timeout(value) is None


@pytest.mark.parametrize("value", [0, 0.0, -0.0, Fraction(0)], ids=stable)
def test_every_zero_is_one_try(value: Any) -> None:
    """A test for `timeout == 0` sees it."""
    assert parse_timeout(value) == 0


@pytest.mark.parametrize(
    "value",
    [-1, -0.001, -5e-324, -math.inf, math.nan, True, False, "5", b"5", Decimal(5), 5j, [5], object()],
    ids=stable,
)
def test_what_is_no_number_of_seconds_is_refused(value: Any) -> None:
    """The message shows the value and what to give instead."""
    with pytest.raises(ValueError, match=r"None \(wait without limit\), 0 \(one try\)") as caught:
        parse_timeout(value)
    assert f"timeout={value!r}" in str(caught.value)


def test_an_int_beyond_all_floats_is_refused_as_a_value_error_or_waits_for_ever() -> None:
    """Only ValueError is documented, so nothing else may come out."""
    with suppress(ValueError):
        assert parse_timeout(10**400) is None


@given(st.floats(0, 1e9), st.lists(st.floats(0, 1e6), max_size=10))
def test_a_deadline_counts_down_and_never_below_zero(timeout: float, steps: list[float]) -> None:
    """What remains and whether it has passed agree at every moment."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        deadline = Deadline(timeout)
        end = clock.now + timeout
        for step in steps:
            clock.now += step
            remaining = deadline.remaining()
            assert remaining is not None
            assert remaining == max(0.0, end - clock.now)
            assert deadline.passed == (remaining == 0)


def test_a_deadline_passes_at_its_moment_not_after(clock: Clock) -> None:
    """A wait of 5 seconds is over when 5 seconds are over."""
    deadline = Deadline(5)
    clock.now += math.nextafter(5, 0) - 1e-9
    assert not deadline.passed
    clock.now = 1005.0
    assert deadline.passed


@pytest.mark.usefixtures("clock")
def test_a_deadline_of_one_try_has_passed_at_once() -> None:
    """Zero seconds are over before they begin."""
    deadline = Deadline(0)
    assert deadline.passed
    assert deadline.remaining() == 0


def test_a_deadline_for_ever_never_passes(clock: Clock) -> None:
    """Not in a thousand years."""
    deadline = Deadline(None)
    clock.now += 1000 * 365 * 86400
    assert not deadline.passed
    assert deadline.remaining() is None


@pytest.mark.parametrize("timeout", [None, 0, 5])
def test_a_deadline_tells_how_long_it_has_been_waited_for(clock: Clock, timeout: float | None) -> None:
    """From its setting, past its end too."""
    deadline = Deadline(timeout)
    clock.now += 7.5
    assert deadline.waited == 7.5
