"""The same work as a task: it shares its key with the command and the view."""

from dlock_django import try_lock
from reports.building import build
from reports.celery import app


@app.task
def build_report(name: str) -> str:
    """Build a report, unless somebody is at it."""
    with try_lock(f"report:{name}") as held:
        if held is None:
            return "somebody else is at it"
        return build(name)
