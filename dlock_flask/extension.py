"""The extension: `DLock`, one object for any number of applications."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from dlock_core.adapters import EX_TEMPFAIL, UNSET, Unset, shown

from . import cli
from .handles import AsyncHandle, BaseHandle, Handle, handles_here
from .settings import OnConflict, Options, read_settings
from .state import EXTENSION, AppState, current_state
from .streams import stream
from .views import lock_view, refuse_locks_above_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import URL, Engine
    from werkzeug.wrappers import Response

    from .keys import KeySource


__all__ = ["DLock"]

F = TypeVar("F", bound="Callable[..., Any]")
R = TypeVar("R", bound="Response")
log = logging.getLogger("dlock.flask")


class DLock:
    """Locks for Flask: `dlock = DLock(app)`, or `dlock = DLock()` and later `dlock.init_app(app)`.

    Args:
        app: The application, if there is one yet.
        db: Flask-SQLAlchemy's object; default: the application's own.
        engine: An SQLAlchemy engine or a URL, in place of Flask-SQLAlchemy's default engine and of `DLOCK_URL`.
        prefix: Goes before every key; the configuration's `DLOCK_PREFIX` goes first.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        db: SQLAlchemy | None = None,
        engine: Engine | URL | str | None = None,
        prefix: str | None = None,
    ) -> None:
        self._db = db
        self._engine = engine
        self._prefix = prefix
        self._locked: list[tuple[Any, Any]] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the configuration and add the command `flask dlock`; no database is touched yet.

        Raises:
            RuntimeError: The application has a DLock already.
            ValueError: An option of the configuration cannot be what it is.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(f"the application {app.name!r} has a DLock already: make one and use it everywhere")
        settings = read_settings(app, prefix=self._prefix)
        app.extensions[EXTENSION] = AppState(app, settings, self._db, self._engine)
        app.before_request(self._check_routes)
        app.teardown_appcontext(_end_context)
        app.shell_context_processor(lambda: {"dlock": self})
        app.cli.add_command(cli.dlock)

    def lock(
        self,
        key: object,
        *,
        timeout: float | Unset | None = UNSET,
        shared: bool = False,
        fencing: bool = False,
        bind: str | None = None,
        reentrant: bool = False,
        on_conflict: OnConflict = "abort",
        status: int | None = None,
        retry_after: int | Unset | None = UNSET,
    ) -> Handle:
        """Return a lock for one `with`, which ends the request in 409 if it is held elsewhere.

        Args:
            key: str, bytes, int, or a tuple of them.
            timeout: Seconds to wait; 0 is one try, None no limit. Default: `DLOCK_TIMEOUT`, which is 0.
            shared: Share it with others that ask for it shared (readers); exclusive otherwise.
            fencing: Give each grant a number that grows, `fencing_token`; costs a round trip.
            bind: Of Flask-SQLAlchemy; default: `DLOCK_BIND_KEY`, else the default database.
            reentrant: Let this request in again where it is already.
            on_conflict: "abort" raises LockConflict, "raise" dlock_core's LockTimeoutError.
            status: Of the answer: 409, 423, 429 or 503. Default: `DLOCK_CONFLICT_STATUS`.
            retry_after: Whole seconds of the header, None for no header. Default: `DLOCK_RETRY_AFTER`, which is 1.

        Raises:
            RuntimeError: There is no application context.
            LookupError: There is no such bind.
            ValueError: An option cannot be what it is.
        """
        options = Options(timeout, shared, fencing, bind, reentrant, on_conflict, status, retry_after)
        return Handle(current_state(), key, options)

    def try_lock(
        self,
        key: object,
        *,
        timeout: float | Unset | None = UNSET,
        shared: bool = False,
        fencing: bool = False,
        bind: str | None = None,
        reentrant: bool = False,
    ) -> Handle:
        """Return a lock for one `with`, whose handle is false if it is held elsewhere; see `lock`.

        The block runs in either case: `with dlock.try_lock(key) as handle: if handle: …`.
        """
        options = Options(timeout, shared, fencing, bind, reentrant, "skip")
        return Handle(current_state(), key, options)

    def alock(
        self,
        key: object,
        *,
        timeout: float | Unset | None = UNSET,
        shared: bool = False,
        fencing: bool = False,
        bind: str | None = None,
        reentrant: bool = False,
        on_conflict: OnConflict = "abort",
        status: int | None = None,
        retry_after: int | Unset | None = UNSET,
    ) -> AsyncHandle:
        """Return a lock for one `async with` in an async view, over the same sync engine; see `lock`."""
        options = Options(timeout, shared, fencing, bind, reentrant, on_conflict, status, retry_after)
        return AsyncHandle(current_state(), key, options)

    def hold(
        self,
        key: object,
        *,
        timeout: float | Unset | None = UNSET,
        shared: bool = False,
        fencing: bool = False,
        bind: str | None = None,
        reentrant: bool = False,
        on_conflict: OnConflict = "abort",
        status: int | None = None,
        retry_after: int | Unset | None = UNSET,
    ) -> Handle:
        """Acquire now, and release at the end of the application context; see `lock`.

        That is the end of the request, before a streamed body: see `stream`. A loss is logged and in
        `handle.lost`; nothing can be raised when the answer is gone.
        """
        options = Options(timeout, shared, fencing, bind, reentrant, on_conflict, status, retry_after)
        handle = Handle(current_state(), key, options).__enter__()
        handle.until_context_ends = True
        return handle

    def stream(self, response: R, handle: BaseHandle[Any]) -> R:
        """Keep the lock of a handle until the response's body is sent, or the client is gone.

        Raises:
            LockStateError: The handle does not have its lock.
        """
        return stream(response, handle)

    def locked(
        self,
        key: KeySource,
        *,
        timeout: float | Unset | None = UNSET,
        shared: bool = False,
        bind: str | None = None,
        reentrant: bool = False,
        on_conflict: OnConflict = "abort",
        status: int | None = None,
        retry_after: int | Unset | None = UNSET,
        methods: Collection[str] | None = None,
    ) -> Callable[[F], F]:
        """Decorate a view, below its route, to run each request under a lock until its answer is sent.

        Args:
            key: Text with `{name}` for the view's argument of that name; a list of names, which means
                the endpoint and their values; or a callable that gets the view's arguments.
            timeout: As for `lock`, like those that follow.
            shared: Share it with other readers.
            bind: Of Flask-SQLAlchemy.
            reentrant: Let this request in again.
            on_conflict: "abort" or "raise".
            status: Of the answer to a conflict.
            retry_after: Whole seconds.
            methods: Lock only for these; default: for all but OPTIONS.

        Raises:
            LockKeyError: The view has no such argument: at once, or at the first request where only that tells.
            TypeError: It stands above the route: at the first request, of any view.
        """
        options = Options(
            timeout,
            shared,
            bind=bind,
            reentrant=reentrant,
            on_conflict=on_conflict,
            status=status,
            retry_after=retry_after,
        )

        def decorate(view: F) -> F:
            locked = lock_view(view, key, options, methods)
            self._locked.append((view, locked))
            return locked

        return decorate

    def _check_routes(self) -> None:
        """Look at all views before the first request, when all are there."""
        state = current_state()
        if not state.routes_are_sound:
            refuse_locks_above_routes(state.app, self._locked)
            state.routes_are_sound = True

    def cli_locked(
        self,
        key: KeySource,
        *,
        timeout: float | Unset | None = UNSET,
        shared: bool = False,
        bind: str | None = None,
        exit_code: int = EX_TEMPFAIL,
    ) -> Callable[[F], F]:
        """Decorate a click command, below `@app.cli.command()`, to run it under a lock.

        If it is held elsewhere, the command says so in one line and ends with `exit_code`.

        Args:
            key: As for `locked`, over the command's parameters.
            timeout: As for `lock`.
            shared: As for `lock`.
            bind: As for `lock`.
            exit_code: 0 where a run may be skipped silently; default: 75, "try again later".
        """
        return cli.cli_locked(key, Options(timeout, shared, bind=bind, on_conflict="raise"), exit_code)

    def is_locked(self, key: object, *, bind: str | None = None) -> bool:
        """Tell whether the lock of a key is held now; it may be free before you look.

        Raises:
            NotPermittedError: The database does not tell this user.
            LockConnectionError: The database cannot be asked.
        """
        return bool(current_state().provider(bind).inspect(key))

    def held(self) -> list[BaseHandle[Any]]:
        """Return the handles that have a lock in this application context."""
        return [handle for handle in handles_here() if handle.held]

    def close(self) -> None:
        """End the lock sessions of the current application in this process, as a test may want."""
        current_state().close()


def _end_context(_error: BaseException | None) -> None:
    """Release what was to be held until here; an error would keep others from their clean-up."""
    for handle in reversed(handles_here()):
        if handle.until_context_ends:
            try:
                handle.finish()
            except Exception:
                log.exception("key %s: could not be released at the end of the context", shown(handle.key))
