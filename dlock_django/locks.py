"""`lock` and its kin: locks on sessions of their own, whatever becomes of Django's connections."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections
from django.utils.asyncio import async_unsafe

from dlock_core import AsyncLock, Lock, LockStateError, LockTimeoutError

from .blocks import AsyncBlock, AsyncLockBlock, Block, LockBlock
from .conf import UNSET, Unset, alias_of, timeout_of
from .providers import provider
from .signals import lock_acquired, lock_conflict, lock_released

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from .keys import Key, KeySource

__all__ = ["Wish", "alock", "ataking", "atry_lock", "atrying", "is_locked", "lock", "taking", "try_lock", "trying"]


class Wish(NamedTuple):
    """How a lock is wanted; settings are read when it is taken."""

    using: str | None = None
    timeout: float | Unset | None = UNSET
    shared: bool = False
    allow_atomic: bool = False
    cancel_on_lost: bool = False
    on_lost: Callable[[Lock], object] | None = None


def lock(
    key: KeySource,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    allow_atomic: bool = False,
) -> LockBlock[Lock]:
    """Hold a lock during a `with` block, or during each call of a decorated function.

    Args:
        key: str, bytes, int, or a tuple of them. Over a function, `{name}` in text stands for its argument
            of that name; or a callable that gets the arguments and returns the key.
        using: The alias of the database that lends the lock; default: DLOCK_DATABASE.
        timeout: Seconds to wait; 0 tries once, None is for ever. Default: DLOCK_TIMEOUT, which is 0.
        shared: Share it with others who ask for it shared.
        allow_atomic: Take it inside `atomic` too, although it is free again before the transaction commits.

    Raises:
        LockTimeoutError: It was not free in time.
        LockStateError: Inside `atomic`; the message says what to use there.
        LockLostError: At the end, when the server took the lock away meanwhile.
    """
    return LockBlock(partial(taking, Wish(using, timeout, shared, allow_atomic)), key)


def try_lock(
    key: Key,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    allow_atomic: bool = False,
) -> Block[Lock | None]:
    """Hold a lock during a `with` block; `as` gives None, and no error, when it was not free in time.

    Arguments as for `lock`. The block runs in either case: look whether the lock is there.
    """
    return Block(partial(trying, Wish(using, timeout, shared, allow_atomic)), key)


def alock(
    key: KeySource,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    cancel_on_lost: bool = False,
) -> AsyncLockBlock[AsyncLock]:
    """Hold a lock during an `async with` block, or during each call of a decorated async function; see `lock`.

    What waits for the server waits in threads of our own, never in those of `sync_to_async`. With
    `cancel_on_lost` the body is cancelled when the server takes the lock away.
    """
    return AsyncLockBlock(partial(ataking, Wish(using, timeout, shared, cancel_on_lost=cancel_on_lost)), key)


def atry_lock(
    key: Key,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    cancel_on_lost: bool = False,
) -> AsyncBlock[AsyncLock | None]:
    """Hold a lock during an `async with` block; `as` gives None when it was not free in time; see `try_lock`."""
    return AsyncBlock(partial(atrying, Wish(using, timeout, shared, cancel_on_lost=cancel_on_lost)), key)


def is_locked(key: Key, *, using: str | None = None) -> bool:
    """Tell whether anybody holds a key, as the server sees it; that may have changed when you read it.

    Raises:
        NotPermittedError: The database does not tell this user.
        LockConnectionError: The database cannot be asked.
    """
    with provider(alias_of(using)) as locks:
        return bool(locks.inspect(key))


@async_unsafe("this lock would block the event loop; use alock(), or lock_view over the async handlers of a class")
@contextmanager
def taking(wish: Wish, key: Any) -> Iterator[Lock]:
    """Hold a lock; the one place where sync locks are taken."""
    if not wish.allow_atomic:
        refuse_atomic(key)
    story = _Story(Lock, key, alias_of(wish.using))
    with provider(story.using) as locks:
        try:
            seconds = timeout_of(wish.timeout)
            with locks.lock(key, timeout=seconds, shared=wish.shared, on_lost=wish.on_lost) as held:
                lock_acquired.send_robust(**story.acquired())
                yield held
        except LockTimeoutError:
            if not story.taken:
                lock_conflict.send_robust(**story.conflict())
            raise
        finally:
            if story.taken:
                lock_released.send_robust(**story.released())


@asynccontextmanager
async def ataking(wish: Wish, key: Any) -> AsyncIterator[AsyncLock]:
    """Hold a lock; the one place where async locks are taken."""
    story = _Story(AsyncLock, key, alias_of(wish.using))
    with provider(story.using) as locks:
        try:
            seconds, cancel = timeout_of(wish.timeout), wish.cancel_on_lost
            async with locks.alock(key, timeout=seconds, shared=wish.shared, cancel_on_lost=cancel) as held:
                await lock_acquired.asend_robust(**story.acquired())
                yield held
        except LockTimeoutError:
            if not story.taken:
                await lock_conflict.asend_robust(**story.conflict())
            raise
        finally:
            if story.taken:
                await lock_released.asend_robust(**story.released())


@contextmanager
def trying(wish: Wish, key: Any) -> Iterator[Lock | None]:
    """Hold a lock, or give None."""
    with ExitStack() as stack:
        try:
            held = stack.enter_context(taking(wish, key))
        except LockTimeoutError:
            held = None
        yield held


@asynccontextmanager
async def atrying(wish: Wish, key: Any) -> AsyncIterator[AsyncLock | None]:
    """Hold a lock, or give None."""
    async with AsyncExitStack() as stack:
        try:
            held = await stack.enter_async_context(ataking(wish, key))
        except LockTimeoutError:
            held = None
        yield held


class _Story:
    """What one acquisition tells the receivers of signals."""

    def __init__(self, sender: type, key: object, using: str) -> None:
        self._sender = sender
        self._key = key
        self.using = using
        self._asked = time.monotonic()
        self.taken: float | None = None

    def _about(self, **times: float) -> dict[str, Any]:
        return {"sender": self._sender, "key": self._key, "using": self.using, **times}

    def acquired(self) -> dict[str, Any]:
        self.taken = time.monotonic()
        return self._about(waited=self.taken - self._asked)

    def conflict(self) -> dict[str, Any]:
        return self._about(waited=time.monotonic() - self._asked)

    def released(self) -> dict[str, Any]:
        return self._about(held_for=time.monotonic() - (self.taken or self._asked))


def refuse_atomic(key: object) -> None:
    """Refuse a lock inside a transaction that outlasts it; a TestCase's own transaction does not count.

    Raises:
        LockStateError: It would be free before the transaction commits, and the next holder read old rows.
    """
    for connection in connections.all(initialized_only=True):
        blocks: list[Any] = connection.atomic_blocks
        if any(not block._from_testcase for block in blocks):  # noqa: SLF001 - as Django's `durable` looks
            raise LockStateError(
                f"key {key!r}: inside atomic({connection.alias!r}) this lock would be free before the commit, and the "
                "next holder would read old rows. Take it outside; or use locked_atomic(), lock_view() under "
                "ATOMIC_REQUESTS, xact_lock() on PostgreSQL; or allow_atomic=True if it protects no rows",
                key=key,
            )
