"""`with dlock.lock(key):` in a view: conflicts, waiting, what follows from an exception."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flask
import pytest
import sqlalchemy as sa

from dlock_core import DeadlockError, LockStateError, LockTimeoutError
from dlock_flask import Handle, LockConflict

from .places import Place, Site, together, until


def export(site: Site, **options: Any) -> None:
    """Add a view that holds the key "export"."""

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.lock("export", **options) as handle:
            return f"{handle.held} {handle.waited:.3f}"


def test_a_free_lock_lets_the_request_in_and_is_free_afterwards(place: Place, site: Site) -> None:
    """The witness sees the lock while the view runs, and none when the answer is there."""
    seen = []

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.lock("export"):
            seen.append(place.witness.holders())
        seen.append(place.witness.holders())
        return "done"

    assert site.get("/export").status_code == 200
    assert seen == [1, 0]


def test_a_held_lock_answers_409(place: Place, site: Site) -> None:
    """And lets the next one in when it is free again."""
    export(site)
    with place.held("export"):
        answer = site.get("/export")
        assert answer.status_code == 409
        assert answer.headers["Retry-After"] == "1"
    assert site.get("/export").status_code == 200


def test_the_answer_says_when_to_come_back(place: Place) -> None:
    """In the header, as configured."""
    for configured, header in ((5, "5"), (None, None)):
        site = place.site(DLOCK_RETRY_AFTER=configured)
        export(site)
        with place.held("export"):
            assert site.get("/export").headers.get("Retry-After") == header


def test_a_request_waits_for_the_lock_as_long_as_it_said(place: Place, site: Site) -> None:
    """It is let in when the holder leaves, and not before."""
    export(site, timeout=20)
    with place.held("export"):
        waiting = threading.Thread(target=lambda: answers.append(site.get("/export")))
        answers: list[Any] = []
        waiting.start()
        time.sleep(0.3)  # how long the holder works; what follows does not depend on it
        assert not answers
    waiting.join()
    assert answers[0].status_code == 200
    assert float(answers[0].text.split()[1]) >= 0.25


def test_a_wait_in_vain_is_a_conflict_and_never_early(place: Place, site: Site) -> None:
    """After the time, not before."""
    export(site, timeout=0.4)
    since = time.monotonic()
    with place.held("export"):
        assert site.get("/export").status_code == 409
    assert time.monotonic() - since >= 0.4


def test_the_configured_timeout_is_the_default(place: Place) -> None:
    """Which a call can change."""
    site = place.site(DLOCK_TIMEOUT=1.0)
    export(site)
    since = time.monotonic()
    with place.held("export"):
        assert site.get("/export").status_code == 409
        assert time.monotonic() - since >= 1
        with site.app.app_context(), pytest.raises(LockConflict) as caught, site.dlock.lock("export", timeout=0):
            pass
    assert caught.value.waited < 1


def test_no_more_requests_wait_than_allowed(place: Place) -> None:
    """One may wait; the next is turned away at once with 503, and a free lock is never refused."""
    site = place.site(DLOCK_MAX_WAITERS=1, DLOCK_RETRY_AFTER=2)
    export(site, timeout=30)
    with place.held("export"):
        first: list[Any] = []
        waiting = threading.Thread(target=lambda: first.append(site.get("/export")))
        waiting.start()
        state = site.app.extensions["dlock"]
        until(lambda: state.room._seats._value == 0, "the first to wait")
        second = site.get("/export")
        assert (second.status_code, second.headers["Retry-After"]) == (503, "2")
        assert not first
    waiting.join()
    assert first[0].status_code == 200
    assert state.room._seats._value == 1
    assert site.get("/export").status_code == 200


def test_where_no_wait_is_possible_a_free_lock_is_still_given(place: Place) -> None:
    """DLOCK_MAX_WAITERS counts those that wait, not those that hold."""
    site = place.site(DLOCK_MAX_WAITERS=0)
    export(site, timeout=30)
    assert site.get("/export").status_code == 200
    with place.held("export"):
        assert site.get("/export").status_code == 503


def test_an_exception_in_the_view_frees_the_lock(place: Place) -> None:
    """The answer is 500, and other teardown functions run."""
    site = place.site(TESTING=False, PROPAGATE_EXCEPTIONS=False)
    torn_down: list[Any] = []
    site.app.teardown_appcontext(torn_down.append)

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.lock("export"):
            raise ZeroDivisionError

    assert site.get("/export").status_code == 500
    assert place.witness.holders() == 0
    assert len(torn_down) == 1


def test_an_abort_in_the_view_frees_the_lock(place: Place, site: Site) -> None:
    """And is the answer."""

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.lock("export"):
            flask.abort(404)

    assert site.get("/export").status_code == 404
    assert place.witness.holders() == 0


def test_try_lock_gives_a_handle_that_is_false_on_conflict(place: Place, site: Site) -> None:
    """No exception; the view decides."""

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.try_lock("export") as handle:
            return "mine" if handle else "not mine"

    with place.held("export"):
        assert site.get("/export").text == "not mine"
    assert site.get("/export").text == "mine"


def test_a_handle_that_was_not_asked_is_neither_true_nor_false(sqlite: Place) -> None:
    """`if dlock.try_lock(key):` without `with` would protect nothing."""
    site = sqlite.site()
    with site.app.app_context(), pytest.raises(LockStateError, match="use `with`"):
        bool(site.dlock.try_lock("export"))


def test_a_conflict_can_be_an_exception_of_the_core(place: Place, site: Site) -> None:
    """For code that is no view."""
    with place.held("export"), site.app.app_context(), pytest.raises(LockTimeoutError, match="'export'"):
        site.dlock.hold("export", on_conflict="raise")


def test_the_same_request_asking_twice_is_a_conflict(place: Place, site: Site) -> None:
    """On every database, in one thread; a wait for oneself is an error at once."""
    with site.app.app_context(), site.dlock.lock("export"):
        with pytest.raises(LockConflict), site.dlock.lock("export"):
            pass
        with pytest.raises(DeadlockError), site.dlock.lock("export", timeout=30):
            pass
        assert place.witness.holders() == 1


def test_a_reentrant_lock_is_released_once(place: Place, site: Site) -> None:
    """When the outermost leaves, even if another joined it."""
    with site.app.app_context():
        with site.dlock.lock("export"):
            with site.dlock.lock("export", reentrant=True) as inner:
                assert inner.held
                assert len(site.dlock.held()) == 2
            assert place.witness.holders() == 1
        assert place.witness.holders() == 0


def test_no_other_enters_a_reentrant_lock(place: Place, site: Site) -> None:
    """Not another request, nor another thread of this one."""
    export(site, reentrant=True)
    with site.app.test_request_context(), site.dlock.lock("export"):
        with ThreadPoolExecutor(1) as elsewhere:  # a request in this thread would share this context
            assert elsewhere.submit(site.get, "/export").result().status_code == 409

        @flask.copy_current_request_context
        def try_it() -> bool:
            with site.dlock.try_lock("export", reentrant=True) as handle:
                return handle.held

        with ThreadPoolExecutor(1) as elsewhere:
            assert not elsewhere.submit(try_it).result()


def test_readers_share_and_a_writer_does_not(place: Place, site: Site) -> None:
    """Where the database has shared locks; elsewhere it says so."""
    with site.app.app_context():
        if place.kind in {"mysql", "mariadb"}:
            with pytest.raises(NotImplementedError), site.dlock.lock("prices", shared=True):
                pass
            return
        with site.dlock.lock("prices", shared=True):
            with place.stranger().lock("prices", shared=True, timeout=0):
                pass
            with pytest.raises(TimeoutError), place.stranger().lock("prices", timeout=0):
                pass


def test_ten_requests_for_one_key_never_starve_a_pool_of_two(place: Place) -> None:
    """The holder runs queries; a waiter takes no connection of the application."""
    pool = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 2}
    site = place.site(SQLALCHEMY_ENGINE_OPTIONS=pool)

    @site.app.get("/export")
    def view() -> str:
        with site.dlock.lock("export", timeout=60):
            return str(site.db.session.scalar(sa.text("SELECT 40 + 2")))

    answers = together(10, lambda _: site.get("/export"))
    assert [answer.text for answer in answers] == ["42"] * 10


def test_the_next_one_sees_what_was_committed_inside_the_lock(place: Place) -> None:
    """Two hundred requests count; none is lost."""
    site = place.site()
    counters = sa.Table(f"counters_{place.kind}", sa.MetaData(), sa.Column("count", sa.Integer))

    @site.app.get("/count")
    def view() -> str:
        with site.dlock.lock("count", timeout=60):
            count = site.db.session.execute(sa.select(counters.c.count)).scalar_one()
            site.db.session.execute(sa.update(counters).values(count=count + 1))
            site.db.session.commit()
            return "counted"

    with site.app.app_context(), site.db.engine.begin() as connection:
        counters.create(connection)
        connection.execute(sa.insert(counters).values(count=0))
    try:
        answers = [answer for _ in range(25) for answer in together(8, lambda _: site.get("/count"))]
        assert {answer.status_code for answer in answers} == {200}
        with site.app.app_context():
            assert site.db.session.scalar(sa.select(counters.c.count)) == 200
    finally:
        with site.app.app_context(), site.db.engine.begin() as connection:
            counters.drop(connection)


def test_a_thread_with_a_copied_request_keeps_its_lock(place: Place, site: Site) -> None:
    """The end of the request does not touch it."""
    may_end, has_lock = threading.Event(), threading.Event()
    threads = []

    @site.app.get("/export")
    def view() -> str:
        @flask.copy_current_request_context
        def work() -> None:
            with site.dlock.lock("export"):
                has_lock.set()
                may_end.wait(30)

        threads.append(threading.Thread(target=work))
        threads[0].start()
        has_lock.wait(30)
        return "started"

    assert site.get("/export").status_code == 200
    assert place.witness.holders() == 1
    may_end.set()
    threads[0].join()
    assert place.witness.holders() == 0


def test_the_core_and_the_view_mean_the_same_lock(place: Place) -> None:
    """With one prefix and key; so do Celery's tasks and Django's commands, which use the core."""
    site = place.site(DLOCK_PREFIX="shop")
    export(site)
    with place.held("export", prefix="shop"):
        assert site.get("/export").status_code == 409
    with place.held("export", prefix="other"):
        assert site.get("/export").status_code == 200


def test_a_handle_is_for_one_use_at_a_time(sqlite: Place) -> None:
    """Entering it twice is an error that says so; afterwards it may be used again."""
    site = sqlite.site()
    with site.app.app_context():
        handle = site.dlock.lock("export")
        with handle:
            assert isinstance(handle, Handle)
            with pytest.raises(LockStateError, match="make one for each use"):
                handle.__enter__()
        assert not handle
        with handle:
            assert handle


def test_a_lock_can_be_released_before_the_end(place: Place, site: Site) -> None:
    """The end of `with` then does nothing."""
    with site.app.app_context(), site.dlock.lock("export") as handle:
        handle.release()
        assert place.witness.holders() == 0
        with pytest.raises(LockStateError, match="does not have the lock"):
            handle.release()


def test_a_fencing_token_grows_with_every_grant(place: Place, site: Site) -> None:
    """And is there for the test that asked for it."""
    tokens = []
    with site.app.app_context():
        for _ in range(3):
            with site.dlock.lock("export", fencing=True) as handle:
                tokens.append(handle.fencing_token)
        with site.dlock.lock("export") as handle, pytest.raises(LockStateError, match="fencing=True"):
            _ = handle.fencing_token
    assert tokens == sorted(set(tokens))


def test_a_lock_is_seen_by_is_locked(place: Place, site: Site) -> None:
    """Whichever has it, another process or this one; and asking takes nothing."""
    with site.app.app_context():
        assert not site.dlock.is_locked("export")
        with place.held("export"):
            assert site.dlock.is_locked("export")
        with site.dlock.lock("export"):
            assert site.dlock.is_locked("export")
        assert not site.dlock.is_locked("export")
    assert place.witness.holders() == 0


@pytest.mark.parametrize("option", ["status", "retry_after", "on_conflict"])
def test_an_option_that_cannot_be_is_refused_before_any_conflict(sqlite: Place, option: str) -> None:
    """At the call, not when it first matters."""
    dlock: Any = sqlite.site().dlock
    with sqlite.site(dlock).app.app_context(), pytest.raises(ValueError, match=option):
        dlock.lock("export", **{option: -1})
    with pytest.raises(ValueError, match=option):
        dlock.locked("export", **{option: -1})
