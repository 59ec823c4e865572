"""Which tests run: ``--set=fast`` (the default), ``rest``, ``all`` or ``quick``.

The contract, units and statements run on every fast row; elsewhere the fast set has each test on one of its databases,
another one for each test, so that all of them are met. Fast and rest together are all, and no test is in both. What is
named, by ``-k``, ``-m`` or a test's id, runs whatever its set, unless ``--set`` says otherwise.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from tests.contract.rows import Row

__all__ = ["SETS", "chosen_set", "group_of", "in_rows", "leave_one_database", "row_of"]

T = TypeVar("T")

ONE_DATABASE = {
    "celery": ("pair",),
    "cli": ("url", "crowd"),
    "contract": ("drivername", "odbc"),
    "django": ("alias", "row"),
    "fault": ("row",),
    "flask": ("place", "served"),
    "sadlock": ("row",),
    "servers": ("kept_server",),
}
"""The folders whose tests the fast set runs on one database each, and the parameters that name it."""
FIRST_SERVES = ("celery",)
"""Where that is the first one, since it needs no broker, and a worker serves a whole module."""
SLOW_FOLDERS = ("comparison", "docs", "examples")
"""Browsers, builds, other libraries and whole programs: `make test` leaves them out."""
MODULE_FIXTURES = ("celery", "django")
"""A module has workers or a site of its own, which its tests share."""


def is_slow(item: pytest.Item) -> bool:
    """Tell whether only `make test-all` runs a test."""
    return item.get_closest_marker("slow") is not None or folder_of(item) in SLOW_FOLDERS


def needs_no_server(item: pytest.Item) -> bool:
    """Tell whether a test belongs to `make quick`: what needs no database, and the contract on SQLite."""
    row = row_of(item)
    folder = folder_of(item)
    return not is_slow(item) and (folder == "unit" or (folder == "contract" and row is not None and not row.is_server))


def leave_one_database(items: Iterable[pytest.Item], missing: Collection[str]) -> None:
    """Make slow what a fast test does on more than one of the databases that this machine has."""
    cases: dict[tuple[object, ...], list[pytest.Item]] = defaultdict(list)
    for item in items:
        names, found = ONE_DATABASE.get(folder_of(item), ()), parameters(item)
        if not is_slow(item) and any(name in found for name in names):
            others = sorted((name, repr(value)) for name, value in found.items() if name not in names)
            cases[item.nodeid.partition("[")[0], _api(item), *others].append(item)
    for (function, *_), those in cases.items():
        present = [item for item in those if not any(kind in item.nodeid for kind in missing)] or those
        number = 0 if folder_of(those[0]) in FIRST_SERVES else zlib.crc32(str(function).encode())
        chosen = present[number % len(present)]
        for item in those:
            if item is not chosen:
                item.add_marker(pytest.mark.slow)


def _api(item: pytest.Item) -> str | None:
    """Tell how a test waits, for the folders where sync and async are two programs."""
    row = row_of(item)
    return None if row is None else row.api


SETS: dict[str, Callable[[pytest.Item], bool]] = {
    "fast": lambda item: not is_slow(item),
    "rest": is_slow,
    "all": lambda _: True,
    "quick": needs_no_server,
}


def chosen_set(config: pytest.Config) -> str:
    """Return the set that the command line asks for."""
    named = config.option.keyword or config.option.markexpr or any("::" in argument for argument in config.args)
    return str(config.option.set or ("all" if named else "fast"))


def folder_of(item: pytest.Item) -> str:
    """Return the folder of `tests` that a test is in."""
    parts = item.path.parts
    return parts[len(parts) - 1 - parts[::-1].index("tests") + 1]


def row_of(item: pytest.Item) -> Row | None:
    """Return the row of the contract's table that a test runs on."""
    from tests.contract.rows import Row

    found = parameters(item).get("row")
    return found if isinstance(found, Row) else None


def parameters(item: pytest.Item) -> dict[str, Any]:
    """Return the values that a test is run with."""
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def in_rows(cases: Iterable[T], is_fast: Callable[[T], bool], name: Callable[[T], str]) -> list[Any]:
    """Make the parameters of a test; those that are not fast are slow, unless they are all that there is."""
    cases = list(cases)
    fast = [case for case in cases if is_fast(case)] or cases[:1]
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id=name(case),
            marks=() if case in fast else (pytest.mark.slow,),
        )
        for case in cases
    ]


def group_of(item: pytest.Item, chosen: str) -> str | None:
    """Return what keeps a test together with others on one worker of pytest-xdist: something that is slow to start."""
    folder, found = folder_of(item), parameters(item)
    if folder in MODULE_FIXTURES:
        kept = [found[name] for name in ("pair", "row") if name in found]
        return f"{item.path.name}-{kept}"
    if folder == "servers":
        return f"servers-{found.get('kept_server')}"
    row = row_of(item)
    if row is not None and row.server == "mysql" and chosen == "fast":
        return "mysql"  # its start costs more than its few tests
    return None
