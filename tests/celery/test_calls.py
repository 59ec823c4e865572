"""Tasks without a worker: called directly, eagerly, and how they are declared."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task, shared_task
from celery.exceptions import ImproperlyConfigured

import dlock_celery
from dlock_celery import (
    DLock,
    LockConflictError,
    SingleInstanceMixin,
    SingleInstanceTask,
    assert_locked,
    current_lock,
    get_provider,
    lock_acquired,
    lock_conflict,
    lock_released,
    single_instance,
)
from dlock_core import DeadlockError, LockConnectionError, LockStateError


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    """An app with its locks in SQLite."""
    app = Celery("calls", set_as_current=False, backend="cache+memory://", broker="memory://")
    DLock(app, url=f"sqlite:///{tmp_path}/locks.db")
    yield app
    get_provider(app).close()
    app.close()


@contextmanager
def held(app: Celery, key: Any) -> Iterator[None]:
    """Let somebody else hold a key."""
    lock = get_provider(app).lock(key, timeout=5)
    with lock:
        lock.disown()
        yield


def declare(app: Celery, form: str, options: dict[str, Any], body: Callable[..., Any], **celery: Any) -> Any:
    """Declare a task in one of the ways in which it can have a lock."""
    celery = {"name": "the-task", "shared": False, **celery}
    body.__name__ = "body"  # Celery writes its signature as source, which a lambda has not
    made: Any
    match form:
        case "decorator":
            return app.task(**celery)(single_instance(**options)(body))
        case "base":
            made = app.task(base=SingleInstanceTask, **_attributes(options), **celery)
        case "mixin":
            made = app.task(base=type("Own", (SingleInstanceMixin, Task), {}), **_attributes(options), **celery)
        case _:
            del celery["shared"]
            members = {"run": staticmethod(body), "abstract": False, **_attributes(options), **celery}
            return app.register_task(type("Made", (SingleInstanceTask,), members)())
    return made(body)


def _attributes(options: dict[str, Any]) -> dict[str, Any]:
    return {f"lock_{name}": value for name, value in options.items()}


FORMS = ("decorator", "base", "mixin", "class")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("finalized", [False, True])
def test_a_direct_call_takes_the_lock(app: Celery, form: str, finalized: bool) -> None:
    """However the task was declared, before or after the app was finalized."""
    if finalized:
        app.finalize()
    task = declare(app, form, {"key": "k:{x}", "skip_result": "skipped"}, lambda x: current_lock() and x)
    assert task(1) == 1
    with held(app, "k:1"):
        assert task(1) == "skipped"
        assert task.apply((1,)).get() == "skipped"
        assert task.apply((1,)).state == "SUCCESS"
        assert task(2) == 2
    assert task(1) == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", ["retry", "wait", "raise", "revoke", "reject"])
def test_without_a_message_every_other_policy_raises(app: Celery, form: str, policy: str) -> None:
    """There is nothing to send again, to revoke or to give back."""
    task = declare(app, form, {"on_conflict": policy, "timeout": 0.1}, lambda: 1, acks_late=True)
    with held(app, "the-task"):
        with pytest.raises(LockConflictError, match="key 'the-task' is held"):
            task()
        assert isinstance(task.apply().result, LockConflictError)
    assert task() == 1


def test_an_app_that_is_always_eager_honours_locks(app: Celery) -> None:
    """As tests of users run."""
    app.conf.task_always_eager = True
    task = declare(app, "decorator", {"skip_result": "skipped"}, lambda: "ran")
    assert task.delay().get() == "ran"
    with held(app, "the-task"):
        assert task.delay().get() == "skipped"


@pytest.mark.parametrize("timeout", [0, 30])
@pytest.mark.parametrize("how", ["eager", "direct"])
def test_a_task_that_calls_itself_meets_its_own_lock(app: Celery, how: str, timeout: float) -> None:
    """It is skipped, and nobody waits for himself: that is an error at once."""

    def body(depth: int) -> Any:
        task = app.tasks["the-task"]
        return depth and (task.apply((0,), throw=True).get() if how == "eager" else task(0))

    task = declare(app, "decorator", {"skip_result": "skipped", "timeout": timeout}, body)
    if timeout:
        with pytest.raises(DeadlockError):
            task(1)
    else:
        assert task(1) == "skipped"
    assert task(0) == 0


def test_direct_calls_can_go_past_the_lock(app: Celery) -> None:
    """By choice; messages do not."""
    task = declare(app, "decorator", {"direct_calls": "bypass", "skip_result": "skipped"}, lambda: "ran")
    with held(app, "the-task"):
        assert task() == "ran"
        assert task.apply().get() == "skipped"


def test_locks_can_be_switched_off(app: Celery) -> None:
    """For a test, or in an emergency; the body can tell."""
    task = declare(app, "decorator", {}, current_lock)
    with held(app, "the-task"):
        app.conf.dlock_enabled = False
        assert task() is None
        assert task.apply().state == "SUCCESS"


def test_a_bare_decorator_will_do(app: Celery) -> None:
    """`@single_instance`, with nothing to say."""

    @app.task(name="bare", shared=False)
    @single_instance
    def bare() -> Any:
        assert_locked()
        lock = current_lock()
        return lock and lock.key

    assert bare() == "bare"


def test_code_that_must_run_under_a_lock_can_say_so(app: Celery) -> None:
    """`assert_locked` outside of a task, and after the loss of the lock."""
    with pytest.raises(LockStateError, match="no lock is held"):
        assert_locked()
    assert current_lock() is None


def test_the_body_cannot_be_reached_around_the_lock(app: Celery) -> None:
    """By `run`, or by a base whose `__call__` does not call the one above it."""

    class Rude(Task):  # type: ignore[type-arg]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.run(*args, **kwargs)

    for name, base in (("polite", Task), ("rude", Rude), ("late", Rude)):
        task = declare(app, "decorator", {"skip_result": "skipped"}, lambda: "ran", name=name, base=base)
        if name == "late":
            app.finalize()
        with held(app, name):
            assert task() == task.run() == task.apply().get() == "skipped"
        assert task() == task.run() == "ran"


def test_arguments_are_checked_when_a_message_is_sent(app: Celery) -> None:
    """The decorator keeps the signature."""
    task = declare(app, "decorator", {"key": "{x}"}, lambda x, y=1: None)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        task.delay()
    with pytest.raises(TypeError, match="takes from 1 to 2 positional arguments"):
        task.delay(1, 2, 3)


def test_the_decorator_on_the_wrong_side_says_so(app: Celery) -> None:
    """Above `@app.task` it would decorate a task."""
    lazy: Any = app.task(name="plain", shared=False)(test_the_public_names_exist)
    for wrong, complaint in ((lazy, "under @app"), (app.tasks["plain"], "under @app"), ("key", "for example as key=")):
        with pytest.raises(TypeError, match=complaint):
            single_instance(wrong)  # type: ignore[type-var]


def test_a_shared_task_takes_the_lock_of_the_app_that_runs_it(tmp_path: Path) -> None:
    """Two apps, two databases."""

    @shared_task(name="common")
    @single_instance(skip_result="skipped")
    def common() -> str:
        return "ran"

    apps = [Celery(name, set_as_current=False) for name in ("one", "two")]
    for app in apps:
        DLock(app, url=f"sqlite:///{tmp_path}/{app.main}.db")
    with held(apps[0], "common"):
        assert [app.tasks["common"]() for app in apps] == ["skipped", "ran"]
    assert apps[0].tasks["common"]() == "ran"
    for app in apps:
        get_provider(app).close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"key": "{nobody}"}, "has nothing for nobody"),
        ({"on_conflict": "reject"}, "needs acks_late=True"),
        ({"on_conflict": "wait"}, "needs a timeout"),
        ({"on_conflict": "explode"}, "give one of skip, retry, wait"),
        ({"on_lost": "cry"}, "give one of log"),
        ({"timeout": float("inf")}, "finite number"),
        ({"retry_backoff": 0.5}, "number from 1"),
    ],
)
def test_options_that_make_no_sense_are_refused_when_the_task_is_bound(
    app: Celery, form: str, options: dict[str, Any], complaint: str
) -> None:
    """Not at the first message."""
    with pytest.raises(ImproperlyConfigured, match=f"task the-task: .*{complaint}"):
        declare(app, form, options, lambda x: None)
        app.finalize()


def test_a_body_that_would_run_after_the_release_is_refused(app: Celery) -> None:
    """A coroutine function or a generator does nothing while it is called."""

    async def later() -> None: ...

    with pytest.raises(ImproperlyConfigured, match="plain function"):
        declare(app, "decorator", {}, later)
        app.finalize()


def test_options_come_from_the_task_then_its_decorator_then_the_app(tmp_path: Path) -> None:
    """`task_annotations` change what a decorator says, without the code."""
    app = Celery("layers", set_as_current=False)
    app.conf.update(
        dlock_url=f"sqlite:///{tmp_path}/locks.db",
        dlock_on_conflict="raise",
        dlock_retry_delay=7,
        task_annotations={"annotated": {"lock_on_conflict": "retry", "lock_retry_delay": 9}},
    )

    @app.task(name="annotated", shared=False)
    @single_instance(on_conflict="skip", retry_delay=8)
    def annotated() -> None: ...

    @app.task(name="decorated", shared=False)
    @single_instance(on_conflict="skip")
    def decorated() -> None: ...

    tasks: Any = app.tasks
    found = {name: tasks[name].lock_plan.options for name in ("annotated", "decorated")}
    assert (found["annotated"].on_conflict, found["annotated"].retry_delay) == ("retry", 9)
    assert (found["decorated"].on_conflict, found["decorated"].retry_delay) == ("skip", 7)


def test_a_missing_database_is_named_by_its_setting() -> None:
    """And a bind that is not there."""
    app = Celery("nowhere", set_as_current=False)
    for options, missing in (({}, "dlock_url is not set"), ({"bind": "reports"}, "'reports' is not in dlock_binds")):
        task = declare(app, "decorator", options, lambda: None, name=missing)
        with pytest.raises(ImproperlyConfigured, match=missing):
            task()


def test_a_bind_names_another_database(app: Celery, tmp_path: Path) -> None:
    """The same key there is another lock."""
    app.conf.dlock_binds = {"reports": f"sqlite:///{tmp_path}/reports.db"}
    task = declare(app, "decorator", {"bind": "reports", "skip_result": "skipped"}, lambda: "ran")
    with held(app, "the-task"):
        assert task() == "ran"
    with get_provider(app, "reports").lock("the-task") as lock:
        lock.disown()
        assert task() == "skipped"
    get_provider(app, "reports").close()


def test_a_shared_lock_lets_readers_run_at_the_same_time(app: Celery) -> None:
    """And a writer alone."""
    reader = declare(app, "decorator", {"key": "k", "shared": True, "skip_result": "skipped"}, lambda: "ran", name="r")
    writer = declare(app, "decorator", {"key": "k", "skip_result": "skipped"}, lambda: "ran", name="w")
    with get_provider(app).lock("k", shared=True) as lock:
        lock.disown()
        assert (reader(), writer()) == ("ran", "skipped")


def test_a_database_that_is_down_is_an_error_of_ours(app: Celery) -> None:
    """Which a direct call raises also when messages would be sent again."""
    app.conf.dlock_binds = {"down": "postgresql+psycopg://nobody@127.0.0.1:9/nowhere"}
    for choice in ("raise", "retry"):
        task = declare(app, "decorator", {"bind": "down", "on_error": choice}, lambda: "ran", name=choice)
        with pytest.raises(LockConnectionError):
            task()
    unlocked = declare(app, "decorator", {"bind": "down", "on_error": "run_unlocked"}, current_lock, name="unlocked")
    assert unlocked() is None


def test_signals_tell_what_happens(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """To whoever listens; and a log line names key and task of a skip."""
    task = declare(app, "decorator", {"key": "k:{x}"}, lambda x: None)
    heard: list[tuple[str, Any]] = []

    def listen(signal: Any, sender: Any, key: Any, **_: Any) -> None:
        assert sender.name == "the-task"
        heard.append((signal.name, key))

    signals = (lock_acquired, lock_released, lock_conflict)
    for signal in signals:
        signal.connect(listen)
    task(1)
    with held(app, "k:2"), caplog.at_level(logging.INFO, "dlock"):
        task(2)
    for signal in signals:
        signal.disconnect(listen)
    assert heard == [("lock_acquired", "k:1"), ("lock_released", "k:1"), ("lock_conflict", "k:2")]
    [line] = [record.getMessage() for record in caplog.records if record.name == "dlock.celery"]
    assert line.startswith("the-task skipped: key 'k:2' is held")


def test_a_conflict_is_whole_after_pickle_and_json() -> None:
    """As result backends do it."""
    error = LockConflictError("message", ["invoice", 7], "the-task", 3, "host:7")
    by_json = LockConflictError(*json.loads(json.dumps(error.args)))
    for copy in (pickle.loads(pickle.dumps(error)), by_json):
        assert str(copy) == "message"
        assert (
            vars(copy) == vars(error) == {"key": ["invoice", 7], "task": "the-task", "attempts": 3, "holder": "host:7"}
        )


def test_the_public_names_exist() -> None:
    """And `from dlock_celery import *` gives them all."""
    names: dict[str, Any] = {}
    exec("from dlock_celery import *", names)
    assert set(dlock_celery.__all__) == names.keys() - {"__builtins__"}
