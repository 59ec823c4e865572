"""The server takes the lock away while its holder works: whether the holder learns it, and when."""

from __future__ import annotations

import pytest

from tests.servers import wait_until

from .conftest import Meet
from .people import Server


@pytest.mark.parametrize("library", ["dlock", "dlock_django"])
def test_a_loss_is_reported_while_the_work_runs(library: str, meet: Meet, place: Server, name: str) -> None:
    """The lock knows without asking the server, and `with` ends in an error."""
    holder = meet(library)
    assert holder.ask("acquire", name, 0)
    place.break_lock()
    wait_until(lambda: bool(holder.ask("look") == "lost"), "the holder to know")
    assert holder.ask("release") == "LockLostError"


@pytest.mark.parametrize(
    ("library", "look", "error"),
    [
        ("sqlalchemy-dlock", "held", "OperationalError"),
        ("django-pglock", "silent", "OperationalError"),
        ("redis-py", "silent", "LockNotOwnedError"),
    ],
)
def test_a_loss_is_reported_at_release(
    library: str, look: str, error: str, meet: Meet, place: Server, name: str
) -> None:
    """While another holds the lock, nothing on the holder's side says so."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    place.break_lock()
    assert other.ask("acquire", name, 0)
    assert holder.ask("look") == look
    assert holder.ask("release") == error


@pytest.mark.parametrize("library", ["redis-py"])
def test_redis_tells_a_holder_that_asks(library: str, meet: Meet, place: Server, name: str) -> None:
    """A question to the server between two steps of the work finds out."""
    holder = meet(library)
    assert holder.ask("acquire", name, 0)
    assert holder.ask("owned") is True
    place.break_lock()
    assert holder.ask("owned") is False
