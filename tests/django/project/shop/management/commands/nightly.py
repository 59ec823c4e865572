"""A command that always locks, with a key from its options."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandParser

from dlock_django import LockedCommand


class Command(LockedCommand):
    """Runs for one tenant at a time."""

    lock_by_default = True
    lock_key = "nightly:{tenant}"

    def add_arguments(self, parser: CommandParser) -> None:
        """Have a tenant."""
        parser.add_argument("--tenant", default="all")
        parser.add_argument("--stay", action="store_true")

    def handle(self, **options: Any) -> None:
        """Say so."""
        self.stdout.write("in")
        self.stdout.flush()
        if options["stay"]:
            sys.stdin.readline()
