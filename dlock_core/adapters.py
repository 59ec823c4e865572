"""What all adapters share: settings, providers, the text of a value in a key, the holder of a lock in words."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import os
import sys
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from .coordination.options import checked
from .dialects.postgresql import xact_statement
from .errors import LockError, UnsupportedError, shown
from .keys import Key
from .lock import UNSET, Unset
from .provider import LockProvider, refuse_generator
from .templates import KeySource, KeyTemplate, key_json, key_maker, key_part, key_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

__all__ = [
    "EX_IOERR",
    "EX_TEMPFAIL",
    "PROVIDER_OPTIONS",
    "UNSET",
    "Acquisition",
    "Key",
    "KeySource",
    "KeyTemplate",
    "Registry",
    "Unset",
    "holder_of",
    "is_async",
    "key_json",
    "key_maker",
    "key_part",
    "key_text",
    "provider_options",
    "refuse_async",
    "refuse_generator",
    "shown",
    "unknown_setting",
    "wrong_options",
    "xact_statement",
]

N = TypeVar("N")
T = TypeVar("T")
log = logging.getLogger("dlock")

# Exit statuses of sysexits.h: another process holds the lock; the lock was lost.
EX_TEMPFAIL, EX_IOERR = 75, 74
# Answers of `holder_of` that one provider keeps before it drops the old ones.
MAX_ANSWERS = 256


PROVIDER_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        name: parameter.default
        for name, parameter in inspect.signature(LockProvider).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in {"adapter", "on_lost"}
    }
)
"""The options of `LockProvider` that an application's settings can give, with their defaults."""


def provider_options(read: Callable[[str, Any], Any], spelled: Callable[[str], str]) -> dict[str, Any]:
    """Read the options of a provider from an application's settings.

    Args:
        read: Called with a setting's name and its default; returns what the settings say.
        spelled: Returns the name of an option's setting, such as "DLOCK_LEASE" for "lease".

    Raises:
        ValueError: An option cannot be what it is; the message begins with the name of its setting.
    """
    options = {name: read(spelled(name), default) for name, default in PROVIDER_OPTIONS.items()}
    for complaint in wrong_options(options, spelled):
        raise ValueError(complaint)
    return options


def wrong_options(options: Mapping[str, Any], spelled: Callable[[str], str]) -> Iterator[str]:
    """Check each option of a provider by itself; yield what is wrong, under the name of its setting."""
    for name, value in options.items():
        try:
            if isinstance(PROVIDER_OPTIONS[name], bool) and not isinstance(value, bool):
                raise ValueError(f"{name}={shown(value)}: give True or False")  # noqa: TRY004, TRY301 - as all options
            options_with_one: dict[str, Any] = {**PROVIDER_OPTIONS, "adapter": "", "on_lost": None, name: value}
            checked(**options_with_one)
        except ValueError as error:
            yield f"{spelled(name)}{str(error).removeprefix(name)}"


def unknown_setting(name: str, known: Collection[str]) -> str:
    """Say that there is no such setting, and which may be meant."""
    near = difflib.get_close_matches(name, known, 1)
    return f"there is no setting {name}: " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")


@dataclass
class _Place(Generic[T]):
    """What was made, what closes it and all that was made for it, and how many use it."""

    made: T
    cleanup: ExitStack
    users: int = 0
    left: float = 0.0
    watched: bool = False


class Registry(Generic[N, T]):
    """The lock providers of an application in this process: one for each name, made at first use.

    Many threads that ask at once get the same one. A forked child starts with none of its parent's.
    """

    def __init__(self) -> None:
        self._start_anew()
        _fork_safe.add(self)

    def _start_anew(self) -> None:
        self._mutex = threading.RLock()  # another thread of the parent may have held the old one
        self._places: dict[N, _Place[T]] = {}

    def get(self, name: N, make: Callable[[ExitStack], T]) -> T:
        """Return what stays until `close`.

        Args:
            name: Of the database, and of whatever else tells two providers apart.
            make: Makes it; the stack gets whatever is to be closed with it, as in
                `cleanup.enter_context(LockProvider(…))`.
        """
        with self._mutex:
            return self._place(name, make).made

    def _place(self, name: N, make: Callable[[ExitStack], T]) -> _Place[T]:
        if name not in self._places:
            with ExitStack() as cleanup:
                made = make(cleanup)
                self._places[name] = _Place(made, cleanup.pop_all())
        return self._places[name]

    @contextmanager
    def lend(self, name: N, make: Callable[[ExitStack], T], linger: Callable[[], float | None]) -> Iterator[T]:
        """Lend it for the time of a block.

        Args:
            name: As for `get`.
            make: As for `get`.
            linger: Returns after how many seconds without a user it is to be closed; None: never.
        """
        with self._mutex:
            place = self._place(name, make)
            place.users += 1
        try:
            yield place.made
        finally:
            self._leave(name, place, linger())

    def _leave(self, name: N, place: _Place[T], linger: float | None) -> None:
        with self._mutex:
            place.users -= 1
            place.left = time.monotonic()
            if linger is None or (linger and place.watched):
                return
        self._close_unused(name, place, linger)

    def _close_unused(self, name: N, place: _Place[T], linger: float) -> None:
        """Close what nothing has used for so long; look again later at what something has."""
        with self._mutex:
            place.watched = False
            if place.users or self._places.get(name) is not place:  # a forked child closes nothing of its parent's
                return
            rest = place.left + linger - time.monotonic()
            if rest > 0:
                place.watched = True
                timer = threading.Timer(rest, self._close_unused, (name, place, linger))
                timer.daemon = True
                timer.start()
                return
            del self._places[name]
        place.cleanup.close()

    def close(self) -> None:
        """Close all; a later `get` makes new ones."""
        with self._mutex:
            places, self._places = self._places, {}
        for place in places.values():
            place.cleanup.close()


