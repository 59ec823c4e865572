"""The same work as a task: it shares its key with the command and the view."""

from dlock_django import try_lock
from reports.building import build
from reports.celery import app


@app.task
def build_report(name: str) -> str:
    """Build a report, unless another request builds it."""
    with try_lock(f"report:{name}") as held:
        if held is None:
            return "this report is locked by another request"
        return build(name)
