"""In a Django project: its settings, and its base class for tasks. In a process of its own: Django is set up once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .workers import ROOT

PROGRAM = """
import sys
from django.conf import settings

settings.configure(
    CELERY_BROKER_URL="memory://",
    CELERY_TASK_ALWAYS_EAGER=True,
    CELERY_DLOCK_URL=f"sqlite:///{sys.argv[1]}/locks.db",
    CELERY_DLOCK_ON_CONFLICT="raise",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "configured.by.hand"
import django
django.setup()
from celery import Celery, shared_task
from celery.contrib.django.task import DjangoTask
from dlock_celery import SingleInstanceMixin, get_provider, single_instance

app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")


class Base(SingleInstanceMixin, DjangoTask):
    abstract = True


@app.task(base=Base, lock_key="k:{x}")
def based(x): return x


@shared_task
@single_instance(key="k:{x}")
def shared(x): return x


for task in (based, shared):
    assert callable(task.delay_on_commit)
    assert task.delay(1).get() == 1
    with get_provider(app).lock("k:1") as lock:
        lock.disown()
        print(type(task.delay(1).result).__name__)
"""


def test_django_settings_and_task_class_work(tmp_path: Path) -> None:
    """`CELERY_DLOCK_ON_CONFLICT` is heard, and `delay_on_commit` is kept."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (run.stdout.split(), run.stderr) == (["LockConflictError"] * 2, "")
