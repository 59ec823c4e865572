"""The users of locks: threads that do what the plan says, and report to the witness what they see."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .core import on_signal
from .invariants import Hold
from .primitives import Thread

if TYPE_CHECKING:
    from .plan import Actor, Provider, Use
    from .simulation import Simulation

__all__ = ["Home", "live"]


class Home:
    """One provider, which stands for a process."""

    def __init__(self, provider: Any, options: Provider, number: int) -> None:
        self.provider = provider
        self.options = options
        self.number = number
        self.closing = False


def live(simulation: Simulation, actor: Actor) -> None:
    """Use locks, one after the other."""
    for use in actor.uses:
        try:
            _use(simulation, simulation.homes[actor.provider], use, actor.name, nested=False)
        except TimeoutError as error:
            _only_signal(simulation, error)


def _only_signal(simulation: Simulation, error: TimeoutError) -> None:
    if type(error) is not TimeoutError:
        simulation.scheduler.fail(f"an error of the simulation: {error!r}")


def _use(simulation: Simulation, home: Home, use: Use, name: str, *, nested: bool) -> None:
    here, witness = simulation.scheduler, simulation.witness
    hold = Hold(home, use, name)
    nested = nested or simulation.has_garbage()
    simulation.used.append(hold)
    hold.lock = home.provider.lock(
        use.key, timeout=use.timeout, shared=use.shared, fencing=use.fencing, on_lost=hold.on_lost
    )
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
        hold.heard_at_release = True  # so it does not hear of a loss
        witness.end(hold)
    finally:
        if closer is not None:
            closer.join()
            if hold.closed and hold.lock is not None and hold.lock.held:
                here.fail(f"{hold} is held, though it was closed")
        hold.lock = None


def here_note(simulation: Simulation, text: str) -> None:
    """Write into the story, if one is wanted."""
    if simulation.scheduler.note is not None:
        simulation.scheduler.note(text)


def _close_after(simulation: Simulation, hold: Hold) -> Thread | None:
    seconds = hold.use.closed_after
    if seconds is None:
        return None
    hold.closing = True
    lock = hold.lock

    def close() -> None:
        simulation.sleep(seconds)
        simulation.witness.end(hold)
        here_note(simulation, f"closes {hold}")
        ticket = lock._ticket
        hold.closed = ticket is not None and ticket.state.name != "GONE"  # else it comes too early for an effect
        try:
            lock.close()
        except Exception as error:
            simulation.witness.raised(hold, error, nested=True)

    thread = Thread(target=close, name="closer")
    simulation.start(thread)
    return thread


def _acquire(simulation: Simulation, hold: Hold, *, nested: bool) -> None:
    here, witness = simulation.scheduler, simulation.witness
    began, frozen = here.now, here.frozen
    try:
        granted = hold.lock.acquire()
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
    here, witness = simulation.scheduler, simulation.witness
    began, frozen = here.now, here.frozen
    entered = False
    try:
        with hold.lock:
            entered = True
            witness.returned(hold, began, True, frozen)
            here_note(simulation, "is in its `with`")
            _body(simulation, hold)
            here_note(simulation, "leaves its `with`")
            witness.end(hold)
    except Exception as error:
        if type(error) is TimeoutError:
            raise
        if not entered and type(error).__name__ == "LockTimeoutError":
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
    if use.inside is not None:
        _use(simulation, hold.home, use.inside, hold.thread, nested=True)
    simulation.sleep(use.hold)


def _verify(simulation: Simulation, hold: Hold) -> None:
    try:
        hold.lock.verify()
    except Exception as error:
        if type(error) is TimeoutError:
            raise
        simulation.witness.raised(hold, error, nested=True)


def _end(simulation: Simulation, hold: Hold) -> None:
    lock = hold.lock
    simulation.witness.end(hold)
    here_note(simulation, f"ends its hold: {hold.use.ending}")
    match hold.use.ending:
        case "garbage" if hold.use.closed_after is None:
            hold.lock = None
            simulation.drop(lock)
        case "elsewhere" if lock.held and not hold.closing:
            lock.disown()
            simulation.start(Thread(target=partial(_close, simulation, hold, lock), name="releaser"))
        case "close":
            lock.close()
        case _:
            lock.release()


def _close(simulation: Simulation, hold: Hold, lock: Any) -> None:
    try:
        lock.close()
    except Exception as error:
        simulation.witness.raised(hold, error, nested=True)


def signal_main(simulation: Simulation) -> None:
    """Let a signal handler raise in the main thread."""
    simulation.scheduler.interrupt(simulation.scheduler.main, on_signal)
