"""The mapping of keys: frozen, the same everywhere, free of collisions, and clear when it refuses."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy_dlock.lock.mssql import MssqlSadLockMixin
from sqlalchemy_dlock.lock.mysql import MysqlSadLockMixin
from sqlalchemy_dlock.lock.oracle import OracleSadLockMixin
from sqlalchemy_dlock.lock.postgresql import PostgresqlSadLockMixin

from dlock_core import LockKeyError, LockKeyRangeError, LockKeyTypeError, LockProvider
from dlock_core.errors import shown
from dlock_core.keys import (
    check_key,
    check_prefix,
    dump_key,
    file_name,
    int64,
    label,
    load_key,
    mssql_name,
    mysql_name,
    oracle_id,
    readings,
)
from tests.ids import stable

from .key_vectors import KEYS, PREFIXES, VECTORS, compute, from_json, to_json

Vector = dict[str, Any]
Names = dict[str, Any]
FROZEN: list[Vector] = json.loads(VECTORS.read_text(encoding="ascii"))
SCHEMES: dict[str, Callable[[str, Any], int | str]] = {
    "int64": int64,
    "mysql_name": mysql_name,
    "mssql_name": mssql_name,
    "oracle_id": oracle_id,
    "file_name": file_name,
    "label": label,
}

INT64 = st.integers(-(2**63), 2**63 - 1)
SCALARS = st.text(min_size=1) | st.binary(min_size=1) | INT64
KEY = SCALARS | st.lists(SCALARS, min_size=1, max_size=4).map(tuple)
PREFIX = st.text(max_size=5)

# Few characters and short texts, so that keys differ in a border, a kind, a case or a blank only.
SHORT = st.text("aA:1 ~\0", min_size=1, max_size=3)
NEAR_SCALAR = SHORT | SHORT.map(str.encode) | st.integers(-1, 12)
NEAR_KEY = NEAR_SCALAR | st.lists(NEAR_SCALAR, min_size=1, max_size=3).map(tuple)
NEAR_PAIRS = st.lists(st.tuples(st.text("a:1", max_size=2), NEAR_KEY), min_size=2, max_size=40, unique=True)


def names(vector: Vector) -> Names:
    """Return what a vector freezes."""
    return {scheme: vector[scheme] for scheme in SCHEMES}


def mapped(vector: Vector) -> Names:
    """Map the key of a vector with the code under test."""
    prefix, key = vector["prefix"], check_key(from_json(vector["key"]))
    return {scheme: to_name(prefix, key) for scheme, to_name in SCHEMES.items()}


def describe(vector: Vector) -> str:
    """Name a vector in a test's id."""
    return f"{vector['prefix']}|{json.dumps(vector['key'])[:40]}"


@pytest.mark.parametrize("vector", FROZEN, ids=describe)
def test_a_key_has_its_frozen_names(vector: Vector) -> None:
    """A process of today and one of next year mean the same lock."""
    assert mapped(vector) == names(vector)


def test_the_frozen_names_follow_from_a_second_description_of_the_format() -> None:
    """The file was not merely copied from the code under test, and misses none of the listed keys."""
    listed = [(prefix, to_json(key)) for prefix in PREFIXES for key in KEYS]
    assert [(vector["prefix"], vector["key"]) for vector in FROZEN] == listed
    for vector in FROZEN:
        assert compute(vector["prefix"], from_json(vector["key"])) == names(vector)


@given(PREFIX, KEY)
def test_every_key_is_mapped_as_a_second_description_says(prefix: str, key: Any) -> None:
    """Beyond the frozen keys too."""
    assert {scheme: to_name(prefix, key) for scheme, to_name in SCHEMES.items()} == compute(prefix, key)


