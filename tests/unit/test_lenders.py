"""Which session takes which lock: shared, spare and owned sessions, over a server made of Python."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from dlock_core import LockConnectionError
from dlock_core.contexts import Blocking, Latch
from dlock_core.dialects.base import Session
from dlock_core.lenders import FORESEEN_KEYS, SharedLender, SingleLender
from dlock_core.owner_lender import OwnerLender
from dlock_core.requests import Request
from dlock_core.stock import Stock
from dlock_core.threads import Workers
from dlock_core.tickets import Ticket
from dlock_core.timeouts import Deadline

from .fake_server import FakeServer, FakeSession, until

LIMIT = 3


class Asker(Blocking):
    """A thread, which no signal handler calls away."""

    def __init__(self) -> None:
        self.identity = object()

    def owner(self) -> object:
        return self.identity


class Hasty(Asker):
    """One who never pauses, and remembers whether somebody woke him."""

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
    """One whom a signal calls away as he begins to wait."""

    def wait(self, *args: Any) -> Any:
        raise KeyboardInterrupt


class House:
    """A lender over a server, and the tickets of its askers."""

    def __init__(self, lender: type[Any], limit: int = LIMIT) -> None:
        self.server = FakeServer()
        self.lost: list[Session] = []
        self.gone: set[Ticket] = set()
        self.stock = Stock(lambda: cast("Session", self.server.open()), self.lost.append, set(), limit)
        more = (Workers(),) if lender is SharedLender else ()
        self.lender = lender(self.stock, self.granted, lambda label: f"dlock {label}", *more)

    def granted(self, ticket: Ticket, session: Session) -> bool:
        if ticket in self.gone:
            return False
        ticket.session = session
        return True

    def ticket(self, asker: Asker, key: str, *, shared: bool = False) -> Ticket:
        return Ticket(key, asker, shared=shared, once=False, home=self.lender)

    def attempt(self, ticket: Ticket, asker: Asker, *, fencing: bool = False) -> bool:
        granted: bool = self.lender.attempt(request(ticket, fencing=fencing), ticket, asker)
        return granted

    def hold(self, asker: Asker, key: str, *, shared: bool = False) -> Ticket:
        """Get a lock at the first try."""
        ticket = self.ticket(asker, key, shared=shared)
        assert self.attempt(ticket, asker)
        return ticket

    def wait(self, ticket: Ticket, asker: Asker, timeout: float | None = None) -> bool:
        """Wait until granted, or until the deadline has passed."""
        deadline = Deadline(timeout)
        while not deadline.passed:
            if self.lender.wait(request(ticket), ticket, deadline, asker):
                return True
        return False

    def unlock(self, ticket: Ticket, asker: Asker) -> bool:
        intact: bool = self.lender.unlock(ticket.key, ticket, asker)
        return intact


def request(ticket: Ticket, *, fencing: bool = False) -> Request:
    """Make the request of a ticket, whose key is its name at the server."""
    return Request(str(ticket.key), str(ticket.key), str(ticket.key), ticket.shared, fencing)


def on(ticket: Ticket) -> FakeSession:
    """Return the session that holds a lock."""
    return cast("FakeSession", ticket.session)


@pytest.fixture
def make_house() -> Any:
    """Make houses, whose servers have nothing to complain of afterwards."""
    houses: list[House] = []

    def make(lender: type[Any], limit: int = LIMIT) -> House:
        houses.append(House(lender, limit))
        return houses[-1]

    yield make
    assert [house.server.mistakes for house in houses] == [[]] * len(houses)


@pytest.fixture
def shared(make_house: Callable[..., House]) -> House:
    """All locks on one session."""
    return make_house(SharedLender)


@pytest.fixture
def owned(make_house: Callable[..., House]) -> House:
    """A session for each owner."""
    return make_house(OwnerLender)


@pytest.fixture
def single(make_house: Callable[..., House]) -> House:
    """A session for each lock."""
    return make_house(SingleLender)


class TestAllLenders:
    """What they have in common."""

    @pytest.fixture(params=[SharedLender, OwnerLender, SingleLender])
    def house(self, request: pytest.FixtureRequest, make_house: Callable[..., House]) -> House:
        """One of each."""
        return make_house(request.param)

    def test_a_lock_that_was_granted_to_one_who_left_is_given_back(self, house: House) -> None:
        """At once, and the session lives on."""
        asker = Asker()
        ticket = house.ticket(asker, "k")
        house.gone.add(ticket)
        assert not house.attempt(ticket, asker)
        assert house.server.admits("k", shared=False)
        assert len(house.server.living) == 1

    def test_a_session_in_doubt_is_ended_and_told(self, house: House) -> None:
        """An error between statement and answer may leave anything there."""
        asker = Asker()
        held = house.hold(asker, "k")
        on(held).hang_up()
        with pytest.raises(LockConnectionError):
            house.unlock(held, asker)
        assert on(held).ended
        assert set(house.lost) == {held.session}
        assert cast("Session", on(held)) not in house.stock

    def test_an_error_of_a_new_session_is_told(self, house: House) -> None:
        """Another would fare no better."""
        opened = house.stock._open

        def open_dead() -> Session:
            session = opened()
            cast("FakeSession", session).hang_up()
            return session

        house.stock._open = open_dead
        asker = Asker()
        with pytest.raises(LockConnectionError):
            house.attempt(house.ticket(asker, "k"), asker)
        assert len(house.server.sessions) == 1

    def test_a_token_is_asked_for_on_the_session_that_holds(self, house: House) -> None:
        """Only when it is wanted, and before anybody is told of the grant."""
        asker = Asker()
        plain, fenced = house.ticket(asker, "x"), house.ticket(asker, "y")
        assert house.attempt(plain, asker)
        assert house.attempt(fenced, asker, fencing=True)
        assert (plain.token, fenced.token) == (None, 1)

    def test_an_unlock_tells_what_the_server_says(self, house: House) -> None:
        """A lock that was taken from us is told from one that we gave back."""
        asker = Asker()
        mine, taken = house.hold(asker, "mine"), house.hold(asker, "taken")
        del house.server.holders["taken"][on(taken)]
        assert house.unlock(mine, asker)
        assert not house.unlock(taken, asker)


@pytest.mark.parametrize("kind", [SharedLender, OwnerLender])
def test_a_session_that_ended_while_it_was_idle_is_replaced(make_house: Callable[..., House], kind: type[Any]) -> None:
    """Nothing is lost with it, so the asker does not hear of it."""
    house, asker = make_house(kind), Asker()
    house.unlock(house.hold(asker, "k"), asker)
    house.server.sessions[0].hang_up()
    assert house.attempt(house.ticket(asker, "k"), asker)
    assert len(house.server.sessions) == 2


class TestSharedLender:
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
        assert shared.lender._names == set()

    def refuse(self, house: House, key: str) -> None:
        """Let one who came too late try, wait in vain, and leave."""
        asker = Asker()
        ticket = house.ticket(asker, key)
        assert not house.attempt(ticket, asker)
        assert not house.wait(ticket, asker, 0.01)
        house.lender.settle(ticket, reusable=True)

    def foresees(self, house: House, key: str, *, shared: bool = False) -> bool:
        """Ask whether the next asker of a key had better wait at once."""
        waits: bool = house.lender.foresees_wait(request(house.ticket(Asker(), key, shared=shared)))
        return waits

    def test_a_key_that_others_had_a_moment_ago_is_waited_for_at_once(self, shared: House) -> None:
        """Its next askers spare a try, except readers, who might join readers."""
        shared.server.take("wanted")
        assert not self.foresees(shared, "wanted")
        self.refuse(shared, "wanted")
        assert self.foresees(shared, "wanted")
        assert not self.foresees(shared, "wanted", shared=True)
        assert not self.foresees(shared, "another")

    def test_now_and_then_one_tries_whether_the_key_is_still_wanted(self, shared: House) -> None:
        """The first who gets it so makes us forget."""
        stranger = shared.server.take("wanted")
        self.refuse(shared, "wanted")
        while self.foresees(shared, "wanted"):
            pass
        self.refuse(shared, "wanted")
        assert self.foresees(shared, "wanted")
        stranger.release("wanted", shared=False)
        asker = Asker()
        shared.unlock(shared.hold(asker, "wanted"), asker)
        assert not self.foresees(shared, "wanted")

    def test_nobody_foresees_a_wait_without_a_session_at_hand_to_wait_on(self, shared: House) -> None:
        """He would only poll, and a try comes before a pause."""
        shared.server.take("wanted")
        self.refuse(shared, "wanted")
        borrowed = [shared.stock.take() for _ in range(LIMIT)]
        assert not self.foresees(shared, "wanted")
        shared.stock.give(cast("Session", borrowed[0]))
        assert self.foresees(shared, "wanted")

    def test_only_so_many_wanted_keys_are_remembered(self, shared: House) -> None:
        """The latest."""
        keys = [f"key {number}" for number in range(FORESEEN_KEYS + 1)]
        shared.server.take(*keys)
        for key in keys:
            self.refuse(shared, key)
        assert [key for key in keys if self.foresees(shared, key)] == keys[1:]

    def test_no_name_is_asked_for_twice_on_the_shared_session(self, shared: House) -> None:
        """The server would let a second reader in past a queued writer, so he asks on another."""
        first, second = (shared.hold(Asker(), "k", shared=True) for _ in range(2))
        assert on(first) is not on(second)
        assert shared.unlock(first, Asker())
        third = shared.hold(Asker(), "k", shared=True)
        assert on(third) is on(first)

    def test_a_reader_waits_when_no_session_is_left_to_ask_on(self, make_house: Callable[..., House]) -> None:
        """His try is refused rather than asked on the session that holds it."""
        house = make_house(SharedLender, limit=2)
        asker = Asker()
        first, _ = (house.hold(asker, "k", shared=True) for _ in range(2))
        late = house.ticket(asker, "k", shared=True)
        assert not house.attempt(late, asker)
        assert not house.wait(late, asker, 0.02)
        assert house.unlock(first, asker)
        assert house.wait(late, asker, 10)
        assert len(house.server.sessions) == 2

    def test_a_refused_reader_gives_his_session_back(self, shared: House) -> None:
        """It was lent for one try."""
        asker = Asker()
        mine = shared.hold(asker, "k", shared=True)
        shared.server.holders["k"][FakeSession(shared.server)] = False  # as if a writer waited there
        assert not shared.attempt(shared.ticket(asker, "k", shared=True), asker)
        assert [session for session in shared.server.sessions if session is not on(mine)] == shared.stock._idle

    def test_a_new_shared_session_starts_without_names(self, shared: House) -> None:
        """What was held on the dead one is held no more."""
        asker = Asker()
        held = shared.hold(asker, "k")
        shared.stock.end(cast("Session", on(held)))
        again = shared.hold(asker, "k")
        assert on(again) is shared.lender._shared
        assert on(again) is not on(held)

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
        assert shared.stock.take(within_limit=True) is waiter.session

    def test_a_lock_that_was_waited_for_is_no_name_on_the_shared_session(self, shared: House) -> None:
        """A reader who comes next may ask there."""
        asker = Asker()
        stranger = shared.server.take("k")
        waiter = shared.ticket(asker, "k", shared=True)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(shared.wait, waiter, asker)
            until(lambda: any(session.waits for session in shared.server.sessions))
            stranger.hang_up()
            assert waiting.result(10)
        assert on(shared.hold(Asker(), "k", shared=True)) is shared.lender._shared

    def test_a_spare_session_that_ended_while_it_was_idle_is_replaced(self, shared: House) -> None:
        """For a wait as for a reader's try."""
        asker = Asker()
        stranger = shared.server.take("k")
        for key in ("k", "r"):
            refused = shared.ticket(asker, "k")
            assert not shared.attempt(refused, asker)
            assert not shared.wait(refused, asker, 0.001)
            shared.lender.settle(refused, reusable=True)
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

    def test_a_reader_who_asks_on_a_spare_session_stands_in_line_too(self, make_house: Callable[..., House]) -> None:
        """Somebody waits for it already."""
        house = make_house(SharedLender, limit=2)
        house.server.take("a", "b")
        ann, ben, cid = Hasty(), Hasty(), Asker()
        first, second = house.ticket(ann, "a"), house.ticket(ben, "b")
        house.hold(cid, "r", shared=True)
        assert not house.wait(first, ann, 0.001)
        assert not house.wait(second, ben, 0.001)
        house.lender.settle(first, reusable=True)
        assert not house.attempt(house.ticket(cid, "r", shared=True), cid)
        assert not house.wait(second, ben, 0.001)
        assert second.lent is not None

    def test_there_are_no_more_sessions_than_the_limit(self, make_house: Callable[..., House]) -> None:
        """However many wait for different keys, all of them come to their locks."""
        house = make_house(SharedLender, limit=3)
        keys = [f"key {number}" for number in range(8)]
        stranger = house.server.take(*keys)

        def work(key: str) -> bool:
            asker = Asker()
            ticket = house.ticket(asker, key)
            granted = house.attempt(ticket, asker) or house.wait(ticket, asker, 10)
            house.lender.settle(ticket, reusable=True) if not granted else house.unlock(ticket, asker)
            return granted

        with ThreadPoolExecutor(8) as pool:
            waits = [pool.submit(work, key) for key in keys]
            until(lambda: len(house.lender._line) == 6)
            assert len(house.server.living) == 3
            stranger.hang_up()
            assert [wait.result(10) for wait in waits] == [True] * 8
        assert len(house.server.sessions) == 3
        assert not house.lender._line

    def test_the_line_for_spare_sessions_is_first_come_first_served(self, make_house: Callable[..., House]) -> None:
        """Who comes when one is free does not pass those who stand in line for it."""
        house = make_house(SharedLender, limit=2)
        house.server.take("a", "b", "c", "d")
        askers = {key: Hasty() for key in "abcd"}
        tickets = {key: house.ticket(asker, key) for key, asker in askers.items()}

        def wait_a_moment(key: str) -> bool:
            return not house.wait(tickets[key], askers[key], 0.001) and tickets[key].lent is not None

        assert not house.attempt(tickets["a"], askers["a"])
        assert wait_a_moment("a")
        assert not wait_a_moment("b")
        assert not wait_a_moment("c")
        house.lender.settle(tickets["a"], reusable=True)
        assert (askers["b"].woken, askers["c"].woken) == (1, 0)
        assert [wait_a_moment(key) for key in "dcb"] == [False, False, True]
        house.lender.settle(tickets["b"], reusable=False)
        assert [wait_a_moment(key) for key in "dc"] == [False, True]

    def test_one_who_leaves_the_line_does_not_hold_it_up(self, make_house: Callable[..., House]) -> None:
        """Refused in the end, or granted by polling."""
        house = make_house(SharedLender, limit=2)
        stranger = house.server.take("a", "b", "c", "d")
        asker = Hasty()
        first, *polling = (house.ticket(asker, key) for key in "abcd")
        assert not house.attempt(first, asker)
        for ticket in (first, *polling):
            assert not house.wait(ticket, asker, 0.001)
        assert list(house.lender._line) == polling
        house.lender.settle(polling[0], reusable=True)
        assert list(house.lender._line) == polling[1:]
        stranger.hang_up()
        assert house.wait(polling[1], asker, 10)
        assert list(house.lender._line) == polling[2:]

    def test_a_wait_that_was_interrupted_ends_its_session_and_no_other(self, shared: House) -> None:
        """Whoever cancels it costs nobody else his lock."""
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
        shared.lender.settle(waiter, reusable=False)
        assert on(waiter).ended
        assert shared.unlock(held, asker)

    def test_the_session_of_a_wait_that_may_have_been_interrupted_is_not_kept(self, shared: House) -> None:
        """The interrupt may come late, and would hit the next borrower."""
        asker = Asker()
        shared.server.take("k")
        waiter = shared.ticket(asker, "k")
        assert not shared.wait(waiter, asker, 0.001)
        shared.lender.settle(waiter, reusable=False)
        assert shared.server.sessions[-1].ended
        assert not shared.stock._idle


