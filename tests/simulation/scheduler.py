"""Simulated threads, one at a time, on a simulated clock, in an order that a seed decides.

A thread is a greenlet, so a switch costs about a microsecond. It may be switched away from at every `step`, and it is
while it is blocked. Time passes when nothing else can go on, and a little with every step.
"""

from __future__ import annotations

import heapq
import sys
from asyncio import _get_running_loop, _set_running_loop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

__all__ = ["NOBODY", "Failure", "Scheduler", "Thread", "scheduler", "use"]

EPOCH = 1_000_000.0
# How long one step takes, and how many there may be.
STEP_SECONDS = 0.000_002
STEPS = 400_000
# A thread goes on for so many steps on average; one of these holds for a whole schedule.
GAPS = (1, 2, 4, 10, 40)
# How often a turn also takes time, and how long: a machine has other work.
BUSY, PAUSES = 0.03, (0.0002, 0.002, 0.012)


class Failure(Exception):  # noqa: N818 - what a simulation is there to find
    """An invariant did not hold."""


class Thread:
    """A simulated thread: the scheduler's side of it."""

    def __init__(self, name: str, run: Callable[[], object] | None = None) -> None:
        self.name = name
        self.ident = 0
        self.greenlet: greenlet | None = None
        self.run_simulated = run
        self.done = run is None
        self.ready = False
        self.block = 0
        """Counts how often it was blocked, so that a timer wakes it from its own block only."""
        self.waits_for = ""
        self.timed_out = False
        self.signal: Callable[[], object] | None = None
        """What raises in it, at its next step."""
        self.joined_by: list[Thread] = []


NOBODY = Thread("nobody")


