"""Locks: what a user acquires and releases."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from contextlib import suppress
from contextvars import copy_context
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sqlalchemy.util import greenlet_spawn

from .coordination.contexts import BLOCKING, GREENLET, Threaded
from .coordination.main_thread import MainThreadCall, MainThreadsHelper, in_main_thread, to_its_end
from .coordination.state import State, Ticket
from .errors import LockLostError, LockStateError, LockTimeoutError, shown
from .sessions.timeouts import parse_timeout
from .sessions.workers import INSIST, reaper, release_garbage

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from .coordination.contexts import Context
    from .coordination.coordinator import Coordinator
    from .coordination.state import Request
    from .keys import Key

__all__ = ["UNSET", "AsyncLock", "BaseLock", "Lock", "LockObject", "Unset"]
log = logging.getLogger("dlock")

# Where an acquisition is under way, and where it came to something.
PENDING = (State.QUEUED, State.PASSED, State.ASKING)
GRANTED = (State.HELD, State.LOST)


class _Unset(Enum):
    UNSET = "not given"

    def __repr__(self) -> str:
        return "<not given>"


UNSET: Final = _Unset.UNSET
Unset: TypeAlias = Literal[_Unset.UNSET]
"""The default of a parameter whose None means something else."""


class LockObject:
    """What every lock object has: a request, a limit for `with`, and one user at a time."""

    def __init__(self, request: Request, timeout: float | None) -> None:
        self._request = request
        self._timeout = timeout
        self._in_use = threading.Lock()

    @property
    def actual_key(self) -> int | str:
        """The database's own name for the lock, which its views show."""
        return self._request.name

    def _timed_out(self, started: float) -> LockTimeoutError:
        return LockTimeoutError(
            f"key {shown(self._request.key)}: not free within {self._timeout} s; try again later, or wait longer",
            key=self._request.key,
            timeout=self._timeout,
            waited=time.monotonic() - started,
        )

    def _note_failure(self, failure: Exception, error: BaseException | None) -> None:
        """Raise why a release failed, but never hide the body's own exception."""
        if error is None:
            raise failure
        error.add_note(f"dlock: and then the release of key {shown(self._request.key)} failed: {failure}")
        log.error("release of key %s failed", shown(self._request.key), exc_info=failure)

    def _misuse(self, what: str) -> LockStateError:
        return LockStateError(f"key {shown(self._request.key)}: {what}", key=self._request.key)


