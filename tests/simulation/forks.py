"""Forks: a real one, of the whole simulation; the child keeps only the thread that forked, wherever the others were.

The server that the child sees is a copy, in which the sessions of its parent live on.
"""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .invariants import Hold
    from .simulation import Simulation

__all__ = ["fork"]


def fork(simulation: Simulation, hold: Hold) -> None:
    """Fork the process of a hold in its thread; the parent goes on when the child has ended."""
    simulation.core.at_fork("before")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _live(simulation, hold, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        report = told.read()
    os.waitpid(pid, 0)
    simulation.core.at_fork("after_in_parent")
    if not report:
        simulation.scheduler.fail("a forked child ended without a word")
    failure, stacks, story = pickle.loads(report)
    simulation.story += [f"    child: {line}" for line in (*story, *stacks)]
    if failure is not None:
        simulation.scheduler.fail(f"in a forked child: {failure}")


def _live(simulation: Simulation, hold: Hold, writer: int) -> None:
    here, story = simulation.scheduler, len(simulation.story)

    def report() -> None:
        with os.fdopen(writer, "wb") as told:
            pickle.dump((here.failure, here.stacks, simulation.story[story:]), told)
        os._exit(0)

    here.fork(report)
    simulation.witness.holds.clear()
    simulation.server.faults.clear()  # they are for requests of the parent
    ours = hold.home.sessions()
    inherited = [session.connection for session in simulation.server.living()]
    for connection in inherited:
        connection.inherited = True
    simulation.core.at_fork("after_in_child")
    for connection in inherited:
        if connection.session.number in ours and not (connection.closed or connection.parked):
            here.fail(f"a forked child keeps session {connection.session.number} of its parent open")
    _use(simulation, hold)
    here.stop()


def _use(simulation: Simulation, hold: Hold) -> None:
    here, home, lock = simulation.scheduler, hold.home, hold.lock
    if lock.held:
        here.fail(f"{hold} is held in a forked child")
    with suppress(simulation.core.LockStateError):
        lock.release()
    hold.lock = lock = None
    _try(simulation, hold, "z", must=True)
    _try(simulation, hold, hold.use.key, must=False)
    home.closing = True
    home.close()
    simulation.sleep(20.0)
    for session in simulation.server.living():
        if not session.connection.inherited:
            here.fail(f"session {session.number} is open after the end of its provider")


def _try(simulation: Simulation, hold: Hold, key: str, *, must: bool) -> None:
    lock: Any = hold.home.lock(key, timeout=15.0 if must else 0)
    try:
        if lock.acquire():
            lock.release()
        elif must:
            simulation.scheduler.fail(f"key {key} is not free, though nobody holds it")
    except Exception as error:
        if not (simulation.server.harmed or simulation.scheduler.refused):
            simulation.scheduler.fail(f"{error!r}, without a reason")
