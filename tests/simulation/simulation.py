"""Runs one simulation from its token, and says what went wrong in it."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from . import wire
from .actors import Home, LoopHome, here_note, live, signal_main
from .core import Core
from .invariants import Hold, Witness
from .loops import pause, task_name
from .plan import AT_STEPS, NO_THREAD, Actor, Fault, Plan, Provider, Token, make_plan
from .primitives import Thread
from .scheduler import Scheduler, use
from .server import Server
from .wire import Connection, LeavingConnection, TaskConnection

__all__ = ["Outcome", "Simulation", "simulate"]

# All users are done by then, in seconds; everything has settled so much later.
HORIZON, SETTLED = 1500.0, 50.0


class Outcome(NamedTuple):
    """How a simulation went."""

    failure: str | None
    steps: int
    seconds: float
    stacks: list[str]
    story: list[str]


class Simulation:
    """One simulation.

    Args:
        core: Which copy of the core.
        token: Which plan, in which order.
        tells: Whether to write a story.
    """

    def __init__(self, core: Core, token: Token, *, tells: bool = False) -> None:
        self.plan: Plan = make_plan(token.seed).without(token.dropped)
        self.core = core
        self.scheduler = here = Scheduler(f"{token.seed}/{token.order}")
        requests = {fault.at: fault for fault in self.plan.faults if fault.kind not in (*AT_STEPS, NO_THREAD)}
        self.server = Server(here, f"{token.seed}/{token.order}/server", requests)
        self.witness = Witness(here, self.server)
        self.witness.slow = 2 * sum(fault.seconds for fault in self.plan.faults)
        self.homes: list[Home] = []
        self.used: list[Hold] = []
        self.story: list[str] = []
        self.asking: set[str] = set()
        """The users that ask for a lock now."""
        self.abandoned = False
        """A signal took the main thread away from a lock that it held; a helper may refer to that still."""
        self._garbage: list[Any] = []
        self._others: list[Any] = []
        if tells:
            here.note = self._tell
        here.fails_to_start = {fault.at for fault in self.plan.faults if fault.kind == NO_THREAD}

    def _tell(self, text: str) -> None:
        here = self.scheduler
        name = task_name() or here.current.name
        self.story.append(f"{here.now - 1_000_000:10.4f}  {name:<16} {text}")

    # For actors.

    def sleep(self, seconds: float) -> None:
        """Let time pass for the current thread."""
        here = self.scheduler
        here.step()
        end = here.now + seconds
        while here.now < end:
            here.block("the end of its work", end - here.now)

    def start(self, home: Home, name: str, function: Callable[[], object]) -> Any:
        """Start a thread or task that the end waits for."""
        other = home.start(name, function)
        self._others.append(other)
        return other

    def drop(self, owner: Any, name: str) -> None:
        """Let a lock object or a provider, which is an attribute, become garbage: soon, at any step of any thread."""
        here = self.scheduler
        self._garbage.append((here.current, getattr(owner, name)))
        setattr(owner, name, None)
        here.at_step(here.steps + here.random.choice((1, 5, 30, 200)), self._collect)
        if name == "lock":
            self._others.append(Home.start(self.homes[0], "collector", self._collect_later))

    def _collect_later(self) -> None:
        self.sleep(1.0)
        self._collect()

    def has_garbage(self) -> bool:
        """Tell whether the current thread has dropped a lock object that is not collected yet."""
        return any(thread is self.scheduler.current for thread, _ in self._garbage)

    def _collect(self) -> None:
        while self._garbage:
            here_note(self, "the garbage collector runs here")
            circles = hasattr(self._garbage.pop()[1], "listen")
            if circles:  # a provider and its parts
                gc.collect()

    # The course of it.

    def run(self) -> Outcome:
        """Run it."""
        here = self.scheduler
        use(here)
        wire.open_now.append(self._connect)
        self.core.sessions.workers.reaper.after_fork()
        try:
            here.start(Thread(target=self._direct, name="director"))
            here.run()
        finally:
            wire.open_now.pop()
            self._garbage.clear()
        return Outcome(here.failure, here.steps, here.now - 1_000_000, here.stacks, self.story)

    def _connect(self, number: int, driver: str) -> Connection:
        kinds = {"task cancels": TaskConnection, "task leaves": LeavingConnection}
        connection = self.server.connect(kinds.get(driver, Connection))
        connection.home = self.homes[number]
        return connection

    def _direct(self) -> None:
        for number, options in enumerate(self.plan.providers):
            self.homes.append(self._home(number, options))
        for fault in self.plan.faults:
            self._prepare(fault)
        actors = [self._actor(actor) for actor in self.plan.actors]
        for home in self.homes:
            if home.options.closes_after is not None:
                closer = Home.start(home, "closer", lambda home=home: self._close_later(home))  # type: ignore[misc]
                self._others.append(closer)
        end = self.scheduler.now + HORIZON
        for thread in actors:
            thread.join(end - self.scheduler.now)
            if not thread.done:
                self.scheduler.fail(f"{thread.name} is stuck")
        while self._others:
            other = self._others.pop()
            other.join(HORIZON)
            if not other.done:
                self.scheduler.fail(f"{other.name} is stuck")
        self._settle()
        self.scheduler.stop()

    def _settle(self) -> None:
        here = self.scheduler
        self._collect()
        if any(fault.kind in {"signal", "cancel"} for fault in self.plan.faults):
            gc.collect()  # a signal may strike before a release has begun: then the object's end releases
        here.fails_to_start.clear()
        self._rest(8.0)
        if any(fault.kind in {"signal", "cancel"} for fault in self.plan.faults):
            gc.collect()  # what a helper was still busy with
            self._rest(2.0)
        self.witness.check_losses(self.used)
        if here.refused:  # the books of what is lost may wait for a thread until the next acquisition
            for home in self.homes:
                self._touch(home)
            self._rest(8.0)
        self.witness.check_rest(self.homes)
        self._end_providers()
        for home in self.homes:
            if isinstance(home, LoopHome):
                if home.loop.unfinished():
                    here.fail(f"tasks go on after the end of their provider: {', '.join(home.loop.unfinished())}")
                home.loop.stop()
                home.loop.thread.join()
        signalled = any(fault.kind == "signal" for fault in self.plan.faults)
        running = [
            thread.name
            for thread in here.threads
            # A worker may wait for ever for a job that a signal kept from it, as `Workers.put` says.
            if not (thread.done or thread is here.current or (signalled and thread.name.startswith("dlock-worker")))
        ]
        if running:
            here.fail(f"threads go on after the end of their provider: {', '.join(running)}")

    def _end_providers(self) -> None:
        for home in self.homes:
            if home.closing:
                continue
            if home.options.forgotten:
                self.drop(home, "provider")
            else:
                self._close(home)
        if any(home.provider is None for home in self.homes):
            for _ in range(2):  # the watch may refer to it during a round
                self._rest(8.0)
                self._collect()
                gc.collect()  # a collection inside a collection, as at a step of a finaliser, does nothing
        self._rest(15.0)
        for session in self.server.living():
            self.scheduler.fail(f"session {session.number} is open after the end of its provider")

    def _touch(self, home: Home) -> None:
        def use() -> None:
            lock = home.lock("z", timeout=0)
            with suppress(Exception):
                home.enter(lock)
                home.exit(lock, None)

        home.start("last", use).join()

    def _rest(self, seconds: float) -> None:
        """Let everything settle; a fault, which may come only now, takes longer."""
        frozen = self.scheduler.frozen
        self.sleep(seconds)
        if self.server.harmed or self.scheduler.frozen > frozen:
            self.sleep(SETTLED)

    def _home(self, number: int, options: Provider) -> Home:
        kind = LoopHome if options.api != "threads" else Home
        provider = (self.core.AsyncLockProvider if options.api == "tasks" else self.core.LockProvider)(
            wire.engine_for(options.driver, number),
            heartbeat=options.heartbeat,
            lease=options.lease,
            max_sessions=options.max_sessions,
            share_sessions=options.share_sessions,
        )
        if options.short_turns:
            provider._coordinator.entries._turn_grants = 0
        home = kind(provider, options, number)
        if isinstance(home, LoopHome):
            self.scheduler.start(home.loop.thread)
        provider.listen(lambda event: self.witness.heard(home, event))
        return home

    def _actor(self, actor: Actor) -> Any:
        home = self.homes[actor.provider]
        if isinstance(home, LoopHome):
            return home.start(actor.name, lambda: live(self, actor))
        thread = Thread(target=lambda: live(self, actor), name=actor.name)
        if actor.is_main:
            self.scheduler.main = thread
        self.scheduler.start(thread)
        return thread

    def _prepare(self, fault: Fault) -> None:
        here, server = self.scheduler, self.server
        actions: dict[str, Callable[[], object]] = {
            "kill a holder": server.kill_a_holder,
            "restart": lambda: server.restart(fault.seconds),
            "silence all": lambda: server.silence_all(fault.seconds),
            "freeze": lambda: self._freeze(fault.seconds),
            "signal": lambda: signal_main(self),
            "collect": self._collect,
            "cancel": self._cancel,
            "block the loop": lambda: self._block(fault.seconds),
        }
        if fault.when is not None:
            here.after(fault.when, actions[fault.kind])
        elif fault.kind in actions:
            here.at_step(here.steps + fault.at, actions[fault.kind])

    def _freeze(self, seconds: float) -> None:
        here_note(self, f"fault: the process is frozen for {seconds} s")
        self.server.harm_leases(seconds)
        self.scheduler.freeze(seconds)

    def _cancel(self) -> None:
        jobs = [job for home in self.homes if isinstance(home, LoopHome) for job in home.jobs if not job.done]
        jobs = [job for job in jobs if job.name.startswith("actor")]
        waiting = [job for job in jobs if job.name in self.asking]
        if jobs:
            job = self.scheduler.random.choice(waiting or jobs)
            here_note(self, f"fault: {job.name} is cancelled")
            job.cancel()

    def _block(self, seconds: float) -> None:
        homes = [home for home in self.homes if isinstance(home, LoopHome)]
        home = self.scheduler.random.choice(homes)
        here_note(self, f"fault: {home.loop.thread.name} is blocked for {seconds} s")
        self.server.harm_leases(seconds)
        self.witness.slow += 2 * seconds
        home.blocked += seconds
        with suppress(RuntimeError):  # closed
            home.loop.call_soon_threadsafe(lambda: pause(seconds, "what blocks the loop", task=False))

    def _close_later(self, home: Home) -> None:
        assert home.options.closes_after is not None
        self.sleep(home.options.closes_after)
        self._close(home)

    def _close(self, home: Home) -> None:
        home.closing = True
        here_note(self, f"closes provider {home.number}")
        home.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep simulations from logs, warnings and the garbage collector, whose time no seed decides."""
    log, disabled, collects = logging.getLogger("dlock"), logging.getLogger("dlock").disabled, gc.isenabled()
    log.disabled = True
    gc.disable()
    gc.freeze()  # a collection looks at what simulations made, and at nothing else
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        log.disabled = disabled
        sys.unraisablehook = hook
        gc.unfreeze()
        if collects:
            gc.enable()


def simulate(core: Core, token: Token, *, tells: bool = False) -> Outcome:
    """Run the simulation that a token names."""
    outcome = Simulation(core, token, tells=tells).run()
    use(Scheduler(0))  # nothing refers to the one that is over
    gc.collect()  # or what that left would be finalised in the next one
    return outcome