class BaseLock(LockObject):
    """What sync and async locks have in common: everything but the waiting."""

    _ticket: Ticket | None = None

    def __init__(
        self,
        coordinator: Coordinator,
        request: Request,
        timeout: float | None,
        on_lost: Callable[[Any], object] | None = None,
    ) -> None:
        super().__init__(request, timeout)
        self._coordinator = coordinator
        self._on_lost = on_lost

    def __repr__(self) -> str:
        state = "held" if self.held else "lost" if self.lost else "not held"
        return f"<{type(self).__name__} {shown(self.key)}, {state}>"

    @property
    def key(self) -> Key:
        """The key as it was given."""
        return self._request.key

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, as far as this process knows."""
        return self._state is State.HELD

    @property
    def lost(self) -> bool:
        """Whether the lock went away while this object held it.

        The server's end of a session shows within milliseconds, a silent network by the provider's
        `heartbeat` or `lease`.
        """
        return self._state is State.LOST

    @property
    def _state(self) -> State:
        ticket = self._ticket
        if ticket is None or ticket.pid != os.getpid():
            return State.GONE
        if ticket.state is State.HELD and ticket.session is not None and ticket.session.expired():
            return State.LOST
        return ticket.state

    @property
    def fencing_token(self) -> int:
        """The number of this grant, greater than that of every earlier holder of the key; see `fence`.

        Raises:
            LockStateError: The lock was not made with `fencing=True`, or it is not held.
        """
        if not self._request.fencing:
            raise self._misuse("no fencing token without fencing=True when the lock is made")
        if self._ticket is None or self._ticket.token is None:
            raise self._misuse("no fencing token while the lock is not held")
        return self._ticket.token

    def disown(self) -> None:
        """Let another thread or task release the lock.

        Without, this one waiting for the key again would be refused as a deadlock.

        Raises:
            LockStateError: The lock is not held.
        """
        if self._ticket is None or not self.held:
            raise self._misuse("disown() on a lock that is not held")
        self._ticket.disown()

    def _acquire(self, context: Context, timeout: float | None) -> bool:
        if not self._in_use.acquire(blocking=False):
            raise self._misuse("another thread or task is using this lock object; make one for each use")
        granted = False
        try:
            if self._ticket is not None and self._state is State.LOST:
                raise self._misuse("acquire() on a lock that was lost; release() or close() it first")
            if self._ticket is not None and self._state is not State.GONE:
                raise self._misuse("acquire() on a lock that this object holds; make one object for each use")
            ticket = self._ticket = Ticket(self._request, context, timeout)
            ticket.lock = weakref.ref(self)
            acquire, listeners = self._coordinator.acquire, self._coordinator.listeners
            try:
                granted = listeners.asked(ticket, acquire) if listeners.all else acquire(ticket)
            finally:
                if not granted:
                    self._ticket = None
        finally:
            self._in_use.release()
        if granted and log.isEnabledFor(logging.DEBUG):
            log.debug("acquired %s", shown(self.key))
        return granted

    def _call_on_lost(self) -> None:
        """Call the user's callbacks; runs in a helper thread, where even SystemExit would end nothing."""
        for callback in (self._on_lost, self._coordinator.options.on_lost):
            try:
                if callback is not None:
                    callback(self)
            except BaseException:
                log.exception("on_lost for key %s failed", shown(self.key))

    def _stop_body(self) -> None:
        """Stop the work under the lost lock, if that was asked for; called in any thread."""

    def __del__(self) -> None:
        ticket = self._ticket
        if ticket is None or ticket.state not in GRANTED or ticket.pid != os.getpid() or sys.is_finalizing():
            return
        if ticket.state is State.LOST:
            reaper.put(partial(ticket.policy.settle, ticket, reusable=True))  # its place among the sessions
            return
        ticket.disown()  # its owner may ask for the key at once
        release_garbage(self.key, partial(self._coordinator.release_abandoned, ticket), ticket.pid, ticket.loop)
        warnings.warn(
            f"dlock: key {shown(self.key)}: the lock object became garbage while it held the lock, which is released "
            "now; use `with`, or keep the object and release it",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )

    def _seconds(self, *, block: bool, timeout: float | Unset | None) -> float | None:
        if block:
            return self._timeout if timeout is UNSET else parse_timeout(timeout)
        if timeout is not UNSET:
            raise ValueError(f"timeout={timeout!r} with block=False: one try does not wait; give one of them")
        return 0

    def _release(self, context: Context) -> None:
        ticket = self._ticket
        if ticket is None or ticket.state not in GRANTED:
            if self._in_use.locked():
                raise self._misuse("release() while acquire() is under way elsewhere; close() calls that off")
            raise self._misuse("release() on a lock that is not held")
        self._give_back(ticket, context)

    def _give_back(self, ticket: Ticket, context: Context) -> None:
        self._ticket = None
        ticket.withdrawn = True  # for its acquire(), which may not have heard of the grant yet
        self._coordinator.release(ticket, context)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("released %s", shown(self.key))

    def _call_off(self, ticket: Ticket) -> bool:
        """Call off an acquisition that another thread or task has under way; False when it is granted by now."""
        raise NotImplementedError

    def _verify(self, context: Context) -> bool:
        ticket = self._ticket
        if ticket is None or self._state not in GRANTED:
            raise self._misuse("verify() on a lock that is not held")
        if self._coordinator.verify(ticket, context):
            return True
        if self._state is not State.LOST:
            raise self._misuse("verify() on a lock that was released meanwhile")
        return False

    def _exit(self, context: Context, error: BaseException | None) -> None:
        """Release what is still held, without ever hiding the body's own exception."""
        ticket = self._ticket
        if ticket is None or (ticket.state in PENDING and self._call_off(ticket)) or ticket.state not in GRANTED:
            return
        try:
            self._give_back(ticket, context)
        except Exception as failure:  # noqa: BLE001 - it is raised or noted
            self._note_failure(failure, error)


