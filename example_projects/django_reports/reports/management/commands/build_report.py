"""`manage.py build_report sales`: always under the lock of that report."""

from typing import Any

from django.core.management.base import CommandParser

from dlock_django import LockedCommand
from reports.building import build


class Command(LockedCommand):
    """Build a report; two at a time only of different ones."""

    help = __doc__
    lock_by_default = True
    lock_key = "report:{name}"

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the name of the report."""
        parser.add_argument("name")

    def handle(self, *, name: str, **_: Any) -> str:
        """Build it."""
        self.stdout.write(f"building {name}")
        self.stdout.flush()
        return build(name)
