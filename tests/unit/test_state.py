"""The bookkeeping of one process: what goes to the server, what queues, and what goes next."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from dlock_core import DeadlockError
from dlock_core.coordination.contexts import BLOCKING
from dlock_core.coordination.policy import Gate, Place, Policy
from dlock_core.coordination.state import Entries, Request, State, Ticket
from dlock_core.sessions.timeouts import Deadline

from .people import Clock, Person, hang_up, session, woken


@pytest.fixture
def entries() -> Entries:
    """The keys of one provider that hands no lock on in memory."""
    return Entries(turn_grants=0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still until the test moves it."""
    clock = Clock()
    monkeypatch.setattr("dlock_core.coordination.state.time", clock)
    return clock


@pytest.fixture
def handing(clock: Clock) -> Entries:
    """The keys of one provider, in whose turns a lock is handed on three times within 20 seconds."""
    return Entries(turn_grants=3, turn_seconds=20)


@pytest.fixture
def ann() -> Person:
    """A thread."""
    return Person("ann")


@pytest.fixture
def ben() -> Person:
    """A thread."""
    return Person("ben")


@pytest.fixture
def cid() -> Person:
    """A thread."""
    return Person("cid")


@pytest.fixture
def dan() -> Person:
    """A thread."""
    return Person("dan")


def free(entries: Entries, ticket: Ticket) -> None:
    """Release a ticket, and let the server answer."""
    assert entries.release(ticket) is State.ENDING
    entries.ended(ticket)


