"""An app of Celery whose tasks do the same under three libraries: `celery -A tests.comparison.shop worker`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Celery, Task
from celery_once import QueueOnce
from celery_singleton import Singleton

from dlock_celery import single_instance
from tests.celery.stage import begin, end, wait_for_gate, work

__all__ = ["FIRST", "make_app"]

CONFIGURATION = "DLOCK_TEST_CELERY"
FIRST = "first"
"""What opens the gate for the one that is asked to be the first."""


def play(task: Task[Any, Any], stage: str, do: str) -> None:
    """Work until the test opens the gate, or that of the first."""
    run = uuid4().hex
    begin(stage, run, task.request.id)
    try:
        while do == FIRST and not Path(stage, FIRST).exists():
            work(stage, run, 0.01)
        if do != FIRST:
            wait_for_gate(stage, run)
        if do == "retry" and not task.request.retries:
            raise task.retry(countdown=0)
    finally:
        end(stage, run)


def make_app(configuration: dict[str, Any]) -> Celery:
    """Make the app, for a worker or for a test that sends messages."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(configuration)

    @app.task(name="dlock_celery", shared=False, bind=True)
    @single_instance(key="{stage}")
    def dlock_celery(self: Task[Any, Any], stage: str, do: str) -> None:
        play(self, stage, do)

    @app.task(name="celery-once", shared=False, bind=True, base=QueueOnce, once={"keys": ["stage"]})
    def celery_once(self: Task[Any, Any], stage: str, do: str) -> None:
        play(self, stage, do)

    @app.task(name="celery-singleton", shared=False, bind=True, base=Singleton, unique_on=["stage"])
    def celery_singleton(self: Task[Any, Any], stage: str, do: str) -> None:
        play(self, stage, do)

    return app


if CONFIGURATION in os.environ:
    app = make_app(json.loads(os.environ[CONFIGURATION]))
