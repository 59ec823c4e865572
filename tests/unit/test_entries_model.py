"""The bookkeeping against a model: any order of asking, answers, leaving, loss and closing.

The model says for each ticket where it must stand; the invariants say what must hold whatever the
model says. Persons neither block nor share a thread here; for these see `test_entries.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dlock_core import DeadlockError
from dlock_core.entries import Entries
from dlock_core.tickets import State, Ticket

from .people import Person, session, woken

if TYPE_CHECKING:
    from dlock_core.dialects.base import Session

KEYS = "xyz"
PEOPLE = tuple(Person(name) for name in ("ann", "ben", "cid", "dan", "eva"))
PENDING = (State.QUEUED, State.ASKING)
ANY = st.integers(0, 10**6)


@dataclass(eq=False)
class Asked:
    """One acquisition as the model sees it."""

    ticket: Ticket
    person: Person
    key: str
    shared: bool
    once: bool
    state: State = State.GONE
    waits_at_server: bool = False
    owner: Person | None = field(init=False)

    def __post_init__(self) -> None:
        self.owner = self.person

    def __repr__(self) -> str:
        return f"{self.person}:{self.key}{' shared' * self.shared}{' once' * self.once} {self.state.name}"

    def excludes(self, other: Asked) -> bool:
        return not (self.shared and other.shared)


class Model:
    """What must come of it: one list of all acquisitions, in the order of asking."""

    def __init__(self) -> None:
        self.all: list[Asked] = []
        self.closed = False

    def at(self, *states: State, key: str | None = None) -> list[Asked]:
        return [one for one in self.all if one.state in states and key in (None, one.key)]

    def keep_apart(self, one: Asked) -> bool:
        """Tell whether one must not be at the server now, whoever queues."""
        busy = self.at(State.ASKING, State.ENDING, key=one.key)
        return bool(busy) or any(one.excludes(holder) for holder in self.at(State.HELD, key=one.key))

    def settle(self, key: str) -> None:
        """Send the first of the queue when he may go; who cannot hear it any more is gone."""
        for front in self.at(State.QUEUED, key=key):
            if self.keep_apart(front):
                return
            front.state = State.GONE if front.person.gone else State.ASKING

    def answer_single_tries(self, key: str, *, server_said_no: bool) -> None:
        """Refuse each queued try that would have to wait: for the server, a holder, or one in front."""
        in_front = self.at(State.HELD, key=key)
        for one in self.at(State.QUEUED, key=key):
            if not one.once:
                in_front.append(one)
            elif server_said_no or any(one.excludes(other) for other in in_front):
                one.state = State.GONE

    def single_try_is_hopeless(self, one: Asked) -> bool:
        holders = self.at(State.HELD, key=one.key)
        in_front = holders + (self.at(State.QUEUED, key=one.key) if holders else [])
        server_said_no = any(head.waits_at_server for head in self.at(State.ASKING, key=one.key))
        return server_said_no or any(one.excludes(other) for other in in_front)

    def waits_for(self, one: Asked) -> set[Person]:
        """Return the owners whose release one needs: of all that exclude him, or one in front of him."""
        line = [*self.at(State.QUEUED, key=one.key)]
        line = [other for other in (line[: line.index(one) + 1] if one in line else [*line, one]) if not other.once]
        return {
            holder.owner
            for holder in self.at(State.HELD, key=one.key)
            if holder.owner is not None and any(holder.excludes(other) for other in line)
        }

    def circle(self, extra: Asked | None = None) -> bool:
        """Tell whether some wait, with one more, could never end."""
        waits = [one for one in self.at(State.QUEUED) if not one.once] + ([extra] if extra else [])
        graph = {one.person: self.waits_for(one) for one in waits}
        while graph:
            ends = [person for person, others in graph.items() if not others & graph.keys()]
            if not ends:
                return True
            for person in ends:
                del graph[person]
        return False


class EntriesMachine(RuleBasedStateMachine):
    """Persons ask, the server answers, things break."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = Entries()
        self.model = Model()
        self.sessions: list[Session] = [session() for _ in range(3)]
        for person in PEOPLE:
            person.gone = False

    # Selection.

    def pick(self, number: int, *states: State) -> Asked:
        found = self.model.at(*states)
        chosen = found[number % len(found)]
        note(repr(chosen))
        return chosen

    def idle(self) -> list[Person]:
        busy = {one.person for one in self.model.at(*PENDING)}
        return [person for person in PEOPLE if person not in busy and not person.gone]

    # What persons do.

    @precondition(lambda self: bool(self.idle()))
    @rule(who=ANY, key=st.sampled_from("xxxyyz"), shared=st.booleans(), once=st.booleans())
    def ask(self, who: int, key: str, shared: bool, once: bool) -> None:
        idle = self.idle()
        person = idle[who % len(idle)]
        one = Asked(person.ticket(key, shared=shared, once=once), person, key, shared, once)
        note(repr(one))
        if self.model.closed:
            assert not self.entries.ask(key, one.ticket, person)
            return
        own = any(holder.owner is person for holder in self.model.at(State.HELD, key=key))
        in_front = self.model.at(State.QUEUED, key=key)
        sent = not own and not in_front and not self.model.keep_apart(one)
        if not once and (own or (not sent and self.model.circle(one))):
            with pytest.raises(DeadlockError):
                self.entries.ask(key, one.ticket, person)
        elif once and (own or (not sent and self.model.single_try_is_hopeless(one))):
            assert not self.entries.ask(key, one.ticket, person)
        else:
            assert self.entries.ask(key, one.ticket, person)
            one.state = State.ASKING if sent else State.QUEUED
        self.model.all.append(one)

    @precondition(lambda self: bool(self.model.at(State.HELD)))
    @rule(number=ANY)
    def release(self, number: int) -> None:
        one = self.pick(number, State.HELD)
        assert self.entries.release(one.ticket)
        one.state = State.ENDING

    @precondition(lambda self: bool(self.model.at(State.HELD)))
    @rule(number=ANY)
    def disown(self, number: int) -> None:
        one = self.pick(number, State.HELD)
        one.ticket.disown()
        one.owner = None

    @precondition(lambda self: bool(self.model.at(*PENDING)))
    @rule(number=ANY)
    def leave(self, number: int) -> None:
        """A timeout, a cancel, or the server's final no."""
        one = self.pick(number, *PENDING)
        assert self.entries.leave(one.ticket) is one.state
        one.state = State.GONE
        self.model.settle(one.key)

    @precondition(lambda self: bool(self.model.at(State.HELD, State.ENDING, State.LOST, State.GONE)))
    @rule(number=ANY)
    def come_too_late(self, number: int) -> None:
        """Leaving, grants and answers that find the ticket elsewhere change nothing."""
        one = self.pick(number, State.HELD, State.ENDING, State.LOST, State.GONE)
        assert self.entries.leave(one.ticket) is one.state
        assert not self.entries.granted(one.ticket, self.sessions[0])
        assert not self.entries.waiting(one.ticket)
        if one.state is not State.HELD:
            assert not self.entries.release(one.ticket)
        if one.state is not State.ENDING:
            self.entries.ended(one.ticket)

    # What the server answers.

    @precondition(lambda self: bool(self.model.at(State.ASKING)))
    @rule(number=ANY, where=st.integers(0, 2))
    def grant(self, number: int, where: int) -> None:
        one = self.pick(number, State.ASKING)
        if self.model.closed:
            assert not self.entries.granted(one.ticket, self.sessions[where])
            return
        assert self.entries.granted(one.ticket, self.sessions[where])
        one.state = State.HELD
        one.waits_at_server = False
        self.model.answer_single_tries(one.key, server_said_no=False)
        self.model.settle(one.key)

    @precondition(lambda self: any(not one.once for one in self.model.at(State.ASKING)))
    @rule(number=ANY)
    def refuse(self, number: int) -> None:
        """The single try is refused: who may wait begins to."""
        patient = [one for one in self.model.at(State.ASKING) if not one.once]
        one = patient[number % len(patient)]
        assert self.entries.waiting(one.ticket)
        one.waits_at_server = True
        self.model.answer_single_tries(one.key, server_said_no=True)

    @precondition(lambda self: bool(self.model.at(State.ENDING)))
    @rule(number=ANY)
    def unlocked(self, number: int) -> None:
        one = self.pick(number, State.ENDING)
        self.entries.ended(one.ticket)
        one.state = State.GONE
        self.model.settle(one.key)

    # What breaks.

    @rule(where=st.integers(0, 2))
    def lose(self, where: int) -> None:
        dead = self.sessions[where]
        lost = [one for one in self.model.at(State.HELD) if one.ticket.session is dead]
        assert set(self.entries.lose(dead)) == {one.ticket for one in lost}
        for one in lost:
            one.state = State.LOST
        for key in KEYS:
            self.model.settle(key)
        self.sessions[where] = session()

    @precondition(lambda self: bool(self.model.at(State.QUEUED)))
    @rule(number=ANY)
    def close_a_loop(self, number: int) -> None:
        """The event loop of one who queues is closed: he can hear nothing any more."""
        self.pick(number, State.QUEUED).person.gone = True

    @precondition(lambda self: len(self.model.all) > 4)
    @rule()
    def close(self) -> None:
        held = self.model.at(State.HELD)
        assert set(self.entries.close()) == {one.ticket for one in held}
        for one in held:
            one.state = State.LOST
        for one in self.model.at(State.QUEUED):
            one.state = State.GONE
        self.model.closed = True

    # What must hold after each step: one invariant, so that a failed example stays readable.

    @invariant()
    def all_is_well(self) -> None:
        self.everybody_stands_where_the_model_says()
        self.a_key_is_held_by_one_or_by_readers_only()
        self.one_at_most_is_at_the_server()
        self.nobody_overtakes()
        self.nobody_sleeps_who_could_go()
        self.a_single_try_waits_for_an_answer_on_its_way_only()
        self.who_leaves_the_queue_is_woken_once_and_nobody_else_is()
        self.a_key_is_known_while_somebody_wants_or_holds_it()
        self.exactly_those_who_queue_are_awaited()
        self.no_waits_form_a_circle()
        self.the_list_of_held_locks_is_right()

    def everybody_stands_where_the_model_says(self) -> None:
        for one in self.model.all:
            assert one.ticket.state is one.state, f"{one}: in fact {one.ticket.state.name}"

    def a_key_is_held_by_one_or_by_readers_only(self) -> None:
        for key in KEYS:
            holders = self.seen(State.HELD, State.ENDING, key=key)
            assert len(holders) < 2 or all(one.shared for one in holders)

    def one_at_most_is_at_the_server(self) -> None:
        for key in KEYS:
            heads = self.seen(State.ASKING, key=key)
            assert len(heads) < 2
            entry = self.entries._entries.get(key)
            assert (entry.head if entry else None) is (heads[0].ticket if heads else None)

    def nobody_overtakes(self) -> None:
        for key in KEYS:
            entry = self.entries._entries.get(key)
            queued = [one.ticket for one in self.seen(State.QUEUED, key=key)]
            assert list(entry.queue if entry else ()) == queued
            pending = self.seen(*PENDING, key=key)
            assert not pending or pending[0].ticket.state is State.ASKING or not self.seen(State.ASKING, key=key)

    def nobody_sleeps_who_could_go(self) -> None:
        for key in KEYS:
            queued = self.seen(State.QUEUED, key=key)
            busy = self.seen(State.ASKING, State.ENDING, key=key)
            if queued and not busy:
                assert any(queued[0].excludes(holder) for holder in self.seen(State.HELD, key=key))

    def a_single_try_waits_for_an_answer_on_its_way_only(self) -> None:
        for one in self.seen(State.QUEUED):
            if one.once:
                heads = self.seen(State.ASKING, key=one.key)
                assert self.seen(State.ENDING, key=one.key) or heads
                assert not any(head.waits_at_server for head in heads)

    def who_leaves_the_queue_is_woken_once_and_nobody_else_is(self) -> None:
        for one in self.model.all:
            if one.ticket.latch is not None:
                still_queued = one.ticket.state is State.QUEUED
                assert woken(one.ticket) <= (0 if still_queued else 1)
                assert still_queued or one.ticket.state is State.GONE or woken(one.ticket) == 1

    def a_key_is_known_while_somebody_wants_or_holds_it(self) -> None:
        wanted = {one.key for one in self.seen(*PENDING, State.HELD, State.ENDING)}
        assert self.entries._entries.keys() == wanted

    def exactly_those_who_queue_are_awaited(self) -> None:
        assert self.entries._awaited.keys() == {one.person.identity for one in self.seen(State.QUEUED)}

    def no_waits_form_a_circle(self) -> None:
        assert not self.model.circle()

    def the_list_of_held_locks_is_right(self) -> None:
        assert set(self.entries.held()) == {one.ticket for one in self.seen(State.HELD)}

    def seen(self, *states: State, key: str | None = None) -> list[Asked]:
        """Return what stands there in fact, in the order of asking."""
        return [one for one in self.model.all if one.ticket.state in states and key in (None, one.key)]


TestEntriesAgainstTheModel = EntriesMachine.TestCase
TestEntriesAgainstTheModel.settings = settings(
    max_examples=500, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