@pytest.mark.parametrize("seed", ["0", "4242"])
def test_the_names_do_not_depend_on_the_hash_seed(seed: str) -> None:
    """Another process, with another PYTHONHASHSEED, computes the frozen names."""
    program = (
        "import json; from tests.unit import test_keys as t;"
        "print(hash('a')); print(all(t.mapped(v) == t.names(v) for v in t.FROZEN))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=VECTORS.parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    seeded, same = run.stdout.split()
    assert seeded != str(hash("a"))
    assert same == "True"


def test_the_names_do_not_depend_on_the_host_s_byte_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for the host's byte order, as sqlalchemy-dlock does, changes under this test; we do not."""
    before = PostgresqlSadLockMixin.convert("orders:42")
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
    assert PostgresqlSadLockMixin.convert("orders:42") != before
    assert [mapped(vector) for vector in FROZEN] == [names(vector) for vector in FROZEN]


@pytest.mark.skipif(sys.byteorder == "big", reason="sqlalchemy-dlock uses the host's byte order, we little-endian")
@given(SCALARS)
@example(2**63 - 1)
@example(-(2**63))
@example("ключ")
@example(b"\xff\x00")
def test_an_unprefixed_scalar_is_sqlalchemy_dlock_s_lock_on_postgresql(key: str | bytes | int) -> None:
    """Both libraries exclude each other while a fleet moves over."""
    assert int64("", key) == PostgresqlSadLockMixin(key=key).get_actual_key()


PLAIN = string.ascii_lowercase + string.digits + string.punctuation.replace("~", "")


@given(
    st.text(PLAIN + " ", min_size=1, max_size=64).filter(lambda text: not text.endswith(" ")),
    st.sampled_from([str, str.encode]),
)
def test_a_plain_scalar_is_sqlalchemy_dlock_s_lock_on_mysql(text: str, kind: Callable[[str], str | bytes]) -> None:
    """A name that every server reads alike is passed as it is."""
    key = kind(text)
    assert mysql_name("", key) == MysqlSadLockMixin(key=key).get_actual_key()


@given(INT64)
def test_an_unprefixed_int_is_sqlalchemy_dlock_s_lock_on_mysql(key: int) -> None:
    """Its decimal digits are the name."""
    assert mysql_name("", key) == MysqlSadLockMixin(key=key).get_actual_key()


PRINTABLE = st.text(st.characters(codec="utf-8", min_codepoint=0x20, exclude_characters="\x7f"), min_size=1)


@given(PRINTABLE.filter(lambda text: len(text.encode()) <= 255), st.sampled_from([str, str.encode]))
@example("x" * 255, str)
@example("я" * 127, str)
@example("🔒" * 63, str)
@example("Orders:42 ", str)
def test_a_text_without_control_characters_is_sqlalchemy_dlock_s_lock_on_sql_server(
    text: str, kind: Callable[[str], str | bytes]
) -> None:
    """Up to 255 bytes, where no server cuts it."""
    key = kind(text)
    assert mssql_name("", key) == MssqlSadLockMixin(key=key).get_actual_key()


@given(INT64)
def test_an_unprefixed_int_is_sqlalchemy_dlock_s_lock_on_sql_server_and_oracle(key: int) -> None:
    """Its decimal digits, or its last 30 bits."""
    assert mssql_name("", key) == MssqlSadLockMixin(key=key).get_actual_key()
    assert oracle_id("", key) == OracleSadLockMixin(key=key).get_actual_key()


@pytest.mark.skipif(sys.byteorder == "big", reason="sqlalchemy-dlock uses the host's byte order, we little-endian")
def test_no_key_that_users_choose_is_another_s_hashed_name_on_sql_server() -> None:
    """A user that may choose keys could take another application's lock otherwise."""
    name = mssql_name("billing", "invoice:7")
    assert mssql_name("", name) not in (name, mssql_name("", mssql_name("", name)))
    assert mssql_name("", "deadbeef|an ordinary key") == "deadbeef|an ordinary key"


@given(SCALARS)
@example("ключ")
@example(b"\xff\x00")
def test_an_unprefixed_scalar_is_sqlalchemy_dlock_s_lock_on_oracle(key: str | bytes | int) -> None:
    """Both libraries exclude each other while a fleet moves over."""
    assert oracle_id("", key) == OracleSadLockMixin(key=key).get_actual_key()


@given(PREFIX, KEY)
@example("", "x" * 256)
@example("", "я" * 128)
@example("", "🔒" * 64)
@example("app", "x" * 5000)
@example("", "a\\\n")
def test_an_sql_server_name_is_one_that_no_server_cuts(prefix: str, key: Any) -> None:
    """At most 255 bytes and 255 UTF-16 units, and nothing in it that T-SQL reads in its own way."""
    name = mssql_name(prefix, key)
    assert 1 <= len(name.encode()) <= 255
    assert len(name.encode("utf-16-le")) <= 510
    assert not any(unicodedata.category(letter) == "Cc" and letter < "\x80" for letter in name)


@given(NEAR_PAIRS)
def test_two_keys_share_an_sql_server_name_only_if_sqlalchemy_dlock_says_so(pairs: list[tuple[str, Any]]) -> None:
    """Text, bytes and digits of one content, unprefixed; hashed names differ in what the server's view shows."""
    names = [mssql_name(prefix, key) for prefix, key in pairs]
    verbatim = {name for name in names if "|" not in name}
    assert verbatim <= {str(key.decode() if isinstance(key, bytes) else key) for _, key in pairs}
    hashed = [name[:32] for name in names if "|" in name]
    assert len(set(hashed)) == len(hashed)


@given(PREFIX, KEY)
def test_an_oracle_number_is_one_that_dbms_lock_takes(prefix: str, key: Any) -> None:
    """From 0 to 1073741823."""
    assert 0 <= oracle_id(prefix, key) <= 1073741823


@given(NEAR_PAIRS)
def test_two_keys_never_share_a_file_name(pairs: list[tuple[str, Any]]) -> None:
    """No border, kind, prefix, case or blank gets lost."""
    assert len({file_name(prefix, key) for prefix, key in pairs}) == len(pairs)


@given(NEAR_PAIRS)
def test_two_keys_share_a_number_only_if_sqlalchemy_dlock_says_so(pairs: list[tuple[str, Any]]) -> None:
    """Text and bytes of one content, unprefixed; everything else is kept apart."""
    numbers = {int64(prefix, key) for prefix, key in pairs}
    assert len(numbers) == len({_upstream_identity(prefix, key) for prefix, key in pairs})


def _upstream_identity(prefix: str, key: Any) -> object:
    return key.encode() if isinstance(key, str) and not prefix else key if not prefix else (prefix, key)


@given(NEAR_PAIRS)
def test_two_keys_never_share_a_hashed_mysql_name(pairs: list[tuple[str, Any]]) -> None:
    """And what is not hashed is an unprefixed scalar that looks the same."""
    hashed = [name for prefix, key in pairs if "~" in (name := mysql_name(prefix, key))]
    assert len(set(hashed)) == len(hashed)
    for prefix, key in pairs:
        if "~" not in mysql_name(prefix, key):
            assert not prefix
            assert mysql_name("", key) == (key.decode() if isinstance(key, bytes) else str(key))


@given(PREFIX, KEY)
@example("", "x" * 64)
@example("", "x" * 65)
@example("", "a ")
@example("", "A")
@example("", "a\0")
@example("\0", b"\xff" * 300)
def test_a_mysql_name_is_one_that_all_servers_read_alike(prefix: str, key: Any) -> None:
    """At most 64 characters; no capitals, no control characters, nothing beyond ASCII, no blank at the end."""
    name = mysql_name(prefix, key)
    assert 1 <= len(name) <= 64
    assert set(name) <= set(PLAIN + " ~")
    assert not name.endswith(" ")


@given(PREFIX, KEY)
@example("", "a\n2026-01-01 ERROR forged")
@example("", "\u2028\u2029\x85\x1b[31m")
@example("", b"\n\x00\xff")
@example("\r", ("\x0b", b"\x1c"))
def test_a_label_forges_no_line_and_no_terminal_code(prefix: str, key: Any) -> None:
    """No control, format or separator character is left but the plain blank."""
    text = label(prefix, key)
    assert len(text.splitlines()) <= 1
    assert not {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}}


