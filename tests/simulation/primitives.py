"""Threads, locks, queues and futures by the standard library's interfaces, over the scheduler."""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterable
from queue import Empty
from typing import Any, TypeVar

from . import scheduler as running
from .scheduler import NOBODY, scheduler

__all__ = [
    "Condition",
    "Empty",
    "Event",
    "Future",
    "Lock",
    "OrderedSet",
    "RLock",
    "SimpleQueue",
    "Thread",
    "line",
    "start_new_thread",
    "step",
    "wait",
]

T = TypeVar("T")


def step() -> None:
    """Come to a point at which another thread may go on; at the import of a module there is none."""
    if (here := scheduler()) is not None:
        here.step()


def line() -> None:
    """Come to a line of the core."""
    if (here := scheduler()) is not None:
        here.line()


class _Waitable:
    """What threads wait for."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[running.Thread] = []

    def _wait(self, what: str, done: Callable[[], bool], timeout: float | None) -> bool:
        here = scheduler()
        end = None if timeout is None else here.now + timeout
        while not done():
            if end is not None and here.now >= end:
                return False
            self._waiters.append(here.current)
            me = here.current
            try:
                here.block(what, None if end is None else end - here.now)
            finally:
                self._waiters.remove(me)
        return True

    def _wake(self) -> None:
        for waiter in self._waiters:
            scheduler().wake(waiter)


class Lock(_Waitable):
    """A mutex."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        super().__init__()
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler().step()
        if self._held and not (
            blocking and self._wait("a lock", lambda: not self._held, None if timeout < 0 else timeout)
        ):
            return False
        self._held = True
        if (here := scheduler()).current.signal is not None:
            here.take_signal()
        return True

    def release(self) -> None:
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False
        self._wake()
        scheduler().step()

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """A mutex that its owner may take again."""

    __slots__ = ("_count", "_owner")

    def __init__(self) -> None:
        super().__init__()
        self._owner: running.Thread = NOBODY
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = scheduler().current
        if self._count and self._owner is me:
            self._count += 1
            return True
        if not super().acquire(blocking, timeout):
            return False
        self._owner, self._count = me, 1
        return True

    def release(self) -> None:
        if not self._count or self._owner is not scheduler().current:
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = NOBODY
            super().release()


class Event(_Waitable):
    """An event."""

    __slots__ = ("_set",)

    def __init__(self) -> None:
        super().__init__()
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self.set_from_outside()
        scheduler().step()

    def set_from_outside(self) -> None:
        """Set it where no thread runs: the network does."""
        self._set = True
        self._wake()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        scheduler().step()
        return self._wait("an event", self.is_set, timeout)


class Condition:
    """A condition variable, as `concurrent.futures.Future` uses it."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._events: list[Event] = []

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        event = Event()
        self._events.append(event)
        self._lock.release()
        try:
            return event.wait(timeout)
        finally:
            self._lock.acquire()

    def notify_all(self) -> None:
        events, self._events = self._events, []
        for event in events:
            event.set()


class Thread(running.Thread):
    """A thread."""

    def __init__(
        self,
        *,
        target: Callable[..., object],
        name: str = "thread",
        args: tuple[Any, ...] = (),
        daemon: bool = False,
    ) -> None:
        super().__init__(name, lambda: target(*args))
        self.daemon = daemon
        self._started = False

    def start(self) -> None:
        here = scheduler()
        if not here.may_start():
            raise RuntimeError("can't start new thread")
        self.name = f"{self.name}-{len(here.threads)}"
        self._started = True
        here.start(self)
        here.step()

    def is_alive(self) -> bool:
        return self._started and not self.done

    def join(self, timeout: float | None = None) -> None:
        scheduler().join(self, timeout)


def start_new_thread(function: Callable[..., object], args: tuple[Any, ...]) -> int:
    """Start a thread of which `threading` does not know."""
    thread = Thread(target=function, args=args, name="bare")
    thread.start()
    return thread.ident


class SimpleQueue(_Waitable):
    """A queue; `put` waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._items: deque[Any] = deque()

    def put(self, item: object) -> None:
        self._items.append(item)
        self._wake()
        step()

    def get(self, *, timeout: float | None = None) -> Any:
        step()
        if not self._wait("a queue", lambda: bool(self._items), timeout):
            raise Empty
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise Empty
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items


class Future(concurrent.futures.Future[T]):
    """The real one, over a simulated condition."""

    def __init__(self) -> None:
        super().__init__()
        self._condition: Any = Condition()


def wait(futures: list[Future[Any]], timeout: float | None = None) -> None:
    """Wait until all futures are done."""
    here = scheduler()
    end = None if timeout is None else here.now + timeout
    for future in futures:
        done = Event()

        def finished(_: object, done: Event = done) -> None:
            done.set()

        future.add_done_callback(finished)
        done.wait(None if end is None else max(0.0, end - here.now))


class OrderedSet(dict[Any, None]):
    """A set whose order does not depend on addresses in memory, so that a seed decides it."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: object) -> None:
        self[item] = None

    def discard(self, item: object) -> None:
        self.pop(item, None)

    def difference_update(self, items: Iterable[Any]) -> None:
        for item in list(items):
            self.discard(item)
