"""The bookkeeping against a model: any order of asking, answers, leaving, loss and closing.

The model says for each ticket where it must stand; the invariants say what must hold whatever the
model says. Persons neither block nor share a thread here; for these see `test_state.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dlock_core import DeadlockError
from dlock_core.coordination.state import Entries, State, Ticket
from dlock_core.dialects.base import Session

from .people import Clock, Person, hang_up, session, woken

KEYS = "xyz"
HERE, ELSEWHERE = ("ann", "ben", "cid", "dan", "eva"), ("fay", "gus")
PENDING = (State.QUEUED, State.ASKING)
ANY = st.integers(0, 10**6)
TURN_SECONDS = 20
LATE = 20


class Wish(NamedTuple):
    """What a waiter may ask for."""

    key: str
    shared: bool
    once: bool
    alone: bool


class Step(NamedTuple):
    """What chance decides about one step; each kind of step looks at some of it."""

    kind: int
    number: int
    seconds: int
    wish: Wish


WISHES = st.sampled_from(
    [  # one key mostly for writers, one mostly for readers, so that many can take over from one another
        Wish(key, shared, once, alone)
        for key, shared in [*[("x", False)] * 4, ("x", True), *[("y", True)] * 4, ("y", False), ("z", False)]
        for once in (False, False, False, True)
        for alone in (False, False, False, False, False, not shared)
    ]
)
STEPS = st.builds(
    Step,
    kind=ANY,
    number=ANY,
    seconds=st.sampled_from((1, 9, TURN_SECONDS)),
    wish=WISHES,
)


@dataclass(eq=False)
class Turn:
    """How often and how long one lock at the server may go from hand to hand."""

    session: Session
    policy: str
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
        return within and not one.alone and (one.person.policy, one.shared) == (turn.policy, turn.shared)

    def enter(self, one: Asked, turn: Turn) -> None:
        one.state, one.turn, one.waits_at_server = State.HELD, turn, False
        self.entered += 1
        one.came_in = self.entered

    def take_over(self, one: Asked, turn: Turn) -> None:
        """Hold what another has or had; one that cannot hear it spends a grant in vain."""
        turn.left -= 1
        if one.person.gone:
            one.state = State.GONE
        else:
            self.enter(one, turn)

    def turn_to_join(self, one: Asked) -> Turn | None:
        """Return the turn of the one that came in last, if a reader that comes now may join it."""
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
        """Tell whether one must not be at the server now, whatever queues."""
        busy = self.at(State.ASKING, State.ENDING, key=one.key)
        return bool(busy) or any(one.excludes(holder) for holder in self.at(State.HELD, key=one.key))

    def settle(self, key: str) -> None:
        """Send the first of the queue when it may go; one that cannot hear it any more is gone."""
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
        """Return the owners whose release one needs: of all that exclude it, or of the one in front of it."""
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

    @initialize(turn_grants=st.sampled_from((3, 2, 1, 3, 2, 0)))
    def begin(self, turn_grants: int) -> None:
        self.entries = Entries(turn_grants=turn_grants, turn_seconds=TURN_SECONDS)
        self.model = Model(turn_grants)
        self.people = [*map(Person, HERE), *(Person(name, policy="elsewhere") for name in ELSEWHERE)]
        self.sessions: list[Session] = [session() for _ in range(3)]
        self.answered: dict[int, float] = {}
        self.noted: set[Ticket] = set()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("dlock_core.coordination.state.time", self.model.clock)

    def teardown(self) -> None:
        self.patch.undo()

    # Selection.

    def pick(self, step: Step, *states: State) -> Asked:
        found = self.model.at(*states)
        chosen = found[step.number % len(found)]
        note(repr(chosen))
        return chosen

    def idle(self) -> list[Person]:
        busy = {one.person for one in self.model.at(*PENDING)}
        return [person for person in self.people if person not in busy]

    # One rule, since hypothesis would choose among many without weights, and switch off some for long.

    @rule(step=STEPS)
    def go_on(self, step: Step) -> None:
        at = self.model.at
        weights = {
            self.ask: 10 if self.idle() else 0,
            self.grant: 8 if at(State.ASKING) else 0,
            self.refuse: 2 if any(not one.once for one in at(State.ASKING)) else 0,
            self.release: 6 if at(State.HELD) else 0,
            self.unlocked: 6 if at(State.ENDING) else 0,
            self.leave: 2 if at(*PENDING) else 0,
            self.disown: 1 if at(State.HELD) else 0,
            self.come_too_late: 1 if at(State.HELD, State.ENDING, State.LOST, State.GONE) else 0,
            self.time_passes: 1 if at(State.HELD) else 0,
            self.hang_up: 1 if at(State.HELD) else 0,
            self.lose: 1 if all(policy.alive() for policy in self.sessions) else 6,
            self.close_a_loop: 1 if at(State.QUEUED) else 0,
            self.close: 1 if len(self.model.all) > LATE and not self.model.closed else 0,
        }
        possible = [kind for kind, weight in weights.items() for _ in range(weight)]
        if possible:
            chosen = possible[step.kind % len(possible)]
            note(chosen.__name__)
            chosen(step)

    # What persons do.

    def ask(self, step: Step) -> None:
        idle = self.idle()
        person, key, shared, once, alone = idle[step.number % len(idle)], *step.wish
        ticket = person.ticket(key, shared=shared, once=once, alone=alone)
        one = Asked(ticket, person, key, shared, once, alone)
        note(repr(one))
        if self.model.closed:
            assert not self.entries.ask(ticket)
            return
        own = any(holder.owner is person for holder in self.model.at(State.HELD, key=key))
        joined = None if own else self.model.turn_to_join(one)
        in_front = self.model.at(State.QUEUED, key=key)
        sent = not own and not in_front and not self.model.keep_apart(one)
        if joined is not None:
            assert self.entries.ask(ticket)
            self.model.take_over(one, joined)
        elif not once and (own or (not sent and self.model.circle(one))):
            with pytest.raises(DeadlockError):
                self.entries.ask(ticket)
        elif once and (own or (not sent and self.model.single_try_is_hopeless(one))):
            assert not self.entries.ask(ticket)
        else:
            assert self.entries.ask(ticket)
            one.state = State.ASKING if sent else State.QUEUED
        self.model.all.append(one)

    def release(self, step: Step) -> None:
        one = self.pick(step, State.HELD)
        self.model.release(one)
        assert self.entries.release(one.ticket) is one.state

    def disown(self, step: Step) -> None:
        one = self.pick(step, State.HELD)
        one.ticket.disown()
        one.owner = None

    def leave(self, step: Step) -> None:
        """A timeout, a cancel, or the server's final no."""
        one = self.pick(step, *PENDING)
        before = one.state
        assert self.entries.leave(one.ticket) is before
        one.state = State.GONE
        self.model.settle(one.key)

    def come_too_late(self, step: Step) -> None:
        """Leaving, grants and answers that find the ticket elsewhere change nothing."""
        one = self.pick(step, State.HELD, State.ENDING, State.LOST, State.GONE)
        before = one.state
        assert self.entries.leave(one.ticket) is before
        assert not self.entries.granted(one.ticket, self.sessions[0])
        assert not self.entries.waiting(one.ticket)
        if before is not State.HELD:
            assert self.entries.release(one.ticket) is (State.LOST if before is State.LOST else State.GONE)
        if before is not State.ENDING:
            self.entries.ended(one.ticket)

    # What the server answers.

    def grant(self, step: Step) -> None:
        one, policy = self.pick(step, State.ASKING), self.sessions[step.kind % len(self.sessions)]
        if self.model.closed:
            assert not self.entries.granted(one.ticket, policy)
            return
        assert self.entries.granted(one.ticket, policy)
        ends = self.model.clock.now + TURN_SECONDS
        turn = Turn(policy, one.person.policy, one.shared, self.model.turn_grants, ends, dead=not policy.alive())
        self.model.grant(one, turn)
        self.answered[id(one.ticket.hold)] = self.model.clock.now
        self.noted.add(one.ticket)

    def refuse(self, step: Step) -> None:
        """The single try is refused: one that may wait begins to."""
        patient = [one for one in self.model.at(State.ASKING) if not one.once]
        one = patient[step.number % len(patient)]
        assert self.entries.waiting(one.ticket)
        one.waits_at_server = True
        self.model.answer_single_tries(one.key, server_said_no=True)

    def unlocked(self, step: Step) -> None:
        one = self.pick(step, State.ENDING)
        self.entries.ended(one.ticket)
        one.state = State.GONE
        self.model.settle(one.key)

    # What passes and what breaks.

    def time_passes(self, step: Step) -> None:
        self.model.clock.now += step.seconds

    def hang_up(self, step: Step) -> None:
        """The server ends a session that holds something, and nothing has noticed yet."""
        turn = self.pick(step, State.HELD).turn
        assert turn is not None
        hang_up(turn.session)
        for one in self.model.all:
            if one.turn is not None and one.turn.session is turn.session:
                one.turn.dead = True

    def lose(self, step: Step) -> None:
        """Another notices, or our own side ends a session; another takes its place."""
        number = step.number % len(self.sessions)
        lost = [one for one in self.model.at(State.HELD) if one.ticket.session is self.sessions[number]]
        assert set(self.entries.lose(self.sessions[number])) == {(one.ticket, None) for one in lost}
        for one in lost:
            one.state = State.LOST
        for key in KEYS:
            self.model.settle(key)
        self.sessions[number] = session()

    def close_a_loop(self, step: Step) -> None:
        """The event loop of one that queues is closed: it can hear nothing any more."""
        person = self.pick(step, State.QUEUED).person
        person.gone = True
        if person in self.people:
            self.people[self.people.index(person)] = Person(person.name, policy=person.policy)

    def close(self, step: Step) -> None:
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
        self.all_stand_where_the_model_says()
        self.a_key_is_held_by_one_or_by_readers_only()
        self.one_at_most_is_at_the_server()
        self.no_waiter_overtakes()
        self.nothing_sleeps_that_could_go()
        self.a_single_try_waits_for_an_answer_on_its_way_only()
        self.one_that_leaves_the_queue_is_woken_once_and_no_other_is()
        self.a_key_is_known_while_another_wants_or_holds_it()
        self.exactly_those_that_queue_are_awaited()
        self.no_waits_form_a_circle()
        self.the_list_of_held_locks_is_right()
        self.a_turn_is_kept_within_its_bounds()
        self.nothing_is_granted_from_memory_too_late_or_on_a_dead_session()

    def all_stand_where_the_model_says(self) -> None:
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

    def no_waiter_overtakes(self) -> None:
        for key in KEYS:
            entry = self.entries._entries.get(key)
            queued = [one.ticket for one in self.seen(State.QUEUED, key=key)]
            assert list(entry.queue if entry else ()) == queued
            pending = self.seen(*PENDING, key=key)
            assert not pending or pending[0].ticket.state is State.ASKING or not self.seen(State.ASKING, key=key)

    def nothing_sleeps_that_could_go(self) -> None:
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

    def one_that_leaves_the_queue_is_woken_once_and_no_other_is(self) -> None:
        for one in self.model.all:
            if one.ticket.latch is not None:
                still_queued = one.ticket.state is State.QUEUED
                assert woken(one.ticket) <= (0 if still_queued else 1)
                assert still_queued or one.ticket.state is State.GONE or woken(one.ticket) == 1

    def a_key_is_known_while_another_wants_or_holds_it(self) -> None:
        wanted = {one.key for one in self.seen(*PENDING, State.HELD, State.ENDING)}
        assert self.entries._entries.keys() == wanted

    def exactly_those_that_queue_are_awaited(self) -> None:
        assert self.entries._awaited.keys() == {one.person.identity for one in self.seen(State.QUEUED)}

    def no_waits_form_a_circle(self) -> None:
        assert not self.model.circle()

    def the_list_of_held_locks_is_right(self) -> None:
        assert set(self.entries.held()) == {one.ticket for one in self.seen(State.HELD)}

    def a_turn_is_kept_within_its_bounds(self) -> None:
        """So many hands in one policy, never those of one that must ask the server itself; all on one session."""
        hands = Counter(id(one.ticket.hold) for one in self.model.all if one.ticket.hold is not None)
        assert all(count <= self.model.turn_grants + 1 for count in hands.values())
        for one in self.model.all:
            hold, turn = one.ticket.hold, one.turn
            if hold is None or turn is None:
                continue
            assert (cast("str", hold.policy), hold.shared) == (one.person.policy, one.shared)
            assert hold.session is one.ticket.session is turn.session
            assert not one.alone or one.came_in == min(o.came_in for o in self.model.all if o.turn is turn)

    def nothing_is_granted_from_memory_too_late_or_on_a_dead_session(self) -> None:
        """Those that hold now and did not a step ago, and that the server did not answer."""
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
    max_examples=4 * settings().max_examples, stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow]
)
