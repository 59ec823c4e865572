"""What the adapters share: the registry of providers, settings, the holder in words."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dlock_core import LockConnectionError, LockProvider
from dlock_core.adapters import PROVIDER_OPTIONS, Registry, holder_of, provider_options, unknown_setting, wrong_options
from tests.servers import wait_until

Names = Registry[str, object]


def maker(made: list[str], closed: list[str], name: str = "k") -> Any:
    """Return what makes an object slowly, and tells when it is closed."""

    def make(cleanup: ExitStack) -> object:
        made.append(name)
        cleanup.callback(closed.append, name)
        time.sleep(0.02)  # so that others that ask at the same time find none yet
        return object()

    return make


def test_threads_that_ask_at_once_get_the_one_that_was_made() -> None:
    """There is no second one that would have to be closed."""
    registry, meet = Names(), threading.Barrier(8)
    made: list[str] = []

    def ask(_: int) -> object:
        meet.wait(10)
        return registry.get("k", maker(made, []))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(ask, range(8))))) == 1
    assert made == ["k"]


def test_each_name_has_its_own_and_all_are_closed() -> None:
    """In the order that the stack of each says; a later one is new."""
    registry = Names()
    closed: list[str] = []
    first = [registry.get(name, maker([], closed, name)) for name in ("a", "b", "a")]
    assert first[0] is first[2] is not first[1]
    registry.close()
    registry.close()
    assert closed == ["a", "b"]
    assert registry.get("a", maker([], closed)) is not first[0]


def test_what_was_opened_for_one_that_cannot_be_made_is_closed() -> None:
    """An engine, say, whose options make no provider; the next one may be made."""
    registry = Names()
    closed: list[str] = []

    def fail(cleanup: ExitStack) -> object:
        cleanup.callback(closed.append, "engine")
        raise ValueError("heartbeat=0")

    with pytest.raises(ValueError, match="heartbeat=0"):
        registry.get("k", fail)
    assert closed == ["engine"]
    assert registry.get("k", maker([], closed))


def test_a_forked_child_starts_with_none() -> None:
    """Although a thread of its parent was making one at that time, which the child does not have."""
    registry = Names()
    mine = registry.get("old", lambda _cleanup: object())
    making, go_on = threading.Event(), threading.Event()

    def make(_cleanup: ExitStack) -> object:
        making.set()
        go_on.wait(30)
        return object()

    thread = threading.Thread(target=registry.get, args=("k", make))
    thread.start()
    making.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(7 if registry.get("old", lambda _cleanup: object()) is not mine else 1)
    try:
        wait_until(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None, "the child")
    finally:
        go_on.set()
        thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_what_is_lent_is_closed_when_it_is_not_used_for_long() -> None:
    """At once, after a while, or never, as the policy says at the end of a use."""
    registry = Names()
    made: list[str] = []
    closed: list[str] = []

    def use(linger: float | None) -> None:
        with (
            registry.lend("k", maker(made, closed), lambda: linger) as outer,
            registry.lend("k", maker(made, closed), lambda: 0) as inner,
        ):
            assert outer is inner

    use(0)
    assert (made, closed) == (["k"], ["k"])
    use(None)
    use(None)
    assert (made, closed) == (["k"] * 2, ["k"])
    used = time.monotonic()
    use(0.3)
    use(0.3)
    wait_until(lambda: len(closed) == 2, "the unused one to be closed", 10)
    assert time.monotonic() - used >= 0.3
    assert made == ["k"] * 2


def test_settings_can_say_all_that_a_provider_takes() -> None:
    """Read by one function, so that no adapter has a list of its own."""
    assert set(PROVIDER_OPTIONS) == {
        *("prefix", "heartbeat", "lease", "max_sessions", "share_sessions", "show_keys", "allow_unsafe"),
    }
    said = {"X_PREFIX": "shop", "X_ALLOW_UNSAFE": True}
    options = provider_options(said.get, lambda name: f"X_{name.upper()}")
    assert options == {**PROVIDER_OPTIONS, "prefix": "shop", "allow_unsafe": True}
    LockProvider("sqlite://", **options).close()


@pytest.mark.parametrize("value", ["false", "", 0, 1, None])
def test_a_switch_that_is_neither_true_nor_false_is_refused(value: object) -> None:
    """The text "false" would switch it on."""
    with pytest.raises(ValueError, match=r"X_ALLOW_UNSAFE=.*: give True or False"):
        provider_options({"X_ALLOW_UNSAFE": value}.get, lambda name: f"X_{name.upper()}")


def test_each_wrong_option_is_named_as_its_setting() -> None:
    """All of them, each by itself, before there is a provider."""
    wrong = {"prefix": None, "heartbeat": 0, "lease": "5 s", "max_sessions": True, "share_sessions": "no"}
    complaints = list(wrong_options({**PROVIDER_OPTIONS, **wrong}, lambda name: f"X_{name.upper()}"))
    assert [complaint.partition(": give ")[0] for complaint in complaints] == [
        f"X_{name.upper()}={value!r}" for name, value in wrong.items()
    ]
    assert not list(wrong_options(PROVIDER_OPTIONS, str.upper))


def test_a_misspelt_setting_is_named_with_the_one_that_is_meant() -> None:
    """Or with all that there are."""
    known = ("DLOCK_TIMEOUT", "DLOCK_LEASE")
    assert unknown_setting("DLOCK_TIMEOT", known) == "there is no setting DLOCK_TIMEOT: did you mean DLOCK_TIMEOUT?"
    assert unknown_setting("X", known) == "there is no setting X: there are DLOCK_TIMEOUT, DLOCK_LEASE"


@pytest.fixture
def locks(tmp_path: Path) -> Any:
    """Locks in a file, whose questions are counted."""
    with LockProvider(f"sqlite:///{tmp_path / 'locks.db'}", adapter="shell") as provider:
        yield provider


def test_the_holder_is_said_in_words(locks: LockProvider) -> None:
    """Nothing when it is free, and when the database cannot be asked."""
    with locks.lock("k"):
        assert holder_of(locks, "k").startswith("shell")
    assert holder_of(locks, "k") == ""
    with LockProvider("postgresql+psycopg://nobody@127.0.0.1:9/nowhere") as away:
        assert holder_of(away, "k") == ""


def test_the_holder_is_looked_up_once_for_many_at_once(locks: LockProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later again, and for each key; an answer that is no answer counts too."""
    asked: list[object] = []

    def inspect(key: object) -> Any:
        asked.append(key)
        time.sleep(0.02)
        raise LockConnectionError("no")

    monkeypatch.setattr(locks, "inspect", inspect)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: holder_of(locks, number % 2, max_age=60), range(16)))
    assert (answers, sorted(asked)) == ([""] * 16, [0, 1])  # type: ignore[type-var]
    holder_of(locks, 0)
    time.sleep(0.02)
    holder_of(locks, 0, max_age=0.01)
    assert len(asked) == 4


def test_answers_about_many_keys_do_not_pile_up(locks: LockProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for each customer is asked about once in its life."""
    monkeypatch.setattr(locks, "inspect", lambda _key: [])
    for number in range(2000):
        holder_of(locks, number, max_age=1e-6)
    from dlock_core import adapters

    assert len(adapters._answers._known[locks]) <= adapters.MAX_ANSWERS
