"""The bookkeeping against a model: any order of asking, answers, leaving, loss and closing.

The model says for each ticket where it must stand; the invariants say what must hold whatever the
model says. Persons neither block nor share a thread here; for these see `test_entries.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dlock_core import DeadlockError
from dlock_core.dialects.base import Session
from dlock_core.entries import Entries
from dlock_core.tickets import State, Ticket

from .people import Clock, Person, hang_up, session, woken

KEYS = "xyz"
PEOPLE = (
    *(Person(name) for name in ("ann", "ben", "cid", "dan")),
    *(Person(name, home="elsewhere") for name in ("eva", "fay")),
)
PENDING = (State.QUEUED, State.ASKING)
ANY = st.integers(0, 10**6)
TURN_SECONDS = 20


@dataclass(eq=False)
class Turn:
    """How often and how long one lock at the server may go from hand to hand."""

    session: Session
    home: str
    shared: bool
    left: int
    ends: float
    dead: bool = False


@dataclass(eq=False)
class Asked:
    """One acquisition as the model sees it."""

    ticket: Ticket
    person: Person
    key: str
    shared: bool
    once: bool
    alone: bool
    state: State = State.GONE
    waits_at_server: bool = False
    turn: Turn | None = None
    came_in: int = 0
    owner: Person | None = field(init=False)

    def __post_init__(self) -> None:
        self.owner = self.person

    def __repr__(self) -> str:
        kind = f"{' shared' * self.shared}{' once' * self.once}{' alone' * self.alone}"
        return f"{self.person}:{self.key}{kind} {self.state.name}"

    def excludes(self, other: Asked) -> bool:
        return not (self.shared and other.shared)


class Model:
    """What must come of it: one list of all acquisitions, in the order of asking."""

    def __init__(self, turn_grants: int) -> None:
        self.all: list[Asked] = []
        self.closed = False
        self.turn_grants = turn_grants
        self.clock = Clock()
        self.entered = 0

    def at(self, *states: State, key: str | None = None) -> list[Asked]:
        return [one for one in self.all if one.state in states and key in (None, one.key)]

    def may_take_over(self, one: Asked, turn: Turn) -> bool:
        """Tell whether one may hold what another has or had, without asking the server."""
        within = turn.left > 0 and self.clock.now < turn.ends and not turn.dead
        return within and not one.alone and (one.person.home, one.shared) == (turn.home, turn.shared)

    def enter(self, one: Asked, turn: Turn) -> None:
        one.state, one.turn, one.waits_at_server = State.HELD, turn, False
        self.entered += 1
        one.came_in = self.entered

    def take_over(self, one: Asked, turn: Turn) -> None:
        """Hold what another has or had; one who cannot hear it spends a grant in vain."""
        turn.left -= 1
        if one.person.gone:
            one.state = State.GONE
        else:
            self.enter(one, turn)

    def turn_to_join(self, one: Asked) -> Turn | None:
        """Return the turn of whoever came in last, if a reader who comes now may join him."""
        holders = self.at(State.HELD, key=one.key)
        if not one.shared or not holders or self.at(State.QUEUED, key=one.key):
            return None
        turn = max(holders, key=lambda holder: holder.came_in).turn
        assert turn is not None
        return turn if self.may_take_over(one, turn) else None

    def let_queue_join(self, key: str, turn: Turn) -> None:
        for one in self.at(State.QUEUED, key=key):
            if not turn.shared or not self.may_take_over(one, turn):
                return
            self.take_over(one, turn)

    def grant(self, one: Asked, turn: Turn) -> None:
        self.enter(one, turn)
        self.let_queue_join(one.key, turn)
        self.answer_single_tries(one.key, server_said_no=False)
        self.settle(one.key)

    def release(self, one: Asked) -> None:
        turn, one.state = one.turn, State.GONE
        assert turn is not None
        if any(holder.turn is turn for holder in self.at(State.HELD, key=one.key)):
            return
        for first in self.at(State.QUEUED, key=one.key):
            if not self.may_take_over(first, turn):
                break
            self.take_over(first, turn)
            if first.state is State.HELD:
                self.let_queue_join(one.key, turn)
                self.answer_single_tries(one.key, server_said_no=False)
                return
        one.state = State.ENDING

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
    """Persons ask, the server answers, time passes, things break."""

    @initialize(turn_grants=st.sampled_from((3, 0, 1, 2)))
    def begin(self, turn_grants: int) -> None:
        self.entries = Entries(turn_grants=turn_grants, turn_seconds=TURN_SECONDS)
        self.model = Model(turn_grants)
        self.sessions: list[Session] = [session() for _ in range(3)]
        self.answered: dict[int, float] = {}
        self.noted: set[Ticket] = set()
        self.patch = pytest.MonkeyPatch()
        for module in ("entries", "tickets"):
            self.patch.setattr(f"dlock_core.{module}.time", self.model.clock)
        for person in PEOPLE:
            person.gone = False

    def teardown(self) -> None:
        self.patch.undo()

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
    @rule(
        who=ANY,
        key=st.sampled_from("xxxyyz"),
        shared=st.booleans(),
        once=st.sampled_from((False, False, True)),
        alone=st.sampled_from((False, False, False, True)),
    )
    def ask(self, who: int, key: str, shared: bool, once: bool, alone: bool) -> None:
        idle = self.idle()
        person = idle[who % len(idle)]
        ticket = person.ticket(key, shared=shared, once=once, alone=alone)
        one = Asked(ticket, person, key, shared, once, alone)
        note(repr(one))
        if self.model.closed:
            assert not self.entries.ask(key, ticket, person)
            return
        own = any(holder.owner is person for holder in self.model.at(State.HELD, key=key))
        joined = None if own else self.model.turn_to_join(one)
        in_front = self.model.at(State.QUEUED, key=key)
        sent = not own and not in_front and not self.model.keep_apart(one)
        if joined is not None:
            assert self.entries.ask(key, ticket, person)
            self.model.take_over(one, joined)
        elif not once and (own or (not sent and self.model.circle(one))):
            with pytest.raises(DeadlockError):
                self.entries.ask(key, ticket, person)
        elif once and (own or (not sent and self.model.single_try_is_hopeless(one))):
            assert not self.entries.ask(key, ticket, person)
        else:
            assert self.entries.ask(key, ticket, person)
            one.state = State.ASKING if sent else State.QUEUED
        self.model.all.append(one)

    @precondition(lambda self: bool(self.model.at(State.HELD)))
    @rule(number=ANY)
    def release(self, number: int) -> None:
        one = self.pick(number, State.HELD)
        self.model.release(one)
        assert self.entries.release(one.ticket) is one.state

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
        before = one.state
        assert self.entries.leave(one.ticket) is before
        one.state = State.GONE
        self.model.settle(one.key)

    @precondition(lambda self: bool(self.model.at(State.HELD, State.ENDING, State.LOST, State.GONE)))
    @rule(number=ANY)
    def come_too_late(self, number: int) -> None:
        """Leaving, grants and answers that find the ticket elsewhere change nothing."""
        one = self.pick(number, State.HELD, State.ENDING, State.LOST, State.GONE)
        before = one.state
        assert self.entries.leave(one.ticket) is before
        assert not self.entries.granted(one.ticket, self.sessions[0])
        assert not self.entries.waiting(one.ticket)
        if before in (State.LOST, State.GONE):
            assert self.entries.release(one.ticket) is before
        if before is not State.ENDING:
            self.entries.ended(one.ticket)

    # What the server answers.

    @precondition(lambda self: bool(self.model.at(State.ASKING)))
    @rule(number=ANY, where=st.integers(0, 2))
    def grant(self, number: int, where: int) -> None:
        one, lender = self.pick(number, State.ASKING), self.sessions[where]
        if self.model.closed:
            assert not self.entries.granted(one.ticket, lender)
            return
        assert self.entries.granted(one.ticket, lender)
        ends = self.model.clock.now + TURN_SECONDS
        turn = Turn(lender, one.person.home, one.shared, self.model.turn_grants, ends, dead=not lender.alive())
        self.model.grant(one, turn)
        self.answered[id(one.ticket.hold)] = self.model.clock.now
        self.noted.add(one.ticket)

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

    # What passes and what breaks.

    @rule(seconds=st.sampled_from((1, 9, 19, TURN_SECONDS)))
    def time_passes(self, seconds: int) -> None:
        self.model.clock.now += seconds

    @rule(where=st.integers(0, 2))
    def hang_up(self, where: int) -> None:
        """The server ends a session, and nobody has noticed yet."""
        hang_up(self.sessions[where])
        for one in self.model.all:
            if one.turn is not None and one.turn.session is self.sessions[where]:
                one.turn.dead = True

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
        self.a_turn_is_kept_within_its_bounds()
        self.nothing_is_granted_from_memory_too_late_or_on_a_dead_session()

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

    def a_turn_is_kept_within_its_bounds(self) -> None:
        """So many hands in one home, never those of who must ask the server himself; all on one session."""
        hands = Counter(id(one.ticket.hold) for one in self.model.all if one.ticket.hold is not None)
        assert all(count <= self.model.turn_grants + 1 for count in hands.values())
        for one in self.model.all:
            hold, turn = one.ticket.hold, one.turn
            if hold is None or turn is None:
                continue
            assert (hold.home, hold.shared) == (one.person.home, one.shared)
            assert hold.session is one.ticket.session is turn.session
            assert not one.alone or one.came_in == min(o.came_in for o in self.model.all if o.turn is turn)

    def nothing_is_granted_from_memory_too_late_or_on_a_dead_session(self) -> None:
        """Whoever holds now and did not a step ago, and whom the server did not answer."""
        for ticket in self.entries.held():
            if ticket not in self.noted:
                assert ticket.hold is not None
                assert self.model.clock.now - self.answered[id(ticket.hold)] < TURN_SECONDS
                assert ticket.hold.session.alive()
                self.noted.add(ticket)

    def seen(self, *states: State, key: str | None = None) -> list[Asked]:
        """Return what stands there in fact, in the order of asking."""
        return [one for one in self.model.all if one.ticket.state in states and key in (None, one.key)]


TestEntriesAgainstTheModel = EntriesMachine.TestCase
TestEntriesAgainstTheModel.settings = settings(
    max_examples=500, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
