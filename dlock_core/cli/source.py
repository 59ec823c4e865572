"""Where the commands get their locks from: a URL and options, or the application that they are mounted in.

Whatever is wrong with them is said in one line and ends the command with status 2; a password never reaches the screen.
"""

from __future__ import annotations

import json
import re
import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from dlock_core import LockError, LockProvider, NotPermittedError

from ..adapters import PROVIDER_OPTIONS
from ..dialects.failures import secrets_of, shown_url
from ..keys import load_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..keys import Key

__all__ = [
    "NO_PERMISSION",
    "Refusal",
    "Source",
    "json_key_option",
    "key_options",
    "parse_key",
    "parse_target",
    "refusal_of",
    "refuse_async",
    "source_options",
    "typed",
    "with_source",
    "without_password",
]

# Exit status after sysexits.h: the database does not show this, or not all of it, to its user.
NO_PERMISSION = 77
# What is given in place of seconds to switch something off; it is None to `LockProvider`, but not to click.
NONE, _NEVER = "none", object()


class Refusal(click.ClickException):
    """Say in one line why the command cannot start; exit status 2."""

    exit_code = 2


class NotPermitted(Refusal):
    """Say what the database user lacks."""

    exit_code = NO_PERMISSION


class Source:
    """Opens the locks of one run of a command.

    Args:
        factory: Returns the application's lock provider, which stays open; None takes `--url`.
        arguments: What the factory is called with.
    """

    def __init__(
        self, factory: Callable[..., LockProvider] | None = None, arguments: dict[str, Any] | None = None
    ) -> None:
        self._factory = factory
        self._arguments = arguments or {}
        self.options: dict[str, Any] = {}

    @contextmanager
    def locks(self) -> Iterator[LockProvider]:
        """Open the locks, and say in one line whatever is wrong with them."""
        if self._factory is not None:
            with _in_one_line(None):
                yield self._factory(**self._arguments)
            return
        if "url" not in self.options:
            raise Refusal("which database? Give --url, or set DLOCK_URL, e.g. postgresql+psycopg://user@host/db")
        target = parse_target(self.options["url"])
        refuse_async(target)
        with _in_one_line(target), self._open(target) as provider:
            yield provider

    def _open(self, target: URL) -> LockProvider:
        # A session of its own shows its key on PostgreSQL at once; a lease needs the other kind.
        options: dict[str, Any] = {"share_sessions": self.options.get("lease") is not None, **self.options}
        del options["url"]
        try:
            return LockProvider(target.render_as_string(hide_password=False), adapter="shell", **options)
        except ValueError as error:
            raise Refusal(without_password(target, str(error))) from None


@contextmanager
def _in_one_line(target: URL | None) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, LockError, ImportError) as error:
        text = str(refusal_of(target, error)) if target is not None else str(error)
        raise (NotPermitted if isinstance(error, NotPermittedError) else Refusal)(text) from None


with_source = click.make_pass_decorator(Source, ensure=True)


def source_options() -> list[click.Parameter]:
    """Return the options that say which database, and each option of `LockProvider`."""
    url = click.Option(
        ["--url"],
        envvar="DLOCK_URL",
        metavar="URL",
        callback=_keep_option,
        expose_value=False,
        help="The database, as SQLAlchemy writes it; or set DLOCK_URL.",
    )
    return [url, *(_provider_option(name, default) for name, default in PROVIDER_OPTIONS.items())]


def _keep_option(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value is not None and parameter.name:
        context.ensure_object(Source).options[parameter.name] = None if value is _NEVER else value


def _provider_option(name: str, default: object) -> click.Option:
    word, variable = name.replace("_", "-"), f"DLOCK_{name.upper()}"
    spelled = f"--{word}/--no-{word}" if isinstance(default, bool) else f"--{word}"
    kinds: dict[type, Any] = {bool: click.BOOL, int: click.INT, str: click.STRING}
    kind = kinds.get(type(default), _seconds)
    return click.Option(
        [spelled],
        type=kind,
        metavar=f"SECONDS|{NONE}" if kind is _seconds else None,
        default=None,
        envvar=variable,
        callback=_keep_option,
        expose_value=False,
        help=f"{_described(name)} Or set {variable}.",
    )


def _seconds(text: str) -> object:
    try:
        return _NEVER if text == NONE else float(text)
    except ValueError:
        raise click.BadParameter(f"{text}: give seconds, or {NONE}") from None


def _described(name: str) -> str:
    """Return the first sentence of what the docstring of `LockProvider` says of an option."""
    found = re.search(rf"^ +{name}: (.+?[^.]\.)(?=\s)", LockProvider.__doc__ or "", re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


json_key_option = click.option(
    "--json-key", metavar="JSON", help="""In place of KEY: an int or a tuple, such as 42 or '["orders", 42]'."""
)


def key_options(command: Any) -> Any:
    """Let a command take its key as text, or in JSON."""
    return click.argument("key", required=False)(json_key_option(command))


def parse_key(key: str | None, json_key: str | None) -> Key:
    """Return the key that the command line gives."""
    if (key is None) == (json_key is None):
        raise click.UsageError("give a KEY, or --json-key in its place")
    if key is not None:
        return key
    try:
        return load_key(f'["", {json_key}]')[1]
    except (ValueError, TypeError):
        raise click.UsageError(f"""--json-key {json_key}: give JSON such as 42 or '["orders", 42]'""") from None


def typed(key: Key) -> str:
    """Return how a key is given on the command line."""
    return shlex.quote(key) if isinstance(key, str) else f"--json-key {shlex.quote(json.dumps(key, default=repr))}"


def parse_target(text: str) -> URL:
    """Read a database URL that several processes of this machine can share.

    Raises:
        Refusal: it is no URL, or that of an in-memory database.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # SQLAlchemy's message repeats the text, and with it a password.
        raise Refusal("this is not a database URL; expected e.g. postgresql+psycopg://user@host/db") from None
    if url.get_backend_name() == "sqlite":
        database = url.database or ":memory:"
        if ":memory:" in database or url.query.get("mode") == "memory":
            raise Refusal(f"{shown_url(url)}: other processes cannot see an in-memory database")
    return url


def refuse_async(url: URL) -> None:
    """Refuse the URL of an async driver, or of one that SQLAlchemy does not know."""
    try:
        is_async = url.get_dialect().is_async
    except (SQLAlchemyError, ImportError) as error:
        raise refusal_of(url, error) from None
    if is_async:
        raise Refusal(f"{shown_url(url)}: an async driver; give the URL of a sync one")


def refusal_of(url: URL, error: Exception) -> Refusal:
    """Put an error of the database or its driver into one line, without a password."""
    reason: BaseException = (error.orig or error) if isinstance(error, DBAPIError) else error
    text = without_password(url, " ".join(str(reason).split()) or type(reason).__name__)
    if isinstance(error, NoSuchModuleError):
        text = f"SQLAlchemy knows no dialect {url.drivername!r}"
    return Refusal(text if isinstance(error, LockError) else f"{shown_url(url)}: {text}")


def without_password(url: URL, text: str) -> str:
    """Hide the URL's passwords in a text that others wrote."""
    for secret in secrets_of(url):
        # Whole words only: stars inside a word would tell a short password.
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text
