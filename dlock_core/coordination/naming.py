"""Readable keys on PostgreSQL, which shows a number for a lock: those that are held for long are named.

The watch does it, off the path of the locks. A session that holds one lock shows its key in `application_name`: a
statement in the line of the heartbeats. Where there is a table `dlock_names`, which `dlock init` makes, all keys are
written there, on a session that holds nothing: no lock depends on that.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import greenlet_spawn

from ..dialects.failures import first_line
from ..dialects.postgresql import ASK_FOR_TABLE, DROP_OLD_NAMES, LIMIT_WAIT, SHOW_KEY, WRITE_NAMES
from ..keys import dump_key, label
from ..sessions.workers import background
from .state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..sessions.pool import SessionPool
    from ..sessions.workers import Workers
    from .state import Entries, Ticket

__all__ = ["Naming"]

log = logging.getLogger("dlock")

# A lock that is held for so many seconds is named.
LONG = 1.0
# How often it is asked at most whether there is a table, how often one is written to, and how long that may take, in
# seconds.
ASK_AGAIN, WRITE_AGAIN, WRITE_LASTS = 60.0, 3.0, 15.0
# A holder writes its name again after an hour; the table keeps it for a day.
HOUR = 3600.0
# How many names are written at a time, and how many are known to be written.
BATCH, WRITTEN = 500, 10_000
# How long a write waits for a lock on the table, in milliseconds, and for a session, in seconds.
PATIENCE, SESSION_SECONDS = "1000", 10.0


class Naming:
    """Names the locks of one provider.

    Args:
        entries: All locks of this process.
        workers: Threads to write in.
        prefix: The provider's.
        shown: Makes what a session shows of a key.
    """

    def __init__(self, entries: Entries, workers: Workers, prefix: str, shown: Callable[[str], str]) -> None:
        self._entries = entries
        self._workers = workers
        self._prefix = prefix
        self._shown = shown
        self._has_table = False
        self._ask_at = self._write_at = 0.0
        self._written: OrderedDict[Any, float] = OrderedDict()

    def round(self) -> None:
        """Look once for locks without a name; the watch calls it."""
        sessions: dict[int, list[Ticket]] = {}
        for ticket in self._entries.held_since(time.monotonic() - LONG):
            sessions.setdefault(id(ticket.session), []).append(ticket)
        for tickets in sessions.values():
            self._show(tickets)
        if self._has_table and time.monotonic() >= self._write_at:
            self._write([ticket for tickets in sessions.values() for ticket in tickets])

    def _show(self, tickets: Sequence[Ticket]) -> None:
        """Let a session show its only key; the answer also tells whether there is a table."""
        session: Any = tickets[0].session
        key: Any = tickets[0].key
        now = time.monotonic()
        alone = session.locks == 1 and not session.shows_key
        if not alone and now < self._ask_at:
            return

        def ask() -> None:
            if alone:
                # Before the look: a release that begins now hides the key again, one that has begun is seen.
                session.shows_key = True
                if not any(ticket.state is State.HELD for ticket in tickets):
                    return
                row = session.first(SHOW_KEY, label=self._shown(label(self._prefix, key)))
            else:
                row = session.first(ASK_FOR_TABLE)
            self._has_table = bool(row[0])
            self._ask_at = now + ASK_AGAIN

        session.beat(ask)

    def _write(self, tickets: Sequence[Ticket]) -> None:
        now = time.monotonic()
        names: dict[Any, str] = {}
        for ticket in tickets:
            name = ticket.entry.name
            if now - self._written.get(name, -inf) > HOUR and len(names) < BATCH:
                names[name] = dump_key(self._prefix, ticket.key)
        if not names:
            return
        self._write_at = now + WRITE_LASTS
        write = partial(self._write_names, tickets[0].policy.pool, names)
        if tickets[0].loop is None:
            self._workers.submit(write)
        else:
            with suppress(RuntimeError):  # closed meanwhile
                tickets[0].loop.call_soon_threadsafe(lambda: background(greenlet_spawn(write)))

    def _write_names(self, pool: SessionPool, names: dict[Any, str]) -> None:
        session: Any = None
        sound = False
        try:
            session = pool.take(SESSION_SECONDS, within_limit=True)
            if session is not None:
                rows = json.dumps(sorted(names.items()))
                session.first(LIMIT_WAIT, milliseconds=PATIENCE)
                session.first(WRITE_NAMES, names=rows)
                session.first(DROP_OLD_NAMES)
                session.first(LIMIT_WAIT, milliseconds="0")
                sound = True
        except Exception as error:  # noqa: BLE001 - names are for people, and no lock depends on them
            log.debug("could not write the names of locks: %s", first_line(error))
            self._has_table = False
        finally:
            if session is not None:
                (pool.give if sound else pool.end)(session)
        self._write_at = time.monotonic() + WRITE_AGAIN
        if sound:
            self._written.update(dict.fromkeys(names, time.monotonic()))
            while len(self._written) > WRITTEN:
                self._written.popitem(last=False)