class TestQueue:
    """First come, first served, and one at the server."""

    def test_the_first_asker_of_a_key_goes_to_the_server_at_once(self, entries: Entries, ann: Person) -> None:
        """It needs no latch: nothing is in front of it."""
        ticket = ann.ask(entries, "k")
        assert ticket.state is State.ASKING
        assert ticket.latch is None

    def test_others_queue_while_one_is_at_the_server(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """They are neither sent nor woken, whatever they want."""
        ann.ask(entries, "k")
        queued = [ben.ask(entries, "k"), cid.ask(entries, "k", shared=True)]
        assert [ticket.state for ticket in queued] == [State.QUEUED, State.QUEUED]
        assert [woken(ticket) for ticket in queued] == [0, 0]

    def test_keys_do_not_concern_one_another(self, entries: Entries, ann: Person, ben: Person) -> None:
        """Another key is another queue."""
        ann.hold(entries, "k")
        assert ben.ask(entries, "other").state is State.ASKING

    def test_the_next_goes_to_the_server_only_when_the_unlock_is_answered(
        self, entries: Entries, ann: Person, ben: Person
    ) -> None:
        """Until then the server would refuse us our own lock."""
        held, queued = ann.hold(entries, "k"), ben.ask(entries, "k")
        assert entries.release(held) is State.ENDING
        assert (held.state, queued.state) == (State.ENDING, State.QUEUED)
        entries.ended(held)
        assert (held.state, queued.state) == (State.GONE, State.ASKING)
        assert woken(queued) == 1

    def test_the_queue_is_served_in_the_order_of_asking(
        self, entries: Entries, ann: Person, ben: Person, cid: Person, dan: Person
    ) -> None:
        """No waiter overtakes, and nothing is woken before its turn."""
        holder = ann.hold(entries, "k")
        queued = [person.ask(entries, "k") for person in (dan, ben, cid)]
        for turn, ticket in enumerate(queued):
            free(entries, holder)
            assert [woken(other) for other in queued] == [1] * (turn + 1) + [0] * (2 - turn)
            assert entries.granted(ticket, session())
            holder = ticket

    def test_one_that_gives_up_at_the_server_sends_the_next(self, entries: Entries, ann: Person, ben: Person) -> None:
        """A timeout at the server passes the turn on."""
        head, queued = ann.ask(entries, "k"), ben.ask(entries, "k")
        assert entries.waiting(head)
        assert entries.leave(head) is State.ASKING
        assert queued.state is State.ASKING
        assert woken(queued) == 1

    def test_one_that_leaves_the_queue_is_passed_over(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """A timeout in the queue leaves no gap in it."""
        holder, leaver, queued = ann.hold(entries, "k"), ben.ask(entries, "k"), cid.ask(entries, "k")
        assert entries.leave(leaver) is State.QUEUED
        free(entries, holder)
        assert (leaver.state, queued.state) == (State.GONE, State.ASKING)

    def test_one_whose_turn_comes_as_its_time_ends_passes_it_on(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """It was woken, but looks at the clock first: the wake-up must not be lost."""
        holder, late, queued = ann.hold(entries, "k"), ben.ask(entries, "k"), cid.ask(entries, "k")
        free(entries, holder)
        assert woken(late) == 1
        assert entries.leave(late) is State.ASKING
        assert queued.state is State.ASKING

    def test_an_asker_whose_loop_is_closed_is_passed_over(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """It can never go to the server, so the turn is the next one's."""
        holder, gone, queued = ann.hold(entries, "k"), ben.ask(entries, "k"), cid.ask(entries, "k")
        ben.gone = True
        free(entries, holder)
        assert (gone.state, queued.state) == (State.GONE, State.ASKING)

    def test_a_key_whose_last_asker_is_gone_with_its_loop_is_free(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """Nothing stays in its name."""
        holder, _ = ann.hold(entries, "k"), ben.ask(entries, "k")
        ben.gone = True
        free(entries, holder)
        assert entries._entries == {}
        assert cid.ask(entries, "k", once=True).state is State.ASKING

    def test_leaving_a_held_lock_changes_nothing(self, entries: Entries, ann: Person, ben: Person) -> None:
        """It must be released instead, and the caller learns it."""
        held, queued = ann.hold(entries, "k"), ben.ask(entries, "k")
        assert entries.leave(held) is State.HELD
        assert (held.state, queued.state) == (State.HELD, State.QUEUED)

    def test_a_grant_for_one_that_left_is_to_be_given_back(self, entries: Entries, ann: Person, ben: Person) -> None:
        """It does not hold, and the next one's turn is untouched."""
        left, queued = ann.ask(entries, "k"), ben.ask(entries, "k")
        entries.leave(left)
        assert not entries.granted(left, session())
        assert not entries.waiting(left)
        assert (left.state, queued.state) == (State.GONE, State.ASKING)
        assert entries.held() == []

    def test_a_key_that_is_not_wanted_leaves_no_trace(self, entries: Entries, ann: Person, ben: Person) -> None:
        """However the last one left: a million keys must not fill the memory."""
        free(entries, ann.hold(entries, "released"))
        entries.leave(ann.ask(entries, "refused"))
        held = ann.hold(entries, "lost")
        assert held.session is not None
        entries.lose(held.session)
        held, queued = ann.hold(entries, "queued"), ben.ask(entries, "queued")
        entries.leave(queued)
        free(entries, held)
        assert entries._entries == {}
        assert entries._awaited == {}


class TestReaders:
    """Shared locks."""

    def test_readers_join_a_shared_hold(self, entries: Entries, ann: Person, ben: Person) -> None:
        """The server decides whether they may: a writer of another process may wait there."""
        ann.hold(entries, "k", shared=True)
        reader = ben.ask(entries, "k", shared=True)
        assert reader.state is State.ASKING
        assert entries.granted(reader, session())
        assert len(entries.held()) == 2

    def test_readers_queue_behind_a_writer_that_waits(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """Or a stream of readers would keep it out indefinitely."""
        ann.hold(entries, "k", shared=True)
        ben.ask(entries, "k")
        assert cid.ask(entries, "k", shared=True).state is State.QUEUED

    def test_readers_go_on_when_the_writer_in_front_leaves(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """What kept them back is gone, though the holder still holds."""
        ann.hold(entries, "k", shared=True)
        writer, reader = ben.ask(entries, "k"), cid.ask(entries, "k", shared=True)
        entries.leave(writer)
        assert reader.state is State.ASKING
        assert woken(reader) == 1

    def test_queued_readers_are_sent_as_soon_as_the_one_in_front_is_in(
        self, entries: Entries, ann: Person, ben: Person, cid: Person, dan: Person
    ) -> None:
        """One at the server at a time, up to the next writer."""
        holder = ann.hold(entries, "k")
        first, second, writer = (
            ben.ask(entries, "k", shared=True),
            cid.ask(entries, "k", shared=True),
            dan.ask(entries, "k"),
        )
        free(entries, holder)
        assert (first.state, second.state) == (State.ASKING, State.QUEUED)
        assert entries.granted(first, session())
        assert second.state is State.ASKING
        assert entries.granted(second, session())
        assert writer.state is State.QUEUED

    def test_a_writer_waits_for_the_last_reader(self, entries: Entries, ann: Person, ben: Person, cid: Person) -> None:
        """Not only for the one that was there first."""
        readers = [person.hold(entries, "k", shared=True) for person in (ann, ben)]
        writer = cid.ask(entries, "k")
        free(entries, readers[0])
        assert (writer.state, woken(writer)) == (State.QUEUED, 0)
        free(entries, readers[1])
        assert writer.state is State.ASKING

    def test_a_reader_that_unlocks_lets_no_one_join_meanwhile(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """Two statements for one key at one time could be answered in either order."""
        leaving, _ = ann.hold(entries, "k", shared=True), ben.hold(entries, "k", shared=True)
        entries.release(leaving)
        reader = cid.ask(entries, "k", shared=True)
        assert (reader.state, woken(reader)) == (State.QUEUED, 0)
        entries.ended(leaving)
        assert reader.state is State.ASKING


class TestTurn:
    """A lock goes from hand to hand in this process, without a word to the server, for a while."""

    def test_a_released_lock_goes_to_the_next_at_once(self, handing: Entries, ann: Person, ben: Person) -> None:
        """On the same session; one that released has nothing more to do."""
        held, queued = ann.hold(handing, "k"), ben.ask(handing, "k")
        assert handing.release(held) is State.GONE
        assert (queued.state, woken(queued)) == (State.HELD, 1)
        assert queued.session is held.session
        assert handing.held() == [queued]

    def test_no_waiter_overtakes_in_a_turn(
        self, handing: Entries, ann: Person, ben: Person, cid: Person, dan: Person
    ) -> None:
        """The queue is served in the order of asking, and nothing is woken before its turn."""
        holder = ann.hold(handing, "k")
        queued = [person.ask(handing, "k") for person in (dan, ben, cid)]
        for turn, ticket in enumerate(queued):
            assert handing.release(holder) is State.GONE
            assert [woken(other) for other in queued] == [1] * (turn + 1) + [0] * (2 - turn)
            holder = ticket

    def test_without_a_queue_the_lock_goes_back_to_the_server(self, handing: Entries, ann: Person) -> None:
        """It is not kept for those that may come."""
        free(handing, ann.hold(handing, "k"))
        assert handing._entries == {}

    def test_a_turn_ends_after_so_many_hands(self, handing: Entries, ann: Person, ben: Person) -> None:
        """The server is asked again, so that other processes get theirs; then a new turn begins."""
        for _ in range(2):
            holder = ann.hold(handing, "k")
            for person in (ben, ann, ben):
                queued = person.ask(handing, "k")
                assert handing.release(holder) is State.GONE
                holder = queued
            queued = ann.ask(handing, "k")
            assert handing.release(holder) is State.ENDING
            handing.ended(holder)
            assert queued.state is State.ASKING
            handing.leave(queued)

    @pytest.mark.parametrize(("seconds", "state"), [(19.999, State.GONE), (20, State.ENDING)])
    def test_a_turn_ends_after_so_much_time_since_the_server_s_answer(
        self, handing: Entries, clock: Clock, ann: Person, ben: Person, seconds: float, state: State
    ) -> None:
        """A hand-over does not prolong it."""
        holder = ann.hold(handing, "k")
        clock.now += 10
        queued = ben.ask(handing, "k")
        handing.release(holder)
        assert queued.state is State.HELD
        clock.now += seconds - 10
        ann.ask(handing, "k")
        assert handing.release(queued) is state

    def test_a_lock_on_a_session_that_died_is_not_handed_on(self, handing: Entries, ann: Person, ben: Person) -> None:
        """Though the loss is not reported yet: a stranger may hold it by now."""
        held, queued = ann.hold(handing, "k"), ben.ask(handing, "k")
        hang_up(held.session)
        assert handing.release(held) is State.ENDING
        assert woken(queued) == 0
        handing.ended(held)
        assert queued.state is State.ASKING

    def test_a_lock_is_handed_on_only_to_those_that_can_use_its_session(self, handing: Entries, ann: Person) -> None:
        """Another loop could not release it; the first of the queue is not passed over."""
        eva, ben = Person("eva", policy="elsewhere"), Person("ben")
        held, first, second = ann.hold(handing, "k"), eva.ask(handing, "k"), ben.ask(handing, "k")
        free(handing, held)
        assert (first.state, second.state) == (State.ASKING, State.QUEUED)

    def test_one_that_must_hear_it_from_the_server_is_not_handed_a_lock(
        self, handing: Entries, ann: Person, ben: Person
    ) -> None:
        """Its fencing token comes with the server's answer."""
        held, queued = ann.hold(handing, "k"), ben.ask(handing, "k", alone=True)
        free(handing, held)
        assert queued.state is State.ASKING

    def test_a_waiter_that_heard_it_from_the_server_hands_it_on(
        self, handing: Entries, ann: Person, ben: Person
    ) -> None:
        """The next wants no token."""
        held, queued = ann.hold(handing, "k", alone=True), ben.ask(handing, "k")
        assert handing.release(held) is State.GONE
        assert queued.state is State.HELD

    def test_a_writer_s_lock_is_not_handed_to_a_reader_nor_a_reader_s_to_a_writer(
        self, handing: Entries, ann: Person, ben: Person
    ) -> None:
        """The server holds it as the one that asked wanted it."""
        for shared in (False, True):
            held, queued = ann.hold(handing, "k", shared=shared), ben.ask(handing, "k", shared=not shared)
            free(handing, held)
            assert queued.state is State.ASKING
            handing.leave(queued)

    def test_one_whose_loop_is_closed_is_passed_over_in_a_turn(
        self, handing: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """Otherwise it would keep the lock indefinitely."""
        held, gone, queued = ann.hold(handing, "k"), ben.ask(handing, "k"), cid.ask(handing, "k")
        ben.gone = True
        assert handing.release(held) is State.GONE
        assert (gone.state, queued.state) == (State.GONE, State.HELD)
        assert handing.held() == [queued]

    def test_when_only_closed_loops_queue_the_lock_goes_back(self, handing: Entries, ann: Person, ben: Person) -> None:
        """And nothing stays behind."""
        held, _ = ann.hold(handing, "k"), ben.ask(handing, "k")
        ben.gone = True
        free(handing, held)
        assert (handing._entries, handing._awaited) == ({}, {})

    def test_one_that_is_handed_the_lock_as_its_time_ends_holds_it(
        self, handing: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """It learns that it got the lock, and hands it on in its turn when it does not want it."""
        held, late, queued = ann.hold(handing, "k"), ben.ask(handing, "k"), cid.ask(handing, "k")
        handing.release(held)
        assert handing.leave(late) is State.HELD
        assert handing.release(late) is State.GONE
        assert queued.state is State.HELD

    def test_queued_tries_come_in_with_the_reader_in_front_or_fail(
        self, handing: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """A reader's joins it; a writer's would have to wait."""
        held, first = ann.ask(handing, "k", shared=True), ben.ask(handing, "k", shared=True, once=True)
        single = cid.ask(handing, "k", once=True)
        handing.granted(held, session())
        assert (first.state, single.state) == (State.HELD, State.GONE)

    def test_a_handed_on_lock_is_lost_with_its_session(
        self, handing: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """The one that has it now learns it; the next goes to the server."""
        held, holder, queued = ann.hold(handing, "k"), ben.ask(handing, "k"), cid.ask(handing, "k")
        handing.release(held)
        assert held.session is not None
        assert handing.lose(held.session) == [(holder, None)]
        assert handing.release(holder) is State.LOST
        assert queued.state is State.ASKING

    def test_a_circle_is_seen_through_a_handed_on_lock(
        self, handing: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """The owner is the one that has it now."""
        held, _ = ann.hold(handing, "x"), ben.ask(handing, "x")
        handing.release(held)
        cid.hold(handing, "y")
        cid.ask(handing, "x")
        with pytest.raises(DeadlockError):
            ben.ask(handing, "y")

    def test_no_grants_means_no_turn(self, clock: Clock, ann: Person, ben: Person) -> None:
        """Each asker goes to the server, readers too."""
        entries = Entries(turn_grants=0, turn_seconds=20)
        held, queued = ann.hold(entries, "k"), ben.ask(entries, "k")
        free(entries, held)
        assert queued.state is State.ASKING
        ann.hold(entries, "other", shared=True)
        assert ben.ask(entries, "other", shared=True).state is State.ASKING

    def test_the_follower_of_a_turn_lets_others_in_first(
        self, handing: Entries, clock: Clock, ann: Person, ben: Person, cid: Person
    ) -> None:
        """Where the server does not queue, it pauses: the turn is over, and others poll."""
        held, first, second = ann.hold(handing, "k"), ben.ask(handing, "k"), cid.ask(handing, "k")
        clock.now += 20
        free(handing, held)
        assert not held.yields
        assert first.yields
        handing.leave(first)
        assert (second.state, second.yields) == (State.ASKING, False)


class TestAgain:
    """At the end of a turn the next one puts the lock back and waits for it anew, where its session may wait."""

    @pytest.fixture
    def held(self, handing: Entries, clock: Clock, ann: Person) -> Ticket:
        """A lock that one has waited for at the server, and whose turn is over."""
        held = ann.hold(handing, "k")
        assert held.hold is not None
        held.hold.place = Place(Gate(), spare=True)
        clock.now += 20
        return held

    def test_the_next_one_holds_the_lock_until_it_puts_it_back(
        self, handing: Entries, held: Ticket, ben: Person, cid: Person
    ) -> None:
        """From then on it asks, as any head that waits at the server."""
        queued, single = ben.ask(handing, "k"), cid.ticket("k", once=True)
        assert handing.release(held) is State.GONE
        assert (queued.state, queued.again, woken(queued)) == (State.PASSED, True, 1)
        assert handing.held() == []
        assert handing.put_back(queued)
        assert (queued.state, queued.again) == (State.ASKING, False)
        assert not handing.ask(single)
        assert handing.granted(queued, session())
        assert handing.held() == [queued]

    def test_one_that_leaves_before_it_has_put_it_back_unlocks(
        self, handing: Entries, held: Ticket, ben: Person, cid: Person
    ) -> None:
        """Or the next one of the queue puts it back in its stead."""
        first, second = ben.ask(handing, "k"), cid.ask(handing, "k")
        handing.release(held)
        assert handing.leave(first) is State.PASSED
        assert handing.release(first) is State.GONE
        assert not handing.put_back(first)
        assert second.again
        assert handing.release(second) is State.ENDING

    def test_one_that_is_called_off_does_not_wait_anew(self, handing: Entries, held: Ticket, ben: Person) -> None:
        """It finds that out itself, and releases what it has."""
        queued = ben.ask(handing, "k")
        handing.release(held)
        assert handing.leave(queued, withdrawn=True) is State.PASSED
        assert queued.withdrawn
        assert not handing.put_back(queued)
        assert handing.release(queued) is State.ENDING

    def test_one_that_cannot_wake_is_passed_over(
        self, handing: Entries, held: Ticket, ben: Person, cid: Person
    ) -> None:
        """Its event loop is closed."""
        first, second = ben.ask(handing, "k"), cid.ask(handing, "k")
        ben.gone = True
        assert handing.release(held) is State.GONE
        assert (first.state, second.state, second.again) == (State.GONE, State.PASSED, True)

    def test_one_whose_session_dies_first_has_lost_the_lock(self, handing: Entries, held: Ticket, ben: Person) -> None:
        """As any other to which it was handed on; nothing is put back."""
        queued = ben.ask(handing, "k")
        handing.release(held)
        assert held.session is not None
        assert [ticket for ticket, _ in handing.lose(held.session)] == [queued]
        assert not handing.put_back(queued)
        assert queued.state is State.LOST

    @pytest.mark.parametrize("why", ["dead", "mode", "session", "policy"])
    def test_else_the_lock_is_unlocked_first(self, handing: Entries, held: Ticket, ben: Person, why: str) -> None:
        """The session is dead, or not for a wait, or not for this waiter."""
        ben.policy = "elsewhere" if why == "policy" else ben.policy
        queued = ben.ask(handing, "k", shared=why == "mode")
        if why == "dead":
            hang_up(held.session)
        elif why == "session":
            assert held.place is None
            assert held.hold is not None
            held.hold.place = Place(Gate(), kept=True)
        assert handing.release(held) is State.ENDING
        assert queued.state is State.QUEUED


class TestReadersTurn:
    """Readers join a shared hold in memory, within its turn."""

    def test_a_reader_joins_the_readers_of_this_process(self, handing: Entries, ann: Person, ben: Person) -> None:
        """At once, on the same session; the last one out unlocks."""
        first, second = ann.hold(handing, "k", shared=True), ben.ask(handing, "k", shared=True)
        assert (second.state, second.latch) == (State.HELD, None)
        assert second.session is first.session
        assert handing.release(first) is State.GONE
        assert handing.release(second) is State.ENDING

    def test_a_reader_s_try_joins_too(self, handing: Entries, ann: Person, ben: Person) -> None:
        """It is an answer like another."""
        ann.hold(handing, "k", shared=True)
        assert ben.ask(handing, "k", shared=True, once=True).state is State.HELD

    def test_queued_readers_come_in_with_the_one_in_front(
        self, handing: Entries, ann: Person, ben: Person, cid: Person, dan: Person
    ) -> None:
        """Up to the first writer; nothing passes it."""
        head = ann.ask(handing, "k", shared=True)
        second, writer, third = (
            ben.ask(handing, "k", shared=True),
            cid.ask(handing, "k"),
            dan.ask(handing, "k", shared=True),
        )
        handing.granted(head, session())
        assert [ticket.state for ticket in (second, writer, third)] == [State.HELD, State.QUEUED, State.QUEUED]
        assert [woken(ticket) for ticket in (second, writer, third)] == [1, 0, 0]

    def test_a_reader_does_not_join_past_a_queued_writer(
        self, handing: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """Or it would never get in."""
        ann.hold(handing, "k", shared=True)
        ben.ask(handing, "k")
        assert cid.ask(handing, "k", shared=True).state is State.QUEUED

    def test_after_the_turn_a_reader_asks_the_server(
        self, handing: Entries, clock: Clock, ann: Person, ben: Person, cid: Person
    ) -> None:
        """A writer of another process may wait there, and goes first."""
        ann.hold(handing, "k", shared=True)
        clock.now += 20
        reader = ben.ask(handing, "k", shared=True)
        assert reader.state is State.ASKING
        handing.granted(reader, session())
        assert cid.ask(handing, "k", shared=True).session is reader.session

    def test_a_stream_of_readers_ends(self, handing: Entries, ann: Person, ben: Person) -> None:
        """However they overlap, another asks the server after so many."""
        holder = ann.hold(handing, "k", shared=True)
        joined = 0
        for person in (ben, ann) * 5:
            reader = person.ask(handing, "k", shared=True)
            if reader.state is State.ASKING:
                break
            joined += 1
            assert handing.release(holder) is State.GONE
            holder = reader
        assert joined == 3

    def test_a_reader_does_not_join_on_a_dead_session(self, handing: Entries, ann: Person, ben: Person) -> None:
        """The server is asked, by another."""
        held = ann.hold(handing, "k", shared=True)
        hang_up(held.session)
        assert ben.ask(handing, "k", shared=True).state is State.ASKING

    def test_a_reader_of_another_policy_asks_the_server(self, handing: Entries, ann: Person) -> None:
        """It cannot use that session."""
        ann.hold(handing, "k", shared=True)
        assert Person("eva", policy="elsewhere").ask(handing, "k", shared=True).state is State.ASKING

    def test_the_holder_does_not_join_itself(self, handing: Entries, ann: Person) -> None:
        """A lock is taken once, however it is shared."""
        ann.hold(handing, "k", shared=True)
        assert ann.ask(handing, "k", shared=True, once=True).state is State.GONE
        with pytest.raises(DeadlockError):
            ann.ask(handing, "k", shared=True)

    def test_readers_lose_their_lock_together(self, handing: Entries, ann: Person, ben: Person, cid: Person) -> None:
        """It is one lock at the server; the writer behind them is sent."""
        readers = [ann.hold(handing, "k", shared=True), ben.ask(handing, "k", shared=True)]
        writer = cid.ask(handing, "k")
        assert readers[0].session is not None
        assert handing.lose(readers[0].session) == [(reader, None) for reader in readers]
        assert [handing.release(reader) for reader in readers] == [State.LOST, State.LOST]
        assert writer.state is State.ASKING

    def test_readers_of_two_sessions_unlock_each_their_own(
        self, handing: Entries, clock: Clock, ann: Person, ben: Person, cid: Person, dan: Person
    ) -> None:
        """The last reader of each session ends it, though others read on."""
        first, second = ann.hold(handing, "k", shared=True), ben.ask(handing, "k", shared=True)
        clock.now += 20
        third = cid.hold(handing, "k", shared=True)
        writer = dan.ask(handing, "k")
        assert handing.release(first) is State.GONE
        assert handing.release(second) is State.ENDING
        handing.ended(second)
        assert woken(writer) == 0
        free(handing, third)
        assert writer.state is State.ASKING


class TestSingleTries:
    """Tries that do not wait: for another's answer yes, for another's hold never."""

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_try_for_a_held_key_fails_at_once(self, entries: Entries, ann: Person, ben: Person, shared: bool) -> None:
        """Without a word to the server."""
        ann.hold(entries, "k")
        assert ben.ask(entries, "k", once=True, shared=shared).state is State.GONE

    def test_a_writer_s_try_fails_while_readers_hold(self, entries: Entries, ann: Person, ben: Person) -> None:
        """A shared hold is a hold."""
        ann.hold(entries, "k", shared=True)
        assert ben.ask(entries, "k", once=True).state is State.GONE

    def test_a_reader_s_try_fails_while_a_writer_queues(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """It would have to wait for the writer."""
        ann.hold(entries, "k", shared=True)
        ben.ask(entries, "k")
        assert cid.ask(entries, "k", once=True, shared=True).state is State.GONE

    def test_a_try_waits_for_the_answer_to_the_one_in_front(self, entries: Entries, ann: Person, ben: Person) -> None:
        """The one in front may be refused because of what it wants: then it is the try's turn."""
        head, single = ann.ask(entries, "k"), ben.ask(entries, "k", once=True)
        assert (single.state, woken(single)) == (State.QUEUED, 0)
        entries.leave(head)
        assert single.state is State.ASKING

    def test_a_queued_try_fails_when_the_one_in_front_gets_the_lock(
        self, entries: Entries, ann: Person, ben: Person
    ) -> None:
        """The answer that it waited for has come."""
        head, single = ann.ask(entries, "k"), ben.ask(entries, "k", once=True)
        entries.granted(head, session())
        assert single.state is State.GONE
        assert woken(single) == 1

    def test_a_queued_try_fails_when_the_one_in_front_begins_to_wait(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """The server has said that the key is taken; a waiter is not touched."""
        head, single, patient = ann.ask(entries, "k"), ben.ask(entries, "k", once=True), cid.ask(entries, "k")
        assert entries.waiting(head)
        assert (single.state, patient.state) == (State.GONE, State.QUEUED)

    def test_a_try_fails_at_once_while_a_waiter_stands_at_the_server(
        self, entries: Entries, ann: Person, ben: Person
    ) -> None:
        """No answer is to be expected soon."""
        entries.waiting(ann.ask(entries, "k"))
        assert ben.ask(entries, "k", once=True).state is State.GONE

    def test_a_try_behind_a_fresh_head_waits_again(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """The server's no was to one that has left; the next one's answer is on its way."""
        waiter, _ = ann.ask(entries, "k"), ben.ask(entries, "k")
        entries.waiting(waiter)
        entries.leave(waiter)
        assert cid.ask(entries, "k", once=True).state is State.QUEUED

    def test_a_reader_s_queued_try_goes_on_when_the_reader_in_front_gets_in(
        self, entries: Entries, ann: Person, ben: Person
    ) -> None:
        """They exclude each other no more than two readers do."""
        head, single = ann.ask(entries, "k", shared=True), ben.ask(entries, "k", shared=True, once=True)
        entries.granted(head, session())
        assert single.state is State.ASKING

    def test_a_reader_s_queued_try_fails_behind_a_queued_writer(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """The reader in front got in, but the writer between them must wait, and so would the try."""
        head, _ = ann.ask(entries, "k", shared=True), ben.ask(entries, "k")
        single = cid.ask(entries, "k", shared=True, once=True)
        entries.granted(head, session())
        assert single.state is State.GONE

    def test_a_try_during_an_unlock_waits_for_its_answer(self, entries: Entries, ann: Person, ben: Person) -> None:
        """The holder has released: that the server does not know yet is no reason to fail."""
        held = ann.hold(entries, "k")
        entries.release(held)
        single = ben.ask(entries, "k", once=True)
        assert (single.state, woken(single)) == (State.QUEUED, 0)
        entries.ended(held)
        assert single.state is State.ASKING

    def test_queued_tries_ask_one_after_another(self, entries: Entries, ann: Person, ben: Person, cid: Person) -> None:
        """Each has its own answer; one that is refused leaves and sends the next."""
        held = ann.hold(entries, "k")
        entries.release(held)
        first, second = ben.ask(entries, "k", once=True), cid.ask(entries, "k", once=True)
        entries.ended(held)
        entries.leave(first)
        assert (first.state, second.state) == (State.GONE, State.ASKING)


class TestOwners:
    """Owners that would wait for themselves."""

    def test_a_second_try_of_the_holder_fails(self, entries: Entries, ann: Person) -> None:
        """A lock is taken once; the first hold is untouched."""
        held = ann.hold(entries, "k", shared=True)
        assert ann.ask(entries, "k", shared=True, once=True).state is State.GONE
        assert entries.held() == [held]

    def test_a_second_wait_of_the_holder_is_a_deadlock(self, entries: Entries, ann: Person) -> None:
        """The error names the key and says what to do; nothing of the ask stays."""
        held = ann.hold(entries, "k")
        with pytest.raises(DeadlockError, match=r"'k'.*wait for itself.*disown") as caught:
            ann.ask(entries, "k")
        assert caught.value.key == "k"
        assert entries.held() == [held]
        assert entries._awaited == {}

    def test_a_disowned_hold_may_be_waited_for_by_its_taker(self, entries: Entries, ann: Person) -> None:
        """Another will release it."""
        held = ann.hold(entries, "k")
        held.disown()
        queued = ann.ask(entries, "k")
        free(entries, held)
        assert queued.state is State.ASKING

    def test_a_cycle_of_two_is_a_deadlock_for_the_second(self, entries: Entries, ann: Person, ben: Person) -> None:
        """The one that closes the circle is refused; the other goes on waiting, and gets the lock."""
        ann.hold(entries, "x")
        y = ben.hold(entries, "y")
        wait = ann.ask(entries, "y")
        with pytest.raises(DeadlockError, match=r"'x'.*sorted") as caught:
            ben.ask(entries, "x")
        assert caught.value.key == "x"
        free(entries, y)
        assert wait.state is State.ASKING

    def test_a_cycle_through_readers_and_waiters_is_a_deadlock(
        self, entries: Entries, ann: Person, ben: Person, cid: Person, dan: Person
    ) -> None:
        """The walk passes through every reader of a key, and through those that wait."""
        ann.hold(entries, "x", shared=True)
        ben.hold(entries, "x", shared=True)
        cid.hold(entries, "y")
        dan.hold(entries, "z")
        ben.ask(entries, "y")
        cid.ask(entries, "z")
        with pytest.raises(DeadlockError):
            dan.ask(entries, "x")

    def test_a_chain_of_waits_is_no_deadlock(self, entries: Entries, ann: Person, ben: Person, cid: Person) -> None:
        """The one at its end does not wait."""
        ann.hold(entries, "x")
        ben.hold(entries, "y")
        ben.ask(entries, "x")
        assert cid.ask(entries, "y").state is State.QUEUED

    def test_a_single_try_in_a_circle_just_fails(self, entries: Entries, ann: Person, ben: Person) -> None:
        """It does not wait, so there is no deadlock."""
        ann.hold(entries, "x")
        ben.hold(entries, "y")
        ann.ask(entries, "y")
        assert ben.ask(entries, "x", once=True).state is State.GONE

    def test_one_that_left_the_queue_closes_no_circle(self, entries: Entries, ann: Person, ben: Person) -> None:
        """Its wait is over, so others may wait for it."""
        ann.hold(entries, "x")
        ben.hold(entries, "y")
        entries.leave(ann.ask(entries, "y"))
        assert ben.ask(entries, "x").state is State.QUEUED

    def test_a_disowned_lock_closes_no_circle(self, entries: Entries, ann: Person, ben: Person) -> None:
        """Its next owner is not known, so it may be one that does not wait."""
        ann.hold(entries, "x").disown()
        ben.hold(entries, "y")
        ann.ask(entries, "y")
        assert ben.ask(entries, "x").state is State.QUEUED

    def test_tasks_of_one_thread_wait_for_one_another(self, entries: Entries, ann: Person) -> None:
        """They are owners of their own."""
        first, second = Person("first", inside=ann), Person("second", inside=ann)
        held, queued = first.hold(entries, "k"), second.ask(entries, "k")
        free(entries, held)
        assert queued.state is State.ASKING

    def test_a_thread_that_would_block_the_task_that_holds_is_refused(self, entries: Entries, ann: Person) -> None:
        """A blocking wait inside an event loop stops the loop, and with it the one that would release."""
        Person("task", inside=ann).hold(entries, "k")
        with pytest.raises(DeadlockError, match="wait for itself"):
            ann.ask(entries, "k")

    def test_a_thread_may_wait_for_what_its_task_has_disowned(self, entries: Entries, ann: Person) -> None:
        """Another outside that thread will release it."""
        Person("task", inside=ann).hold(entries, "k").disown()
        assert ann.ask(entries, "k").state is State.QUEUED


class TestLoss:
    """Sessions that die, providers that close."""

    def test_a_dead_session_loses_all_its_locks_and_no_other(self, entries: Entries, ann: Person, ben: Person) -> None:
        """Their owners learn it when they release; the next askers go to the server."""
        dead = session()
        lost = [ann.ask(entries, key) for key in ("x", "y")]
        for ticket in lost:
            entries.granted(ticket, dead)
        kept, queued = ann.hold(entries, "z"), ben.ask(entries, "x")
        assert [ticket for ticket, _ in entries.lose(dead)] == lost
        assert [ticket.state for ticket in lost] == [State.LOST, State.LOST]
        assert entries.release(lost[0]) is State.LOST
        assert (kept.state, queued.state) == (State.HELD, State.ASKING)

    def test_a_session_without_locks_loses_none(self, entries: Entries, ann: Person) -> None:
        """An idle one may die unnoticed."""
        held = ann.hold(entries, "k")
        assert entries.lose(session()) == []
        assert held.state is State.HELD

    def test_a_lock_is_released_once(self, entries: Entries, ann: Person, ben: Person) -> None:
        """The second release, and a second answer, free nothing of the next holder's."""
        held, queued = ann.hold(entries, "k"), ben.ask(entries, "k")
        assert entries.release(held) is State.ENDING
        assert entries.release(held) is State.GONE
        entries.ended(held)
        entries.granted(queued, session())
        assert entries.release(held) is State.GONE
        entries.ended(held)
        assert entries.held() == [queued]

    def test_closing_refuses_the_queue_and_forgets_the_holders(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """One that queues is woken with a no; the holder is returned, and has lost."""
        holders = [ann.hold(entries, "x"), ann.hold(entries, "y")]
        queued = [ben.ask(entries, "x"), cid.ask(entries, "x")]
        assert entries.close() == holders
        assert [ticket.state for ticket in holders] == [State.LOST, State.LOST]
        assert [(ticket.state, woken(ticket)) for ticket in queued] == [(State.GONE, 1), (State.GONE, 1)]
        assert entries.held() == []
        assert entries._entries == {}

    def test_closing_leaves_those_at_the_server_to_the_server(self, entries: Entries, ann: Person, ben: Person) -> None:
        """Their sessions are ended; what they do then finds its entry."""
        asking, unlocking = ann.ask(entries, "x"), ben.hold(entries, "y")
        entries.release(unlocking)
        entries.close()
        assert entries.leave(asking) is State.ASKING
        entries.ended(unlocking)
        assert entries._entries == {}


class TestThreads:
    """Real threads, real latches."""

    @pytest.mark.parametrize("turn_grants", [0, 5])
    @pytest.mark.parametrize("timeout", [None, 0.0003, 0])
    def test_many_threads_never_hold_at_once_and_all_come_to_an_end(
        self, timeout: float | None, turn_grants: int
    ) -> None:
        """Every thread is answered, with waits without limit, waits that end in the queue, and tries."""
        entries = Entries(turn_grants=turn_grants, turn_seconds=60)
        body = threading.Lock()
        overlaps = []
        policy = cast("Policy", object())

        def entered(ticket: Ticket) -> bool:
            if not entries.ask(ticket):
                return False
            if ticket.latch is not None and not ticket.latch.wait(Deadline(timeout or None)):
                return entries.leave(ticket) is State.HELD
            return ticket.state is State.HELD or (ticket.state is State.ASKING and entries.granted(ticket, session()))

        def take() -> bool:
            ticket = Ticket(Request("k", "k", "k", False), BLOCKING, 0 if timeout == 0 else None)
            ticket.policy = policy
            if not entered(ticket):
                return False
            if body.acquire(blocking=False):
                time.sleep(0)
                body.release()
            else:
                overlaps.append(ticket)
            if entries.release(ticket) is State.ENDING:
                entries.ended(ticket)
            return True

        with ThreadPoolExecutor(8) as pool:
            taken = sum(pool.map(lambda _: sum(take() for _ in range(100)), range(8)))
        assert overlaps == []
        assert taken == 8 * 100 if timeout is None else taken > 0
        assert (entries._entries, entries._awaited) == ({}, {})


class TestDefects:
    """What the model (`test_state_model.py`) found and the core still has to mend."""

    def test_a_try_fails_at_once_if_a_waiter_stands_at_the_server_while_a_reader_unlocks(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """A writer of another process waits there: the try would wait as long as it works."""
        leaving, head = ann.hold(entries, "k", shared=True), ben.ask(entries, "k", shared=True)
        entries.waiting(head)
        entries.release(leaving)
        single = cid.ask(entries, "k", once=True)
        entries.ended(leaving)
        assert single.state is State.GONE

    def test_a_reader_s_try_goes_on_when_only_a_writer_s_refused_try_was_between(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """Nothing is left in front of it, and readers hold: a no would be wrong."""
        head = ann.ask(entries, "k", shared=True)
        writer, reader = ben.ask(entries, "k", once=True), cid.ask(entries, "k", shared=True, once=True)
        entries.granted(head, session())
        assert (writer.state, reader.state) == (State.GONE, State.ASKING)

    def test_a_reader_that_waits_only_for_an_answer_closes_no_circle(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """It joins ann as soon as cid is answered, and then releases y: ann may wait for y."""
        ann.hold(entries, "x", shared=True)
        ben.hold(entries, "y")
        cid.ask(entries, "x", shared=True)
        ben.ask(entries, "x", shared=True)
        assert ann.ask(entries, "y").state is State.QUEUED

    def test_a_reader_that_may_join_as_soon_as_another_is_answered_closes_no_circle(
        self, entries: Entries, ann: Person, ben: Person, cid: Person
    ) -> None:
        """Without cid at the server it would be sent at once, and no circle would be seen."""
        ann.hold(entries, "x", shared=True)
        ben.hold(entries, "y")
        ann.ask(entries, "y")
        cid.ask(entries, "x", shared=True)
        assert ben.ask(entries, "x", shared=True).state is State.QUEUED

    def test_a_thread_that_would_block_the_task_in_front_of_it_is_refused(self, entries: Entries, ann: Person) -> None:
        """The task is at the server; granted, it could never release, since its loop stands still."""
        Person("task", inside=ann).ask(entries, "k")
        with pytest.raises(DeadlockError):
            ann.ask(entries, "k")

    def test_a_cycle_through_the_tasks_of_a_blocked_thread_is_a_deadlock(
        self, entries: Entries, ann: Person, ben: Person
    ) -> None:
        """The task that holds x stands still with its thread, which waits for ben, which would wait for x."""
        Person("task", inside=ann).hold(entries, "x")
        ben.hold(entries, "y")
        ann.ask(entries, "y")
        with pytest.raises(DeadlockError):
            ben.ask(entries, "x")


def test_a_grant_on_a_session_that_has_ended_is_none() -> None:
    """The watch ended it between the server's yes and its note: the loss of a lock on it would never be reported."""
    entries, anna, dead = Entries(), Person("Anna"), session()
    ticket = anna.ask(entries, "k")
    dead.ended = True
    assert entries.lose(dead) == []
    assert not entries.granted(ticket, dead)
    assert entries.held() == []
