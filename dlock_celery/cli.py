"""`celery -A proj dlock …`: the verbs of the command `dlock`, on the app's locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from celery.exceptions import ImproperlyConfigured

from dlock_core.cli import dlock_commands

from .providers import get_provider

if TYPE_CHECKING:
    from celery import Celery

    from dlock_core import LockProvider

__all__ = ["dlock"]


class _Commands(click.Command):
    """Loads the verbs when somebody types them: a worker needs no tables for the terminal."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        """Hand over to the verbs."""
        app: Celery = parent.find_root().obj.app

        def factory(*, bind: str | None) -> LockProvider:
            try:
                return get_provider(app, bind)
            except ImproperlyConfigured as error:
                raise click.ClickException(str(error)) from None

        options = [click.Option(["--bind"], help="The database, of dlock_binds.")]
        try:
            verbs = dlock_commands(factory, params=options)
        except ModuleNotFoundError as error:
            raise click.ClickException(f"{error.name} is missing: pip install 'dlock-suite[cli]'") from None
        return verbs.make_context(info_name, args, parent, **extra)


dlock = _Commands("dlock", help="Locks of this app: who holds them, who waits, and programs that run under one.")
