"""Defects that the core once had, or could have, put back by a change of its source: the simulator must find each.

An edit whose old text is not there once is an error, so that the table follows the core.
"""

from __future__ import annotations

from typing import NamedTuple

from .core import Edit

__all__ = ["MUTANTS", "SEEN", "Mutant"]

LOCK, STATE, POLICY = "lock.py", "coordination/state.py", "coordination/policy.py"
COORDINATOR, EVENTS, MAIN = "coordination/coordinator.py", "coordination/events.py", "coordination/main_thread.py"
CONTEXTS, WORKERS = "coordination/contexts.py", "sessions/workers.py"
SESSION, WATCH, WAITS, POOL = "sessions/session.py", "sessions/watch.py", "sessions/timeouts.py", "sessions/pool.py"


class Mutant(NamedTuple):
    """One defect: what it is, how to make it, and whether only a switch between two lines shows it."""

    what: str
    edits: tuple[Edit, ...]
    lines: bool = False


def _mutant(what: str, *edits: tuple[str, str, str], lines: bool = False) -> Mutant:
    return Mutant(what, tuple(Edit(*edit) for edit in edits), lines)


_WATCH_AGAIN = (
    SESSION,
    "            if watch is not None:\n                wait =",
    "            if watch is not None:\n                watch.add(self)\n                wait =",
)

