"""What happens in one simulation, as a seed makes it: who uses which lock how, and what goes wrong.

A plan can be replayed in another order of its threads, and without some of its parts: `1234/7/0.3` is the plan of seed
1234 in its seventh order, without its parts 0 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from .server import CANCELLED, DENIED, UNSUPPORTED
from .wire import DRIVERS, TASK_DRIVERS

__all__ = ["Actor", "Fault", "Plan", "Provider", "Token", "Use", "make_plan"]


@dataclass(frozen=True)
class Token:
    """Names one simulation."""

    seed: int
    order: int = 0
    dropped: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read what `str` writes.

        Raises:
            ValueError: It is no token.
        """
        seed, order, dropped, *_ = (*text.split("/"), "", "")
        return cls(int(seed), int(order or 0), frozenset(int(one) for one in dropped.split(".") if one))

    def __str__(self) -> str:
        dropped = ".".join(map(str, sorted(self.dropped)))
        return f"{self.seed}/{self.order}/{dropped}" if dropped or self.order else str(self.seed)


@dataclass(frozen=True)
class Provider:
    """The options of one provider; each stands for a process."""

    api: str
    """Its users are threads, or tasks of an event loop: over an async driver, or by `alock`."""
    driver: str
    share_sessions: bool
    max_sessions: int
    heartbeat: float
    lease: float | None
    closes_after: float | None = None
    forgotten: bool = False
    """It becomes garbage at its end, and is not closed."""
    short_turns: bool = False
    """It hands no lock on without putting it back at the server first."""


@dataclass(frozen=True)
class Use:
    """One use of one lock."""

    key: str
    shared: bool
    fencing: bool
    timeout: float | None
    hold: float
    ending: str
    """release, with, close, garbage, elsewhere (another thread releases it)."""
    verify: bool
    closed_after: float | None
    """Another thread calls `close` so long after `acquire` begins."""
    inside: Use | None = None
    forks: bool = False
    """Its process forks while it holds the lock."""

    def __str__(self) -> str:
        how = " shared" * self.shared + " with a token" * self.fencing
        timeout = "for ever" if self.timeout is None else "one try" if self.timeout == 0 else f"{self.timeout} s"
        closed = "" if self.closed_after is None else f", another thread closes it after {self.closed_after} s"
        return f"lock {self.key}{how}, {timeout}, held for {self.hold} s, then {self.ending}{closed}"


