"""Which session takes which lock: shared, spare and owned sessions, over a server made of Python."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from dlock_core import DeadlockError, LockConnectionError, UnsupportedError
from dlock_core.coordination.contexts import Context, Latch
from dlock_core.coordination.policy import LoopGate, Policy, Sharing
from dlock_core.coordination.state import Entries, Request, State, Ticket
from dlock_core.dialects.base import Session
from dlock_core.sessions.pool import SessionPool
from dlock_core.sessions.timeouts import Deadline

from .fake_server import FakeServer, FakeSession, until

LIMIT = 3


class Asker(Context):
    """A thread, which no signal handler calls away."""

    def __init__(self) -> None:
        self.identity = object()

    def owner(self) -> object:
        return self.identity


class Hasty(Asker):
    """One that never pauses, and remembers whether another woke it."""

    def __init__(self) -> None:
        super().__init__()
        self.woken = 0

    def latch(self) -> Latch:
        return self

    def set(self) -> bool:
        self.woken += 1
        return True

    def wait(self, *args: Any) -> Any:
        """Be the latch's wait, which ends at once, and the context's, which runs its function."""
        return False if isinstance(args[0], Deadline) else args[0]()


class Interrupted(Hasty):
    """A waiter that a signal calls away as it begins to wait."""

    def wait(self, *args: Any) -> Any:
        raise KeyboardInterrupt


class House:
    """A policy over a server, and the tickets of its askers."""

    def __init__(self, sharing: Sharing, limit: int = LIMIT) -> None:
        self.server = FakeServer()
        self.lost: list[Session] = []
        self.gone: set[Ticket] = set()
        self.pool = SessionPool(lambda _: cast("Session", self.server.open()), self.lost.append, set(), limit)
        self.policy = Policy(self.pool, cast("Entries", self), lambda label: f"dlock {label}", sharing)

    def granted(self, ticket: Ticket, session: Session) -> bool:
        if ticket in self.gone:
            return False
        ticket.session = session
        return True

    def put_back(self, ticket: Ticket) -> bool:
        ticket.again = False
        return True

    def ticket(self, asker: Asker, key: str, *, shared: bool = False, fencing: bool = False) -> Ticket:
        ticket = Ticket(Request(key, key, key, shared, fencing), asker, None)
        ticket.policy = self.policy
        ticket.state = State.ASKING
        return ticket

    def attempt(self, ticket: Ticket, asker: Asker) -> bool:
        ticket.context, ticket.deadline = asker, Deadline(1)
        granted: bool = self.policy.attempt(ticket)
        return granted

    def hold(self, asker: Asker, key: str, *, shared: bool = False) -> Ticket:
        """Get a lock at the first try."""
        ticket = self.ticket(asker, key, shared=shared)
        assert self.attempt(ticket, asker)
        return ticket

    def wait(self, ticket: Ticket, asker: Asker, timeout: float | None = None) -> bool:
        """Wait until granted, or until the deadline has passed."""
        ticket.context, ticket.deadline = asker, Deadline(timeout)
        while not ticket.deadline.passed:
            if self.policy.wait(ticket):
                return True
        return False

    def unlock(self, ticket: Ticket, asker: Asker) -> bool:
        ticket.context = asker
        intact: bool = self.policy.unlock(ticket)
        return intact


def on(ticket: Ticket) -> FakeSession:
    """Return the session that holds a lock."""
    return cast("FakeSession", ticket.session)


@pytest.fixture
def make_house() -> Any:
    """Make houses, whose servers have nothing to complain of afterwards."""
    houses: list[House] = []

    def make(sharing: Sharing, limit: int = LIMIT) -> House:
        houses.append(House(sharing, limit))
        return houses[-1]

    yield make
    assert [house.server.mistakes for house in houses] == [[]] * len(houses)


@pytest.fixture
def shared(make_house: Callable[..., House]) -> House:
    """All locks on one session."""
    return make_house(Sharing.ALL)


@pytest.fixture
def owned(make_house: Callable[..., House]) -> House:
    """A session for each owner."""
    return make_house(Sharing.OWNER)


@pytest.fixture
def single(make_house: Callable[..., House]) -> House:
    """A session for each lock."""
    return make_house(Sharing.NONE)


class TestAllPolicies:
    """What they have in common."""

    @pytest.fixture(params=[Sharing.ALL, Sharing.OWNER, Sharing.NONE])
    def house(self, request: pytest.FixtureRequest, make_house: Callable[..., House]) -> House:
        """One of each."""
        return make_house(request.param)

    def test_a_lock_that_was_granted_to_one_that_left_is_given_back(self, house: House) -> None:
        """At once, and the session lives on."""
        asker = Asker()
        ticket = house.ticket(asker, "k")
        house.gone.add(ticket)
        assert not house.attempt(ticket, asker)
        assert house.server.admits("k", shared=False)
        assert len(house.server.living) == 1

    def test_a_session_in_doubt_is_ended_and_reported(self, house: House) -> None:
        """An error between statement and answer may leave anything there."""
        asker = Asker()
        held = house.hold(asker, "k")
        on(held).hang_up()
        with pytest.raises(LockConnectionError):
            house.unlock(held, asker)
        assert on(held).ended
        assert set(house.lost) == {held.session}
        assert cast("Session", on(held)) not in house.pool

    def test_an_error_of_a_new_session_is_reported(self, house: House) -> None:
        """Another would fare no better."""
        opened = house.pool._open

        def open_dead(seconds: float) -> Session:
            session = opened(seconds)
            cast("FakeSession", session).hang_up()
            return session

        house.pool._open = open_dead
        asker = Asker()
        with pytest.raises(LockConnectionError):
            house.attempt(house.ticket(asker, "k"), asker)
        assert len(house.server.sessions) == 1

    def test_a_token_is_asked_for_on_the_session_that_holds(self, house: House) -> None:
        """Only when it is wanted, and before any other learns of the grant."""
        asker = Asker()
        plain, fenced = house.ticket(asker, "x"), house.ticket(asker, "y", fencing=True)
        assert house.attempt(plain, asker)
        assert house.attempt(fenced, asker)
        assert (plain.token, fenced.token) == (None, 1)

    @pytest.mark.parametrize("granted", [False, True])
    @pytest.mark.parametrize("failures", [0, 2])
    def test_an_error_that_is_an_answer_ends_no_session(self, house: House, granted: bool, failures: int) -> None:
        """The server may have granted the lock all the same, and a late cancel may hit the unlock."""
        asker = Asker()
        held = house.hold(asker, "held")
        house.server.answers(lambda: house.attempt(house.ticket(asker, "k"), asker), granted=granted, unlocks=failures)
        assert not house.lost
        assert not on(held).ended
        assert house.server.admits("k", shared=False)
        assert house.unlock(held, asker)

    def test_an_unlock_that_a_cancel_hits_is_repeated(self, house: House) -> None:
        """It may have done its work before: the second answer says that nothing is held."""
        asker = Asker()
        held, other = house.hold(asker, "k"), house.hold(asker, "other")
        with house.server.failing_unlocks(1):
            assert house.unlock(held, asker)
        assert house.server.admits("k", shared=False)
        assert not house.lost
        assert house.unlock(other, asker)

    def test_an_unlock_that_never_succeeds_ends_its_session(self, house: House) -> None:
        """Only so the lock is free."""
        asker = Asker()
        held = house.hold(asker, "k")
        with house.server.failing_unlocks(1000), pytest.raises(DBAPIError):
            house.unlock(held, asker)
        assert on(held).ended
        assert house.server.admits("k", shared=False)

    def test_an_unlock_tells_what_the_server_says(self, house: House) -> None:
        """A lock that was taken from us is distinguished from one that we gave back."""
        asker = Asker()
        mine, taken = house.hold(asker, "mine"), house.hold(asker, "taken")
        del house.server.holders["taken"][on(taken)]
        assert house.unlock(mine, asker)
        assert not house.unlock(taken, asker)


@pytest.mark.parametrize("kind", [Sharing.ALL, Sharing.OWNER])
def test_a_session_that_ended_while_it_was_idle_is_replaced(make_house: Callable[..., House], kind: Sharing) -> None:
    """Nothing is lost with it, so the asker does not hear of it."""
    house, asker = make_house(kind), Asker()
    house.unlock(house.hold(asker, "k"), asker)
    house.server.sessions[0].hang_up()
    assert house.attempt(house.ticket(asker, "k"), asker)
    assert len(house.server.sessions) == 2


class TestSharedByAll:
    """All locks on one session; waits on spare ones."""

    def test_many_locks_are_held_on_one_session(self, shared: House) -> None:
        """Of however many askers."""
        held = [shared.hold(Asker(), f"key {number}") for number in range(100)]
        assert len({on(ticket) for ticket in held}) == len(shared.server.sessions) == 1

    def test_threads_use_the_shared_session_one_after_another(self, shared: House) -> None:
        """The server would complain of two statements at a time."""

        def work(number: int) -> None:
            asker = Asker()
            for _ in range(50):
                shared.unlock(shared.hold(asker, f"key {number}"), asker)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        assert len(shared.server.sessions) == 1
        assert shared.policy._shared is not None
        assert shared.policy._shared.held == {}

    def test_no_name_is_asked_for_twice_on_the_shared_session(self, shared: House) -> None:
        """The server would let a second reader in past a queued writer, so it asks on another."""
        first, second = (shared.hold(Asker(), "k", shared=True) for _ in range(2))
        assert on(first) is not on(second)
        assert shared.unlock(first, Asker())
        third = shared.hold(Asker(), "k", shared=True)
        assert on(third) is on(first)

    def test_no_statement_waits_for_a_session_that_is_being_opened(self, shared: House) -> None:
        """A second reader needs another session; meanwhile others take and free their locks on the shared one."""
        asker = Asker()
        shared.hold(asker, "k", shared=True)
        opening, go_on = threading.Event(), threading.Event()
        opened = shared.pool._open

        def slowly(seconds: float) -> Session:
            opening.set()
            assert go_on.wait(10)
            return opened(seconds)

        shared.pool._open = slowly
        with ThreadPoolExecutor(2) as pool:
            reader = pool.submit(shared.hold, Asker(), "k", shared=True)
            assert opening.wait(10)
            other = pool.submit(shared.hold, asker, "another").result(10)
            assert pool.submit(shared.unlock, other, asker).result(10)
            go_on.set()
            assert on(reader.result(10)) is not on(other)

    def test_threads_that_come_together_open_one_session(self, shared: House) -> None:
        """One opens it, and the others use it."""
        opened = shared.pool._open
        together = threading.Barrier(4)

        def slowly(seconds: float) -> Session:
            until(lambda: together.broken or not together.n_waiting)
            return opened(seconds)

        shared.pool._open = slowly

        def work(number: int) -> Ticket:
            together.wait(10)
            return shared.hold(Asker(), f"key {number}")

        with ThreadPoolExecutor(4) as pool:
            held = list(pool.map(work, range(4)))
        assert len({on(ticket) for ticket in held}) == len(shared.server.sessions) == 1

    def test_a_reader_waits_when_no_session_is_left_to_ask_on(self, make_house: Callable[..., House]) -> None:
        """Its try is refused rather than asked on the session that holds it."""
        house = make_house(Sharing.ALL, limit=2)
        asker = Asker()
        first, _ = (house.hold(asker, "k", shared=True) for _ in range(2))
        late = house.ticket(asker, "k", shared=True)
        assert not house.attempt(late, asker)
        assert not house.wait(late, asker, 0.02)
        assert house.unlock(first, asker)
        assert house.wait(late, asker, 10)
        assert len(house.server.sessions) == 2

    def test_a_refused_reader_gives_its_session_back(self, shared: House) -> None:
        """It was lent for one try."""
        asker = Asker()
        mine = shared.hold(asker, "k", shared=True)
        shared.server.holders["k"][FakeSession(shared.server)] = False  # as if a writer waited there
        assert not shared.attempt(shared.ticket(asker, "k", shared=True), asker)
        assert [session for session in shared.server.sessions if session is not on(mine)] == shared.pool._idle

    def test_a_new_shared_session_starts_without_names(self, shared: House) -> None:
        """What was held on the dead one is held no more."""
        asker = Asker()
        held = shared.hold(asker, "k")
        shared.pool.end(cast("Session", on(held)))
        again = shared.hold(asker, "k")
        assert shared.policy._shared is not None
        assert on(again) is shared.policy._shared.session
        assert on(again) is not on(held)

    @pytest.mark.parametrize("error", [UnsupportedError("no"), DeadlockError("no"), LockConnectionError("no")])
    def test_a_reader_whose_try_fails_leaves_no_session_behind(self, shared: House, error: Exception) -> None:
        """The session that was lent to it is given back, or has ended."""
        asker = Asker()
        mine = shared.hold(asker, "k", shared=True)
        with shared.server.refusing(error), pytest.raises(type(error)):
            shared.attempt(shared.ticket(asker, "k", shared=True), asker)
        assert shared.pool._all == {mine.session, *shared.pool._idle}

    def test_one_that_is_called_away_as_it_polls_leaves_the_line(self, make_house: Callable[..., House]) -> None:
        """Whatever becomes of its ticket: the next one gets the session that is free."""
        house = make_house(Sharing.ALL, limit=1)
        asker = Hasty()
        house.server.take("k")
        late = house.ticket(asker, "k")
        house.hold(asker, "mine")
        with house.server.refusing(KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            house.wait(late, asker, 10)
        assert not house.policy._line

    def test_a_wait_takes_place_on_a_spare_session(self, shared: House) -> None:
        """Meanwhile the shared one serves others; afterwards the spare one is kept for the next."""
        asker, other = Asker(), Asker()
        stranger = shared.server.take("k")
        waiter = shared.ticket(asker, "k")
        assert not shared.attempt(waiter, asker)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(shared.wait, waiter, asker)
            until(lambda: any(session.waits for session in shared.server.sessions))
            held = shared.hold(other, "another")
            assert shared.unlock(held, other)
            stranger.hang_up()
            assert waiting.result(10)
        assert on(waiter) is not on(held)
        assert shared.unlock(waiter, asker)
        assert shared.pool.take(1, within_limit=True) is waiter.session

    def test_a_lock_that_was_waited_for_is_no_name_on_the_shared_session(self, shared: House) -> None:
        """A reader that comes next may ask there."""
        asker = Asker()
        stranger = shared.server.take("k")
        waiter = shared.ticket(asker, "k", shared=True)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(shared.wait, waiter, asker)
            until(lambda: any(session.waits for session in shared.server.sessions))
            stranger.hang_up()
            assert waiting.result(10)
        reader = shared.hold(Asker(), "k", shared=True)
        assert shared.policy._shared is not None
        assert on(reader) is shared.policy._shared.session

    def test_a_spare_session_that_ended_while_it_was_idle_is_replaced(self, shared: House) -> None:
        """For a wait as for a reader's try."""
        asker = Asker()
        stranger = shared.server.take("k")
        for key in ("k", "r"):
            refused = shared.ticket(asker, "k")
            assert not shared.attempt(refused, asker)
            assert not shared.wait(refused, asker, 0.001)
            shared.policy.settle(refused, reusable=True)
            shared.server.sessions[-1].hang_up()
            if key == "r":
                shared.hold(asker, "r", shared=True)
                shared.hold(asker, "r", shared=True)
                continue
            waiter = shared.ticket(asker, key)
            threading.Timer(0.02, stranger.hang_up).start()
            assert shared.wait(waiter, asker, 10)
            assert shared.unlock(waiter, asker)
            stranger = shared.server.take("k")

    def test_a_reader_that_asks_on_a_spare_session_stands_in_line_too(self, make_house: Callable[..., House]) -> None:
        """A waiter has it next."""
        house = make_house(Sharing.ALL, limit=2)
        house.server.take("a", "b")
        ann, ben, cid = Hasty(), Hasty(), Asker()
        first, second = house.ticket(ann, "a"), house.ticket(ben, "b")
        house.hold(cid, "r", shared=True)
        assert not house.wait(first, ann, 0.001)
        assert not house.wait(second, ben, 0.001)
        house.policy.settle(first, reusable=True)
        assert not house.attempt(house.ticket(cid, "r", shared=True), cid)
        assert not house.wait(second, ben, 0.001)
        assert second.place is not None

    def test_there_are_no_more_sessions_than_the_limit(self, make_house: Callable[..., House]) -> None:
        """However many wait for different keys, all of them come to their locks."""
        house = make_house(Sharing.ALL, limit=3)
        keys = [f"key {number}" for number in range(8)]
        stranger = house.server.take(*keys)

        def work(key: str) -> bool:
            asker = Asker()
            ticket = house.ticket(asker, key)
            granted = house.attempt(ticket, asker) or house.wait(ticket, asker, 10)
            house.policy.settle(ticket, reusable=True) if not granted else house.unlock(ticket, asker)
            return granted

        with ThreadPoolExecutor(8) as pool:
            waits = [pool.submit(work, key) for key in keys]
            until(lambda: len(house.policy._line) == 6)
            assert len(house.server.living) == 3
            stranger.hang_up()
            assert [wait.result(10) for wait in waits] == [True] * 8
        assert len(house.server.sessions) == 3
        assert not house.policy._line

    def test_the_line_for_spare_sessions_is_first_come_first_served(self, make_house: Callable[..., House]) -> None:
        """One that comes when a session is free does not pass those that stand in line for it."""
        house = make_house(Sharing.ALL, limit=2)
        house.server.take("a", "b", "c", "d")
        askers = {key: Hasty() for key in "abcd"}
        tickets = {key: house.ticket(asker, key) for key, asker in askers.items()}

        def wait_a_moment(key: str) -> bool:
            return not house.wait(tickets[key], askers[key], 0.001) and tickets[key].place is not None

        assert not house.attempt(tickets["a"], askers["a"])
        assert wait_a_moment("a")
        assert not wait_a_moment("b")
        assert not wait_a_moment("c")
        house.policy.settle(tickets["a"], reusable=True)
        assert (askers["b"].woken, askers["c"].woken) == (1, 0)
        assert [wait_a_moment(key) for key in "dcb"] == [False, False, True]
        house.policy.settle(tickets["b"], reusable=False)
        assert [wait_a_moment(key) for key in "dc"] == [False, True]

    def test_one_that_leaves_the_line_does_not_hold_it_up(self, make_house: Callable[..., House]) -> None:
        """Refused in the end, or granted by polling."""
        house = make_house(Sharing.ALL, limit=2)
        stranger = house.server.take("a", "b", "c", "d")
        asker = Hasty()
        first, *polling = (house.ticket(asker, key) for key in "abcd")
        assert not house.attempt(first, asker)
        for ticket in (first, *polling):
            assert not house.wait(ticket, asker, 0.001)
        assert list(house.policy._line) == polling
        house.policy.settle(polling[0], reusable=True)
        assert list(house.policy._line) == polling[1:]
        stranger.hang_up()
        assert house.wait(polling[1], asker, 10)
        assert list(house.policy._line) == polling[2:]

    def test_a_wait_that_was_interrupted_ends_its_session_and_no_other(self, shared: House) -> None:
        """A cancelled waiter costs no other its lock."""
        asker = Asker()
        held = shared.hold(asker, "mine")
        shared.server.take("k")
        waiter = shared.ticket(asker, "k")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(shared.wait, waiter, asker)
            until(lambda: any(session.waits for session in shared.server.sessions))
            assert waiter.session is not None
            waiter.session.interrupt()
            with pytest.raises(LockConnectionError):
                waiting.result(10)
        shared.policy.settle(waiter, reusable=False)
        assert on(waiter).ended
        assert shared.unlock(held, asker)

    def test_the_session_of_a_wait_that_may_have_been_interrupted_is_not_kept(self, shared: House) -> None:
        """The interrupt may come late, and would hit the next borrower."""
        asker = Asker()
        shared.server.take("k")
        waiter = shared.ticket(asker, "k")
        assert not shared.wait(waiter, asker, 0.001)
        shared.policy.settle(waiter, reusable=False)
        assert shared.server.sessions[-1].ended
        assert not shared.pool._idle