MUTANTS: dict[str, Mutant] = {
    "A1": _mutant(
        "the watch lets go of a session during a wait without a timeout",
        _WATCH_AGAIN,
        (
            WATCH,
            "        if session.ended:\n",
            "        if session.ended or not (session.locks or session.due < inf):\n",
        ),
    ),
    "A2": _mutant(
        "the watch lets go of a session between the answer and the count of its locks",
        _WATCH_AGAIN,
        (
            WATCH,
            "        if session.ended:\n",
            "        if session.ended or not (session.locks or session.due < inf or session.waits()):\n",
        ),
        lines=True,
    ),
    "B1": _mutant(
        "the main thread, where signals arrive, does the work of its locks itself",
        (
            LOCK,
            "        if not in_main_thread():\n            return self._acquire(BLOCKING, seconds)\n",
            "        if True:\n            return self._acquire(BLOCKING, seconds)\n",
        ),
        (
            LOCK,
            "        if in_main_thread():\n            ticket = self._ticket\n",
            "        if False:\n            ticket = self._ticket\n",
        ),
    ),
    "B3": _mutant(
        "a task that gets no thread for the unlock leaves the lock",
        (
            CONTEXTS,
            "        except LockConnectionError:\n            return function(*args, **kwargs)  # the loop",
            "        except LockConnectionError:\n            raise  # the loop",
        ),
    ),
    "B4": _mutant(
        "a watch whose thread could not be started once never runs",
        (
            WATCH,
            "        try:\n            thread.start()\n",
            "        self._thread = thread\n        try:\n            thread.start()\n",
        ),
        (WATCH, "if self._thread is None or not self._thread.is_alive():", "if self._thread is None:"),
    ),
    "C2": _mutant(
        "close() during acquire() forgets the ticket",
        (
            LOCK,
            "        if ticket is None or (ticket.state in PENDING and self._call_off(ticket)) or ticket.state not in GRANTED:\n            return\n",
            "        if ticket is None or ticket.state not in GRANTED:\n            self._ticket = None\n            return\n",
        ),
    ),
    "D1": _mutant(
        "an error about one key ends the session of all",
        (
            POLICY,
            "            if answered(error):\n                self._release",
            "            if False:\n                self._release",
        ),
    ),
    "D4": _mutant(
        "a wait that is called off costs its owner all other locks",
        (
            WAITS,
            "self._cancel(session, session.kill_statement if self._kills else session.cancel_statement)",
            "session.hang_up()",
        ),
    ),
    "D5": _mutant(
        "a release ends its owner's session of now, not the lock's",
        (
            POLICY,
            "place, ticket.place = ticket.place, None\n        if place is not None:\n            self._leave(place, reusable=reusable)",
            "place, ticket.place = self._owned.get(ticket.asker) or ticket.place, None\n        if place is not None:\n            self._leave(place, reusable=reusable)",
        ),
    ),
    "D6": _mutant(
        "a late cancel hits the next statement of the session",
        (
            WAITS,
            "        with self._cancelling:\n            if self._is_of",
            "        if True:\n            if self._is_of",
        ),
    ),
    "E1": _mutant(
        "who was granted a lock stays in the line for spare sessions",
        (POLICY, "            if granted:  # or called away", "            if False:  # or called away"),
    ),
    "E4": _mutant(
        "a try on a spare session that ends in an error keeps the session",
        (
            POLICY,
            "        try:\n            granted = self._ask(place, ticket, waits=False)\n        finally:\n            if not granted:\n                self.settle(ticket, reusable=True)\n        return granted\n",
            "        granted = self._ask(place, ticket, waits=False)\n        if not granted:\n            self.settle(ticket, reusable=True)\n        return granted\n",
        ),
        (
            COORDINATOR,
            "            if not (granted or ticket.again) and self.entries.leave(ticket) is not State.HELD:\n",
            "            if not (granted or ticket.again) and self.entries.leave(ticket) is not State.HELD and sys.exc_info()[0] is None:\n",
        ),
    ),
    "F2": _mutant(
        "a lock whose object is garbage still has its owner",
        (LOCK, "        ticket.disown()  # its owner may ask for the key at once\n", ""),
    ),
    "F2-signal": _mutant(
        "what a signal interrupted still has its owner", (MAIN, "                self._disown()\n", "")
    ),
    "F4": _mutant(
        "a release that ends in an error tells no listener",
        (
            COORDINATOR,
            "            self.entries.ended(ticket)\n            self.listeners.ended(ticket, lost=gone)\n",
            "            self.entries.ended(ticket)\n",
        ),
        (
            COORDINATOR,
            '        if not intact:\n            raise lost(ticket.key, "the server says',
            '        self.listeners.ended(ticket, lost=gone)\n        if not intact:\n            raise lost(ticket.key, "the server says',
        ),
    ),
    "grant-on-dead-session": _mutant(
        "a grant counts on a session that has ended meanwhile",
        (STATE, "or self._closed or session.ended:", "or self._closed:"),
    ),
    "grant-to-nobody": _mutant(
        "a grant counts for an asker that has left",
        (
            STATE,
            "if ticket.state is not State.ASKING or self._closed or session.ended:",
            "if self._closed or session.ended:",
        ),
    ),
    "hand-on-dead-session": _mutant(
        "a lock is handed on without a proof of life",
        (STATE, " and self.policy is ticket.policy and self.session.alive()\n", " and self.policy is ticket.policy\n"),
    ),
    "loss-wakes-nobody": _mutant(
        "a loss does not send the next one",
        (
            STATE,
            "                ticket.entry.holders.remove(ticket)\n                self._advance(ticket.entry)\n            return lost",
            "                ticket.entry.holders.remove(ticket)\n            return lost",
        ),
    ),
    "leaver-wakes-nobody": _mutant(
        "an asker that leaves does not send the next one",
        (
            STATE,
            "            ticket.withdrawn = withdrawn\n            self._advance(ticket.entry)\n",
            "            ticket.withdrawn = withdrawn\n",
        ),
    ),
    "tries-wait": _mutant(
        "single tries wait for an asker that waits",
        (
            STATE,
            "            ticket.entry.server_waits = True\n            self._refuse_single_tries(ticket.entry)\n",
            "",
        ),
    ),
    "doubt-kept": _mutant(
        "a session whose unlock failed is not ended",
        (
            POLICY,
            "        except BaseException:\n            self.pool.end(session)\n            raise\n        finally:\n            self.settle(ticket, reusable=intact)\n",
            "        finally:\n            self.settle(ticket, reusable=True)\n",
        ),
    ),
    "unwanted-grant": _mutant(
        "a grant whose asker has left is not given back",
        (
            POLICY,
            "                del place.held[request.name]\n                self._release(session, ticket)\n",
            "                del place.held[request.name]\n",
        ),
    ),
    "no-deadline": _mutant(
        "no statement has a deadline", (SESSION, "self.due = sent - watch.frozen + wait + patience", "self.due = inf")
    ),
    "no-heartbeat": _mutant(
        "an idle session is never asked for a sign of life", (WATCH, "silent = session.locks and", "silent = False and")
    ),
    "lease-believed": _mutant(
        "a lock is held though its lease is over",
        (
            LOCK,
            "if ticket.state is State.HELD and ticket.session is not None and ticket.session.expired():",
            "if False:",
        ),
    ),
    "signal-keeps": _mutant(
        "an acquisition that a signal interrupted is not undone",
        (LOCK, "        if call.succeeded:\n            self._exit(BLOCKING, None)\n", ""),
    ),
    "granted-meanwhile": _mutant(
        "a lock that was granted to an asker that was called away is kept",
        (
            COORDINATOR,
            "        if before in (State.HELD, State.PASSED):\n            before = self.entries.release(ticket)\n",
            "",
        ),
    ),
    "loss-untold": _mutant(
        "on_lost is not called",
        (COORDINATOR, "            self._losses.put(lock._call_on_lost)", "            pass"),
    ),
    "end-told-twice": _mutant(
        "listeners hear of an end again",
        (EVENTS, "self.holds.pop(ticket, (0.0, ()))", "self.holds.get(ticket, (0.0, ()))"),
    ),
    "mode-mixed-up": _mutant(
        "a lock is handed on to one that wants it in another mode",
        (STATE, "return self.shared is ticket.shared and ", "return "),
    ),
    "opened-after-close": _mutant(
        "a session that opens while its provider closes lives on",
        (
            POOL,
            "            if not self._closed:\n                self._all.add",
            "            if True:\n                self._all.add",
        ),
    ),
    "own-name-again": _mutant(
        "a session is asked for a lock that it holds",
        (
            POLICY,
            "(self.session is not None and self.session.ended) or ticket.request.name in self.held",
            "(self.session is not None and self.session.ended)",
        ),
        (
            POLICY,
            "if request.name in place.held or (session is not None and session.ended):",
            "if session is not None and session.ended:",
        ),
    ),
    "never-settled": _mutant(
        "a refused asker keeps its session",
        (COORDINATOR, "                ticket.policy.settle(ticket, reusable=reusable)\n", "                pass\n"),
    ),
    "no-cycles": _mutant(
        "a circle of waiters is not refused",
        (STATE, "            elif not ticket.once and self._needs(ticket, ticket.owner):", "            elif False:"),
    ),
    "place-leaked": _mutant(
        "a lost lock whose object is garbage keeps its place",
        (
            LOCK,
            "            reaper.put(partial(ticket.policy.settle, ticket, reusable=True))  # its place among the sessions\n            return\n",
            "            return\n",
        ),
    ),
    "stuck-jobs": _mutant(
        "jobs that found no thread wait for the next acquisition",
        (COORDINATOR, "        self._start_stuck()\n        if self._naming", "        if self._naming"),
    ),
    "owner-read-twice": _mutant(
        "an owner that is disowned meanwhile has its place noted under another name",
        (
            POLICY,
            "                if owner is not None:\n                    self._owned[owner] = place\n",
            "                if owner is not None:\n                    self._owned[ticket.owner] = place\n",
        ),
        lines=True,
    ),
    "cancelled-opening": _mutant(
        "a session that opens for a cancelled task is forgotten",
        (
            WORKERS,
            "        task.add_done_callback(lambda done: _hand_over(done, otherwise))\n        raise\n",
            "        raise\n",
        ),
    ),
    "cancelled-wait": _mutant(
        "the wait of a cancelled task goes on",
        (
            CONTEXTS,
            "    background(greenlet_spawn(_insist, stop, task.done, lambda seconds: await_only(over(task, seconds))))\n",
            "",
        ),
    ),
    "task-unwoken": _mutant(
        "another thread wakes a task without its loop",
        (CONTEXTS, "            self._loop.call_soon_threadsafe(self._resolve)\n", "            self._resolve()\n"),
    ),
    "child-keeps-books": _mutant(
        "a forked child goes on with the books of its parent",
        (
            COORDINATOR,
            "something of its parent's\")\n        self._start()\n",
            "something of its parent's\")\n",
        ),
    ),
    "child-ends-sessions": _mutant(
        "a forked child ends the sessions of its parent",
        (POOL, "            session.park()\n", "            session.end()\n"),
        (
            SESSION,
            "        if self._pid != os.getpid():\n            self.park()",
            "        if False:\n            self.park()",
        ),
    ),
    "child-holds": _mutant(
        "a forked child takes its parent's locks for its own",
        (
            LOCK,
            "if ticket is None or ticket.pid != os.getpid():\n            return State.GONE",
            "if ticket is None:\n            return State.GONE",
        ),
    ),
    "child-releases": _mutant(
        "a forked child releases the locks of its parent",
        (
            COORDINATOR,
            "        if ticket.pid != os.getpid():\n            return  # a forked",
            "        if False:\n            return  # a forked",
        ),
    ),
    "lost-wake": _mutant(
        "the release of a shared hold forgets one holder",
        (
            STATE,
            "            self._drop(entry, hold, ticket)\n            ticket.state = State.GONE\n",
            "            self._drop(entry, hold, ticket)\n            hold.holders = 0\n            ticket.state = State.GONE\n",
        ),
    ),
    "again-too-late": _mutant(
        "one whose time is over does not put the lock back",
        (POLICY, "            if late:\n                self._release(session, ticket)\n", ""),
    ),
    "again-kept": _mutant(
        "a lock is waited for anew without being put back",
        (POLICY, "label=label, again=again\n", "label=label\n"),
    ),
    "again-forgotten": _mutant(
        "whoever puts a lock back asks even if it holds it no more",
        (
            POLICY,
            "                if not self._entries.put_back(ticket):\n",
            "                if not self._entries.put_back(ticket) and False:\n",
        ),
    ),
}

SEEN = {
    "B3": 4884,
    "D6": 5092,
    "E1": 3579,
    "F2-signal": 5266,
    "again-forgotten": 15815,
    "again-too-late": 2517,
    "cancelled-wait": 1430,
    "doubt-kept": 2726,
    "grant-on-dead-session": 7963,
    "hand-on-dead-session": 3289,
    "no-cycles": 1597,
    "no-deadline": 4564,
    "own-name-again": 467,
    "owner-read-twice": 530,
    "stuck-jobs": 1854,
}
"""Seeds that showed a rare defect the last time, to be tried first."""
