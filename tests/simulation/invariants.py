"""What must hold at every step and at the end; the server is the witness.

To add one: find the moment at which it can be broken, call a method from there, and let it call `scheduler.fail` with a
sentence that names what was seen.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from .scheduler import Scheduler, scheduler
from .server import CANCELLED, DEADLOCK, DENIED, UNSUPPORTED, Server, ServerSession

if TYPE_CHECKING:
    from .plan import Provider, Use

__all__ = ["Hold", "Witness"]

# A loss that a hang-up shows is told within so many seconds.
VISIBLE = 2.5
# How long an acquisition may take beyond its timeout: in peace, and when the server or the network fails.
PATIENCE, MORE_PATIENCE = 1.0, 45.0
# Nobody waits longer than this for an answer that should be there; a process that is frozen does.
PATIENT = 5.0
# How old a proof of life may be for a lock that is handed on.
PROOF = 0.05
# The watch looks once a second, and twice before it gives up.
TICKS = 5.0
# A wait without an end on a lock's own session is ended by the system's keepalive.
KEEPALIVE = 50.0


class Hold:
    """One acquisition, as its user sees it."""

    def __init__(self, home: Any, use: Use, thread: str) -> None:
        self.home = home
        """The provider that the lock is of."""
        self.use = use
        self.thread = thread
        self.lock: Any = None
        self.believed = False
        """The user works under the lock, and has not begun to release it."""
        self.closing = False
        """Another thread has called, or will call, `close`."""
        self.closed = False
        self.ending = False
        """Its user has begun to give it back."""
        self.granted = False
        """`acquire` has come back with True."""
        self.interrupted = False
        """A signal or a cancel has called its user away, so it hears of no loss."""
        self.told = 0
        self.seen_lost = False
        self.session: ServerSession | None = None

    def __str__(self) -> str:
        return f"{self.thread}'s lock {self.use.key}"

    @property
    def held(self) -> bool:
        """Whether its user may trust in it now."""
        if not self.believed or self.lock is None:
            return False
        with scheduler().still():
            return bool(self.lock.held)

    def on_lost(self, lock: Any) -> None:
        """Count what the core tells."""
        self.told += 1
        here = scheduler()
        if here.note is not None:
            here.note(f"on_lost: {self}")
        if self.told > 1:
            here.fail(f"{self} was reported lost twice")


class Witness:
    """Looks at all holds and at the server."""

    def __init__(self, scheduler: Scheduler, server: Server) -> None:
        self.scheduler = scheduler
        self.server = server
        self.holds: list[Hold] = []
        self.errors: Counter[str] = Counter()
        """Errors that users saw, by the server's codes."""
        self.slow = 0.0
        """Seconds that faults which harm nothing may take."""
        self.open_events: Counter[Any] = Counter()
        server.granted, server.ended = self.granted, self.session_ended

    # While it runs.

    def begin(self, hold: Hold) -> None:
        """An acquisition came back with True."""
        hold.believed = True
        session = hold.lock._ticket and hold.lock._ticket.session
        if session is not None:
            hold.session = session.driver_connection.session
        self.holds.append(hold)
        if not hold.held:
            self._must_be_excused(hold)
            return
        self._check_watch(hold)
        self._check_server(hold)
        if hold.session is not None and hold.use.key in hold.session.seen_dead_with:
            self.scheduler.fail(f"{hold} was handed on, on a session whose end was seen before")
        if hold.session is not None and hold.session.connection.hung_up_at + PROOF < self.scheduler.awake:
            self.scheduler.fail(f"{hold} began on a session whose end was seen before")
        if hold.session is not None and not hold.session.alive:  # a loss that nobody has seen yet
            self._see_told(hold, hold.session)
            return
        for other in self.holds:
            if other is not hold and other.use.key == hold.use.key and not (other.use.shared and hold.use.shared):
                self._refute(other, f"{hold} began")

    def end(self, hold: Hold) -> None:
        """The user is about to release."""
        if hold.believed:
            with self.scheduler.still():
                hold.seen_lost = bool(hold.lock.lost)
            if hold.seen_lost:
                self._must_be_excused(hold)
            elif hold.held:
                self._check_watch(hold)
            if hold.session is not None and hold.session.connection.hung_up and not hold.use.shared:
                hold.session.seen_dead_with.add(hold.use.key)
            hold.believed = False
        if hold in self.holds:
            self.holds.remove(hold)

    def granted(self, session: ServerSession, name: Any, shared: bool) -> None:
        """The server grants a lock."""
        for hold in self.holds:
            if hold.use.key == name and hold.session is not session and not (shared and hold.use.shared):
                self._refute(hold, f"the server granted it to session {session.number}")

    def _refute(self, hold: Hold, what: str) -> None:
        """Nobody may believe in a hold any more, except for a while after its session's end."""
        if hold.held and not self._excuses_belief(hold):
            self.scheduler.fail(f"two holders: {what}, while {hold} was held")

    def _check_watch(self, hold: Hold) -> None:
        """Whoever holds is watched."""
        ticket, watch = hold.lock._ticket, hold.home.provider._coordinator._watch
        if ticket is None or hold.home.closing or ticket.session.ended:
            return
        if id(ticket.session) not in watch._sessions:
            self.scheduler.fail(f"{hold} is held, and nothing watches its session")
        if watch._thread is None or not watch._thread.is_alive():
            self.scheduler.fail(f"{hold} is held, and the watch does not run")

    def _check_server(self, hold: Hold) -> None:
        session = hold.session
        if session is not None and session.alive and not session.holds(hold.use.key, shared=hold.use.shared):
            self.scheduler.fail(f"{hold} is held, but session {session.number} does not hold it at the server")

    def _excuses_belief(self, hold: Hold) -> bool:
        session = hold.session
        if hold.home.closing or session is None:
            return True
        return not session.alive and self.scheduler.now <= session.died + self._bound(hold.home.options, session)

    def _bound(self, options: Provider, session: ServerSession) -> float:
        """Return within which time the end of a session must be known; the end of a lease needs nobody to tell it."""
        if session.lease_over:
            return 0.0
        bound = VISIBLE
        if session.connection.silent or session.connection.harm == "silence" or not session.connection.hung_up:
            bound += options.heartbeat + min(10.0, options.heartbeat) + TICKS
            if not options.share_sessions:
                bound += KEEPALIVE
        return min(bound, options.lease + 1) if options.lease is not None else bound

    def session_ended(self, session: ServerSession) -> None:
        """See to it that a loss is told in time."""
        for hold in self.holds:
            if hold.session is session and hold.believed:
                self._see_told(hold, session)

    def _see_told(self, hold: Hold, session: ServerSession) -> None:
        self._look_later(hold, session, self._bound(hold.home.options, session), self.scheduler.frozen)

    def _look_later(self, hold: Hold, session: ServerSession, bound: float, frozen: float) -> None:
        def look() -> None:
            more = self.scheduler.frozen - frozen
            if more:
                self._look_later(hold, session, more + 1, self.scheduler.frozen)
            elif hold.held and not hold.home.closing:
                self.scheduler.fail(f"{hold} is still held {bound} s after session {session.number} has ended")

        self.scheduler.after(bound, look)

    def _must_be_excused(self, hold: Hold) -> None:
        """A loss has a cause: what befell another lock, or another's wait, is none."""
        options = hold.home.options
        own_wait = options.driver == "hangs up" and not options.share_sessions  # a wait on it is ended with the session
        if hold.closing or hold.home.closing or own_wait:
            return
        if hold.session is None or not hold.session.connection.harm:
            number = hold.session and hold.session.number
            self.scheduler.fail(f"{hold} was lost, though nothing befell session {number}")

    # What users see.

    def returned(self, hold: Hold, began: float, granted: bool, frozen: float) -> None:
        """An acquisition came back, or raised."""
        timeout, took = hold.use.timeout, self.scheduler.now - began
        late = took - (self.scheduler.frozen - frozen)
        if timeout is not None:
            most = timeout + (MORE_PATIENCE if self.server.harmed or self.scheduler.frozen else PATIENCE + self.slow)
            if late > most:
                self.scheduler.fail(f"{hold} took {took:.3f} s instead of {timeout}")
            if not granted and took < timeout - 1e-6:
                self.scheduler.fail(f"{hold} was refused after {took:.3f} s instead of {timeout}")
        elif not granted:
            self.scheduler.fail(f"{hold} was refused, though it has no timeout")

    def raised(self, hold: Hold, error: BaseException, *, nested: bool) -> None:
        """An acquisition, a look or a release raised an error: it needs a reason."""
        kind, code = type(error).__name__, getattr(getattr(error, "orig", None), "code", "")
        trouble = self.server.harmed or hold.home.closing or self.scheduler.refused
        if kind == "LockConnectionError" and "cancel" in str(error):
            code = CANCELLED
        match kind:
            case "LockStateError":
                excused = hold.closing or hold.home.closing
            case "LockLostError":
                self._must_be_excused(hold)
                excused = hold.seen_lost = True
            case "DeadlockError":
                excused = nested
            case "TimeoutError":
                excused = hold.thread == "MainThread"
            case "UnsupportedError":
                excused, code = True, UNSUPPORTED
            case "LockConnectionError" if code != CANCELLED:
                stood_still = self.scheduler.frozen + hold.home.blocked > PATIENT
                excused = trouble or bool(self.server.errors) or stood_still
            case _:
                excused = code in {DENIED, CANCELLED, DEADLOCK, UNSUPPORTED}
        if code in {DENIED, CANCELLED, UNSUPPORTED} and not trouble:
            self.errors[code] += 1
            excused = excused and self.errors[code] <= self.server.errors[code]
        if not excused:
            self.scheduler.fail(f"{hold} ended in {kind}: {error}, without a reason")

    def left(self, hold: Hold) -> None:
        """An acquisition is over, however it ended: where nobody asks any more, the server soon stops to wait."""
        home, key = hold.home, hold.use.key
        number = home.asked[key]
        if home.asking[key]:
            return
        trouble = self.scheduler.frozen + home.blocked

        def look() -> None:
            undisturbed = not (self.server.harmed or self.scheduler.refused or home.closing)
            if home.asking[key] or home.asked[key] != number or not undisturbed:
                return
            if self.scheduler.frozen + home.blocked != trouble:
                return
            for session in self.server.living():
                wait = session.wait
                if session.connection.home is home and wait is not None and wait.name == key and not wait.granted:
                    self.scheduler.fail(
                        f"session {session.number} still waits for {key}, {PATIENT} s after its asker left"
                    )

        self.scheduler.after(PATIENT + self.slow, look)

    def heard(self, home: Any, event: Any) -> None:
        """A listener heard of an event."""
        place = home, event.key, event.mode
        match type(event).__name__:
            case "LockAcquired":
                self.open_events[place] += 1
            case "LockReleased" | "LockLost":
                self.open_events[place] -= 1
                if self.open_events[place] < 0:
                    self.scheduler.fail(f"listeners heard twice of the end of {event.key}")

    # At the end.

    def check_losses(self, holds: list[Hold]) -> None:
        """Every loss was told."""
        for hold in holds:
            kept = hold.use.ending != "garbage" and not hold.home.closing
            if kept and hold.seen_lost and not (hold.told or hold.interrupted):
                self.scheduler.fail(f"{hold} was lost, and on_lost was never called")

    def check_rest(self, homes: list[Any]) -> None:
        """Nothing is left behind, when all users are done and everything had time to settle."""
        if any(self.open_events.values()):
            self.scheduler.fail("listeners never heard of the end of a hold")
        for home in homes:
            self._check_home(home)

    def _check_home(self, home: Any) -> None:  # noqa: C901 - a list of what may be left
        coordinator, fail = home.provider._coordinator, self.scheduler.fail
        sessions = set()
        if coordinator.entries._entries and not home.closing:
            fail(f"keys are left in the bookkeeping: {list(coordinator.entries._entries)}")
        if coordinator.listeners.holds:
            fail("listeners are still to hear of the end of a hold")
        for policy in coordinator._policies.values():
            pool = policy.pool
            shared = policy._shared and policy._shared.session
            kept = {id(one) for one in pool._idle} | ({id(shared)} if shared is not None else set())
            sessions |= {one.driver_connection.session.number for one in pool._all}
            if policy._line:
                fail("an asker that has left stands in the line for spare sessions")
            if (policy._owned and not home.closing) or pool._opening:
                fail("an owner that has left still has a session")
            if len(pool._idle) != len({id(one) for one in pool._idle}):
                fail("a session is twice in the pool")
            if any(id(one) not in kept for one in pool._all):
                fail("a session was lent and never given back")
        for session in self.server.living():
            ours = session.connection.home is home
            if ours and session.number not in sessions:
                fail(f"session {session.number} is open at the server, and not in the pool")
            if ours and (any(session.locks.values()) or session.wait is not None):
                fail(f"session {session.number} still holds or awaits a lock: {session.locks}")
