"""Keys from arguments: one key for one meaning, and an error for what has none."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from celery.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st
from kombu.serialization import dumps, loads

from dlock_celery.keys import KeyMaker
from dlock_core import LockKeyError
from tests.ids import stable


def task(customer: Any, when: Any = None, *rest: Any, **more: Any) -> None:
    """The function of a task."""


def maker(key: Any = None, *, by_args: bool = False) -> KeyMaker:
    """What computes the keys of that task."""
    return KeyMaker("shop.task", key, by_args=by_args, signature=inspect.signature(task))


def sent(arguments: Any) -> Any:
    """Return arguments as a worker gets them, by Celery's JSON."""
    content_type, encoding, payload = dumps(arguments, "json")
    return loads(payload, content_type, encoding)


class Colour(Enum):
    """An enumeration."""

    RED = "red"


@dataclass
class Point:
    """A dataclass."""

    x: int
    y: int


def test_the_tasks_name_is_the_key_when_nothing_is_said() -> None:
    """All arguments, one lock: rather too few at a time than too many."""
    assert maker()((1,), {}) == maker()((2,), {}) == "shop.task"


@pytest.mark.parametrize(
    ("args", "kwargs"), [((7, None), {}), ((7,), {}), ((), {"customer": 7}), ((), {"customer": 7, "when": None})]
)
def test_a_call_by_position_by_name_and_by_default_has_one_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """They mean the same."""
    assert maker(by_args=True)(args, kwargs) == maker(by_args=True)((7,), {})
    assert maker("customer:{customer}")(args, kwargs) == "customer:7"


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 - people send such
        date(2026, 1, 2),
        UUID(int=7),
        Decimal("1.50"),
        (1, (2, "x")),
        {"a": {1: [None, True], 2: 0.5}},
        "text",
        None,
    ],
    ids=stable,
)
def test_an_argument_has_the_same_key_before_and_after_the_wire(value: Any) -> None:
    """A worker, and a direct call of the task, mean one lock."""
    for make in (maker(by_args=True), maker("x:{customer}"), maker(("x", "{customer}"))):
        args, kwargs = sent([[value], {}])
        assert make(tuple(args), kwargs) == make((value,), {})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=10,
    )
)
def test_any_plain_argument_has_the_same_key_after_the_wire(value: Any) -> None:
    """Except a dict whose keys are the same as text, which no wire keeps apart: that is an error."""
    make = maker(by_args=True)
    try:
        before = make((value,), {})
    except LockKeyError:
        return
    assert make(tuple(sent([value])), {}) == before


def test_different_arguments_have_different_keys() -> None:
    """Also those that look alike."""
    values = [1, "1", True, "true", None, "null", [1], "[1]", {"1": 1}, 1.5, Point(1, 2), Point(2, 1), b"x"]
    assert len({maker(by_args=True)((value,), {}) for value in values}) == len(values)


def test_what_means_the_same_has_one_key() -> None:
    """A list is a tuple; a moment is the same in every zone; an enumeration is its value."""
    make = maker(by_args=True)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for one, other in [
        ([1, 2], (1, 2)),
        (noon, noon.astimezone(timezone(timedelta(hours=5)))),
        (Colour.RED, "red"),
        (Decimal("1.0"), Decimal(1)),
        (Point(1, 2), {"x": 1, "y": 2}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ]:
        assert make((one,), {}) == make((other,), {})


@pytest.mark.parametrize("value", [frozenset({1}), {1, 2}, object(), task, {1: "a", "1": "b"}], ids=stable)
def test_an_argument_without_a_canonical_form_is_an_error_that_names_the_parameter(value: Any) -> None:
    """Its repr could be different in each process."""
    for make in (maker(by_args=True), maker("{customer}")):
        with pytest.raises(LockKeyError, match="argument customer"):
            make((value,), {})


def test_parts_of_a_tuple_do_not_run_together() -> None:
    """As they would in one text."""
    make = maker(("invoice", "{customer}", "{when}"))
    assert make(("a:b", "c"), {}) != make(("a", "b:c"), {})
    assert make((1, 2), {}) == ("invoice", "1", "2")


def test_a_callable_gets_all_arguments_by_name() -> None:
    """With defaults, and what is left over as the task's own signature calls it."""
    make = maker(lambda customer, when, **others: ("x", customer, str(when), str(others)))
    assert make((1,), {"colour": "red"}) == ("x", 1, "None", "{'rest': (), 'more': {'colour': 'red'}}")
    assert maker(lambda customer, **_: UUID(int=customer))((1,), {}) == str(UUID(int=1))


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("x:{nobody}", "the task has nothing for nobody; it has customer"),
        (("x", "{nobody}"), "nobody"),
        ("x:{customer.name}", "only names of parameters"),
        ("x:{customer!r}", "only names of parameters"),
        ("x:{}", "only names of parameters"),
        ("x:{customer", "expected '}'"),
        (1.5, "no str, bytes or int"),
        (True, "no str, bytes or int"),
    ],
)
def test_a_key_that_cannot_work_is_refused_before_any_run(key: Any, complaint: str) -> None:
    """With the reason."""
    with pytest.raises(ImproperlyConfigured, match=complaint):
        maker(key)
    with pytest.raises(ImproperlyConfigured, match="not both"):
        maker(key, by_args=True)


def test_wrong_arguments_are_the_callers_error() -> None:
    """As they would be for the task's body."""
    with pytest.raises(TypeError, match="missing a required argument"):
        maker("{customer}")((), {})