def refuse_async(function: Callable[..., Any], instead: str) -> None:
    """Refuse a function whose body runs only after its call has returned: an async one, or a generator.

    Args:
        function: To run under a lock.
        instead: The end of the message: why not, or what to use.

    Raises:
        UnsupportedError: It is one.
    """
    refuse_generator(function)
    if is_async(function):
        raise UnsupportedError(f"{function.__qualname__} is async: {instead}")


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether a function is a coroutine function, or marked as one."""
    if sys.version_info >= (3, 12):
        return inspect.iscoroutinefunction(function)
    return asyncio.iscoroutinefunction(function)


class Acquisition:
    """What the signals of one acquisition tell: the same names in every adapter.

    The signals are sent where the lock is asked for and released. Events of `LockProvider.listen` may come from a
    helper thread, where a receiver would not find what belongs to that thread, such as Django's connections.

    Args:
        key: Of the lock.
        where: What the adapter adds to every signal, such as the name of the database.
    """

    def __init__(self, key: object, **where: object) -> None:
        self._about = {"key": key, **where}
        self._asked = time.monotonic()
        self._granted: float | None = None

    @property
    def granted(self) -> bool:
        """Whether the lock was acquired."""
        return self._granted is not None

    def acquired(self) -> dict[str, Any]:
        """Return the arguments of `lock_acquired`; `waited` is in seconds."""
        self._granted = time.monotonic()
        return {**self._about, "waited": self._granted - self._asked}

    def conflict(self) -> dict[str, Any]:
        """Return the arguments of `lock_conflict`; `waited` is in seconds."""
        return {**self._about, "waited": time.monotonic() - self._asked}

    def ended(self) -> dict[str, Any]:
        """Return the arguments of `lock_released` and `lock_lost`; `held_for` is in seconds."""
        return {**self._about, "held_for": time.monotonic() - (self._granted or self._asked)}


@dataclass
class _Answer:
    mutex: threading.Lock = field(default_factory=threading.Lock)
    asked: float = float("-inf")
    text: str = ""


class _Answers:
    """The last answers of `holder_of`."""

    def __init__(self) -> None:
        self._start_anew()
        _fork_safe.add(self)

    def _start_anew(self) -> None:
        self._mutex = threading.Lock()
        self._known: weakref.WeakKeyDictionary[LockProvider, dict[Key, _Answer]] = weakref.WeakKeyDictionary()

    def of(self, locks: LockProvider, key: Key, max_age: float) -> _Answer:
        with self._mutex:
            known = self._known.setdefault(locks, {})
            if len(known) >= MAX_ANSWERS:
                oldest = time.monotonic() - max_age
                fresh = {one: answer for one, answer in known.items() if answer.asked > oldest}
                known = self._known[locks] = fresh
            return known.setdefault(key, _Answer())


def holder_of(locks: LockProvider, key: Any, *, max_age: float = 0) -> str:
    """Return the holder of a key in words; "" when the database does not tell. Never an error.

    It asks the database on a connection of its own: call it only when the answer will be read.

    Args:
        locks: Of the key.
        key: Of the lock.
        max_age: How many seconds old the answer may be, so that a burst of conflicts asks once.
    """
    if not max_age:
        return _asked(locks, key)
    answer = _answers.of(locks, key, max_age)
    with answer.mutex:
        if time.monotonic() - answer.asked > max_age:
            answer.text = _asked(locks, key)
            answer.asked = time.monotonic()
        return answer.text


def _asked(locks: LockProvider, key: Any) -> str:
    try:
        return "; ".join(info.describe() for info in locks.inspect(key))
    except (LockError, SQLAlchemyError) as error:
        log.debug("the holder of key %s is unknown: %s", shown(key), error)
        return ""


_fork_safe: weakref.WeakSet[Any] = weakref.WeakSet()
_answers = _Answers()


def _after_fork_in_child() -> None:
    for one in list(_fork_safe):
        one._start_anew()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork_in_child)
