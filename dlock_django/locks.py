"""`lock` and its kin: locks on sessions of their own, whatever becomes of Django's connections."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections
from django.utils.asyncio import async_unsafe

from dlock_core import AsyncLock, Lock, LockLostError, LockStateError, LockTimeoutError
from dlock_core.adapters import UNSET, Acquisition, Unset, shown

from .blocks import AsyncBlock, AsyncLockBlock, Block, LockBlock
from .conf import alias_of, timeout_of
from .providers import provider
from .signals import lock_acquired, lock_conflict, lock_lost, lock_released

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from dlock_core.adapters import Key, KeySource

    from .blocks import OnConflict

__all__ = ["Wish", "alock", "ataking", "atry_lock", "atrying", "is_locked", "lock", "taking", "try_lock", "trying"]


class Wish(NamedTuple):
    """How a lock is wanted; settings are read when it is taken."""

    using: str | None = None
    timeout: float | Unset | None = UNSET
    shared: bool = False
    fencing: bool = False
    allow_atomic: bool = False
    cancel_on_lost: bool = False
    on_lost: Callable[[Lock], object] | None = None


def lock(
    key: KeySource,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    fencing: bool = False,
    allow_atomic: bool = False,
    on_conflict: OnConflict = "raise",
) -> LockBlock[Lock]:
    """Hold a lock during a `with` block, or during each call of a decorated function.

    Args:
        key: str, bytes, int, or a tuple of them. Over a function, `{name}` in text stands for its argument
            of that name; or a callable that gets the arguments and returns the key.
        using: The alias of the database that lends the lock; default: DLOCK_DATABASE.
        timeout: Seconds to wait; 0 tries once, None is no limit. Default: DLOCK_TIMEOUT, which is 0.
        shared: Share it with others that ask for it shared (readers); exclusive otherwise.
        fencing: Give each grant a number that grows, `fencing_token`; costs a round trip.
        allow_atomic: Take it inside `atomic` too, although it is free again before the transaction commits.
        on_conflict: Of a decorated function: "raise" LockTimeoutError when the lock is not free in time, or "skip":
            return None without running, and say so in the log. For a block there is `try_lock`.

    Raises:
        LockTimeoutError: It was not free in time.
        LockStateError: Inside `atomic`; the message says what to use there.
        LockLostError: At the end, when the server took the lock away meanwhile.
    """
    wish = Wish(using, timeout, shared, fencing, allow_atomic)
    return LockBlock(partial(trying if on_conflict == "skip" else taking, wish), key, on_conflict)


def try_lock(
    key: Key,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    fencing: bool = False,
    allow_atomic: bool = False,
) -> Block[Lock | None]:
    """Hold a lock during a `with` block; `as` gives None, and no error, when it was not free in time.

    Arguments as for `lock`. The block runs in either case: look whether the lock is there.
    """
    return Block(partial(trying, Wish(using, timeout, shared, fencing, allow_atomic)), key)


def alock(
    key: KeySource,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    fencing: bool = False,
    cancel_on_lost: bool = False,
    on_conflict: OnConflict = "raise",
) -> AsyncLockBlock[AsyncLock]:
    """Hold a lock during an `async with` block, or during each call of a decorated async function; see `lock`.

    What waits for the server waits in threads of our own, never in those of `sync_to_async`. With
    `cancel_on_lost` the body is cancelled when the server takes the lock away.
    """
    wish = Wish(using, timeout, shared, fencing, cancel_on_lost=cancel_on_lost)
    return AsyncLockBlock(partial(atrying if on_conflict == "skip" else ataking, wish), key, on_conflict)


def atry_lock(
    key: Key,
    *,
    using: str | None = None,
    timeout: float | Unset | None = UNSET,
    shared: bool = False,
    fencing: bool = False,
    cancel_on_lost: bool = False,
) -> AsyncBlock[AsyncLock | None]:
    """Hold a lock during an `async with` block; `as` gives None when it was not free in time; see `try_lock`."""
    wish = Wish(using, timeout, shared, fencing, cancel_on_lost=cancel_on_lost)
    return AsyncBlock(partial(atrying, wish), key)


def is_locked(key: Key, *, using: str | None = None) -> bool:
    """Tell whether a key is held, as the server sees it; that may have changed when you read it.

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
    alias, lost = alias_of(wish.using), False
    taken = Acquisition(key, using=alias)
    with provider(alias) as locks:
        held = locks.lock(key, **_lock_options(wish, taken))
        try:
            with held:
                lock_acquired.send_robust(Lock, **taken.acquired())
                try:
                    yield held
                finally:
                    lost = held.lost
        except LockTimeoutError:
            if not taken.granted:
                lock_conflict.send_robust(Lock, **taken.conflict())
            raise
        except LockLostError as error:
            lost = lost or error.key == key
            raise
        finally:
            if taken.granted and not lost:
                lock_released.send_robust(Lock, **taken.ended())


@asynccontextmanager
async def ataking(wish: Wish, key: Any) -> AsyncIterator[AsyncLock]:
    """Hold a lock; the one place where async locks are taken."""
    alias, lost = alias_of(wish.using), False
    taken = Acquisition(key, using=alias)
    with provider(alias) as locks:
        held = locks.alock(key, **_lock_options(wish, taken), cancel_on_lost=wish.cancel_on_lost)
        try:
            async with held:
                await lock_acquired.asend_robust(AsyncLock, **taken.acquired())
                try:
                    yield held
                finally:
                    lost = held.lost
        except LockTimeoutError:
            if not taken.granted:
                await lock_conflict.asend_robust(AsyncLock, **taken.conflict())
            raise
        except LockLostError as error:
            lost = lost or error.key == key
            raise
        finally:
            if taken.granted and not lost:
                await lock_released.asend_robust(AsyncLock, **taken.ended())


def _lock_options(wish: Wish, taken: Acquisition) -> dict[str, Any]:
    return {
        "timeout": timeout_of(wish.timeout),
        "shared": wish.shared,
        "fencing": wish.fencing,
        "on_lost": partial(_lost, taken, wish.on_lost),
    }


def _lost(taken: Acquisition, on_lost: Callable[[Any], object] | None, lock: Lock | AsyncLock) -> None:
    lock_lost.send_robust(type(lock), lock=lock, **taken.ended())
    if on_lost is not None:
        on_lost(lock)


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


def refuse_atomic(key: object) -> None:
    """Refuse a lock inside a transaction that outlasts it; a TestCase's own transaction does not count.

    Raises:
        LockStateError: It would be free before the transaction commits, and the next holder read old rows.
    """
    for connection in connections.all(initialized_only=True):
        blocks: list[Any] = connection.atomic_blocks
        if any(not block._from_testcase for block in blocks):  # noqa: SLF001 - as Django's `durable` looks
            raise LockStateError(
                f"key {shown(key)}: inside atomic({connection.alias!r}) this lock would be free before the commit, "
                "and the next holder would read old rows. Take it outside; or use locked_atomic(), or xact_lock() on "
                "PostgreSQL; under ATOMIC_REQUESTS write lock_view() outermost, above all other decorators of the view "
                "(of a class: method_decorator on dispatch); or allow_atomic=True if it protects no rows",
                key=key,
            )
