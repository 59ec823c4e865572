"""Tasks without a worker: called directly, eagerly, and how they are declared."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery, Task, shared_task
from celery.app.trace import build_tracer
from celery.exceptions import ImproperlyConfigured
from celery.signals import task_revoked

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
    lock_lost,
    lock_released,
    single_instance,
)
from dlock_core import DeadlockError, LockConnectionError, LockStateError
from dlock_core.adapters import PROVIDER_OPTIONS
from tests.conftest import server
from tests.contract.witnesses import witness_of


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
    """Let another hold a key."""
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
    """Nobody waits for itself, and a skip would lose the work in silence: that is an error at once."""

    def body(depth: int) -> Any:
        task = app.tasks["the-task"]
        return depth and (task.apply((0,), throw=True).get() if how == "eager" else task(0))

    task = declare(app, "decorator", {"skip_result": "skipped", "timeout": timeout}, body)
    with pytest.raises(DeadlockError, match="'the-task'"):
        task(1)
    assert task(0) == 0


def test_a_task_that_is_called_by_the_task_that_its_caller_called_meets_the_lock_too(app: Celery) -> None:
    """However many stand between; another key is no matter."""

    def call_outer() -> Any:
        return app.tasks["outer"]()

    def call_inner() -> Any:
        return app.tasks["inner"]()

    declare(app, "decorator", {"key": "inner"}, call_outer, name="inner")
    outer = declare(app, "decorator", {"key": "outer"}, call_inner, name="outer")
    with pytest.raises(DeadlockError, match="'outer' is held by the body that calls it"):
        outer()


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

    for name, base in (("plain", Task), ("rude", Rude), ("late", Rude)):
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
    lazy: Any = app.task(name="plain", shared=False)(held)
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


@pytest.mark.parametrize("where", ["the task", "an annotation"])
def test_an_option_alone_makes_a_lock(app: Celery, where: str) -> None:
    """On a task that has neither decorator nor base, such as a library's; another task stays as it is."""
    options = {"lock_key": "k:{x}"}
    annotations = {"*": {"lock_timeout": 0}, **({"the-task": options} if where == "an annotation" else {})}
    app.conf.task_annotations = annotations
    declare_task: Any = app.task

    def keys(x: int) -> Any:
        lock = current_lock()
        return lock and lock.key

    task = declare_task(name="the-task", shared=False, **(options if where == "the task" else {}))(keys)
    plain = declare_task(name="plain", shared=False)(keys)
    app.finalize()  # as a worker does
    assert (task(7), plain(7)) == ("k:7", None)


def test_a_misspelt_option_of_a_task_is_refused(app: Celery) -> None:
    """Where it is nearly one of ours."""
    with pytest.raises(ImproperlyConfigured, match=r"no option lock_on_conflit: did you mean lock_on_conflict\?"):
        declare(app, "base", {"on_conflit": "raise"}, lambda: None)()


def test_a_second_decorator_is_refused() -> None:
    """It would be ignored in silence."""
    with pytest.raises(TypeError, match="twice"):
        single_instance(key="a")(single_instance(key="b")(lambda: None))


