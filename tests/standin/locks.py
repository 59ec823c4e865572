"""A table of locks with modes, as the documentation of sp_getapplock and of DBMS_LOCK describes it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import Enum, auto

__all__ = ["APPLOCK", "DBMS_LOCK", "Client", "LockTable", "Outcome"]


def _matrix(modes: str, *rows: str) -> dict[str, frozenset[str]]:
    """Read a matrix: for each mode that is held, those that others may take."""
    names = modes.split()
    found = {}
    for row in rows:
        held, *answers = row.split()
        found[held] = frozenset(name for name, answer in zip(names, answers, strict=True) if answer == "yes")
    return found


APPLOCK = _matrix(
    "IntentShared Shared Update IntentExclusive Exclusive",
    "IntentShared    yes yes yes yes no",
    "Shared          yes yes yes no  no",
    "Update          yes yes no  no  no",
    "IntentExclusive yes no  no  yes no",
    "Exclusive       no  no  no  no  no",
)
DBMS_LOCK = _matrix(
    "NL SS SX S SSX X",
    "NL  yes yes yes yes yes yes",
    "SS  yes yes yes yes yes no",
    "SX  yes yes yes no  no  no",
    "S   yes yes no  yes no  no",
    "SSX yes yes no  no  no  no",
    "X   yes no  no  no  no  no",
)


class Outcome(Enum):
    """What came of a request."""

    AT_ONCE = auto()
    AFTER_WAIT = auto()
    TIMEOUT = auto()
    CANCELLED = auto()
    DEADLOCK = auto()


@dataclass(eq=False)
class Client:
    """A session, as the table knows it."""

    number: int
    cut: bool = False
    cancelled: bool = False
    waits: bool = False


@dataclass
class _Hold:
    mode: str
    owner: str


@dataclass(eq=False)
class _Request:
    client: Client
    name: object
    mode: str


@dataclass
class LockTable:
    """What each client holds, and what it queues for."""

    matrix: dict[str, frozenset[str]]
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    queue: list[_Request] = field(default_factory=list)
    _holds: dict[object, dict[Client, list[_Hold]]] = field(default_factory=dict)

    def request(
        self, client: Client, name: object, mode: str, timeout: float | None, owner: str = "Session"
    ) -> Outcome:
        """Ask for a lock; what the session holds already does not hinder it."""
        with self.changed:
            request = _Request(client, name, mode)
            if client.cut:  # its question was on the way when its client hung up
                return Outcome.CANCELLED
            if self._free(request):
                return self._grant(request, owner, Outcome.AT_ONCE)
            if timeout == 0:
                return Outcome.TIMEOUT
            self.queue.append(request)
            client.waits = True
            try:
                return self._wait(request, timeout, owner)
            finally:
                client.waits = False
                self.queue.remove(request)
                self.changed.notify_all()

    def _wait(self, request: _Request, timeout: float | None, owner: str) -> Outcome:
        client = request.client
        if client in self._blockers(client):
            return Outcome.DEADLOCK
        came = self.changed.wait_for(lambda: client.cut or client.cancelled or self._free(request), timeout)
        if client.cut or client.cancelled:
            return Outcome.CANCELLED
        return self._grant(request, owner, Outcome.AFTER_WAIT) if came else Outcome.TIMEOUT

    def _grant(self, request: _Request, owner: str, outcome: Outcome) -> Outcome:
        holds = self._holds.setdefault(request.name, {}).setdefault(request.client, [])
        holds.append(_Hold(request.mode, owner))
        return outcome

    def _free(self, request: _Request) -> bool:
        return not self._in_the_way(request)

    def _in_the_way(self, request: _Request) -> set[Client]:
        """Return the holders that exclude it, and those that came earlier, unless the session holds the lock."""
        holders = self._holds.get(request.name, {})
        found = {
            client
            for client, holds in holders.items()
            if client is not request.client and any(request.mode not in self.matrix[hold.mode] for hold in holds)
        }
        if request.client not in holders:
            for earlier in self.queue:
                if earlier is request:
                    break
                if earlier.name == request.name:
                    found.add(earlier.client)
        return found

    def _blockers(self, client: Client) -> set[Client]:
        found: set[Client] = set()
        unvisited = [client]
        while unvisited:
            waiter = unvisited.pop()
            for request in [each for each in self.queue if each.client is waiter]:
                new = self._in_the_way(request) - found
                found |= new
                unvisited += new
        return found

    def modes(self, client: Client, name: object, owner: str | None = None) -> list[str]:
        """Return the modes that a session holds, in the order of taking."""
        with self.changed:
            holds = self._holds.get(name, {}).get(client, [])
            return [hold.mode for hold in holds if owner in (None, hold.owner)]

    def release(self, client: Client, name: object, owner: str = "Session") -> bool:
        """Undo the last grant; False when there is none."""
        with self.changed:
            holds = self._holds.get(name, {}).get(client, [])
            for index in reversed(range(len(holds))):
                if holds[index].owner == owner:
                    del holds[index]
                    self._tidy()
                    return True
            return False

    def convert(self, client: Client, name: object, mode: str, timeout: float | None) -> Outcome:
        """Exchange the mode that a session holds for another."""
        with self.changed:
            (hold,) = self._holds[name][client]
            outcome = self.request(client, name, mode, timeout, hold.owner)
            if outcome in (Outcome.AT_ONCE, Outcome.AFTER_WAIT):
                self._holds[name][client].remove(hold)
                self.changed.notify_all()
            return outcome

    def end(self, client: Client, owner: str | None = None) -> None:
        """Free all that a session, or only its transaction, holds; None is the end of the session."""
        with self.changed:
            client.cut = client.cut or owner is None
            for holders in self._holds.values():
                kept = [hold for hold in holders.get(client, []) if owner not in (None, hold.owner)]
                holders[client] = kept
            self._tidy()

    def _tidy(self) -> None:
        for name, holders in list(self._holds.items()):
            for client in [client for client, holds in holders.items() if not holds]:
                del holders[client]
            if not holders:
                del self._holds[name]
        self.changed.notify_all()

    def holders(self) -> list[Client]:
        """Return the holder of each lock, several times if it holds several."""
        with self.changed:
            return [client for holders in self._holds.values() for client in holders]

    def cancel(self, client: Client) -> None:
        """End a wait of a session."""
        with self.changed:
            client.cancelled = True
            self.changed.notify_all()
