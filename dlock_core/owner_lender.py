"""A session for each owner, on which he also waits: with `share_sessions=False`."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from .failures import connection_lost
from .lenders import BaseLender
from .turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Callable

    from .contexts import Context
    from .dialects.base import Session
    from .requests import Request
    from .stock import Stock
    from .tickets import Ticket
    from .timeouts import Deadline

__all__ = ["OwnerLender"]


class _Owned:
    """One owner's session."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.gate = Turnstile()
        self.session: Session | None = None
        self.locks = 0
        self.users = 0


class OwnerLender(BaseLender):
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
                if fresh or session.silent or not connection_lost(error):
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