def test_a_revoked_task_is_reported_to_celery_s_receivers(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the signal and the event that Celery itself sends; a monitor would show it as started without end."""
    app.conf.worker_send_task_events = True
    task = declare(app, "decorator", {"key": "k", "on_conflict": "revoke"}, lambda: pytest.fail("ran"))
    app.finalize()
    noted: list[Any] = []
    dispatcher = Mock()

    def receive(sender: Any, request: Any, terminated: bool, **_: Any) -> None:
        noted.append((sender.name, request.id, terminated))

    message = {"id": "7", "is_eager": False, "called_directly": False, "hostname": "here", "delivery_info": {}}
    run: Any = build_tracer(task.name, app.tasks[task.name], app=app)
    monkeypatch.setattr(app.events, "default_dispatcher", lambda **_: nullcontext(dispatcher))
    task_revoked.connect(receive)
    try:
        with held(app, "k"):
            run("7", (), {}, request=message)
    finally:
        task_revoked.disconnect(receive)
    assert noted == [("the-task", "7", False)]
    assert str(app.AsyncResult("7").state) == "REVOKED"
    dispatcher.send.assert_called_once_with("task-revoked", uuid="7", terminated=False, signum=None, expired=False)


def test_each_run_can_have_a_fencing_token(app: Celery) -> None:
    """Which grows from run to run."""
    task = declare(app, "decorator", {"fencing": True}, lambda: current_lock().fencing_token)  # type: ignore[union-attr]
    assert task() < task()


def test_signals_tell_what_happens(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """A receiver learns the holder; and a log line names key and task of a skip."""
    task = declare(app, "decorator", {"key": "k:{x}"}, lambda x: None)
    heard: list[tuple[str, Any]] = []

    def listen(signal: Any, sender: Any, key: Any, **about: Any) -> None:
        assert sender.name == "the-task"
        assert about.keys() == {"bind", "task_id", *arguments[signal.name]}
        heard.append((signal.name, key))

    arguments = {
        "lock_acquired": {"waited"},
        "lock_released": {"held_for"},
        "lock_conflict": {"waited", "on_conflict", "holder", "attempts"},
    }

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


def test_a_loss_is_reported_to_receivers_while_the_body_runs() -> None:
    """With the task, its key and the lost lock; once, and no release is reported."""
    running = server("postgresql")
    app = Celery("losing", set_as_current=False, backend="cache+memory://", broker="memory://")
    DLock(app, url=running.url("postgresql+psycopg"))
    witness, heard = witness_of(running), threading.Event()
    noted: list[Any] = []

    def lose(x: int) -> tuple[int, bool]:
        witness.break_lock()
        return x, heard.wait(10)

    def receive_loss(sender: Any, task_id: Any, key: Any, lock: Any, held_for: float, **_: Any) -> None:
        noted.append((sender.name, task_id, key, lock.lost and held_for >= 0))
        heard.set()

    def receive_release(**_: Any) -> None:
        noted.append("released")

    task = declare(app, "decorator", {"key": "k:{x}"}, lose)
    lock_lost.connect(receive_loss)
    lock_released.connect(receive_release)
    try:
        assert task(7) == (7, True)
    finally:
        lock_lost.disconnect(receive_loss)
        lock_released.disconnect(receive_release)
        get_provider(app).close()
        app.close()
        witness.close()
    assert noted == [("the-task", None, "k:7", True)]


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("dlock_allow_unsafeay", r"there is no setting dlock_allow_unsafeay: did you mean dlock_allow_unsafe\?"),
        ("dlock_on_conflit", r"did you mean dlock_on_conflict\?"),
        ("dlock_key", "there is no setting dlock_key"),
    ],
)
def test_a_misspelt_setting_is_named_when_a_task_is_bound(
    app: Celery, name: str, complaint: str, finalized: bool
) -> None:
    """It would be ignored."""
    if finalized:
        app.finalize()
    app.conf[name] = True
    with pytest.raises(ImproperlyConfigured, match=complaint):
        declare(app, "decorator", {}, lambda: None)
        app.finalize()


def test_a_wrong_value_of_a_setting_is_named_at_the_first_lock(app: Celery) -> None:
    """As Celery's own kind of error; the setting can be corrected."""
    task = declare(app, "decorator", {}, lambda: "ran")
    for name, value in (("allow_unsafe", "false"), ("heartbeat", 0), ("max_sessions", 1)):
        app.conf[f"dlock_{name}"] = value
        with pytest.raises(ImproperlyConfigured, match=f"^dlock_{name}={value!r}: give"):
            task()
        app.conf[f"dlock_{name}"] = PROVIDER_OPTIONS[name]
    assert task() == "ran"
