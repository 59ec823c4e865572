"""Bad input is a clear error; nothing is asked of the server, nothing stays."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from dlock_core import (
    AsyncLockProvider,
    LockConnectionError,
    LockError,
    LockKeyError,
    LockKeyRangeError,
    LockKeyTypeError,
    LockProvider,
    UnsupportedError,
)
from tests.ids import stable

from .house import House

# What is refused before any database is asked is the same on all of them.
before_any_database = pytest.mark.rows(lambda row: row.name in {"sqlite-memory", "sqlite-aiosqlite"})

WRONG_TYPES = [None, True, 1.5, Decimal(1), object(), ["a"], {"a": 1}, ("a", None), ("a", ("b",)), bytearray(b"a")]


@before_any_database
@pytest.mark.parametrize("key", WRONG_TYPES, ids=stable)
def test_a_key_of_a_wrong_type_is_refused(house: House, key: Any) -> None:
    """The error is a TypeError of ours that names the key and what to give."""
    with pytest.raises(LockKeyTypeError, match="give a str, bytes, int, or a tuple") as caught:
        house.maker()(key)
    assert isinstance(caught.value, TypeError)
    assert repr(key)[:20] in str(caught.value)


@before_any_database
@pytest.mark.parametrize("key", ["", b"", (), ("a", ""), "\ud800", ("a", "\udfff")], ids=stable)
def test_a_key_that_names_nothing_is_refused(house: House, key: Any) -> None:
    """Empty keys and lone surrogates are ValueErrors of ours."""
    with pytest.raises(LockKeyError, match="key") as caught:
        house.maker()(key)
    assert isinstance(caught.value, ValueError)


@before_any_database
@pytest.mark.parametrize("key", [2**63, -(2**63) - 1, ("a", 2**64)], ids=stable)
def test_an_int_key_beyond_64_bits_is_refused(house: House, key: Any) -> None:
    """The error is an OverflowError of ours."""
    with pytest.raises(LockKeyRangeError, match="64 bits") as caught:
        house.maker()(key)
    assert isinstance(caught.value, OverflowError)


@before_any_database
@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, "5", True, object()], ids=stable)
def test_a_timeout_that_is_none_is_refused(house: House, timeout: Any) -> None:
    """At the lock, at acquire and at the decorator."""
    with pytest.raises(ValueError, match=r"timeout=.*wait without limit"):
        house.maker()("k", timeout=timeout)
    with pytest.raises(ValueError, match="timeout="):
        house.provider.locked("k", timeout=timeout)
    person = house.person()
    lock = house.maker()("k")
    with pytest.raises(ValueError, match="timeout="):
        person.do(lambda: lock.acquire(timeout=timeout))
    assert not lock.held


@before_any_database
def test_one_try_with_a_timeout_is_refused(house: House) -> None:
    """`block=False` and a timeout contradict each other."""
    person, lock = house.person(), house.maker()("k")
    with pytest.raises(ValueError, match="block=False"):
        person.do(lambda: lock.acquire(False, timeout=3))


@before_any_database
def test_an_unknown_option_is_refused(house: House) -> None:
    """A misspelt option is a TypeError, never swallowed."""
    with pytest.raises(TypeError, match="timout"):
        house.maker()("k", timout=3)
    with pytest.raises(TypeError, match="prefx"):
        house.new_provider(prefx="a")


@before_any_database
@pytest.mark.parametrize("prefix", [None, 5, b"x", "\ud800"], ids=stable)
def test_a_prefix_that_is_no_text_is_refused(house: House, prefix: Any) -> None:
    """The error names the option."""
    with pytest.raises(LockKeyError, match="prefix"):
        house.new_provider(prefix=prefix)


@pytest.mark.parametrize(
    "key", ["k", "ключ", "🔒", "a\0b", "x" * 10_000, "%s %(a)s {b} :c", b"\xff\x00", 0, -(2**63), 2**63 - 1]
)
def test_every_good_key_works(house: House, key: Any) -> None:
    """Any text, bytes or int is a lock, and excludes the same key elsewhere."""
    person, stranger = house.person(), house.stranger()
    assert person.acquire(key, timeout=5)
    assert not stranger.acquire(key, timeout=0)
    assert person.locks[0].key == key
    person.release()


def test_prefixes_and_parts_keep_keys_apart(house: House) -> None:
    """What differs in prefix, part, case, blank or kind is another lock."""
    providers = [house.provider, house.new_provider(prefix="app"), house.new_provider(prefix="app1")]
    keys: list[Any] = ["1:x", ":x", "x", "X", "x ", ("x",), ("1", ":x"), ("1:", "x"), ("x", 1), ("x", "1"), ("x", b"1")]
    people = [house.person(provider) for provider in providers for _ in keys]
    for index, person in enumerate(people):
        assert person.acquire(keys[index % len(keys)], timeout=0), keys[index % len(keys)]
    assert house.witness.holders() == len(people)
    for person in people:
        person.release()


def test_an_unknown_database_is_refused() -> None:
    """The error says what is supported."""
    for url in ("nosuchdb://host/db", "mssql+nosuchdriver://host/db"):
        with pytest.raises(UnsupportedError, match=url.partition(":")[0].partition("+")[0]):
            LockProvider(url)


def test_something_that_is_no_url_is_refused() -> None:
    """The error shows what a URL looks like, and no password."""
    with pytest.raises(ValueError, match=r"postgresql\+psycopg://"):
        LockProvider("not a url")
    with pytest.raises(TypeError, match="neither an SQLAlchemy engine nor a URL"):
        LockProvider(5)  # type: ignore[arg-type]


def test_a_driver_of_the_other_kind_is_refused() -> None:
    """The error names the provider to use."""
    with pytest.raises(UnsupportedError, match="AsyncLockProvider"):
        LockProvider("postgresql+asyncpg://host/db")
    with pytest.raises(UnsupportedError, match="use LockProvider"):
        AsyncLockProvider("postgresql+psycopg2://host/db")


@pytest.mark.parametrize("drivername", ["postgresql+psycopg", "postgresql+psycopg2", "mysql+pymysql", "mysql+mysqldb"])
def test_an_unreachable_server_is_a_clear_error(drivername: str) -> None:
    """It names the key and the URL, without the password, and keeps the driver's error as cause."""
    locks = LockProvider(f"{drivername}://user:secret@127.0.0.1:1/db?sslpassword=secret")
    with pytest.raises(LockConnectionError, match=r"'orders'.*user:\*\*\*@127\.0\.0\.1:1") as caught:
        locks.lock("orders").acquire(timeout=1)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, LockError)
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.key == "orders"
    locks.close()
