"""Transaction-level locks of PostgreSQL: `xact=True`."""

from __future__ import annotations

import math
import warnings

import pytest
import sqlalchemy as sa

from dlock_core import DeadlockError, LockStateError
from tests.contract.house import until

from .scene import MISTAKE, Scene, SqlError

pytestmark = pytest.mark.rows(lambda row: row.server == "postgresql")


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_it_ends_with_the_transaction_and_locked_says_so(scene: Scene, end: str) -> None:
    """Not before, and at once."""
    client = scene.client()
    lock = client.lock("k", xact=True)
    assert lock.acquire()
    assert lock.lock.xact
    assert lock.locked
    assert scene.holders == 1
    scene.insert(client, 1)
    assert lock.locked
    getattr(client, end)()
    assert not lock.locked
    assert scene.holders == 0
    assert scene.rows == ([1] if end == "commit" else [])


def test_the_end_of_with_is_not_its_end(scene: Scene) -> None:
    """It stays until the transaction ends, without a warning."""
    client = scene.client()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with client.lock("k", xact=True) as lock:
            scene.insert(client, 1)
        assert lock.locked
        assert scene.holders == 1
        lock.close()
        assert scene.holders == 1
        client.commit()
        assert not lock.locked
    assert scene.rows == [1]


def test_a_commit_inside_with_ends_it(scene: Scene) -> None:
    """As the README of sqlalchemy-dlock has it; the end of the block has nothing to say."""
    client = scene.client()
    with client.lock("k", xact=True) as lock:
        scene.insert(client, 1)
        client.commit()
        assert not lock.locked
        assert scene.holders == 0
    assert scene.rows == [1]


def test_it_cannot_be_released(scene: Scene) -> None:
    """The error says what ends it, and nothing has changed."""
    client = scene.client()
    lock = client.lock("k", xact=True)
    with pytest.raises(ValueError, match="not held"):
        lock.release()
    assert lock.acquire()
    with pytest.raises(LockStateError, match=r"'k'.*transaction.*commit or roll back"):
        lock.release()
    assert lock.locked
    with pytest.raises(ValueError, match="holds"):
        lock.acquire()
    client.rollback()
    with pytest.raises(ValueError, match="not held"):
        lock.release()


def test_the_object_can_be_used_again_in_the_next_transaction(scene: Scene) -> None:
    """What ended with its transaction is not lost, it is over."""
    client = scene.client()
    lock = client.lock("k", xact=True)
    for _ in range(2):
        with lock:
            assert scene.holders == 1
        client.commit()
        assert scene.holders == 0


def test_in_a_block_of_begin(scene: Scene) -> None:
    """The lock is there until the block commits, so no other sees the work before."""
    client, other = scene.client(), scene.client()
    with client.begin():
        with client.lock("k", xact=True) as lock:
            scene.insert(client, 1)
        assert not other.lock("k", xact=True).acquire(False)
        assert not other.in_transaction
    assert not lock.locked
    assert other.lock("k", xact=True).acquire(False)
    other.rollback()
    assert scene.rows == [1]


def test_an_sql_error_ends_it_with_its_transaction(scene: Scene) -> None:
    """The user sees the first error, and nothing is held after the rollback."""
    client = scene.client()
    with pytest.raises(SqlError, match="no_such_table") as caught, client.lock("k", xact=True) as lock:
        client.execute(MISTAKE)
    assert not getattr(caught.value, "__notes__", [])
    client.rollback()
    assert not lock.locked
    assert scene.holders == 0


def test_savepoints(scene: Scene) -> None:
    """A rollback to an older savepoint ends it, a younger one or a release does not."""
    client = scene.client()
    with client.begin():
        outer = client.lock("outer", xact=True)
        with client.begin_nested(), outer:
            with pytest.raises(ZeroDivisionError), client.begin_nested():
                raise ZeroDivisionError
            assert outer.locked
            inner = client.lock("inner", xact=True)
            with pytest.raises(ZeroDivisionError), client.begin_nested(), inner:
                assert scene.holders == 2
                raise ZeroDivisionError
            assert not inner.locked
            assert scene.holders == 1
        assert outer.locked
        assert scene.holders == 1
        with inner:
            assert scene.holders == 2
    assert not outer.locked
    assert not inner.locked


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated:sqlalchemy.exc.SAWarning")
def test_a_rollback_past_an_open_savepoint(scene: Scene) -> None:
    """`locked` is about the savepoint's age, not about how many are open: the server has freed the lock."""
    client = scene.client()
    with client.begin():
        lock = client.lock("k", xact=True)
        with pytest.raises(ZeroDivisionError), client.begin_nested():
            assert lock.acquire()
            inner = client.run(client.target.begin_nested)
            assert inner.is_active
            raise ZeroDivisionError
        assert scene.holders == 0
        assert not lock.locked
        assert lock.acquire(timeout=5)
        assert scene.holders == 1


