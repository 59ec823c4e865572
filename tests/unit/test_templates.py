"""Keys with gaps: what fills them, and what is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from dlock_core import KeyTemplate, LockKeyError, LockKeyTypeError, key_maker


class Order:
    """An object without a text of its own."""

    number = 7


class Named(Order):
    """One that has a text."""

    def __str__(self) -> str:
        return "order-7"


def ship(order: Any, part: str = "all", **more: Any) -> None:
    """A function whose calls have keys."""


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("nightly", "nightly"),
        (7, 7),
        (b"{order}", b"{order}"),
        ("order:{order.number}:{part}", "order:7:all"),
        (("order", "{order}", 7, b"x"), ("order", "order-7", 7, b"x")),
        ("{more[lang]}:{part!r}:{order.number:03}", "de:'all':007"),
        ("{{order}}", "{order}"),
        ("{{{part}}}", "{all}"),
    ],
)
def test_gaps_are_filled_from_the_arguments(template: Any, key: Any) -> None:
    """With attributes, items, conversions and formats, as Python's own; doubled braces stand for themselves."""
    assert key_maker(template, ship)(Named(), lang="de") == key


def test_a_callable_makes_the_key_itself() -> None:
    """Out of the same arguments."""
    assert key_maker(lambda order: ("order", order), ship)(7) == ("order", 7)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{order_id}", r"ship has nothing for order_id; it has order, part, more"),
        (("order", "{order_id.number}"), r"ship has nothing for order_id;"),
        ("{}", r"ship has nothing for \{\};"),
        ("{0}", r"ship has nothing for 0;"),
        ("order:{order", r"key 'order:\{order': expected '\}'"),
    ],
)
def test_a_template_that_can_never_be_filled_is_refused_at_once(template: Any, complaint: str) -> None:
    """Not at the first call."""
    with pytest.raises(LockKeyError, match=complaint):
        key_maker(template, ship)


@pytest.mark.parametrize("template", ["{order.nothing}", "{order[0]}", "{part:d}", "{more[lang]}"])
def test_a_gap_that_this_call_cannot_fill_is_an_error_of_the_key(template: str) -> None:
    """It names the key, and says what Python said."""
    with pytest.raises(LockKeyError, match=r"it cannot be filled: \w+Error: ") as caught:
        key_maker(template, ship)(Named())
    assert caught.value.key == template


@pytest.mark.parametrize("value", [Order(), [Order()], ship, {"a", "b"}, frozenset("ab")], ids=type)
def test_a_value_whose_text_differs_between_processes_is_refused(value: Any) -> None:
    """Each process would have a lock of its own: two holders, and no error."""
    make = key_maker("order:{order}", ship)
    with pytest.raises(LockKeyTypeError, match=r"order is a \w+.*such as \{order\.id\}"):
        make(value)


def test_text_that_looks_like_an_address_is_text() -> None:
    """It is the same everywhere."""
    assert key_maker("{order}", ship)("<x at 0x7f>") == "<x at 0x7f>"


def test_an_adapter_may_write_values_in_its_own_way() -> None:
    """It gets what stands in the gap, for its errors."""
    template = KeyTemplate(("x", "{a}-{b.real}"), plain=lambda gap, value: f"<{gap}={value}>")
    assert template.fill({"a": 1, "b": 2}, where="here") == ("x", "<a=1>-<b.real=2>")
    assert (template.gaps, template.names) == (["a", "b.real"], {"a", "b"})


def test_what_has_no_name_of_its_own_can_be_decorated() -> None:
    """Such as a partial function."""
    partial = functools.partial(ship, 7)
    assert key_maker("k", partial)() == "k"
    with pytest.raises(LockKeyError, match=r"functools\.partial.* has nothing for x"):
        key_maker("{x}", partial)
