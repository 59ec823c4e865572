"""Which server session takes which lock: all on one, one for each owner, or one for each lock.

A lender serves one part of a process, which can use its sessions: the main thread, the other threads,
or one event loop. Whatever the server grants, it reports at once to the bookkeeping; when that says
that the asker has left meanwhile, it gives the lock straight back.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Protocol

from .errors import DeadlockError
from .session import connection_lost
from .timeouts import Deadline
from .turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Callable

    from .contexts import Context, Latch
    from .dialects.base import Session
    from .requests import Request
    from .stock import Stock
    from .threads import Workers
    from .tickets import Ticket

__all__ = ["Lender", "OwnerLender", "SharedLender", "SingleLender"]

# Pauses between tries where the server does not queue, or no session is left to wait on; in seconds.
POLL_FIRST, POLL_LAST = 0.001, 0.01


class Lender(Protocol):
    """Sessions of one part of a process."""

    stock: Stock

    def attempt(self, request: Request, ticket: Ticket, context: Context) -> bool:
        """Try once."""
        ...

    def wait(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        """Wait for the lock; False may come before the deadline."""
        ...

    def settle(self, ticket: Ticket, *, reusable: bool) -> None:
        """Take back what a refused asker waited on; not to be used again if he may have interrupted it."""
        ...

    def unlock(self, name: object, ticket: Ticket, context: Context) -> bool:
        """Unlock; False when the server says that the session did not hold it."""
        ...


def _step(deadline: Deadline, last: float) -> float:
    """Return how long to pause now: longer the longer we have waited, never beyond the deadline."""
    step = min(last, max(POLL_FIRST, deadline.waited / 2))
    remaining = deadline.remaining()
    return step if remaining is None else min(step, remaining)


class _Base:
    """What all lenders do with one session."""

    def __init__(self, stock: Stock, granted: Callable[[Ticket, Session], bool], show: Callable[[str], str]) -> None:
        self.stock = stock
        self._granted = granted
        self._show = show

    def _take(self) -> Session:
        session = self.stock.take()
        assert session is not None
        return session

    def _ask(
        self, session: Session, request: Request, ticket: Ticket, timeout: float | None, label: str | None
    ) -> bool:
        try:
            if not session.acquire(request.name, shared=request.shared, timeout=timeout, label=label):
                return False
            if request.fencing:
                ticket.token = session.next_token(request.name)
            if self._granted(ticket, session):
                return True
            session.release(request.name, shared=request.shared)
        except DeadlockError:
            raise  # the session is sound, and keeps what else it holds
        except BaseException:
            self.stock.end(session)
            raise
        return False

    def _ask_any(self, pick: Callable[[], Session], request: Request, ticket: Ticket, label: str | None) -> bool:
        """Try once; when the session had gone stale, try on another."""
        while True:
            session = pick()
            fresh = session.fresh
            try:
                return self._ask(session, request, ticket, 0, label)
            except Exception as error:
                if fresh or not connection_lost(error):
                    raise

    def _free(self, session: Session, name: object, ticket: Ticket) -> bool:
        try:
            return session.release(name, shared=ticket.shared)
        except BaseException:
            self.stock.end(session)
            raise


class SingleLender(_Base):
    """A session for each lock, where sessions cost nothing and the server does not queue."""

    def attempt(self, request: Request, ticket: Ticket, context: Context) -> bool:  # noqa: ARG002
        if ticket.session is None:
            ticket.session = self._take()
        return self._ask(ticket.session, request, ticket, 0, None)

    def wait(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        context.pause(_step(deadline, POLL_LAST))
        return self.attempt(request, ticket, context)

    def settle(self, ticket: Ticket, *, reusable: bool) -> None:
        if ticket.session is not None:
            (self.stock.give if reusable else self.stock.end)(ticket.session)

    def unlock(self, name: object, ticket: Ticket, context: Context) -> bool:  # noqa: ARG002
        assert ticket.session is not None
        intact = self._free(ticket.session, name, ticket)
        self.settle(ticket, reusable=intact)
        return intact


class SharedLender(_Base):
    """All locks on one session, which never waits; waits on spare sessions, up to the stock's limit."""

    def __init__(
        self,
        stock: Stock,
        granted: Callable[[Ticket, Session], bool],
        show: Callable[[str], str],
        workers: Workers,
    ) -> None:
        super().__init__(stock, granted, show)
        self._workers = workers
        self._gate = Turnstile()
        self._shared: Session | None = None
        self._names: set[object] = set()
        self._mutex = threading.Lock()
        self._line: OrderedDict[Ticket, Latch | None] = OrderedDict()

    def attempt(self, request: Request, ticket: Ticket, context: Context) -> bool:
        return self._inside(lambda: self._try(request, ticket), bool(self._names), context)

    def _inside(self, statement: Callable[[], bool], precious: bool, context: Context) -> bool:
        """Run a statement on the shared session; when others have locks there, nobody may interrupt it."""
        if not precious and self._gate.enter_if_free():
            return self._and_leave(statement)

        def wait_and_run() -> bool:
            self._gate.enter(context)
            return self._and_leave(statement)

        return context.shield(self._workers, wait_and_run)

    def _and_leave(self, statement: Callable[[], bool]) -> bool:
        try:
            return statement()
        finally:
            self._gate.leave()

    def _try(self, request: Request, ticket: Ticket) -> bool:
        if request.name in self._names and self._alive():
            # Readers of ours hold it there: the same session would be let in past a queued writer.
            return self._try_elsewhere(request, ticket)
        granted = self._ask_any(self._pick, request, ticket, None)
        if granted:
            self._names.add(request.name)
        return granted

    def _try_elsewhere(self, request: Request, ticket: Ticket) -> bool:
        while (spare := self._take_spare(ticket)) is not None:
            fresh = spare.fresh
            try:
                if self._ask(spare, request, ticket, 0, self._show(request.label)):
                    return True
            except Exception as error:
                if fresh or not connection_lost(error):
                    raise
            else:
                self._take_back(spare, reusable=True)
                return False
        return False

    def _alive(self) -> bool:
        return self._shared is not None and self._shared in self.stock

    def _pick(self) -> Session:
        if not self._alive():
            self._names.clear()
            self._shared = self._take()
        assert self._shared is not None
        return self._shared

    def wait(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        spare = ticket.lent = ticket.session = ticket.lent or self._take_spare(ticket)
        if spare is None:
            return self._poll(request, ticket, deadline, context)
        fresh, timeout = spare.fresh, deadline.remaining()
        try:
            return context.wait(
                lambda: self._ask(spare, request, ticket, timeout, self._show(request.label)), spare.interrupt
            )
        except Exception as error:
            if fresh or not connection_lost(error):
                raise
            ticket.lent = ticket.session = None  # it had gone stale while it was idle: the next one, please
            return False

    def _take_spare(self, ticket: Ticket) -> Session | None:
        """Take a session to wait on, unless somebody else is first in line for one."""
        with self._mutex:
            if self._line and next(iter(self._line)) is not ticket:
                return None
        spare = self.stock.take(within_limit=True)
        if spare is not None:
            self._leave_line(ticket)
        return spare

    def _poll(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        """Pause, until a session is free to wait on at best, then try on the shared one."""
        latch = context.latch()
        with self._mutex:
            self._line[ticket] = latch
            pause = _step(deadline, max(POLL_LAST, len(self._line) * POLL_FIRST))
        latch.wait(Deadline(pause))
        granted = self.attempt(request, ticket, context)
        if granted:
            self._leave_line(ticket)
        return granted

    def _leave_line(self, ticket: Ticket) -> None:
        with self._mutex:
            self._line.pop(ticket, None)

    def _wake_first(self) -> None:
        with self._mutex:
            for ticket, latch in self._line.items():
                if latch is not None:
                    latch.set()
                    self._line[ticket] = None
                return

    def settle(self, ticket: Ticket, *, reusable: bool) -> None:
        self._leave_line(ticket)
        spare, ticket.lent = ticket.lent, None
        if spare is not None:
            self._take_back(spare, reusable=reusable)

    def _take_back(self, spare: Session, *, reusable: bool) -> None:
        (self.stock.give if reusable else self.stock.end)(spare)
        self._wake_first()

    def unlock(self, name: object, ticket: Ticket, context: Context) -> bool:
        session = ticket.session
        assert session is not None
        if session is self._shared:
            return self._inside(lambda: self._free_shared(session, name, ticket), len(self._names) > 1, context)
        intact = self._free(session, name, ticket)
        self._take_back(session, reusable=intact)
        return intact

    def _free_shared(self, session: Session, name: object, ticket: Ticket) -> bool:
        self._names.discard(name)
        return self._free(session, name, ticket)


class _Owned:
    """One owner's session."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.gate = Turnstile()
        self.session: Session | None = None
        self.locks = 0
        self.users = 0


class OwnerLender(_Base):
    """A session for each owner, on which he also waits, so that the server sees every circle of waits."""

    def __init__(self, stock: Stock, granted: Callable[[Ticket, Session], bool], show: Callable[[str], str]) -> None:
        super().__init__(stock, granted, show)
        self._mutex = threading.Lock()
        self._owned: dict[object, _Owned] = {}

    def attempt(self, request: Request, ticket: Ticket, context: Context) -> bool:
        return self._ask_on_own(request, ticket, 0, context)

    def wait(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        return self._ask_on_own(request, ticket, deadline.remaining(), context)

    def _ask_on_own(self, request: Request, ticket: Ticket, timeout: float | None, context: Context) -> bool:
        if ticket.lent is None:
            ticket.lent = self._enrol(ticket.owner)
        own: _Owned = ticket.lent
        own.gate.enter(context)
        try:
            granted = self._retry_stale(own, request, ticket, timeout, context)
            own.locks += granted
            return granted
        finally:
            own.gate.leave()

    def _retry_stale(
        self, own: _Owned, request: Request, ticket: Ticket, timeout: float | None, context: Context
    ) -> bool:
        while True:
            if own.session is None or own.session not in self.stock:
                own.session, own.locks = self._take(), 0
            session = ticket.session = own.session
            # A wait comes after a try, which has shown that the session lives.
            fresh = session.fresh or own.locks or timeout != 0
            try:
                ask = partial(self._ask, session, request, ticket, timeout, self._show(request.label))
                return context.wait(ask, session.interrupt)
            except Exception as error:
                if fresh or not connection_lost(error):
                    raise

    def _enrol(self, owner: object) -> _Owned:
        with self._mutex:
            own = self._owned.setdefault(owner, _Owned(owner))
            own.users += 1
            return own

    def settle(self, ticket: Ticket, *, reusable: bool) -> None:
        own, ticket.lent = ticket.lent, None
        if own is None:
            return
        if not reusable and own.session is not None:
            self.stock.end(own.session)
        with self._mutex:
            own.users -= 1
            if own.users:
                return
            self._owned.pop(own.owner, None)
        if own.session is not None and own.session in self.stock:
            self.stock.give(own.session)

    def unlock(self, name: object, ticket: Ticket, context: Context) -> bool:
        own: _Owned = ticket.lent
        assert ticket.session is not None
        intact = False
        try:
            own.gate.enter(context)
            try:
                own.locks -= 1
                intact = self._free(ticket.session, name, ticket)
            finally:
                own.gate.leave()
        finally:
            self.settle(ticket, reusable=intact)
        return intact
