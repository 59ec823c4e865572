"""The face of the lock: what sqlalchemy-dlock 0.9 promises of each call."""

from __future__ import annotations

import math
import time
from contextlib import closing
from typing import Any

import pytest

from dlock_core import DeadlockError, LockStateError, LockTimeoutError

from .scene import Scene

# What is read before any database is asked is the same on all of them.
before_any_database = pytest.mark.rows(lambda row: row.name in {"sqlite-memory", "sqlite-aiosqlite"})


def test_acquire_and_release(scene: Scene) -> None:
    """The server holds the lock from one to the other, and `locked` says so."""
    lock = scene.client().lock("k")
    assert not lock.locked
    assert lock.acquire()
    assert lock.locked
    assert scene.holders == 1
    lock.release()
    assert not lock.locked
    assert scene.holders == 0


def test_with(scene: Scene) -> None:
    """The lock is held inside the block; the object can be used again."""
    lock = scene.client().lock("k")
    for _ in range(2):
        with lock as entered:
            assert entered is lock
            assert lock.locked
            assert scene.holders == 1
        assert not lock.locked
        assert scene.holders == 0


def test_with_raises_when_its_time_is_over(scene: Scene) -> None:
    """A TimeoutError that knows the key, not before the time, and nothing held or queued afterwards."""
    holder, other = scene.client(), scene.client()
    with holder.lock("k"):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"'k'.*0\.25 s") as caught, other.lock("k", 0.25):
            pytest.fail("entered")
        assert time.monotonic() - began >= 0.25
        assert isinstance(caught.value, LockTimeoutError)
        assert caught.value.key == "k"
        assert caught.value.waited is not None
        assert caught.value.waited >= 0.25
        assert scene.witness.waiters() == 0
        assert scene.holders == 1


@before_any_database
@pytest.mark.parametrize("timeout", [0, -1, -0.001, -math.inf])
def test_no_time_is_one_try(scene: Scene, timeout: float) -> None:
    """Zero and less, as `timeout` and as `contextual_timeout`."""
    holder, other = scene.client(), scene.client()
    with holder.lock("k"):
        assert not other.lock("k").acquire(timeout=timeout)
        with pytest.raises(TimeoutError), other.lock("k", timeout):
            pytest.fail("entered")
    free = other.lock("free")
    assert free.acquire(timeout=timeout) is True
    free.release()


def test_block_false_ignores_the_timeout(scene: Scene) -> None:
    """It tries once."""
    holder, other = scene.client(), scene.client()
    with holder.lock("k"):
        began = time.monotonic()
        assert not other.lock("k").acquire(False, 60)
        assert time.monotonic() - began < 10


def test_a_wait_ends_when_the_holder_releases(scene: Scene) -> None:
    """Without a timeout, and with one that is long enough."""
    holder, other = scene.client(), scene.client()
    for timeout in (None, 30):
        held, wanted = holder.lock("k"), other.lock("k")
        assert held.acquire()
        waiting = other.begin_call(wanted.acquire, True, timeout)
        scene.until_waiting()
        held.release()
        assert waiting.result(10)
        assert scene.holders == 1
        wanted.release()


def test_contextual_timeout_is_for_with_only(scene: Scene) -> None:
    """`acquire()` waits without limit all the same."""
    holder, other = scene.client(), scene.client()
    held, wanted = holder.lock("k"), other.lock("k", contextual_timeout=0)
    assert held.acquire()
    waiting = other.begin_call(wanted.acquire)
    scene.until_waiting()
    assert not waiting.done()
    held.release()
    assert waiting.result(10)
    wanted.release()


@before_any_database
@pytest.mark.parametrize("timeout", [math.nan, "5", True, object()])
def test_what_is_no_time_is_an_error(scene: Scene, timeout: Any) -> None:
    """At `acquire` and at the making of the lock."""
    client = scene.client()
    with pytest.raises(ValueError, match="timeout="):
        client.lock("k").acquire(timeout=timeout)
    with pytest.raises(ValueError, match="timeout="):
        client.lock("k", timeout)


def test_a_held_lock_cannot_be_acquired(scene: Scene) -> None:
    """The object is for one acquisition at a time."""
    lock = scene.client().lock("k")
    with lock, pytest.raises(ValueError, match=r"'k'.*holds") as caught:
        lock.acquire(False)
    assert isinstance(caught.value, LockStateError)


def test_what_is_not_held_cannot_be_released(scene: Scene) -> None:
    """Neither before nor twice."""
    lock = scene.client().lock("k")
    with pytest.raises(ValueError, match=r"'k'.*not held"):
        lock.release()
    lock.acquire()
    lock.release()
    with pytest.raises(ValueError, match=r"'k'.*not held"):
        lock.release()


def test_close_releases_or_does_nothing(scene: Scene) -> None:
    """As for `contextlib.closing`, which does not acquire."""
    lock = scene.client().lock("k")
    lock.close()
    with closing(lock):
        assert not lock.locked
        lock.acquire()
    assert not lock.locked
    assert scene.holders == 0
    lock.close()


def test_released_inside_with(scene: Scene) -> None:
    """The end of the block finds nothing to do."""
    lock = scene.client().lock("k")
    with lock:
        lock.release()
        assert scene.holders == 0
    assert not lock.locked


def test_an_error_in_the_body_releases_and_goes_on(scene: Scene) -> None:
    """The user sees the body's own."""
    with pytest.raises(ZeroDivisionError) as caught, scene.client().lock("k"):
        raise ZeroDivisionError
    assert scene.holders == 0
    assert not getattr(caught.value, "__notes__", [])


def test_the_lock_shows_what_it_is(scene: Scene) -> None:
    """`connection_or_session` and `actual_key` are properties, and the repr says all."""
    client = scene.client()
    lock = client.lock("k")
    assert lock.lock.connection_or_session is client.target
    assert repr(lock.lock).startswith("<unlocked ")
    assert repr(lock.actual_key) in repr(lock.lock)
    with lock:
        assert repr(lock.lock).startswith("<locked ")
    assert (lock.lock.shared, lock.lock.xact) == (False, False)


def test_two_objects_on_one_client_do_not_both_hold_a_key(scene: Scene) -> None:
    """The server would count a second hold; a try is refused, and a wait would wait for itself."""
    client = scene.client()
    first, second = client.lock("k"), client.lock("k")
    with first:
        assert not second.acquire(False)
        assert not second.acquire(timeout=-1)
        for timeout in (None, 5):
            with pytest.raises(DeadlockError, match="'k'"):
                second.acquire(timeout=timeout)
        assert first.locked
        assert not second.locked
        assert scene.holders == 1
        with client.lock("other"):
            assert scene.holders == 2
    with second:
        assert scene.holders == 1


@pytest.mark.rows(lambda row: row.shared)
def test_shared(scene: Scene) -> None:
    """Readers hold it together, and a writer waits for all."""
    one, two, three = scene.client(), scene.client(), scene.client()
    with one.lock("k", shared=True), two.lock("k", shared=True) as second:
        assert second.lock.shared
        assert not three.lock("k").acquire(False)
        assert not three.lock("k").acquire(timeout=0.1)
    with three.lock("k"):
        assert not one.lock("k", shared=True).acquire(False)
        assert not one.lock("k", shared=True).acquire(timeout=0.1)


def test_a_lock_can_be_released_in_another_thread(scene: Scene) -> None:
    """There is no thread-local: `locked` is the same everywhere."""
    client = scene.client()
    lock = client.lock("k")
    assert client.begin_call(lock.acquire).result(10)
    assert lock.locked
    lock.release()
    assert scene.holders == 0
