"""Without a server: a file of SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import wait_until

from .people import Person


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A file that no other test uses."""
    return f"sqlite:///{tmp_path}/app.db"


@pytest.fixture
def pair(library: str, url: str) -> Iterator[tuple[Person, Person]]:
    """Two processes of one library."""
    one, other = (Person(library, url, "unnamed") for _ in range(2))
    yield one, other
    one.close()
    other.close()


@pytest.mark.parametrize("library", ["dlock", "dlock_django"])
def test_a_file_is_enough(library: str, pair: tuple[Person, Person]) -> None:
    """Two processes exclude each other, and the death of one frees its lock."""
    holder, other = pair
    assert holder.ask("acquire", "k", 0)
    assert other.ask("acquire", "k", 0) is False
    holder.kill()
    wait_until(lambda: bool(other.ask("acquire", "k", 0)), "the dead one's lock to be free")


@pytest.mark.parametrize(
    ("library", "error"), [("sqlalchemy-dlock", "NotImplementedError"), ("django-pglock", "OperationalError")]
)
def test_a_file_is_not_enough(library: str, error: str, pair: tuple[Person, Person]) -> None:
    """They need a server, and say so."""
    assert pair[0].ask("acquire", "k", 0) == error