@dataclass(frozen=True)
class Actor:
    """A thread that uses locks, one after the other."""

    name: str
    provider: int
    is_main: bool
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, at a request to the server, at a step of the schedule, or at a time."""

    kind: str
    at: int
    seconds: float = 0.0
    when: float | None = None
    """Seconds from the beginning; then `at` says nothing."""

    def __str__(self) -> str:
        return f"{self.kind}" + (f" for {self.seconds} s" if self.seconds else "")


AT_REQUESTS = (DENIED, CANCELLED, UNSUPPORTED, "slow", "silence", "request lost", "answer lost", "killed")
AT_STEPS = ("kill a holder", "restart", "freeze", "silence all", "signal", "collect", "cancel", "block the loop")
NO_THREAD = "no thread"
AT_TIMES = frozenset(AT_STEPS) - {"collect"}
# How many steps, or threads that start, lie before a fault on average.
BETWEEN = {"signal": (60, 200), "cancel": (60, 250), NO_THREAD: (3, 12)}
SECONDS = {
    "slow": (0.05, 0.5, 1.5, 20.0),
    "silence": (0.5, 1.5, 10.0, 40.0),
    "silence all": (0.5, 1.5, 10.0, 40.0),
    "answer lost": (0.0, 0.01, 3.0),
    "restart": (0.01, 1.0, 5.0),
    "freeze": (1.0, 5.0, 20.0),
    "block the loop": (0.5, 1.5, 5.0, 20.0),
}


@dataclass(frozen=True)
class Plan:
    """One simulation."""

    providers: tuple[Provider, ...]
    actors: tuple[Actor, ...]
    faults: tuple[Fault, ...]

    @property
    def size(self) -> int:
        """How many parts it has, that can be left out."""
        return sum(len(actor.uses) for actor in self.actors) + len(self.faults)

    def without(self, dropped: frozenset[int]) -> Plan:
        """Leave out some of its parts."""
        number, actors = 0, []
        for actor in self.actors:
            uses = tuple(use for place, use in enumerate(actor.uses, number) if place not in dropped)
            number += len(actor.uses)
            if uses:
                actors.append(replace(actor, uses=uses))
        faults = tuple(fault for place, fault in enumerate(self.faults, number) if place not in dropped)
        return replace(self, actors=tuple(actors), faults=faults)


@dataclass(frozen=True)
class Theme:
    """What a plan has much of: some defects show only where several faults of one kind meet the same lock."""

    faults: tuple[str, ...] = ()
    apis: tuple[str, ...] = ("threads", "threads", "alock", "tasks")
    keys: str = "ab"
    holds: tuple[float, ...] = (0.0, 0.0, 0.0005, 0.02, 0.5, 3.0, 20.0)
    """For how many seconds locks are held."""
    timeouts: tuple[float | None, ...] = (None, None, 0.0, 0.02, 1.0, 15.0)
    shares: float = 0.7
    """How likely all locks of a provider share a session."""
    main: float = 0.0
    """How likely signals are."""
    closed: float = 0.15
    """How likely another thread calls a lock's `close`."""
    closes: float = 0.1
    """How likely a provider is closed while it is used."""
    forks: float = 0.01
    """How likely the process forks under a lock."""
    often: float = 3.0
    """How many faults there are, on average."""
    actors: tuple[int, ...] = (2, 2, 3, 3, 4, 6)
    """How many use locks."""
    short_turns: bool = False


PLAIN = Theme(main=0.4)
BRIEF = (0.0, 0.0005, 0.002, 0.01)
THEMES = (
    Theme(faults=("signal",), apis=("threads",), keys="a", main=1.0, often=5),
    Theme(faults=("signal", "signal", "slow", "silence"), apis=("threads",), keys="a", main=1.0, often=6),
    Theme(faults=(NO_THREAD, NO_THREAD, "kill a holder"), apis=("threads", "alock", "alock"), often=5),
    Theme(faults=(NO_THREAD,), apis=("alock",), holds=(20.0, 20.0, 0.02), closed=0.0, often=8),
    Theme(faults=("cancel",), apis=("alock", "alock", "tasks"), keys="a", often=6),
    Theme(faults=("cancel", "cancel", "slow", CANCELLED), apis=("alock", "tasks"), shares=0.2, often=8),
    Theme(faults=("cancel",), apis=("alock",), keys="a", holds=(0.01, 0.02, 0.5), timeouts=(0.02, 0.02, 1.0), often=8),
    Theme(faults=("kill a holder", "killed"), often=4),
    Theme(faults=("kill a holder",), keys="a", holds=BRIEF, closed=0.0, often=3),
    Theme(faults=("slow",), closed=0.6, closes=0.6, often=3),
    Theme(keys="a", closed=0.5),
    Theme(keys="a"),
    Theme(faults=("slow",), apis=("threads",), main=0.3, forks=0.5, often=1),
    Theme(keys="a", holds=BRIEF, shares=1.0, actors=(4, 6, 8), short_turns=True),
    Theme(
        faults=("cancel", "killed", "kill a holder", CANCELLED, UNSUPPORTED, "slow"),
        keys="a",
        holds=BRIEF,
        shares=1.0,
        closed=0.5,
        actors=(4, 6, 8),
        short_turns=True,
    ),
)