def test_a_lock_outlives_the_release_of_an_older_savepoint(scene: Scene) -> None:
    """It then belongs to what is around, and ends with that."""
    client = scene.client()
    lock = client.lock("k", xact=True)
    with client.begin():
        with pytest.raises(ZeroDivisionError), client.begin_nested():
            with client.begin_nested():
                assert lock.acquire()
            assert lock.locked
            assert scene.holders == 1
            raise ZeroDivisionError
        assert not lock.locked
        assert scene.holders == 0


def test_refused_it_leaves_no_transaction(scene: Scene) -> None:
    """Neither a try nor a wait in vain."""
    holder, client = scene.client(), scene.client()
    with holder.lock("k"):
        for timeout in (0, 0.05):
            assert not client.lock("k", xact=True).acquire(timeout=timeout)
            assert not client.in_transaction
        with client.begin():
            scene.insert(client, 1)
            for timeout in (0, 0.05):
                assert not client.lock("k", xact=True).acquire(timeout=timeout)
    assert scene.rows == [1]


def test_a_wrong_timeout_begins_no_transaction(scene: Scene) -> None:
    """It is refused before anything is done on the caller's connection."""
    client = scene.client()
    with pytest.raises(ValueError, match="nan"):
        client.lock("k", xact=True).acquire(timeout=math.nan)
    assert not client.in_transaction


def test_a_wait_that_succeeds(scene: Scene) -> None:
    """In the transaction that it began, or in the user's."""
    holder, client = scene.client(), scene.client()
    for inside in (False, True):
        if inside:
            scene.insert(client, 1)
        held, wanted = holder.lock("k", xact=True), client.lock("k", xact=True)
        assert held.acquire()
        waiting = client.begin_call(wanted.acquire, True, 20)
        until(lambda: scene.witness.waiters() == 1)
        holder.commit()
        assert waiting.result(10)
        assert client.scalar("SHOW lock_timeout") == "0"
        client.commit()
        assert scene.holders == 0
    assert scene.rows == [1]


@pytest.mark.kinds("connection")
def test_one_key_once_on_one_connection(scene: Scene) -> None:
    """Whether the two are of the session or of the transaction."""
    client = scene.client()
    for first, second in ((True, False), (False, True), (True, True)):
        held, wanted = client.lock("k", xact=first), client.lock("k", xact=second)
        assert held.acquire()
        assert not wanted.acquire(False)
        with pytest.raises(DeadlockError):
            wanted.acquire(timeout=1)
        held.close()
        client.rollback()
        assert scene.holders == 0


def test_shared(scene: Scene) -> None:
    """Readers of two transactions, and a writer."""
    one, two, three = scene.client(), scene.client(), scene.client()
    assert one.lock("k", shared=True, xact=True).acquire()
    assert two.lock("k", shared=True, xact=True).acquire(timeout=1)
    assert not three.lock("k", xact=True).acquire(timeout=0.05)
    assert not three.lock("k").acquire(False)
    one.commit()
    two.rollback()
    with three.lock("k", xact=True):
        three.rollback()


@pytest.mark.kinds("connection")
def test_autocommit_is_refused(scene: Scene) -> None:
    """There the lock would be gone before any other could use it."""
    client = scene.client(scene.new_engine(isolation_level="AUTOCOMMIT"))
    with pytest.raises(LockStateError, match=r"'k'.*autocommit"):
        client.lock("k", xact=True).acquire()
    assert not client.in_transaction
    with client.lock("k"):
        assert scene.holders == 1


@pytest.mark.kinds("connection")
def test_a_connection_that_breaks(scene: Scene) -> None:
    """`locked` does not survive it."""
    client = scene.client()
    lock = client.lock("k", xact=True)
    assert lock.acquire()
    scene.witness.break_lock()
    until(lambda: not lock.locked)
    with pytest.raises(sa.exc.DBAPIError):
        client.execute("SELECT 1")
    assert not lock.locked
    client.rollback()
    assert lock.acquire()
    client.rollback()


@pytest.mark.kinds("session", "scoped")
def test_loaded_objects_are_not_expired_by_a_refusal(scene: Scene) -> None:
    """A transaction that only the lock needed goes without a trace."""
    holder, client = scene.client(), scene.client()
    with holder.lock("k"):
        expired: list[object] = []
        session = client.target() if scene.kind == "scoped" else client.target
        sa.event.listen(getattr(session, "sync_session", session), "after_rollback", expired.append)
        assert not client.lock("k", xact=True).acquire(False)
        assert expired == []