class Lock(BaseLock):
    """A lock for threads; make one for each use with `LockProvider.lock`.

    `with lock:` acquires it, or raises LockTimeoutError when its time is over, and releases it at the end. It is not
    re-entrant. An object that becomes garbage while it holds the lock releases it, with a ResourceWarning.
    """

    def acquire(self, block: bool = True, timeout: float | Unset | None = UNSET) -> bool:
        """Acquire the lock.

        Args:
            block: False tries once.
            timeout: Seconds; None waits without limit, 0 tries once. Default: the lock's own.

        Returns:
            Whether the lock is held now.

        Raises:
            LockStateError: This object holds it already, is in use by another thread, or its provider is closed.
            DeadlockError: The wait could never end.
            LockConnectionError: The database cannot be asked.
            UnsafeEnvironmentError: A lock there would protect nothing.
            ValueError: The timeout is negative or not a number, or comes with block=False.
        """
        seconds = self._seconds(block=block, timeout=timeout)
        if not in_main_thread():
            return self._acquire(BLOCKING, seconds)
        call = self._main_thread_call(seconds)
        try:
            granted: bool = call.result()
        except BaseException as error:
            call.end(error)
            raise
        return granted

    def release(self) -> None:
        """Release the lock.

        Raises:
            LockStateError: It is not held.
            LockLostError: The server did not hold it for us any more; another process may have held it.
        """
        self._leave(self._release)

    def verify(self) -> bool:
        """Ask the server now whether it holds this very lock for this object still.

        `held` is what this process knows; this is for the moment before a step that cannot be taken back. It says
        nothing about the moment after: only `fence` protects the step itself.

        Returns:
            False when the lock was lost: `lost` is set, and `on_lost` is called, as for any other loss.

        Raises:
            LockStateError: It is not held.
            LockConnectionError: The database cannot be asked. The session is ended then, and with it the lock.
        """
        if not in_main_thread():
            return self._verify(BLOCKING)
        work = partial(self._verify, BLOCKING)
        call = MainThreadCall(self._coordinator.workers, work, lambda call: call.call_off() or call.over())
        return bool(call.outcome())

    def close(self) -> None:
        """Release the lock if it is held; an `acquire` that is under way in another thread ends in LockStateError."""
        self._leave(partial(self._exit, error=None))

    def __enter__(self) -> Self:
        """Acquire, or raise LockTimeoutError."""
        started = time.monotonic()
        if not in_main_thread():
            granted = self._acquire(BLOCKING, self._timeout)
        else:
            call = self._main_thread_call(self._timeout)
            try:
                granted = call.result()
            except BaseException as error:
                call.end(error)
                raise
        if not granted:
            raise self._timed_out(started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if in_main_thread():
            self._leave(partial(self._exit, error=error))
        else:
            self._exit(BLOCKING, error)

    def _main_thread_call(self, timeout: float | None) -> MainThreadCall:
        context = MainThreadsHelper()
        work = partial(self._acquire, context, timeout)
        if self._coordinator.listeners.all:  # a tracer wants to know what it belongs to
            work = partial(copy_context().run, work)
        return MainThreadCall(self._coordinator.workers, work, self._withdraw, partial(self._disown, context))

    def _withdraw(self, call: MainThreadCall) -> None:
        """Undo an acquisition, under way or finished."""
        if call.call_off():
            return
        while not call.over(INSIST):
            if (ticket := self._ticket) is not None:
                self._coordinator.withdraw(ticket)
        if call.succeeded:
            self._exit(BLOCKING, None)

    def _disown(self, context: MainThreadsHelper) -> None:
        context.called_away = True
        if (ticket := self._ticket) is not None:
            ticket.disown()

    def _call_off(self, ticket: Ticket) -> bool:
        if not self._coordinator.withdraw(ticket):
            return False
        try:
            self._coordinator.workers.put(partial(self._insist, ticket))
        except RuntimeError:  # there is no thread for it
            self._insist(ticket)
        return True

    def _insist(self, ticket: Ticket) -> None:
        """Interrupt until it is heard: the first time may have been before the statement."""
        while self._ticket is ticket:
            time.sleep(INSIST)
            self._coordinator.withdraw(ticket)

    def _leave(self, release: Callable[[Context], None]) -> None:
        """Release; when a signal calls the main thread away, a helper goes on with it."""
        if in_main_thread():
            ticket = self._ticket
            to_its_end(self._coordinator.workers, partial(release, BLOCKING), ticket.disown if ticket else int)
        else:
            release(BLOCKING)


class AsyncLock(BaseLock):
    """A lock for tasks; make one for each use with `AsyncLockProvider.lock` or `LockProvider.alock`.

    `async with lock:` acquires it, or raises LockTimeoutError when its time is over, and releases it at the end. It is
    not re-entrant.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        request: Request,
        timeout: float | None,
        on_lost: Callable[[AsyncLock], object] | None = None,
        *,
        cancel_on_lost: bool = False,
    ) -> None:
        super().__init__(coordinator, request, timeout, on_lost)
        self._cancel_on_lost = cancel_on_lost
        self._body: _Body | None = None
        self._asking: _Body | None = None

    @property
    def _context(self) -> Context:
        """How its task waits: by itself over an async driver, else over a thread of the provider."""
        coordinator = self._coordinator
        return GREENLET if coordinator.engine.dialect.is_async else Threaded(coordinator.workers)

    async def acquire(self, block: bool = True, timeout: float | Unset | None = UNSET) -> bool:
        """Acquire the lock; see `Lock.acquire`. A cancelled task leaves nothing held and nothing queued."""
        return await greenlet_spawn(self._acquire, self._context, self._seconds(block=block, timeout=timeout))

    async def release(self) -> None:
        """Release the lock; see `Lock.release`."""
        await greenlet_spawn(self._release, self._context)

    async def verify(self) -> bool:
        """Ask the server now whether it holds this very lock for this object still; see `Lock.verify`."""
        return await greenlet_spawn(self._verify, self._context)

    async def close(self) -> None:
        """Release the lock if it is held; an `acquire` that is under way in another task ends in LockStateError."""
        await greenlet_spawn(self._exit, self._context, None)

    async def __aenter__(self) -> Self:
        """Acquire, or raise LockTimeoutError."""
        started = time.monotonic()
        if not await greenlet_spawn(self._acquire, self._context, self._timeout):
            raise self._timed_out(started)
        if self._cancel_on_lost:
            self._body = _Body()
            if self.lost:  # between the grant and this line
                self._body.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        body, self._body = self._body, None
        ours = body is not None and body.leave(error)
        try:
            await greenlet_spawn(self._exit, self._context, None if ours else error)
        except LockLostError as lost:
            if ours:
                raise lost from error
            raise

    def _stop_body(self) -> None:
        """Cancel the body of `async with`, with `cancel_on_lost`; called in any thread."""
        if (body := self._body) is not None:
            body.cancel_in_loop()

    def _acquire(self, context: Context, timeout: float | None) -> bool:
        before, asking = self._asking, _Body()
        self._asking = asking
        try:
            granted = super()._acquire(context, timeout)
        except BaseException as error:
            if asking.leave(error):
                raise self._misuse("close() was called while acquire() was under way") from error
            raise
        else:
            asking.leave(None)
            return granted
        finally:
            self._asking = before

    def _call_off(self, ticket: Ticket) -> bool:  # noqa: ARG002 - its task leaves no ticket behind
        if (asking := self._asking) is not None:
            asking.cancel_in_loop()
        return asking is not None


class _Body:
    """What one task does until it leaves, to be cancelled as `asyncio.timeout` does it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancels_before = task.cancelling()
        self._cancelled = self._left = False

    def cancel_in_loop(self) -> None:
        """Cancel it from any thread."""
        with suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self.cancel)

    def cancel(self) -> None:
        """Cancel it, in its loop, once."""
        if not (self._cancelled or self._left):
            self._cancelled = True
            self._task.cancel()

    def leave(self, error: BaseException | None) -> bool:
        """Tell whether its exception is our cancel, and only ours."""
        self._left = True
        if not self._cancelled:
            return False
        return self._task.uncancel() <= self._cancels_before and isinstance(error, asyncio.CancelledError)