class Scheduler:
    """Runs simulated threads.

    Args:
        seed: Decides which thread goes on, at every step.
        limit: How many steps there may be; more are taken for a loop without an end.
    """

    def __init__(self, seed: int | str, limit: int = STEPS) -> None:
        self.random = Random(seed)
        self.now = EPOCH
        self.steps = 0
        self.current = NOBODY
        self.main = NOBODY
        self.threads: list[Thread] = []
        self.frozen = 0.0
        """Seconds for which the whole process stood still."""
        self.failure: str | None = None
        self.stacks: list[str] = []
        self.note: Callable[[str], None] | None = None
        """Writes the story, when one is wanted."""
        self.descriptors: dict[int, Any] = {}
        """The connections, by their descriptors."""
        self.pid = 1
        self.fails_to_start: set[int] = set()
        """Threads that the system does not give, by their numbers."""
        self.refused = False
        self._over = False
        self._limit = limit
        self._started = 0
        self._ready: list[Thread] = []
        self._events: list[tuple[float, int, bool, Callable[[], object]]] = []
        self._numbers = 0
        self._at_step: list[tuple[int, int, Callable[[], object]]] = []
        self._hub = getcurrent()
        self._at_end: Callable[[], object] = self._end
        self._gap = self.random.choice(GAPS)
        self._by_rank = self.random.random() < 0.3
        self._ranks: dict[Thread, float] = {}
        self._next_turn = 0
        self._plan_turn()

    # Time.

    def at(self, when: float, action: Callable[[], object], *, outside: bool = False) -> None:
        """Run an action, which neither blocks nor steps, at a time; one from outside comes even to a frozen process."""
        self._numbers += 1
        heapq.heappush(self._events, (when, self._numbers, outside, action))

    def after(self, seconds: float, action: Callable[[], object], *, outside: bool = False) -> None:
        """Run an action in so many seconds."""
        self.at(self.now + seconds, action, outside=outside)

    def at_step(self, step: int, action: Callable[[], object]) -> None:
        """Run an action in the thread that takes a step, at any line of it: a signal, the garbage collector."""
        self._numbers += 1
        heapq.heappush(self._at_step, (step, self._numbers, action))
        self._next_turn = min(self._next_turn, step)

    @property
    def awake(self) -> float:
        """The time, less what the process stood still for."""
        return self.now - self.frozen

    def freeze(self, seconds: float) -> None:
        """Stop the whole process for so long, while the world outside goes on."""
        end, late = self.now + seconds, []
        while self._events and self._events[0][0] <= end:
            when, number, outside, action = heapq.heappop(self._events)
            if outside:
                self.now = max(self.now, when)
                action()
            else:
                late.append((end, number, outside, action))
        for event in late:
            heapq.heappush(self._events, event)
        self.now = end
        self.frozen += seconds

    @contextmanager
    def still(self) -> Iterator[None]:
        """Let nothing happen meanwhile: for a look at the core's own properties."""
        before = self._next_turn, self.steps, self.now
        self._next_turn = sys.maxsize
        try:
            yield
        finally:
            self._next_turn, self.steps, self.now = before

    # Threads.

    def may_start(self) -> bool:
        """Tell whether the system gives another thread."""
        self._started += 1
        refused = self._over or self._started in self.fails_to_start
        self.refused = self.refused or refused
        return not refused

    def join(self, thread: Thread, timeout: float | None = None) -> None:
        """Wait until a thread is done."""
        end = None if timeout is None else self.now + timeout
        while not thread.done and (end is None or self.now < end):
            thread.joined_by.append(self.current)
            self.block(f"the end of {thread.name}", None if end is None else end - self.now)
            thread.joined_by.remove(self.current)

    def start(self, thread: Thread) -> None:
        """Let a thread run, sooner or later."""
        thread.ident = len(self.threads) + 1
        thread.greenlet = greenlet(lambda: self._life(thread), parent=self._hub)
        self.threads.append(thread)
        self._ranks[thread] = self.random.random()
        self._wake(thread)

    def _life(self, thread: Thread) -> None:
        assert thread.run_simulated is not None
        try:
            thread.run_simulated()
        except GreenletExit:
            pass
        except BaseException as error:
            self.failure = self.failure or f"the thread {thread.name} died: {error!r}"
            self._over = True
            if self.note is not None:
                sys.excepthook(type(error), error, error.__traceback__)
        thread.done, thread.run_simulated = True, None  # nothing that it refers to lives on with it
        if thread.ready:
            self._ready.remove(thread)
            thread.ready = False
        for other in thread.joined_by:
            self.wake(other)

    def run(self) -> None:
        """Run until a thread calls `stop`, or an invariant fails."""
        while not self._over:
            thread = self._pick()
            if thread is None:
                break
            self.current = thread
            assert thread.greenlet is not None
            thread.greenlet.switch()
        self._at_end()

    def fork(self, at_end: Callable[[], object]) -> None:
        """Go on in a forked child: with the current thread alone, which is the main thread there."""
        self.pid += 1
        self.main = self.current
        self.main.signal = None
        self._at_end = at_end
        for thread in self.threads:
            if thread is not self.current:
                thread.done, thread.ready = True, False
        self._ready = [self.current]
        self._at_step.clear()

    def stop(self) -> None:
        """End the simulation from within."""
        self._over = True
        self._hub.switch()

    def fail(self, what: str) -> None:
        """Report that an invariant does not hold; it does not come back to a simulated thread."""
        if self.failure is None:
            self.failure = what
            self.stacks = [self._describe(thread) for thread in self.threads if not thread.done]
        self._over = True
        if self.current is not NOBODY and getcurrent() is not self._hub:
            self._hub.switch()

    def _describe(self, thread: Thread) -> str:
        frame = sys._getframe() if thread is self.current else getattr(thread.greenlet, "gr_frame", None)
        where = []
        while frame is not None:
            if "dlock_core" in frame.f_code.co_filename:
                where.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            frame = frame.f_back
        return f"{thread.name} waits for {thread.waits_for or 'its turn'}: {' < '.join(where[:7]) or 'not ours'}"

    def _end(self) -> None:
        """Throw away what still runs."""
        for thread in self.threads:
            for _ in range(100):
                if thread.greenlet is None or thread.greenlet.dead:
                    break
                self.current = thread
                thread.greenlet.throw(GreenletExit)
        self.current = NOBODY

    # Turns.

    def step(self) -> None:
        """Come to a point at which another thread may go on."""
        self.steps += 1
        self.now += STEP_SECONDS
        if self.steps >= self._next_turn:
            self._turn()

    def _plan_turn(self) -> None:
        gap = self._gap * 25 if self._by_rank else self._gap
        self._next_turn = self.steps + (1 if gap == 1 else 1 + int(self.random.expovariate(1 / gap)))
        if self._at_step:
            self._next_turn = min(self._next_turn, self._at_step[0][0])

    def line(self) -> None:
        """Come to a line of the core, where Python does not look for signals."""
        self.steps += 1
        if self.steps >= self._next_turn:
            self._turn(signals=False)

    def _turn(self, *, signals: bool = True) -> None:
        if getcurrent() is self._hub:  # a finaliser, after the end
            return
        if self._over:
            raise GreenletExit
        if self.steps > self._limit:
            self.fail(f"no end after {self._limit} steps")
        while self._at_step and self._at_step[0][0] <= self.steps:
            heapq.heappop(self._at_step)[2]()
        self._plan_turn()
        if signals and self.random.random() < BUSY:  # lines take no time of their own
            self.now += self.random.choice(PAUSES)
        if self._by_rank:
            self._ranks[self.current] = self.random.random() - 1
        self._switch()
        if signals:
            self.take_signal()

    def block(self, what: str, timeout: float | None = None) -> bool:
        """Stop the current thread until it is woken; False when time was over first."""
        me = self.current
        if self._over:
            raise GreenletExit
        self.take_signal()
        if me.ready:
            me.ready = False
            self._ready.remove(me)
        me.block += 1
        me.waits_for, me.timed_out = what, False
        if timeout is not None:
            self.after(max(0.0, timeout), lambda block=me.block: self._time_out(me, block))  # type: ignore[misc]
        self._switch()
        me.waits_for = ""
        self.take_signal()
        return not me.timed_out

    def _time_out(self, thread: Thread, block: int) -> None:
        if thread.block == block and not (thread.ready or thread.done):
            thread.timed_out = True
            self._wake(thread)

    def wake(self, thread: Thread) -> None:
        """Let a blocked thread go on."""
        if not thread.ready and not thread.done:
            thread.timed_out = False
            self._wake(thread)

    def _wake(self, thread: Thread) -> None:
        thread.ready = True
        thread.block += 1
        self._ready.append(thread)

    def interrupt(self, thread: Thread, handler: Callable[[], object]) -> None:
        """Run a signal handler in a thread, which may raise: at its next step, or in its wait for a lock."""
        if thread.done or thread.greenlet is None or self.pid > 1:  # a child gets none of its parent's signals
            return
        thread.signal = handler
        self.wake(thread)

    def take_signal(self) -> None:
        """Run the signal handler that waits for the current thread; it may raise."""
        handler, self.current.signal = self.current.signal, None
        if handler is not None:
            handler()

    def _pick(self) -> Thread | None:
        while True:
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[3]()
            if self._over:
                return None
            if self._ready:
                break
            if not self._events:
                self.failure = self.failure or "all threads wait for one another"
                self.stacks = [self._describe(thread) for thread in self.threads if not thread.done]
                self._over = True
                return None
            self.now = self._events[0][0]
        if len(self._ready) == 1:
            return self._ready[0]
        if self._by_rank:
            return max(self._ready, key=self._ranks.__getitem__)
        return self._ready[int(self.random.random() * len(self._ready))]

    def _switch(self) -> None:
        me = self.current
        thread = self._pick()
        if thread is me:
            return
        me.greenlet = getcurrent()
        loop = _get_running_loop()
        if loop is not None:
            _set_running_loop(None)
        if thread is None:
            self._hub.switch()
        else:
            self.current = thread
            assert thread.greenlet is not None
            thread.greenlet.switch()
        if loop is not None:
            _set_running_loop(loop)
        if self._over:
            raise GreenletExit


_here: list[Any] = [None]


def use(one: Scheduler | None) -> None:
    """Make this the scheduler of all simulated threads, locks and clocks."""
    _here[0] = one


def scheduler() -> Scheduler:
    """Return the scheduler of the simulation that runs."""
    return _here[0]  # type: ignore[no-any-return]
