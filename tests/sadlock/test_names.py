"""Keys, their names at the server, options and subjects: what is checked without a server."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy_dlock.lock.mysql import MysqlSadLockMixin
from sqlalchemy_dlock.lock.postgresql import PostgresqlSadLockMixin

import dlock_core
from dlock_core import (
    LockKeyError,
    LockKeyRangeError,
    LockKeyTypeError,
    UnsupportedError,
    create_async_sadlock,
    create_sadlock,
    keys,
)
from dlock_core.sadlock.wanted import Options, actual_key, readable

DIALECTS: dict[str, sa.Dialect] = {
    "postgresql": sa.create_engine("postgresql+psycopg://").dialect,
    "mysql": sa.create_engine("mysql+pymysql://").dialect,
    "mariadb": sa.create_engine("mariadb+pymysql://").dialect,
    "sqlite": sa.create_engine("sqlite://").dialect,
}
POSTGRESQL, MYSQL, SQLITE = DIALECTS["postgresql"], DIALECTS["mysql"], DIALECTS["sqlite"]
WORDS = st.text(st.characters(codec="utf-8"))
little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="sqlalchemy-dlock hashes in the host's byte order")


@little_endian
@given(WORDS | st.binary() | st.integers(-(2**63), 2**63 - 1) | st.booleans())
def test_postgresql_names_are_those_of_sqlalchemy_dlock(key: Any) -> None:
    """And those of a provider without prefix, for what both accept."""
    assert actual_key(POSTGRESQL, key, None) == PostgresqlSadLockMixin.convert(key)
    if isinstance(key, bytes):
        assert actual_key(POSTGRESQL, bytearray(key), None) == actual_key(POSTGRESQL, key, None)
        assert actual_key(POSTGRESQL, memoryview(key), None) == actual_key(POSTGRESQL, key, None)
    if key != "" and not isinstance(key, bool):
        assert actual_key(POSTGRESQL, key, None) == keys.int64("", key)


PLAIN = st.text("abcdefghijklmnopqrstuvwxyz0123456789:_-./", min_size=1, max_size=64)


@given(PLAIN | PLAIN.map(str.encode) | st.integers() | st.floats())
def test_mysql_names_are_those_of_sqlalchemy_dlock_where_all_servers_read_them_alike(key: Any) -> None:
    """Printable ASCII without capitals, of at most 64 characters."""
    name = MysqlSadLockMixin.convert(key)
    ours = actual_key(MYSQL, key, None)
    assert (ours == name) == (len(name) <= 64)
    assert ours == actual_key(DIALECTS["mariadb"], key, None)


@given(WORDS | st.binary() | st.integers() | st.floats())
def test_a_mysql_name_is_always_one_that_the_server_takes(key: Any) -> None:
    """Text and its UTF-8 bytes are one lock, as in sqlalchemy-dlock; no name is refused or cut."""
    name = actual_key(MYSQL, key, None)
    assert isinstance(name, str)
    assert 0 < len(name) <= 64
    assert name.isascii()
    assert name.isprintable()
    assert name == name.lower().rstrip()
    if isinstance(key, str):
        assert name == actual_key(MYSQL, key.encode(), None)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("key", [None, ("a", 1), object(), ["a"]])
def test_what_is_no_key_is_a_type_error(dialect: sa.Dialect, key: object) -> None:
    """On every database, with a message that names it."""
    with pytest.raises(TypeError, match=r"key .*give a str, bytes or int") as caught:
        actual_key(dialect, key, None)
    assert isinstance(caught.value, LockKeyTypeError)


@pytest.mark.parametrize("dialect", [POSTGRESQL, SQLITE])
def test_float_is_for_mysql(dialect: sa.Dialect) -> None:
    """As in sqlalchemy-dlock."""
    with pytest.raises(TypeError, match=r"1\.5"):
        actual_key(dialect, 1.5, None)
    assert actual_key(MYSQL, 1.5, None) == "1.5"


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_an_int_beyond_64_bits_overflows_on_postgresql(number: int) -> None:
    """Whether it is the key or what `convert` made of it."""
    for convert in (None, int):
        with pytest.raises(OverflowError, match="64 bits") as caught:
            actual_key(POSTGRESQL, number, convert)
        assert isinstance(caught.value, LockKeyRangeError)
    assert actual_key(MYSQL, number, None) == str(number)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_text_without_an_encoding(dialect: sa.Dialect) -> None:
    """A lone surrogate is a ValueError, as UnicodeEncodeError was."""
    with pytest.raises(ValueError, match="surrogates") as caught:
        actual_key(dialect, "a\udc80", None)
    assert isinstance(caught.value, LockKeyError)


def test_convert_makes_the_name() -> None:
    """The very name, as it is; its type and range are checked."""
    assert actual_key(POSTGRESQL, "42", int) == 42
    assert actual_key(MYSQL, 42, lambda key: f"My-Key {key}") == "My-Key 42"
    assert actual_key(SQLITE, "a", str.upper) == actual_key(SQLITE, "A", None)
    with pytest.raises(TypeError, match="int for PostgreSQL, not str"):
        actual_key(POSTGRESQL, "42", str)
    with pytest.raises(TypeError, match="str for MySQL and MariaDB, not int"):
        actual_key(MYSQL, "42", int)
    for wrong in ("", "x" * 65, "a\0b"):
        with pytest.raises(ValueError, match="1 to 64 characters"):
            actual_key(MYSQL, "k", lambda _, name=wrong: name)  # type: ignore[misc]


@pytest.mark.parametrize(("key", "text"), [("a\n", "a?"), (b"b", "b"), (memoryview(b"c"), "c"), (1.5, "1.5"), (7, "7")])
def test_what_people_read(key: object, text: str) -> None:
    """One line, whatever the key."""
    assert readable(key) == text


@pytest.mark.parametrize(
    ("database", "options", "says"),
    [
        ("mysql", {"shared": True}, "PostgreSQL"),
        ("mariadb", {"shared": True}, "PostgreSQL"),
        ("mysql", {"xact": True}, "PostgreSQL"),
        ("sqlite", {"xact": True}, "PostgreSQL"),
        ("postgresql", {"update": True}, "SQL Server"),
        ("mysql", {"lock_mode": "X"}, "Oracle"),
        ("sqlite", {"release_on_commit": True}, "Oracle"),
    ],
)
def test_an_option_that_the_database_does_not_know(database: str, options: dict[str, Any], says: str) -> None:
    """An error that names it and the databases that know it, not another lock than was asked for."""
    with pytest.raises(NotImplementedError, match=says) as caught:
        Options(**options).check(DIALECTS[database], "k")
    assert isinstance(caught.value, UnsupportedError)
    assert next(iter(options)) in str(caught.value)
    assert "'k'" in str(caught.value)


def test_a_misspelt_option_is_a_type_error() -> None:
    """As everywhere in Python."""
    with sa.create_engine("sqlite://").connect() as connection, pytest.raises(TypeError, match="contextual_timout"):
        create_sadlock(connection, "k", contextual_timout=5)  # type: ignore[call-arg]


def test_an_unknown_database_is_not_supported() -> None:
    """The error names those that are."""

    class Other(sa.create_engine("sqlite://").dialect.__class__):  # type: ignore[misc]
        name = "other"

    with pytest.raises(UnsupportedError, match=r"'other'.*PostgreSQL"):
        Options().check(Other(), "k")


ASYNC = create_async_engine("sqlite+aiosqlite://")


@pytest.mark.parametrize("given", [sa.create_engine("sqlite://"), ASYNC, AsyncSession(ASYNC), "k", None])
def test_what_carries_no_lock(given: Any) -> None:
    """An engine is no connection, and async is for `create_async_sadlock`."""
    with pytest.raises(TypeError, match="Connection, Session or scoped_session"):
        create_sadlock(given, "k")


@pytest.mark.parametrize("given", [sa.create_engine("sqlite://"), ASYNC, Session(), "k", None])
def test_what_carries_no_async_lock(given: Any) -> None:
    """The same the other way round."""
    with pytest.raises(TypeError, match="AsyncConnection, AsyncSession or async_scoped_session"):
        create_async_sadlock(given, "k")


def test_an_engine_is_asked_to_connect() -> None:
    """The commonest mistake has its own hint."""
    with pytest.raises(TypeError, match=r"engine\.connect\(\)"):
        create_sadlock(sa.create_engine("sqlite://"), "k")  # type: ignore[type-var]


def test_an_async_connection_that_was_not_started() -> None:
    """It can be given, but not used."""
    import asyncio

    async def acquire() -> None:
        await create_async_sadlock(ASYNC.connect(), "k").acquire()

    with pytest.raises(dlock_core.LockStateError, match="has not been started"):
        asyncio.run(acquire())