def make_plan(seed: int) -> Plan:
    """Make the plan of a seed."""
    chance = Random(seed)
    theme = chance.choice(THEMES) if chance.random() < 0.5 else PLAIN
    main = chance.random() < theme.main
    count = chance.choice((1, 1, 2, 2, 3))
    providers = tuple(_provider(chance, theme, threads=main and number == 0) for number in range(count))
    actors = []
    for number in range(chance.choice(theme.actors)):
        is_main = main and number == 0
        alone = len(providers) == 1
        uses = tuple(_use(chance, theme, theme.keys, alone=alone) for _ in range(chance.choice((1, 2, 2, 3))))
        actors.append(Actor("MainThread" if is_main else f"actor{number}", number % len(providers), is_main, uses))
    tasks = any(provider.api != "threads" for provider in providers)
    if theme.faults:
        count = 1 + int(chance.expovariate(1 / theme.often))
        faults = tuple(_placed(chance, chance.choice(theme.faults), tasks=tasks) for _ in range(count))
    else:
        count = chance.choice((0, 0, 1, 1, 2, 3, 4)) if theme is PLAIN else 0
        faults = tuple(_fault(chance, main=main, tasks=tasks) for _ in range(count))
    return Plan(providers, tuple(actors), faults)


def _provider(chance: Random, theme: Theme, *, threads: bool) -> Provider:
    shares = chance.random() < theme.shares
    api = "threads" if threads else chance.choice(theme.apis)
    return Provider(
        api=api,
        driver=chance.choice(TASK_DRIVERS if api == "tasks" else DRIVERS),
        share_sessions=shares,
        max_sessions=chance.choice((2, 2, 3, 8)),
        heartbeat=chance.choice((2.0, 5.0)),
        lease=chance.choice((None, None, 6.0)) if shares else None,
        closes_after=chance.choice((0.0, 0.001, 0.1, 5.0)) if chance.random() < theme.closes else None,
        forgotten=chance.random() < 0.2 and api == "threads" and not threads,
        short_turns=theme.short_turns,
    )


def _use(chance: Random, theme: Theme, keys: str, *, alone: bool) -> Use:
    timeout = chance.choice(theme.timeouts)
    ending = chance.choice(("release", "with", "with", "close", "garbage", "elsewhere"))
    inside = None
    if len(keys) > 1 and chance.random() < 0.25:
        inside = _use(chance, theme, chance.choice(keys), alone=alone)
        if inside.key < keys[-1] and inside.timeout is None and not alone:
            inside = replace(inside, timeout=3.0)  # against the order: a deadlock between processes has no end
    shared = chance.random() < 0.3
    return Use(
        key=keys[0] if inside is not None and inside.key != keys[0] else chance.choice(keys),
        shared=shared,
        fencing=not shared and chance.random() < 0.1,
        timeout=timeout,
        hold=chance.choice(theme.holds),
        ending=ending,
        verify=chance.random() < 0.1,
        closed_after=chance.choice((0.0, 0.0005, 0.02, 0.7)) if chance.random() < theme.closed else None,
        inside=inside,
        forks=chance.random() < theme.forks,
    )


def _fault(chance: Random, *, main: bool, tasks: bool) -> Fault:
    kind = chance.choice(AT_REQUESTS if chance.random() < 0.6 else AT_STEPS)
    if main and chance.random() < 0.5:
        kind = "signal"
    elif tasks and chance.random() < 0.4:
        kind = "cancel"
    elif not main and chance.random() < 0.15:
        # Not with signals: where there is no thread to be had, the main thread does its work itself, unprotected.
        kind = NO_THREAD
    return _placed(chance, kind, tasks=tasks)


def _placed(chance: Random, kind: str, *, tasks: bool) -> Fault:
    """Give a fault its place, and its length."""
    if not tasks and kind in {"cancel", "block the loop"}:
        kind = "freeze"
    at = 1 + int(chance.expovariate(1 / chance.choice(BETWEEN.get(kind, (12,) if kind in AT_REQUESTS else (60, 300)))))
    timed = kind in AT_TIMES and chance.random() < 0.4
    when = round(chance.expovariate(1 / chance.choice((0.03, 8.0))), 4) if timed else None
    return Fault(kind, at, chance.choice(SECONDS.get(kind, (0.0,))), when)
