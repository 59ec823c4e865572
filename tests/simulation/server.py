"""The simulated server: sessions, locks with a queue for each, and all that can go wrong on the way to it.

It is the witness: what it holds is true, whatever the core believes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from .loops import pause
from .scheduler import Scheduler
from .wire import Call, Connection, unreachable

if TYPE_CHECKING:
    from .plan import Fault

__all__ = ["CANCELLED", "DEADLOCK", "DENIED", "TIMED_OUT", "UNSUPPORTED", "Server", "ServerSession"]

DENIED, CANCELLED, TIMED_OUT, DEADLOCK, UNSUPPORTED = "denied", "cancelled", "timed out", "deadlock", "unsupported"
# Delays of a message, in seconds: mostly none.
DELAYS = (0.0, 0.0, 0.0, 0.0, 0.000_05, 0.000_3, 0.002, 0.02)
# How often an answer to a wait lies at the server for a while, where a cancel or the time limit may overtake it.
LATE_GRANTS, LATE_BY = 0.15, (0.000_2, 0.005, 0.3)
# The server finds a client that has gone without a word, in seconds.
KEEPALIVE = 20.0


@dataclass(eq=False)
class Wait:
    """A statement in the queue of a lock, or just granted, its answer not sent yet."""

    session: ServerSession
    name: Any
    shared: bool
    call: Call
    granted: bool = False


@dataclass(eq=False)
class ServerSession:
    """A session, as the server sees it."""

    number: int
    heard: float
    alive: bool = True
    died: float = 0.0
    locks: Counter[tuple[Any, bool]] = field(default_factory=Counter)
    lease: float | None = None
    lease_over: bool = False
    seen_dead_with: set[Any] = field(default_factory=set)
    """Keys of locks that were held on it, and not released yet, when its client saw its end."""
    wait: Wait | None = None
    busy: bool = False
    connection: Connection = field(init=False)

    def holds(self, name: Any, *, shared: bool) -> bool:
        """Tell whether it holds a lock in a mode."""
        return self.locks[name, shared] > 0


class Server:
    """Grants locks; faults come at the requests that the plan names.

    Args:
        scheduler: Its clock.
        seed: Decides on delays.
        faults: What goes wrong, by the number of the request.
    """

    def __init__(self, scheduler: Scheduler, seed: int | str, faults: dict[int, Fault]) -> None:
        self.scheduler = scheduler
        self.random = Random(seed)
        self.sessions: list[ServerSession] = []
        self.queues: dict[Any, deque[Wait]] = {}
        self.faults = faults
        self.requests = 0
        self.down = False
        self.errors: Counter[str] = Counter()
        """Errors that a fault made the server answer, by their codes."""
        self.harmed = False
        """A fault has befallen a connection, or the whole server."""
        self.granted: Callable[[ServerSession, Any, bool], object] = lambda *_: None
        """Called with each grant."""
        self.ended: Callable[[ServerSession], object] = lambda _: None
        """Called with each session that ends."""
        self.tokens = 0

    def _note(self, text: str) -> None:
        if self.scheduler.note is not None:
            self.scheduler.note(text)

    def _later(self, action: Callable[[], object], extra: float = 0.0) -> None:
        delay = self.random.choice(DELAYS) + extra
        if delay:
            self.scheduler.after(delay, action, outside=True)
        else:
            action()

    def living(self) -> Iterator[ServerSession]:
        """Return the sessions that are open."""
        return (session for session in self.sessions if session.alive)

    # The way to the server.

    def connect(self, kind: type[Connection]) -> Connection:
        """Open a session, for the current thread or task."""
        here = self.scheduler
        here.step()
        self.requests += 1
        fault = self.faults.get(self.requests)
        delay = self.random.choice(DELAYS)
        if fault is not None:
            self._note(f"fault: {fault}, as a session is opened")
            if fault.kind in {"slow", "silence"}:
                delay += fault.seconds
            elif fault.kind not in {DENIED, CANCELLED, UNSUPPORTED}:
                self.harmed = True
                unreachable()
            self.harmed = self.harmed or delay > HARMLESS
        pause(delay, "the server to accept", task=kind.in_task)
        if self.down:
            unreachable()
        session = ServerSession(len(self.sessions) + 1, here.now)
        connection = session.connection = kind(self, session)
        self.sessions.append(session)
        here.descriptors[connection.fileno()] = connection
        self._note(f"session {session.number} opens")
        here.step()
        return connection

    def send(self, connection: Connection, call: Call) -> None:
        """Take a statement on its way."""
        self.requests += 1
        fault = self.faults.get(self.requests)
        extra = 0.0
        if call.statement == "kill":
            call.victims_sent = self.sessions[call.values["number"] - 1].connection.sent
        if fault is not None:
            self._note(f"fault: {fault}, at {call.statement} on session {connection.session.number}")
            if fault.kind == "slow":
                extra = fault.seconds
                self._harm(connection, "slow", extra > HARMLESS)
            elif fault.kind == "silence":
                self._silence(connection, fault.seconds)
            elif fault.kind == "request lost":
                self._harm(connection, fault.kind)
                self.end(connection.session)
                return
        self._later(lambda: self._over(connection, lambda: self._receive(connection, call, fault)), extra)

    def _harm(self, connection: Connection, why: str, really: bool = True) -> None:
        if really:
            connection.harm = connection.harm or why
            self.harmed = True

    def _over(self, connection: Connection, action: Callable[[], object]) -> None:
        if connection.silent:
            connection.owed.append(action)
        else:
            action()

    def _silence(self, connection: Connection, seconds: float) -> None:
        """Let a connection's network fall silent; the server finds it out where it lasts."""
        connection.silent = True
        self._harm(connection, "silence", seconds > HARMLESS)
        self.scheduler.after(seconds, lambda: self._thaw(connection), outside=True)
        if seconds > KEEPALIVE:
            self.scheduler.after(KEEPALIVE, lambda: self.end(connection.session), outside=True)

    def _thaw(self, connection: Connection) -> None:
        connection.silent = False
        owed, connection.owed = connection.owed, []
        for action in owed:
            action()

    def silence_all(self, seconds: float) -> None:
        """Let the network fall silent."""
        self._note(f"fault: the network is silent for {seconds} s")
        for session in self.living():
            self._silence(session.connection, seconds)

    def closed_by_client(self, connection: Connection) -> None:
        """Hear the client close, some time later."""
        self._later(lambda: self._over(connection, lambda: self.end(connection.session)))

    def cancel_from_elsewhere(self, session: ServerSession, *, in_task: bool) -> None:
        """Cancel a session's statement, for a thread or task that waits until that is done."""
        here = self.scheduler
        here.step()
        if self.down:
            unreachable()
        meant, idle = session.connection.sent, session.connection.call is None
        for last in (False, True):
            pause(self.random.choice((0.0, 0.002, 0.02, 0.2)), "the server to cancel", task=in_task)
            if not last:
                self.cancel(session, meant, before_wait=idle)
        here.step()

    # What the server does.

    def _receive(self, connection: Connection, call: Call, fault: Fault | None) -> None:
        session = connection.session
        if not session.alive:
            return
        session.heard = self.scheduler.now
        session.busy = True
        if fault is not None and fault.kind in {DENIED, CANCELLED, UNSUPPORTED}:
            self.errors[fault.kind] += 1
            if call.statement == "ping":  # several in a row are no sign of life
                connection.refused_pings += 1
                self._harm(connection, "pings refused", connection.refused_pings > 2)
            if call.statement == "kill":  # then the wait is ended with its session
                self._harm(self.sessions[call.values["number"] - 1].connection, "not killed")
            self._answer(session, call, None, fault.kind)
            return
        if call.killed:
            self._answer(session, call, None, CANCELLED)
            return
        after = partial(self._after, session, fault)
        if call.statement == "wait":
            self._wait(session, call)
            after()
        else:
            row = self._execute(session, call)
            after()
            self._answer(session, call, row)

    def _after(self, session: ServerSession, fault: Fault | None) -> None:
        if fault is None or fault.kind not in {"answer lost", "killed"}:
            return
        self._harm(session.connection, fault.kind)
        if fault.kind == "killed":
            self.end(session)
        else:  # the client sees the end at once, the server later
            session.connection.hang_up()
            self.scheduler.after(fault.seconds, lambda: self.end(session), outside=True)

    def _answer(
        self, session: ServerSession, call: Call, row: tuple[Any, ...] | None, error: str | None = None
    ) -> None:
        session.heard = self.scheduler.now
        session.busy = False
        if call.statement == "ping" and error is None:
            session.connection.refused_pings = 0
        self._note(f"session {session.number}: {call.statement} {_shown(call)} -> {error or row}")
        connection = session.connection
        self._later(lambda: self._over(connection, lambda: call.answer(row, error)))
        if session.lease is not None:
            self._expect(session)

    def _expect(self, session: ServerSession) -> None:
        """End a session whose lease is over."""
        assert session.lease is not None
        heard = session.heard

        def look() -> None:
            if session.alive and session.heard == heard and not session.busy:
                self._note(f"session {session.number}: its lease is over")
                session.lease_over = True
                self._harm(session.connection, "lease")
                self.end(session)

        self.scheduler.after(session.lease, look, outside=True)

    def _execute(self, session: ServerSession, call: Call) -> tuple[Any, ...]:  # noqa: PLR0911 - one for each statement
        values = call.values
        match call.statement:
            case "ping":
                return (1,)
            case "settings":
                session.lease = values["lease"]
                return (1,)
            case "token":
                self.tokens += 1
                return (self.tokens,)
            case "try":
                return (self._try(session, values["name"], shared=values["shared"]),)
            case "unlock":
                return (self._unlock(session, values["name"], shared=values["shared"]),)
            case "holds":
                return (session.holds(values["name"], shared=values["shared"]),)
            case "kill":
                self.cancel(self.sessions[values["number"] - 1], call.victims_sent)
                return (1,)
            case statement:
                raise AssertionError(statement)

    def _free_for(self, session: ServerSession, name: Any, *, shared: bool) -> bool:
        return all(
            other is session or not (other.holds(name, shared=False) or (other.holds(name, shared=True) and not shared))
            for other in self.living()
        )

    def _try(self, session: ServerSession, name: Any, *, shared: bool) -> bool:
        behind = any(not (shared and one.shared) for one in self.queues.get(name, ()))
        if behind or not self._free_for(session, name, shared=shared):
            return False
        self._grant(session, name, shared=shared)
        return True

    def _grant(self, session: ServerSession, name: Any, *, shared: bool) -> None:
        if session.holds(name, shared=False) or session.holds(name, shared=True):
            self.scheduler.fail(f"session {session.number} asks for {name}, which it holds")
        session.locks[name, shared] += 1
        self.granted(session, name, shared)

    def _unlock(self, session: ServerSession, name: Any, *, shared: bool) -> bool:
        if not session.holds(name, shared=shared):
            return False
        session.locks[name, shared] -= 1
        self._advance(name)
        return True

    def _wait(self, session: ServerSession, call: Call) -> None:
        name, shared, seconds = call.values["name"], call.values["shared"], call.values["seconds"]
        if call.values["again"]:
            self._unlock(session, name, shared=shared)
        wait = session.wait = Wait(session, name, shared, call)
        if self._in_circle(session, name):
            self._refuse(wait, DEADLOCK)
            return
        self.queues.setdefault(name, deque()).append(wait)
        if seconds is not None:
            self.scheduler.after(seconds, lambda: self._refuse(wait, TIMED_OUT), outside=True)
        self._advance(name)

    def _in_circle(self, session: ServerSession, name: Any) -> bool:
        """Tell whether a session would wait for itself, through others that wait."""
        seen, names = set(), [name]
        while names:
            wanted = names.pop()
            for other in self.living():
                if (other.holds(wanted, shared=False) or other.holds(wanted, shared=True)) and other not in seen:
                    if other is session:
                        return True
                    seen.add(other)
                    if other.wait is not None and not other.wait.granted:
                        names.append(other.wait.name)
        return False

    def _advance(self, name: Any) -> None:
        queue = self.queues.get(name)
        while queue:
            wait = queue[0]
            if not self._free_for(wait.session, name, shared=wait.shared):
                return
            queue.popleft()
            wait.granted = True
            self._grant(wait.session, name, shared=wait.shared)
            late = self.random.random() < LATE_GRANTS
            if late:
                self.scheduler.after(self.random.choice(LATE_BY), partial(self._yes, wait), outside=True)
            else:
                self._yes(wait)

    def _yes(self, wait: Wait) -> None:
        if wait.session.wait is wait and wait.session.alive:
            wait.session.wait = None
            self._answer(wait.session, wait.call, (True,))

    def _refuse(self, wait: Wait, error: str) -> None:
        """End a wait by an error; if it was granted a moment ago, the session holds the lock all the same."""
        if wait.session.wait is not wait or not wait.session.alive:
            return
        wait.session.wait = None
        if not wait.granted and wait in self.queues.get(wait.name, ()):
            self.queues[wait.name].remove(wait)
            self._advance(wait.name)
        self._answer(wait.session, wait.call, None, error)

    def cancel(self, session: ServerSession, meant: int, *, before_wait: bool = False) -> None:
        """Cancel what a session does: its wait, or a statement that is still on its way through the server.

        It was meant for the statement that was the last one so far, by its number; or, where nothing was under way, for
        a wait that was about to be sent.
        """
        self._note(f"session {session.number}: a cancel arrives")
        sent, last = session.connection.sent, session.connection.last
        its_wait = before_wait and last == "wait" and sent == meant + 1
        if session.alive and sent != meant and not its_wait:
            self.scheduler.fail(f"a cancel comes to session {session.number} after its next statement")
        if session.wait is not None:
            self._refuse(session.wait, CANCELLED)
        elif session.connection.call is not None:
            session.connection.call.killed = True

    def end(self, session: ServerSession) -> None:
        """End a session: its locks are free, its client sees a hang-up."""
        if not session.alive:
            return
        held = [name for (name, _), count in session.locks.items() if count]
        self._note(f"session {session.number} ends" + (f" with {held}" if held else ""))
        session.alive, session.died = False, self.scheduler.now
        self.ended(session)
        wait, session.wait = session.wait, None
        if wait is not None and not wait.granted and wait in self.queues.get(wait.name, ()):
            self.queues[wait.name].remove(wait)
            held.append(wait.name)
        session.locks.clear()
        connection = session.connection
        self._later(lambda: self._over(connection, connection.hang_up))
        for name in held:
            self._advance(name)

    # Faults that are not a request's.

    def kill_a_holder(self) -> None:
        """End a session that holds a lock, as an administrator does."""
        holders = [session for session in self.living() if any(session.locks.values())]
        if holders:
            victim = self.random.choice(holders)
            self._note(f"fault: session {victim.number} is killed")
            self._harm(victim.connection, "killed")
            self.end(victim)

    def restart(self, seconds: float) -> None:
        """End all sessions, and accept none for so long."""
        self._note(f"fault: the server restarts, which takes {seconds} s")
        self.down = self.harmed = True
        for session in list(self.living()):
            self._harm(session.connection, "restart")
            self.end(session)
        self.scheduler.after(seconds, lambda: setattr(self, "down", False), outside=True)

    def harm_leases(self, seconds: float) -> None:
        """Note that the process stood still for so long, which a lease may not survive."""
        for session in self.living():
            self._harm(session.connection, "frozen", session.lease is not None and seconds > session.lease / 4)


HARMLESS = 1.8
"""Silence that no statement's deadline minds, in seconds."""


def _shown(call: Call) -> str:
    return " ".join(str(value) for value in call.values.values())
