"""A command of another author, which knows nothing of locks."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser


class Command(BaseCommand):
    """Ends with the number that it is given."""

    def add_arguments(self, parser: CommandParser) -> None:
        """Take a number."""
        parser.add_argument("code", type=int)
        parser.add_argument("--stay", action="store_true")

    def handle(self, **options: Any) -> None:
        """Say what the command line looks like."""
        self.stdout.write(f"in {' '.join(sys.argv[1:])}")
        self.stdout.flush()
        if options["stay"]:
            sys.stdin.readline()
        sys.exit(options["code"])
