"""Keys with gaps: what fills them, and what is refused."""

from __future__ import annotations

import functools
import json
from dataclasses import make_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from dlock_core import LockKeyError, LockKeyTypeError
from dlock_core.adapters import KeyTemplate, key_json, key_maker, key_part, key_text

VECTORS = json.loads(Path(__file__).with_name("value_vectors.json").read_text(encoding="ascii"))


class Order:
    """An object without a text of its own."""

    number = 7


class Named(Order):
    """One that has a text, which is for people and may change."""

    def __str__(self) -> str:
        return "order-7"


class Letter(StrEnum):
    """An enumeration of texts."""

    A = "a"


class Number(IntEnum):
    """An enumeration of numbers."""

    A = 7


class Shouting(str):
    """Text that shows itself in another way."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


def read(written: dict[str, Any]) -> Any:
    """Read the value of a vector."""
    ((kind, value),) = written.items()
    return READERS[kind](value) if kind in READERS else value


def made(fields: dict[str, Any]) -> Any:
    """Make an object of a dataclass."""
    return make_dataclass("Made", fields)(**{name: read(value) for name, value in fields.items()})


READERS: dict[str, Any] = {
    "list": lambda items: [read(item) for item in items],
    "tuple": lambda items: tuple(read(item) for item in items),
    "dict": lambda items: {read(key): read(item) for key, item in items},
    "dataclass": made,
    "enum": lambda value: Enum("Made", {"ONE": read(value)})["ONE"],  # type: ignore[index]
    "float": float,
    "bytes": bytes.fromhex,
    "decimal": Decimal,
    "uuid": UUID,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda seconds: timedelta(seconds=seconds),
}


def ship(order: Any, part: str = "all", **more: Any) -> None:
    """A function whose calls have keys."""


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("nightly", "nightly"),
        (7, 7),
        (b"{order}", b"{order}"),
        ("order:{order.number}:{part}", "order:7:all"),
        (("order", "{order.number}", 7, b"x"), ("order", "7", 7, b"x")),
        ("{order.number!s:>3}:{part:.2}", "  7:al"),
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


@pytest.mark.parametrize(
    "value",
    [
        Order(),
        Named(),
        [Order()],
        {"a": Named()},
        ship,
        {"a", "b"},
        frozenset("ab"),
        Path("x"),
        range(3),
        bytearray(b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_whose_text_differs_between_processes_is_refused(value: Any) -> None:
    """Each process would have a lock of its own: two holders, and no error."""
    make = key_maker("order:{order}", ship)
    with pytest.raises(LockKeyTypeError, match=r"order is a \w+.*such as \{order\.id\}"):
        make(value)


def test_text_that_looks_like_an_address_is_text() -> None:
    """It is the same everywhere."""
    assert key_maker("{order}", ship)("<x at 0x7f>") == "<x at 0x7f>"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: json.dumps(vector["value"])[:60])
def test_the_text_of_a_value_is_as_it_was_frozen(vector: dict[str, Any]) -> None:
    """A change of one lets an old and a new process hold one lock at once, so it needs a new major version."""
    value = read(vector["value"])
    assert (key_text(value, "x"), key_json(value, "x")) == (vector["text"], vector["json"])
    assert key_maker("k:{order}", ship)(value) == f"k:{vector['text']}"
    assert key_maker(("k", "{order!s}"), ship)(value) == ("k", vector["text"])
    assert key_text(key_part(value, "x"), "x") == vector["text"]


def test_a_part_of_a_tuple_keeps_its_kind_where_a_key_has_it() -> None:
    """Text, bytes and numbers; the rest is text."""
    values = ["a", b"a", 7, True, None, 1.5, UUID(int=7), [1]]
    text = ["true", "null", "1.5", str(UUID(int=7)), "[1]"]
    assert [key_part(value, "x") for value in values] == ["a", b"a", 7, *text]


def test_a_value_s_text_depends_on_nothing_else() -> None:
    """Neither on the precision of decimal numbers, nor on the zone of a moment, nor on a subclass."""
    number = Decimal("0." + "1" * 40)
    with localcontext(prec=3):
        assert key_text(number, "x") == f"0.{'1' * 40}"
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    assert key_text(noon, "x") == key_text(noon.astimezone(timezone(timedelta(hours=-7))), "x")
    assert key_text(Shouting("quiet"), "x") == "quiet"
    assert key_text(Letter.A, "x") == "a"
    assert key_text(Number.A, "x") == "7"


def test_a_format_is_python_s_own() -> None:
    """Of the value, not of its text: a lock for a month has its key from the moment."""
    assert key_maker("{order:%Y-%m}:{part!r}", ship)(datetime(2026, 1, 31, 12)) == "2026-01:'all'"  # noqa: DTZ001
    with pytest.raises(LockKeyTypeError, match="order is a Named"):
        key_maker("{order!r}", ship)(Named())


def test_a_dict_whose_keys_are_the_same_as_text_is_refused() -> None:
    """JSON would drop one of the two."""
    with pytest.raises(LockKeyTypeError, match="argument order has a dict two of whose keys are the same"):
        key_maker("{order}", ship)({1: "a", "1": "b"})


def test_a_template_of_names_only_refuses_more_at_once() -> None:
    """And its error does not advise what it refuses."""
    template = KeyTemplate(("x", "{a}-{b}"), names_only=True)
    assert template.fill({"a": 1, "b": True}, where="here") == ("x", "1-true")
    with pytest.raises(LockKeyTypeError, match=r"argument a is a Order.*dicts of them; or give a callable"):
        template.fill({"a": Order(), "b": 2}, where="here")
    with pytest.raises(LockKeyError, match="only names of parameters may stand in braces"):
        KeyTemplate("{a.id}", names_only=True)


def test_a_template_knows_its_gaps() -> None:
    """For code that checks them before any call."""
    template = KeyTemplate(("x", "{a}-{b.real}"))
    assert (template.gaps, template.names) == (["a", "b.real"], {"a", "b"})


def test_what_has_no_name_of_its_own_can_be_decorated() -> None:
    """Such as a partial function."""
    partial = functools.partial(ship, 7)
    assert key_maker("k", partial)() == "k"
    with pytest.raises(LockKeyError, match=r"functools\.partial.* has nothing for x"):
        key_maker("{x}", partial)