@given(PREFIX, KEY)
def test_a_key_can_be_written_down_and_read(prefix: str, key: Any) -> None:
    """Of each type, with its prefix, in ASCII."""
    text = dump_key(prefix, key)
    assert text.isascii()
    assert load_key(text) == (prefix, key)
    assert type(load_key(text)[1]) is type(key)


@pytest.mark.parametrize("text", ["", "{", "1", "[]", '["a"]', '["", null]', '["", {}]', '["", [[1]]]', '[1, "a"]'])
def test_what_is_no_key_is_not_read(text: str) -> None:
    """A table may hold anything."""
    with pytest.raises((ValueError, TypeError)):
        load_key(text)


@pytest.mark.parametrize("prefix", ["", "shop", "shop:eu"])
@pytest.mark.parametrize("key", ["a", "a:b", "7", 7, ("a", 7), ("a:b", "7"), (-1,), ("7", 7, "x")], ids=str)
def test_a_key_is_among_the_readings_of_its_label(prefix: str, key: Any) -> None:
    """And its number tells it from the others."""
    alike = [one for one in readings(label(prefix, key)) if int64(*one) == int64(prefix, key)]
    assert (prefix, key) in alike
    assert set(alike) == {(prefix, key)}


class Text(str):
    """A str subclass of a user, which prints as something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Colour(Enum):
    """An enumeration without a built-in base."""

    RED = "red"


class Level(IntEnum):
    """An enumeration of numbers."""

    HIGH = 3


class Pair(NamedTuple):
    """A tuple subclass of a user."""

    kind: str
    number: int


@pytest.mark.parametrize(
    ("given_key", "plain"),
    [(Text("orders"), "orders"), (Level.HIGH, 3), (Pair("order", 42), ("order", 42)), (("a", Level.HIGH), ("a", 3))],
    ids=stable,
)
def test_a_key_of_a_subclass_becomes_the_plain_value(given_key: Any, plain: Any) -> None:
    """Two processes agree even if only one of them knows the class."""
    checked = check_key(given_key)
    assert checked == plain
    assert repr(checked) == repr(plain)
    assert mysql_name("", checked) == mysql_name("", plain)


class Table:
    """Something whose repr has several lines, as the arrays of numpy have."""

    def __repr__(self) -> str:
        return "1 2\n3 4\n" * 100


REFUSED: list[tuple[Any, type[LockKeyError]]] = [
    (None, LockKeyTypeError),
    (True, LockKeyTypeError),
    (1.5, LockKeyTypeError),
    (["orders", 42], LockKeyTypeError),
    ({"orders": 42}, LockKeyTypeError),
    (bytearray(b"orders"), LockKeyTypeError),
    (memoryview(b"orders"), LockKeyTypeError),
    (Colour.RED, LockKeyTypeError),
    (("orders", None), LockKeyTypeError),
    (("orders", False), LockKeyTypeError),
    (("orders", ("nested", 1)), LockKeyTypeError),
    (["o" * 5000], LockKeyTypeError),
    (("o" * 5000, None), LockKeyTypeError),
    (("o" * 5000, ["o" * 5000]), LockKeyTypeError),
    (2**63, LockKeyRangeError),
    (-(2**63) - 1, LockKeyRangeError),
    (10**4000, LockKeyRangeError),
    (("orders", 2**63), LockKeyRangeError),
    ("", LockKeyError),
    (b"", LockKeyError),
    ((), LockKeyError),
    (("orders", ""), LockKeyError),
    ("lone \ud800 surrogate", LockKeyError),
    ("o" * 5000 + "\udfff", LockKeyError),
    (("orders", "\ud800" * 5000), LockKeyError),
]


@pytest.mark.parametrize(("key", "error"), REFUSED, ids=lambda value: stable(value)[:30])
def test_a_refusal_names_the_key_in_one_short_line(key: Any, error: type[LockKeyError]) -> None:
    """The error's class tells the kind of mistake, its message the key, its attribute the whole key."""
    with pytest.raises(LockKeyError) as caught:
        check_key(key)
    message = str(caught.value)
    assert type(caught.value) is error
    assert caught.value.key is key
    assert repr(key)[:70] in message
    assert len(message.splitlines()) == 1
    # A key of several parts is shown with the part that is wrong, each of them cut to 80 characters.
    assert len(message) < 250


