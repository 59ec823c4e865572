"""Where the commands get their locks from: a URL, or the application that they are mounted in."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy.exc import SQLAlchemyError

from dlock_core import LockError, LockProvider, NotPermittedError

from .target import Refusal, parse_target, refusal_of, refuse_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

__all__ = ["NO_PERMISSION", "Source", "source_options", "with_source"]

# Exit status after sysexits.h: the database does not show this, or not all of it, to its user.
NO_PERMISSION = 77


class NotPermitted(Refusal):
    """Say what the database user lacks."""

    exit_code = NO_PERMISSION


class Source:
    """Opens the locks of one run of a command.

    Args:
        factory: Returns the application's lock provider, which stays open; None takes `--url`.
        options: What the factory is called with.
    """

    def __init__(
        self, factory: Callable[..., LockProvider] | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self._factory = factory
        self._options = options or {}
        self.url: str | None = None
        self.prefix = ""

    @contextmanager
    def locks(self, *, lease: float | None = None) -> Iterator[LockProvider]:
        """Open the locks, and say in one line whatever is wrong with them."""
        if self._factory is not None:
            if lease is not None:
                raise Refusal("--lease is a setting of the application here, not of the command")
            with _in_one_line(None):
                yield self._factory(**self._options)
            return
        if self.url is None:
            raise Refusal("which database? Give --url, or set DLOCK_URL, e.g. postgresql+psycopg://user@host/db")
        target = parse_target(self.url)
        refuse_async(target)
        text = target.render_as_string(hide_password=False)
        # A session of its own shows its key on PostgreSQL too; a lease needs the other kind.
        own = lease is None
        with (
            _in_one_line(target),
            LockProvider(text, prefix=self.prefix, lease=lease, share_sessions=not own, adapter="shell") as provider,
        ):
            yield provider


@contextmanager
def _in_one_line(target: URL | None) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, LockError, ImportError) as error:
        text = str(refusal_of(target, error)) if target is not None else str(error)
        raise (NotPermitted if isinstance(error, NotPermittedError) else Refusal)(text) from None


with_source = click.make_pass_decorator(Source, ensure=True)


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and parameter.name:
        setattr(context.ensure_object(Source), parameter.name, value)


def source_options() -> list[click.Parameter]:
    """Return the options that say which database, for commands that no application lends its own."""
    url = click.Option(
        ["--url"],
        envvar="DLOCK_URL",
        metavar="URL",
        callback=_remember,
        expose_value=False,
        help="The database, as SQLAlchemy writes it; or set DLOCK_URL.",
    )
    prefix = click.Option(
        ["--prefix"],
        envvar="DLOCK_PREFIX",
        callback=_remember,
        expose_value=False,
        help="The application's prefix of all keys; or set DLOCK_PREFIX.",
    )
    return [url, prefix]