class TestSharedByOwner:
    """A session for each owner."""

    def test_an_owner_has_one_session_for_all_its_locks(self, owned: House) -> None:
        """And another owner has another."""
        ann, ben = Asker(), Asker()
        first, second, other = owned.hold(ann, "x"), owned.hold(ann, "y"), owned.hold(ben, "z")
        assert on(first) is on(second)
        assert on(first) is not on(other)

    def test_an_owner_waits_on_its_own_session(self, owned: House) -> None:
        """So that the server sees what it holds while it waits."""
        ann = Asker()
        held = owned.hold(ann, "x")
        stranger = owned.server.take("y")
        waiter = owned.ticket(ann, "y")
        assert not owned.attempt(waiter, ann)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(owned.wait, waiter, ann)
            until(lambda: on(held).waits)
            stranger.hang_up()
            assert waiting.result(10)
        assert on(waiter) is on(held)

    def test_a_session_is_given_back_when_its_owner_holds_nothing(self, owned: House) -> None:
        """Not before; the next owner gets it."""
        ann, ben = Asker(), Asker()
        first, second = owned.hold(ann, "x"), owned.hold(ann, "y")
        assert owned.unlock(first, ann)
        assert not owned.pool._idle
        assert owned.unlock(second, ann)
        assert owned.pool._idle == [first.session]
        assert owned.policy._owned == {}
        assert on(owned.hold(ben, "z")) is on(first)

    def test_one_that_was_refused_gives_its_session_back(self, owned: House) -> None:
        """It holds nothing."""
        ann = Asker()
        owned.server.take("k")
        ticket = owned.ticket(ann, "k")
        assert not owned.attempt(ticket, ann)
        owned.policy.settle(ticket, reusable=True)
        assert len(owned.pool._idle) == 1
        assert owned.policy._owned == {}

    def test_a_refused_owner_keeps_the_session_of_its_other_locks(self, owned: House) -> None:
        """They are on it."""
        ann = Asker()
        held = owned.hold(ann, "x")
        owned.server.take("k")
        ticket = owned.ticket(ann, "k")
        assert not owned.attempt(ticket, ann)
        owned.policy.settle(ticket, reusable=True)
        assert not owned.pool._idle
        assert on(owned.hold(ann, "y")) is on(held)

    def test_an_owner_whose_wait_broke_its_session_gets_a_new_one(self, owned: House) -> None:
        """Its locks are lost with the old one."""
        ann = Asker()
        held = owned.hold(ann, "x")
        owned.server.take("y")
        waiter = owned.ticket(ann, "y")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(owned.wait, waiter, ann)
            until(lambda: on(held).waits)
            on(held).interrupt(waiter)
            with pytest.raises(LockConnectionError):
                waiting.result(10)
        owned.policy.settle(waiter, reusable=False)
        assert owned.lost == [held.session]
        assert on(owned.hold(ann, "z")) is not on(held)

    def test_an_owner_whose_session_ends_as_it_asks_gets_another_of_its_own(self, owned: House) -> None:
        """Not the one that all would share, where the server would not see whose the lock is."""
        ann = Asker()
        held = owned.hold(ann, "x")
        own_place = owned.policy._own_place

        def own_place_that_ends(ticket: Ticket, *, waits: bool) -> Any:
            place = own_place(ticket, waits=waits)
            if not on(held).ended:
                owned.pool.end(cast("Session", on(held)))
            return place

        owned.policy._own_place = own_place_that_ends  # type: ignore[method-assign]
        later = owned.hold(ann, "y")
        assert owned.policy._shared is None
        assert owned.unlock(later, ann)
        assert owned.policy._owned == {}

    def test_a_failed_ask_costs_its_owner_no_other_lock(self, owned: House) -> None:
        """What is in doubt has been ended by then; the session of the others is not."""
        ann = Asker()
        held = owned.hold(ann, "x")
        owned.server.take("y")
        refused = owned.ticket(ann, "y")
        assert not owned.attempt(refused, ann)
        owned.policy.settle(refused, reusable=False)
        assert not owned.lost
        assert on(owned.hold(ann, "z")) is on(held)

    def test_the_release_of_a_lost_lock_leaves_the_new_session_of_its_owner_alone(self, owned: House) -> None:
        """The lock was disowned, and its session died; the owner has gone on with another."""
        ann = Asker()
        held = owned.hold(ann, "x")
        owned.pool.end(cast("Session", on(held)))
        later = owned.hold(ann, "y")
        with pytest.raises(LockConnectionError):
            owned.unlock(held, Asker())
        assert not on(later).ended
        assert owned.unlock(later, ann)
        assert owned.policy._owned == {}

    def test_an_owner_never_waits_beside_a_lock_that_it_disowned(self, owned: House) -> None:
        """Its release could come only after the wait."""
        ann = Asker()
        held = owned.hold(ann, "x")
        held.disown()
        stranger = owned.server.take("y")
        waiter = owned.ticket(ann, "y")
        assert not owned.attempt(waiter, ann)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(owned.wait, waiter, ann)
            until(lambda: any(session.waits for session in owned.server.sessions))
            assert owned.unlock(held, Asker())
            stranger.hang_up()
            assert waiting.result(10)
        assert owned.unlock(waiter, ann)
        assert owned.policy._owned == {}

    def test_no_session_is_opened_for_an_asker_that_has_left(self, owned: House) -> None:
        """It left while its ask stood in line."""
        ann = Asker()
        ticket = owned.ticket(ann, "k")
        ticket.state = State.GONE
        assert not owned.attempt(ticket, ann)
        assert not owned.policy.wait(ticket)
        owned.policy.settle(ticket, reusable=True)
        assert not owned.server.sessions
        assert owned.policy._owned == {}

    def test_a_holder_hears_that_its_session_died(self, owned: House) -> None:
        """It held something: another session is no remedy."""
        ann = Asker()
        held = owned.hold(ann, "x")
        on(held).hang_up()
        with pytest.raises(LockConnectionError):
            owned.attempt(owned.ticket(ann, "y"), ann)
        assert owned.lost == [held.session]

    def test_an_unlock_that_failed_or_was_called_away_leaves_no_lock_and_no_owner(self, owned: House) -> None:
        """The bookkeeping learns that it ended, so the server must be rid of it too."""
        ann, ben = Asker(), Asker()
        held = owned.hold(ann, "x")
        on(held).hang_up()
        with pytest.raises(LockConnectionError):
            owned.unlock(held, ann)
        assert owned.policy._owned == {}
        held = owned.hold(ben, "y")
        assert held.place is not None
        held.place.gate = Mock(enter=Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            owned.unlock(held, ben)
        assert owned.policy._owned == {}
        assert owned.server.admits("y", shared=False)

    def test_threads_release_what_one_owner_disowned_one_after_another(self, owned: House) -> None:
        """The server would complain of two statements at a time on its session."""
        ann = Asker()
        held = [owned.hold(ann, f"key {number}") for number in range(40)]
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(lambda ticket: owned.unlock(ticket, Asker()), held))
        assert owned.policy._owned == {}
        assert owned.pool._idle == [held[0].session]

    def test_a_ticket_that_is_disowned_meanwhile_gets_the_place_of_no_other(
        self, owned: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another thread may call it off between any two looks at its owner."""
        ticket = owned.ticket(Asker(), "k")
        owners = [ticket.owner, None, None, None]
        monkeypatch.setattr(Ticket, "owner", property(lambda _: owners.pop(0)), raising=False)
        place = owned.policy._own_place(ticket, waits=False)
        assert place.owner is not None
        assert owned.policy._owned == {place.owner: place}


class TestNotShared:
    """A session for each lock."""

    def test_each_lock_has_its_own_session(self, single: House) -> None:
        """And gives it back."""
        asker = Asker()
        first, second = single.hold(asker, "x"), single.hold(asker, "y")
        assert on(first) is not on(second)
        assert single.unlock(first, asker)
        assert on(single.hold(asker, "z")) is on(first)

    def test_one_that_waits_tries_again_on_the_same_session(self, single: House) -> None:
        """Until it is free."""
        asker = Asker()
        stranger = single.server.take("k")
        ticket = single.ticket(asker, "k")
        assert not single.attempt(ticket, asker)
        assert not single.wait(ticket, asker, 0.005)
        stranger.hang_up()
        assert single.wait(ticket, asker, 10)
        assert len(single.server.sessions) == 1

    @pytest.mark.parametrize("reusable", [True, False])
    def test_one_that_was_refused_gives_its_session_back(self, single: House, reusable: bool) -> None:
        """It is kept unless it may have interrupted it."""
        asker = Asker()
        single.server.take("k")
        ticket = single.ticket(asker, "k")
        assert not single.attempt(ticket, asker)
        single.policy.settle(ticket, reusable=reusable)
        assert len(single.pool._idle) == reusable


def test_a_gate_is_not_free_while_the_next_in_its_queue_is_on_its_way() -> None:
    """An asyncio lock says so; an owner that believed it waited, was cancelled, and ended the locks of all others."""

    async def scene() -> list[bool]:
        gate = LoopGate()
        await greenlet_spawn(gate.enter, Deadline(1))
        waiting = asyncio.create_task(greenlet_spawn(gate.enter, Deadline(1)))
        await asyncio.sleep(0)
        gate.leave()
        seen = [gate.free]
        await waiting
        gate.leave()
        return [*seen, gate.free]

    assert asyncio.run(scene()) == [False, True]


def test_a_gate_is_free_again_after_one_whose_time_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has left the queue."""
    monkeypatch.setattr("dlock_core.coordination.policy.patience", Deadline.remaining)

    async def scene() -> bool:
        gate = LoopGate()
        await greenlet_spawn(gate.enter, Deadline(1))
        with pytest.raises(LockConnectionError, match="busy"):
            await greenlet_spawn(gate.enter, Deadline(0.01))
        gate.leave()
        return gate.free

    assert asyncio.run(scene())