@pytest.mark.parametrize("prefix", [None, 5, b"app", "\ud800", "\ud800" * 5000, ["o" * 5000]], ids=shown)
def test_a_refused_prefix_is_named_in_one_short_line(prefix: Any) -> None:
    """The message shows the prefix, cut."""
    with pytest.raises(LockKeyError, match="prefix=") as caught:
        check_prefix(prefix)
    assert repr(prefix)[:70] in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.text(max_size=300) | st.binary(max_size=300) | INT64 | st.lists(st.text(), max_size=5))
def test_a_key_in_a_message_is_one_short_line_that_tells_its_kind(key: Any) -> None:
    """Text, bytes and numbers cannot be mistaken for one another, unless the key is long."""
    text = shown(key)
    assert len(text) <= 80
    assert len(text.splitlines()) == 1
    if len(repr(key)) <= 80:
        assert text == repr(key)


def test_an_int_too_long_to_print_is_refused_like_any_other() -> None:
    """Python prints no int of more than 4,300 digits; our error must not be Python's."""
    with pytest.raises(LockKeyRangeError, match="64 bits"):
        check_key(10**5000)


def test_a_refused_object_cannot_forge_a_second_line() -> None:
    """A repr of several lines, like that of a numpy array, is made one line."""
    with pytest.raises(LockKeyTypeError) as caught:
        check_key(Table())
    assert len(str(caught.value).splitlines()) == 1


def test_a_refused_template_is_named_in_one_short_line() -> None:
    """The decorator cuts a long key as all others do."""

    def work() -> None:
        """Do nothing."""

    with LockProvider("sqlite://") as locks, pytest.raises(LockKeyError, match="has nothing for nobody") as caught:
        locks.locked("o" * 5000 + "{nobody}")(work)
    assert len(str(caught.value)) < 250
