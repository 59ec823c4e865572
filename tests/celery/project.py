"""The app that the workers of the tests run: `celery -A tests.celery.project worker`."""

from __future__ import annotations

import json
import os
from typing import Any
from uuid import uuid4

from celery import Celery, Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from sqlalchemy import create_engine

from dlock_celery import SingleInstanceTask, assert_locked, get_provider, single_instance
from dlock_core import Lock
from tests.celery import files  # noqa: F401 - makes its broker known
from tests.celery.stage import begin, end, wait_for_gate, work

CONFIGURATION = "DLOCK_TEST_CELERY"
POLICIES = ("skip", "retry", "wait", "raise", "revoke", "reject")


class TroubleError(Exception):
    """What a body raises."""


def play(task: Task[Any, Any], stage: str, do: str) -> str:
    """Do what the test wants of a body, and write down when."""
    run = uuid4().hex
    begin(stage, run, task.request.id)
    try:
        return _act(task, stage, do, run)
    finally:
        end(stage, run)


def _act(task: Task[Any, Any], stage: str, do: str, run: str) -> str:
    match do.split():
        case ["hold"]:
            wait_for_gate(stage, run)
        case ["sleep", seconds]:
            work(stage, run, float(seconds))
        case ["ignore"]:
            raise Ignore
        case ["reject"]:
            raise Reject("no", requeue=False)
        case ["exit"]:
            raise SystemExit(1)
        case ["fail"]:
            raise TroubleError("no")
        case ["retry", countdown] if task.request.retries == 0:
            raise task.retry(countdown=float(countdown), exc=TroubleError("once more"))
        case ["linger", seconds]:
            _linger(stage, run, float(seconds))
        case ["swallow"]:
            _swallow(stage, run)
    return f"did {do}"


def _linger(stage: str, run: str, seconds: float) -> None:
    """Take time to clean up when the process is asked to end."""
    try:
        wait_for_gate(stage, run)
    finally:
        work(stage, run, seconds)


def _swallow(stage: str, run: str) -> None:
    try:
        wait_for_gate(stage, run)
    except SoftTimeLimitExceeded:
        return


def make_app(configuration: dict[str, Any]) -> Celery:
    """Make the app, for a worker or for a test that sends messages."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(configuration)
    for policy in POLICIES:
        _define(app, policy, {"on_conflict": policy})
        _define(app, f"autoretry_{policy}", {"on_conflict": policy}, autoretry_for=(Exception,), retry_backoff=False,
                default_retry_delay=0.1, max_retries=1)  # fmt: skip
    _define(app, "limited", {"on_conflict": "retry", "retry_limit": 3, "retry_delay": 0.1, "retry_backoff": 1})
    _define(app, "budget", {"on_conflict": "retry", "retry_delay": 0.2, "retry_backoff": 1}, max_retries=1)
    _define(app, "patient", {"on_conflict": "wait", "timeout": 30})
    for choice in ("raise", "retry", "run_unlocked"):
        _define(app, f"down_{choice}", {"bind": "down", "on_error": choice, "retry_delay": 0.5, "retry_backoff": 1})
    for choice in ("log", "raise", "terminate"):
        _define(app, f"lost_{choice}", {"on_lost": choice})
    _define_others(app)
    return app


def _define(app: Celery, name: str, lock: dict[str, Any], **options: Any) -> None:
    if lock.get("on_conflict") == "wait":
        lock.setdefault("timeout", 2)

    @app.task(name=name, shared=False, bind=True, acks_late=lock.get("on_conflict") == "reject", **options)
    @single_instance(key="{stage}", **lock)
    def act(self: Task[Any, Any], stage: str, do: str = "end") -> str:
        return play(self, stage, do)


def _define_others(app: Celery) -> None:
    @app.task(
        name="based", shared=False, base=SingleInstanceTask, bind=True, lock_key="{stage}", lock_skip_result="skipped"
    )
    def based(self: Task[Any, Any], stage: str, do: str = "end") -> str:
        assert_locked()
        return play(self, stage, do)

    @app.task(name="late", shared=False, bind=True, acks_late=True, reject_on_worker_lost=True)
    @single_instance(key="{stage}")
    def late(self: Task[Any, Any], stage: str, do: str = "end") -> str:
        return play(self, stage, do)

    @app.task(name="by_args", shared=False, bind=True)
    @single_instance(by_args=True)
    def by_args(self: Task[Any, Any], stage: str, do: str = "hold", number: int = 1) -> str:
        return play(self, stage, do)

    @app.task(name="note", shared=False, bind=True)
    def note(self: Task[Any, Any], value: Any, stage: str) -> Any:
        play(self, stage, "end")
        return value


def _worker_app() -> Celery:
    configuration = json.loads(os.environ[CONFIGURATION])
    if configuration.get("without_tasks"):
        return Celery("beat", set_as_current=False, changes=configuration)
    made = make_app(configuration)
    if configuration.get("engine_in_parent"):
        # As in an application that used its pool before the worker forked.
        engine = create_engine(configuration["dlock_url"])
        engine.connect().close()
        made.conf.dlock_engine = engine
    if key := configuration.get("hold_from_start"):
        # Another part of the same process, with a lock of its own.
        held.append(get_provider(made).lock(key))
        held[0].acquire()
    return made


held: list[Lock] = []
if CONFIGURATION in os.environ:
    app = _worker_app()
