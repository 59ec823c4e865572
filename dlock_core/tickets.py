"""Tickets and holds: one acquisition, and one lock at the server."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Hashable
    from weakref import WeakMethod

    from .contexts import Context, Latch
    from .dialects.base import Session

__all__ = ["Entry", "Hold", "State", "Ticket"]


class State(Enum):
    """Where one acquisition stands."""

    QUEUED = auto()
    ASKING = auto()
    HELD = auto()
    ENDING = auto()
    LOST = auto()
    GONE = auto()


class Hold:
    """A lock at the server, and the turn in which this process hands it on.

    Args:
        session: The session that holds it.
        home: The part of this process that can use the session.
        shared: Whether the server holds it shared.
        grants: How often it may still be handed on.
        until: When the turn ends, on the monotonic clock.
    """

    __slots__ = ("grants", "holders", "home", "session", "shared", "until")

    def __init__(self, session: Session, home: Any, *, shared: bool, grants: int, until: float) -> None:
        self.session = session
        self.home = home
        self.shared = shared
        self.grants = grants
        self.until = until
        self.holders = 0

    def takes(self, ticket: Ticket) -> bool:
        """Tell whether this ticket may hold it without a word to the server."""
        return (
            self.grants > 0
            and self.shared is ticket.shared
            and self.home is ticket.home
            and not ticket.alone
            and time.monotonic() < self.until
            and self.session.alive()
        )

    def take(self, ticket: Ticket) -> None:
        """Let a ticket hold it."""
        self.holders += 1
        self.grants -= 1
        ticket.hold = self
        ticket.session = self.session
        ticket.state = State.HELD
        ticket.entry.holders.append(ticket)


class Ticket:
    """One acquisition: who asks for what, and what came of it.

    Args:
        key: The user's key, for messages.
        context: Where the asker waits.
        shared: Whether he shares with others who do.
        once: Whether he tries only once.
        home: The part of this process whose sessions he can use.
        alone: Whether he must get the lock from the server itself.
        loop: The event loop that his driver needs.
    """

    __slots__ = (
        "alone",
        "entry",
        "hold",
        "home",
        "key",
        "latch",
        "lent",
        "loop",
        "once",
        "owner",
        "pid",
        "polite",
        "session",
        "shared",
        "state",
        "thread",
        "token",
        "told",
    )

    def __init__(
        self,
        key: object,
        context: Context,
        *,
        shared: bool,
        once: bool,
        home: Any = None,
        alone: bool = False,
        loop: AbstractEventLoop | None = None,
    ) -> None:
        self.key = key
        self.shared = shared
        self.once = once
        self.home = home
        self.alone = alone
        self.loop = loop
        self.told: WeakMethod[Callable[[], None]] | None = None
        """What is to be told of the loss of the lock, while it lives."""
        self.polite = False
        self.token: int | None = None
        self.lent: Any = None
        self.owner: object = context.owner()
        # A blocking wait stops every task of its thread, so it must know who lives there.
        self.thread: threading.Thread | None = threading.current_thread()
        self.pid = os.getpid()
        self.state = State.GONE
        self.entry: Entry
        self.latch: Latch | None = None
        self.session: Session | None = None
        self.hold: Hold | None = None

    def disown(self) -> None:
        """Forget the owner: somebody else will release."""
        self.owner = self.thread = None


class Entry:
    """One key in this process."""

    __slots__ = ("ending", "head", "holders", "name", "queue", "server_waits", "turn_over")

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.head: Ticket | None = None
        self.holders: list[Ticket] = []
        self.queue: deque[Ticket] = deque()
        self.ending = 0
        self.server_waits = False
        self.turn_over = False

    def admits(self, ticket: Ticket) -> bool:
        """Tell whether this ticket may go to the server now."""
        if self.head is not None or self.ending:
            return False
        return not self.holders or (ticket.shared and self.holders[0].shared)
