"""`manage.py clean_disk`: once at a time on each machine, by a lock on SQLite."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from dlock_django import LockedCommandMixin


class Command(LockedCommandMixin, BaseCommand):
    """Remove old drafts from this machine's disk; a second run has nothing to do."""

    help = __doc__
    lock_by_default = True
    lock_database = "machine"
    lock_on_conflict = "skip"

    def handle(self, **_: Any) -> str:
        """Remove them."""
        drafts = list(Path.cwd().glob("*.draft"))
        for draft in drafts:
            draft.unlink()
        return f"removed {len(drafts)}"
