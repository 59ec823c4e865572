"""`celery -A proj dlock …`: the verbs of the command `dlock`, on the app's locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from celery.exceptions import ImproperlyConfigured

from dlock_core.cli import lazy_commands

from .providers import get_provider

if TYPE_CHECKING:
    from dlock_core import LockProvider

__all__ = ["dlock"]


def _provider(*, bind: str | None) -> LockProvider:
    try:
        return get_provider(click.get_current_context().find_root().obj.app, bind)
    except ImproperlyConfigured as error:
        raise click.ClickException(str(error)) from None


dlock = lazy_commands(
    _provider,
    params=[click.Option(["--bind"], help="The database, of dlock_binds.")],
    text="Locks of this app: which session holds or waits for them, and programs that run under one.",
)
