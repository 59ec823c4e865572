"""Processes of one contender, which wait for orders."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from .contenders import ASYNC, SYNC
from .referee import Referee

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from multiprocessing.connection import Connection
    from pathlib import Path

    from .address import Address
    from .contenders import AsyncContender, Contender, Seat

__all__ = ["AsyncDesk", "Crew", "CrewError", "Desk", "raise_file_limit"]

R = TypeVar("R")
THREADS = 16
ANSWER_SECONDS = 120.0

# A server that has loaded everything forks the processes, so that each costs little.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "benchmarks.measures"])


class CrewError(RuntimeError):
    """A process failed, or does not answer."""


class _BaseDesk:
    """What a process keeps from one order to the next."""

    def __init__(self, referee: Referee, place: int) -> None:
        self.referee = referee
        self.place = place
        self.held = ExitStack()


class Desk(_BaseDesk):
    """A process of a contender for threads, one of which the process keeps for each seat."""

    def __init__(self, contender: Contender, referee: Referee, place: int) -> None:
        super().__init__(referee, place)
        self.contender = contender
        self.pool = ThreadPoolExecutor(THREADS)
        self._seats: dict[int, Seat] = {}
        self._mutex = threading.Lock()

    def seat(self) -> Seat:
        """Return this thread's seat."""
        with self._mutex:
            known = self._seats.get(threading.get_ident())
            if known is None:
                known = self._seats[threading.get_ident()] = self.contender.seat()
            return known


class AsyncDesk(_BaseDesk):
    """A process of a contender for tasks, with an event loop in a thread."""

    def __init__(self, contender: Callable[[], AsyncContender], referee: Referee, place: int) -> None:
        super().__init__(referee, place)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.contender = self.run(_call(contender))
        self.held_async = AsyncExitStack()
        self.tasks: list[asyncio.Task[None]] = []

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine in the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _call(make: Callable[[], R]) -> R:
    return make()


class Post(NamedTuple):
    """The arguments of a new process."""

    address: Address
    name: str
    """The contender's."""
    api: str
    driver: str
    file: Path
    """The referee's."""
    place: int


class _Process:
    """One process, seen from outside."""

    def __init__(self, post: Post) -> None:
        self._name = post.name
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, post), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        pid: int = self._process.pid
        return pid

    def order(self, function: Callable[..., Any], *args: Any) -> None:
        self._pipe.send((function, args))

    def answer(self) -> Any:
        if not self._pipe.poll(ANSWER_SECONDS):
            self._process.kill()
            raise CrewError(f"{self._name} did not answer for {ANSWER_SECONDS:g} s")
        try:
            good, answer = self._pipe.recv()
        except EOFError:
            raise CrewError(f"a process of {self._name} died") from None
        if not good:
            raise CrewError(answer)
        return answer

    def end(self) -> None:
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(5)
        self._process.kill()
        self._process.join()


class Crew:
    """Processes of one contender, which act at the same time."""

    def __init__(self, address: Address, contender: type[Contender | AsyncContender], driver: str, size: int) -> None:
        self._file = Referee.make_file()
        self.referee = Referee(self._file)
        self.name = contender.name
        api = "sync" if contender in SYNC else "async"
        self._processes = [_Process(Post(address, self.name, api, driver, self._file, n)) for n in range(size)]

    @property
    def pids(self) -> list[int]:
        """The numbers of its processes."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.end()
        self._file.unlink(missing_ok=True)

    def start(
        self, function: Callable[..., R], *args: Any, size: int | None = None, first: int = 0
    ) -> Callable[[], list[R]]:
        """Give the first processes an order; calling what this returns waits for their answers."""
        chosen = self._processes[first : None if size is None else first + size]
        for process in chosen:
            process.order(function, *args)
        return lambda: [process.answer() for process in chosen]

    def run(self, function: Callable[..., R], *args: Any, size: int | None = None, first: int = 0) -> list[R]:
        """Give an order and wait for the answers."""
        return self.start(function, *args, size=size, first=first)()


def _serve(pipe: Connection, post: Post) -> None:
    """Carry out orders until there are no more."""
    desk: Any = None
    while (order := _next(pipe)) is not None:
        function, args = order
        try:
            desk = desk or _desk(post)
            pipe.send((True, function(desk, *args)))
        except Exception as error:  # the parent reports it
            pipe.send((False, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"))
    os._exit(0)  # whatever still waits in threads: the server sees us go


def _next(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return None


def _desk(post: Post) -> Desk | AsyncDesk:
    address, driver, referee = post.address, post.driver, Referee(post.file)
    if post.api == "sync":
        sync = next(kind for kind in SYNC if kind.name == post.name and address.kind in kind.kinds)
        return Desk(sync(address, driver), referee, post.place)
    kind = next(kind for kind in ASYNC if kind.name == post.name)
    return AsyncDesk(lambda: kind(address, driver), referee, post.place)


def sleep_until(moment: float) -> None:
    """Sleep until a moment on the monotonic clock, which all processes share."""
    time.sleep(max(0.0, moment - time.monotonic()))


def raise_file_limit() -> None:
    """Allow as many open files as this user may have: a thousand connections are a thousand files."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
