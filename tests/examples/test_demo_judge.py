"""The judge of the demo, fed with made-up events."""

from __future__ import annotations

from example_projects.demo.events import Event, Kind, parse
from example_projects.demo.judge import Verdict, find_holds, judge


def hold(worker: str, start: float, end: float) -> list[Event]:
    """Return the events of one wait and hold."""
    return [
        Event(start - 1, worker, Kind.WAITING),
        Event(start, worker, Kind.HOLDING, "0.3"),
        Event(end, worker, Kind.RELEASED),
    ]


def killed(worker: str, start: float, at: float) -> list[Event]:
    """Return the events of a hold that ends by a kill."""
    return [
        Event(start - 1, worker, Kind.WAITING),
        Event(start, worker, Kind.HOLDING, "0.3"),
        Event(at, worker, Kind.KILLED),
        Event(at + 0.01, worker, Kind.ENDED, "-9"),
    ]


def faults(*events: list[Event], kills: int | None = 0) -> str:
    """Judge the events and return all faults as one text."""
    return "\n".join(verdict(*events, kills=kills).faults)


def verdict(*events: list[Event], kills: int | None = 0) -> Verdict:
    """Judge the events of several workers."""
    return judge([event for group in events for event in group], kills=kills)


def test_holds_that_follow_one_another_are_no_fault() -> None:
    """Holds may touch, but not overlap."""
    result = verdict(hold("W1", 1, 2), hold("W2", 2, 3), hold("W1", 3.5, 4))
    assert (result.exit_code, result.grants, result.faults) == (0, 3, ())


def test_two_holds_at_once_are_named_with_their_duration() -> None:
    """The fault names both holders, and for how long they overlapped."""
    result = verdict(hold("W1", 1, 2), hold("W2", 1.75, 3))
    assert result.exit_code == 1
    assert "W1 and W2 both held the lock for 250.000 ms" in result.faults[0]


def test_a_hold_inside_another_is_an_overlap() -> None:
    """The inner hold is as long as the overlap."""
    assert "for 500.000 ms" in faults(hold("W1", 1, 9), hold("W2", 2, 2.5))


def test_a_long_hold_overlaps_each_that_begins_during_it() -> None:
    """Not only neighbours in time are compared."""
    groups = hold("W1", 1, 9), hold("W2", 2, 3), hold("W3", 4, 5)
    assert len(verdict(*groups).overlaps) == 2


def test_an_overlap_is_seen_in_whatever_order_the_pipes_are_read() -> None:
    """The stamps count, not the order of arrival."""
    events = hold("W1", 1, 2) + hold("W2", 1.5, 3)
    assert judge(reversed(events), kills=0).overlaps


def test_a_grant_before_the_kill_of_the_holder_is_an_overlap() -> None:
    """A killed holder holds at least until the kill was sent."""
    assert "W1 and W2 both held" in faults(killed("W1", 1, 2), hold("W2", 1.9, 3))


def test_the_time_from_a_kill_to_the_next_holder_is_measured() -> None:
    """The next grant counts, whichever worker gets it."""
    result = verdict(killed("W1", 1, 2), hold("W2", 2.25, 3), kills=1)
    (recovery,) = result.recoveries
    assert (recovery.victim, recovery.heir, recovery.seconds) == ("W1", "W2", 0.25)
    assert result.exit_code == 0


def test_no_grant_after_a_kill_is_a_fault() -> None:
    """A lock that a dead process keeps is a lock left behind."""
    text = faults(hold("W2", 0, 0.5), killed("W1", 1, 2), kills=1)
    assert text == "no worker got the lock after W1 was killed"


def test_a_kill_between_two_holds_does_not_count_as_struck() -> None:
    """Killing a waiter shows nothing about the lock."""
    late = [*hold("W1", 1, 2), Event(2.1, "W1", Kind.KILLED)]
    assert "only 0 of 1 kills struck" in faults(late, hold("W2", 3, 4), kills=1)


def test_a_worker_that_ends_by_itself_is_a_fault() -> None:
    """Even with status 0: it was not asked to."""
    early = [*hold("W1", 1, 2), Event(2.1, "W1", Kind.ENDED, "0")]
    assert "W1 ended by itself with status 0" in faults(early, hold("W2", 3, 4))


def test_a_worker_that_ends_when_asked_is_no_fault() -> None:
    """Status 0 after the stop is how a worker should end."""
    stop = [Event(5, "", Kind.STOPPED), Event(5.1, "W1", Kind.ENDED, "0")]
    assert not faults(hold("W1", 1, 2), hold("W2", 3, 4), stop)


def test_a_worker_that_does_not_end_when_asked_is_a_fault() -> None:
    """Another status after the stop means an error or a hang."""
    stop = [Event(5, "", Kind.STOPPED), Event(9, "W1", Kind.ENDED, "75")]
    assert "status 75" in faults(hold("W1", 1, 2), hold("W2", 3, 4), stop)


def test_a_marker_of_a_live_worker_is_a_fault() -> None:
    """The second witness is believed without the first."""
    met = [Event(3.1, "W2", Kind.MET, "W1")]
    result = verdict(hold("W1", 1, 2), hold("W2", 3, 4), met)
    assert result.two_holders
    assert "W2 got the lock and found the marker of W1" in result.faults[0]


def test_a_marker_left_by_a_killed_worker_is_no_fault() -> None:
    """The next holder may be faster than the parent that removes it."""
    met = [Event(2.1, "W2", Kind.MET, "W1")]
    assert not faults(killed("W1", 1, 2), hold("W2", 2.05, 3), met, kills=1)


def test_a_marker_met_before_the_kill_of_its_owner_is_a_fault() -> None:
    """A kill excuses only what comes after it."""
    met = [Event(1.9, "W2", Kind.MET, "W1")]
    groups = killed("W1", 1, 2), hold("W2", 3, 4), met
    assert "found the marker of W1" in faults(*groups, kills=1)


def test_hardly_any_grant_is_a_fault() -> None:
    """Never two at once is easy when no worker ever gets the lock."""
    assert "only 1 grants" in faults(hold("W1", 1, 2))


def test_what_is_missing_is_no_fault_when_the_demo_was_cut_short() -> None:
    """Ctrl-C may come before the second grant or the next holder."""
    assert not faults(killed("W1", 1, 2), kills=None)


def test_an_overlap_is_a_fault_even_when_the_demo_was_cut_short() -> None:
    """What did happen is judged in any case."""
    assert faults(hold("W1", 1, 2), hold("W2", 1.5, 3), kills=None)


def test_a_hold_that_still_lasts_ends_now() -> None:
    """The live view draws it up to the present."""
    (last,) = find_holds(hold("W1", 1, 2)[:2], now=1.5)
    assert (last.start, last.end) == (1, 1.5)


def test_an_event_survives_the_pipe() -> None:
    """The stamp keeps all its digits."""
    event = Event(0.1 + 0.2, "W1", Kind.HOLDING, "0.3")
    assert parse("W1", event.line()) == event


def test_a_line_that_is_no_event_is_ignored() -> None:
    """Drivers may write to stdout."""
    assert parse("W1", b"warning: libpq is old\n") is None