class TestOwnerLender:
    """A session for each owner."""

    def test_an_owner_has_one_session_for_all_his_locks(self, owned: House) -> None:
        """And another owner has another."""
        ann, ben = Asker(), Asker()
        first, second, other = owned.hold(ann, "x"), owned.hold(ann, "y"), owned.hold(ben, "z")
        assert on(first) is on(second)
        assert on(first) is not on(other)

    def test_an_owner_waits_on_his_own_session(self, owned: House) -> None:
        """So that the server sees what he holds while he waits."""
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
        assert not owned.stock._idle
        assert owned.unlock(second, ann)
        assert owned.stock._idle == [first.session]
        assert owned.lender._owned == {}
        assert on(owned.hold(ben, "z")) is on(first)

    def test_one_who_was_refused_gives_his_session_back(self, owned: House) -> None:
        """He holds nothing."""
        ann = Asker()
        owned.server.take("k")
        ticket = owned.ticket(ann, "k")
        assert not owned.attempt(ticket, ann)
        owned.lender.settle(ticket, reusable=True)
        assert len(owned.stock._idle) == 1
        assert owned.lender._owned == {}

    def test_a_refused_owner_keeps_the_session_of_his_other_locks(self, owned: House) -> None:
        """They are on it."""
        ann = Asker()
        held = owned.hold(ann, "x")
        owned.server.take("k")
        ticket = owned.ticket(ann, "k")
        assert not owned.attempt(ticket, ann)
        owned.lender.settle(ticket, reusable=True)
        assert not owned.stock._idle
        assert on(owned.hold(ann, "y")) is on(held)

    def test_an_owner_whose_session_was_interrupted_gets_a_new_one(self, owned: House) -> None:
        """His locks are lost with the old one."""
        ann = Asker()
        held = owned.hold(ann, "x")
        refused = owned.ticket(ann, "y")
        owned.server.take("y")
        assert not owned.attempt(refused, ann)
        owned.lender.settle(refused, reusable=False)
        assert owned.lost == [held.session]
        assert on(owned.hold(ann, "z")) is not on(held)

    def test_a_holder_hears_that_his_session_died(self, owned: House) -> None:
        """It held something: another session is no remedy."""
        ann = Asker()
        held = owned.hold(ann, "x")
        on(held).hang_up()
        with pytest.raises(LockConnectionError):
            owned.attempt(owned.ticket(ann, "y"), ann)
        assert owned.lost == [held.session]

    def test_an_unlock_that_failed_or_was_called_away_leaves_no_lock_and_no_owner(self, owned: House) -> None:
        """The bookkeeping is told that it ended, so the server must be rid of it too."""
        ann, ben = Asker(), Asker()
        held = owned.hold(ann, "x")
        on(held).hang_up()
        with pytest.raises(LockConnectionError):
            owned.unlock(held, ann)
        assert owned.lender._owned == {}
        held = owned.hold(ben, "y")
        assert held.lent.gate.enter_if_free()  # a statement of the owner's is under way
        with pytest.raises(KeyboardInterrupt):
            owned.unlock(held, Interrupted())
        assert owned.lender._owned == {}
        assert owned.server.admits("y", shared=False)

    def test_threads_release_what_one_owner_disowned_one_after_another(self, owned: House) -> None:
        """The server would complain of two statements at a time on his session."""
        ann = Asker()
        held = [owned.hold(ann, f"key {number}") for number in range(40)]
        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(lambda ticket: owned.unlock(ticket, Asker()), held))
        assert owned.lender._owned == {}
        assert owned.stock._idle == [held[0].session]


class TestSingleLender:
    """A session for each lock."""

    def test_each_lock_has_its_own_session(self, single: House) -> None:
        """And gives it back."""
        asker = Asker()
        first, second = single.hold(asker, "x"), single.hold(asker, "y")
        assert on(first) is not on(second)
        assert single.unlock(first, asker)
        assert on(single.hold(asker, "z")) is on(first)

    def test_one_who_waits_tries_again_on_the_same_session(self, single: House) -> None:
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
    def test_one_who_was_refused_gives_his_session_back(self, single: House, reusable: bool) -> None:
        """It is kept unless he may have interrupted it."""
        asker = Asker()
        single.server.take("k")
        ticket = single.ticket(asker, "k")
        assert not single.attempt(ticket, asker)
        single.lender.settle(ticket, reusable=reusable)
        assert len(single.stock._idle) == reusable
