"""`locked("orders:{order_id}")`."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dlock_core import LockKeyError, LockTimeoutError, UnsupportedError

from .house import House


def _decorated(house: House, key: Any, inside: list[int], **options: Any) -> Any:
    """Return a function under a lock, of the kind that the row can run."""
    if house.row.api == "sync":

        @house.provider.locked(key, **options)
        def run(order_id: int, note: str = "none") -> str:
            inside.append(house.witness.holders())
            return f"{order_id} {note}"

        return run

    @house.provider.locked(key, **options)
    async def arun(order_id: int, note: str = "none") -> str:
        inside.append(house.witness.holders())
        return f"{order_id} {note}"

    return arun


@pytest.mark.parametrize(
    "key",
    [
        "orders:{order_id}:{note}",
        ("orders", "{order_id}", "{note}"),
        lambda order_id, note="none": f"o{order_id}{note}",
    ],
)
def test_each_call_runs_under_its_own_lock(house: House, key: Any) -> None:
    """The key comes from the arguments, positional, by keyword or by default; the result comes back."""
    inside: list[int] = []
    run = _decorated(house, key, inside)
    person = house.person()
    assert person.do(lambda: run(7)) == "7 none"
    assert person.do(lambda: run(order_id=7, note="x")) == "7 x"
    assert inside == [1, 1]
    assert house.witness.holders() == 0


def test_positional_keyword_and_default_make_one_key(house: House) -> None:
    """`run(1)`, `run(order_id=1)` and `run(1, "none")` exclude each other; `run(2)` does not."""
    run = _decorated(house, "orders:{order_id}:{note}", [], timeout=0)
    holder, person = house.person(), house.person()
    assert holder.acquire("orders:1:none")
    for call in (lambda: run(1), lambda: run(order_id=1), lambda: run(1, "none"), lambda: run(1, note="none")):
        with pytest.raises(LockTimeoutError):
            person.do(call)
    assert person.do(lambda: run(2)) == "2 none"
    holder.release()


def test_a_call_can_be_skipped_when_the_key_is_held(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """It returns None and says so; a free key runs, and an error of the body is its own, a timeout too."""
    inside: list[int] = []
    run = _decorated(house, "orders:{order_id}", inside, timeout=0, on_conflict="skip")
    holder, person = house.person(), house.person()
    assert holder.acquire("orders:1")
    with caplog.at_level(logging.INFO, "dlock"):
        assert person.do(lambda: run(1)) is None
    assert [record.levelname for record in caplog.records if "'orders:1': held elsewhere" in record.message] == ["INFO"]
    assert person.do(lambda: run(2)) == "2 none"
    assert inside == [2]
    holder.release()
    assert house.witness.holders() == 0
    with pytest.raises(ValueError, match="give 'raise' or 'skip'"):
        _decorated(house, "k", [], on_conflict="abort")


def test_a_skipping_function_keeps_its_own_errors(house: House) -> None:
    """Not even LockTimeoutError out of the body is taken for a conflict; the lock is free after it."""

    def fail() -> None:
        raise LockTimeoutError("inner")

    async def afail() -> None:
        fail()

    body: Any = fail if house.row.api == "sync" else afail
    run = house.provider.locked("k", timeout=0, on_conflict="skip")(body)
    with pytest.raises(LockTimeoutError, match="inner"):
        house.person().do(run)
    assert house.witness.holders() == 0


def test_a_name_that_is_no_parameter_is_refused_at_once(house: House) -> None:
    """The mistake shows at import, not at the first call."""
    with pytest.raises(LockKeyError, match=r"nothing for order;.*order_id"):
        _decorated(house, "orders:{order}", [])


def test_a_generator_is_refused(house: House) -> None:
    """Its body would run after the release."""

    def lines() -> Any:
        yield 1

    with pytest.raises(UnsupportedError, match="generator"):
        house.provider.locked("k")(lines)


@pytest.mark.rows(lambda row: row.api == "async")
def test_an_async_provider_refuses_a_plain_function(house: House) -> None:
    """It could not wait for the lock."""
    with pytest.raises(UnsupportedError, match="LockProvider"):
        house.provider.locked("k")(lambda: None)
