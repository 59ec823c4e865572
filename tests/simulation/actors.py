"""The users of locks: threads and tasks that do what the plan says, and report to the witness what they see."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from .core import on_signal
from .forks import fork
from .invariants import Hold
from .loops import Job, Loop, pause
from .primitives import Thread
from .scheduler import scheduler

if TYPE_CHECKING:
    from .plan import Actor, Provider, Use
    from .simulation import Simulation

__all__ = ["Home", "LoopHome", "here_note", "live", "signal_main"]


class Home:
    """One provider, which stands for a process; its users are threads."""

    loop: Loop | None = None

    def __init__(self, provider: Any, options: Provider, number: int) -> None:
        self.provider = provider
        self.options = options
        self.number = number
        self.closing = False
        self.asking: Counter[str] = Counter()
        """How many of its users ask for a key now."""
        self.asked: Counter[str] = Counter()
        """How many have, so far."""
        self.blocked = 0.0
        """Seconds for which its event loop stood still."""

    def lock(self, key: str, **options: Any) -> Any:
        """Make a lock."""
        return self.provider.lock(key, **options)

    def do(self, result: Any) -> Any:
        """Return what a method of a lock gave."""
        return result

    def enter(self, lock: Any) -> None:
        """Begin a `with`."""
        lock.__enter__()

    def exit(self, lock: Any, error: BaseException | None) -> None:
        """End a `with`."""
        lock.__exit__(error and type(error), error, None)

    def sleep(self, seconds: float) -> None:
        """Let time pass for the current user."""
        scheduler().step()
        pause(seconds, "the end of its work", task=False)

    def start(self, name: str, function: Callable[[], object]) -> Any:
        """Start another user."""
        thread = Thread(target=function, name=f"{name}-{len(scheduler().threads)}")
        scheduler().start(thread)
        return thread

    def sessions(self) -> set[int]:
        """Return the numbers of the sessions in its pools."""
        policies = self.provider._coordinator._policies.values()
        return {session.driver_connection.session.number for policy in policies for session in policy.pool._all}

    def close(self) -> None:
        """Close the provider."""
        self.provider.close()


class LoopHome(Home):
    """One provider whose users are tasks of an event loop."""

    loop: Loop

    def __init__(self, provider: Any, options: Provider, number: int) -> None:
        super().__init__(provider, options, number)
        self.loop = Loop(number)
        self.jobs: list[Job] = []

    def lock(self, key: str, **options: Any) -> Any:
        return (self.provider.alock if self.options.api == "alock" else self.provider.lock)(key, **options)

    def do(self, result: Any) -> Any:
        return await_only(result)

    def enter(self, lock: Any) -> None:
        await_only(lock.__aenter__())

    def exit(self, lock: Any, error: BaseException | None) -> None:
        await_only(lock.__aexit__(error and type(error), error, None))

    def sleep(self, seconds: float) -> None:
        pause(seconds, "the end of its work", task=True)

    def start(self, name: str, function: Callable[[], object]) -> Any:
        job = Job(self.loop, name, function)
        self.jobs.append(job)
        return job

    def close(self) -> None:
        if self.options.api == "alock":
            self.provider.close()
        else:
            Job(self.loop, "closer", lambda: await_only(self.provider.close())).join()


def live(simulation: Simulation, actor: Actor) -> None:
    """Use locks, one after the other."""
    home = simulation.homes[actor.provider]
    for use in actor.uses:
        try:
            _use(simulation, home, use, actor.name, nested=False)
            if home.loop is not None:
                await_only(asyncio.sleep(0))  # a cancel that came at the end arrives now
        except TimeoutError as error:
            _only_signal(simulation, error)
        except asyncio.CancelledError:
            _take_back_cancels(simulation, actor.name)
        if home.loop is not None and _current_task().cancelling():
            simulation.scheduler.fail(f"a cancel of {actor.name} was swallowed")


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _take_back_cancels(simulation: Simulation, name: str) -> None:
    here_note(simulation, "was cancelled")
    task = _current_task()
    if not task.cancelling():
        simulation.scheduler.fail(f"{name} was cancelled, though nobody cancelled it")
    while task.cancelling():
        task.uncancel()


def _only_signal(simulation: Simulation, error: TimeoutError) -> None:
    if type(error) is not TimeoutError:
        simulation.scheduler.fail(f"an error of the simulation: {error!r}")


def _use(simulation: Simulation, home: Home, use: Use, name: str, *, nested: bool) -> None:
    here, witness = simulation.scheduler, simulation.witness
    hold = Hold(home, use, name)
    nested = nested or simulation.has_garbage() or (simulation.abandoned and name == "MainThread")
    simulation.used.append(hold)
    hold.lock = home.lock(use.key, timeout=use.timeout, shared=use.shared, fencing=use.fencing, on_lost=hold.on_lost)
    closer = _close_after(simulation, hold)
    try:
        here_note(simulation, f"asks: {use}")
        if use.ending == "with":
            _with(simulation, hold, nested=nested)
        else:
            _acquire(simulation, hold, nested=nested)
    except TimeoutError as error:
        _only_signal(simulation, error)
        here_note(simulation, "was interrupted by a signal")
        simulation.abandoned = simulation.abandoned or hold.believed
        hold.interrupted = True
        if not hold.granted and hold.lock.held and not here.frozen:  # else the main thread has not waited for it
            here.fail(f"{hold} is held, though a signal interrupted its acquire()")
        witness.end(hold)
    except asyncio.CancelledError:
        hold.interrupted = True
        _leave_cancelled(simulation, hold)
        raise
    finally:
        try:
            if closer is not None:
                closer.join()
                if hold.closed and hold.lock is not None and hold.lock.held:
                    here.fail(f"{hold} is held, though it was closed")
        finally:
            hold.lock = None


def here_note(simulation: Simulation, text: str) -> None:
    """Write into the story, if one is wanted."""
    if simulation.scheduler.note is not None:
        simulation.scheduler.note(text)


def _leave_cancelled(simulation: Simulation, hold: Hold) -> None:
    """Leave as a program does whose `finally` closes the lock."""
    began = hold.believed
    simulation.witness.end(hold)
    if hold.lock is None:
        return
    if hold.lock.held and not began and not hold.ending:
        simulation.scheduler.fail(f"{hold} is held, though its acquire() was cancelled")
    try:
        hold.home.do(hold.lock.close())
    except Exception as error:
        simulation.witness.raised(hold, error, nested=True)


@contextmanager
def _asking(simulation: Simulation, hold: Hold) -> Iterator[None]:
    home, key = hold.home, hold.use.key
    home.asking[key] += 1
    home.asked[key] += 1
    simulation.asking.add(hold.thread)
    try:
        yield
    finally:
        simulation.asking.discard(hold.thread)
        home.asking[key] -= 1
        simulation.witness.left(hold)


def _close_after(simulation: Simulation, hold: Hold) -> Any:
    seconds = hold.use.closed_after
    if seconds is None:
        return None
    hold.closing = True
    lock = hold.lock

    def close() -> None:
        hold.home.sleep(seconds)
        simulation.witness.end(hold)
        here_note(simulation, f"closes {hold}")
        ticket = lock._ticket
        hold.closed = ticket is not None and ticket.state.name != "GONE"  # else it comes too early for an effect
        try:
            hold.home.do(lock.close())
        except Exception as error:
            simulation.witness.raised(hold, error, nested=True)

    return simulation.start(hold.home, "closer", close)


def _acquire(simulation: Simulation, hold: Hold, *, nested: bool) -> None:
    here, witness = simulation.scheduler, simulation.witness
    began, frozen = here.now, here.frozen
    try:
        with _asking(simulation, hold):
            granted = hold.granted = hold.home.do(hold.lock.acquire())
    except Exception as error:
        if type(error) is TimeoutError:
            raise
        _failed(simulation, hold, error, nested=nested)
        return
    witness.returned(hold, began, granted, frozen)
    here_note(simulation, "has it" if granted else "was refused")
    if not granted:
        return
    _body(simulation, hold)
    try:
        _end(simulation, hold)
    except Exception as error:
        if type(error) is TimeoutError:
            raise
        witness.raised(hold, error, nested=nested)


def _failed(simulation: Simulation, hold: Hold, error: Exception, *, nested: bool) -> None:
    here_note(simulation, f"got {type(error).__name__}: {error}")
    simulation.witness.raised(hold, error, nested=nested)
    if hold.lock.held:
        simulation.scheduler.fail(f"{hold} is held, though acquire() raised {error!r}")


def _with(simulation: Simulation, hold: Hold, *, nested: bool) -> None:
    here, witness, home = simulation.scheduler, simulation.witness, hold.home
    began, frozen = here.now, here.frozen
    try:
        with _asking(simulation, hold):
            home.enter(hold.lock)
            hold.granted = True
        try:
            witness.returned(hold, began, True, frozen)
            here_note(simulation, "is in its `with`")
            _body(simulation, hold)
            here_note(simulation, "leaves its `with`")
            witness.end(hold)
        except BaseException as error:
            witness.end(hold)
            home.exit(hold.lock, error)
            raise
        else:
            home.exit(hold.lock, None)
    except Exception as error:
        if type(error) is TimeoutError:
            raise
        if not hold.granted and type(error).__name__ == "LockTimeoutError":
            here_note(simulation, "was refused")
            witness.returned(hold, began, False, frozen)
        else:
            _failed(simulation, hold, error, nested=nested)


def _body(simulation: Simulation, hold: Hold) -> None:
    witness, use = simulation.witness, hold.use
    if hold.closing and not hold.lock.held:
        return
    witness.begin(hold)
    if use.verify:
        _verify(simulation, hold)
    if use.forks and hold.home.loop is None and not hold.home.closing:
        here_note(simulation, "forks")
        fork(simulation, hold)
    if use.inside is not None:
        _use(simulation, hold.home, use.inside, hold.thread, nested=True)
    hold.home.sleep(use.hold)


def _verify(simulation: Simulation, hold: Hold) -> None:
    try:
        hold.home.do(hold.lock.verify())
    except Exception as error:
        if type(error) is TimeoutError:
            raise
        simulation.witness.raised(hold, error, nested=True)


def _disowned(lock: Any) -> bool:
    """Disown a lock; False when it is lost."""
    try:
        lock.disown()
    except Exception:
        if not lock.lost:
            raise
        return False
    return True


def _end(simulation: Simulation, hold: Hold) -> None:
    lock, home = hold.lock, hold.home
    hold.ending = True
    simulation.witness.end(hold)
    here_note(simulation, f"ends its hold: {hold.use.ending}")
    match hold.use.ending:
        case "garbage" if hold.use.closed_after is None:
            simulation.drop(hold, "lock")
        case "elsewhere" if lock.held and not hold.closing and _disowned(lock):
            simulation.start(home, "releaser", partial(_close, simulation, hold, lock))
        case "close":
            home.do(lock.close())
        case _:
            home.do(lock.release())


def _close(simulation: Simulation, hold: Hold, lock: Any) -> None:
    try:
        hold.home.do(lock.close())
    except Exception as error:
        simulation.witness.raised(hold, error, nested=True)


def signal_main(simulation: Simulation) -> None:
    """Let a signal handler raise in the main thread."""
    simulation.scheduler.interrupt(simulation.scheduler.main, on_signal)
