"""The command group: each command lives in a module of its own and is added here."""

from __future__ import annotations

import click

from .demo.command import demo
from .init import init

__all__ = ["dlock"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dlock-suite")
def dlock() -> None:
    """Distributed locks from the database you already have."""


dlock.add_command(demo)
dlock.add_command(init)
