"""Copies of `dlock_core` that see simulated threads, clocks and sockets; mutants, or with a switch at every line.

A copy is loaded under a name of its own, from the same files. Its modules' `import threading` gives what is simulated,
so the core itself needs no seam for it.
"""

from __future__ import annotations

import ast
import builtins
import concurrent.futures
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from itertools import count
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

from . import primitives, wire
from .primitives import line, step
from .scheduler import EPOCH, scheduler

__all__ = ["Core", "Edit", "load", "on_signal"]

SOURCE = Path(__file__).parents[2] / "dlock_core"
# Where line mode switches.
STEPPED = ("coordination", "sessions", "lock.py", "provider.py")
_numbers = count(1)
Hooks: TypeAlias = dict[str, Callable[[], object]]


class Edit(NamedTuple):
    """A change of a copy's source: a mutant."""

    path: str
    old: str
    new: str


class Core:
    """One copy of the core, and its hooks for forks."""

    def __init__(self, package: ModuleType, at_fork: list[Hooks]) -> None:
        self.package = package
        self._at_fork = at_fork

    def at_fork(self, when: str) -> None:
        """Run its hooks: "before", "after_in_parent" or "after_in_child" of a fork."""
        for hooks in reversed(self._at_fork) if when == "before" else self._at_fork:
            if when in hooks:
                hooks[when]()

    def __getattr__(self, name: str) -> Any:
        """Return a module of the copy: `core.coordination.policy`, or a public name."""
        return getattr(self.package, name)


def on_signal() -> None:
    """Stand for the program's signal handler, which `from_handler` looks for in a traceback.

    Two moments are left out, at which no program can help it. Python drops what a handler raises inside a finaliser,
    and the rest of that with it; and nothing is there yet to undo the first exception when a second handler raises at
    the very call that would.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        code = frame.f_code
        begins = frame.f_lineno == code.co_firstlineno + 1
        if code.co_name == "__del__" or (code.co_qualname == "MainThreadCall.end" and begins):
            return
        frame = frame.f_back
    raise TimeoutError("a time limit of the program, by a signal")


def _now(*_: object) -> float:
    here = scheduler()
    if here is None:  # at import
        return EPOCH
    here.step()
    return here.now


def _sleep(seconds: float) -> None:
    here = scheduler()
    end = here.now + seconds
    while here.now < end:
        here.block("the end of its sleep", end - here.now)


def _like(module: ModuleType, **others: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(module), **others})


def _modules(at_fork: list[Hooks]) -> dict[str, Any]:
    """Return what an import gives in a copy, by the name that is imported; its hooks for forks come into the list."""
    return {
        "threading": SimpleNamespace(
            Lock=primitives.Lock,
            RLock=primitives.RLock,
            Condition=primitives.Condition,
            Event=primitives.Event,
            Thread=primitives.Thread,
            TIMEOUT_MAX=threading.TIMEOUT_MAX,
            current_thread=lambda: scheduler().current,
            get_ident=lambda: scheduler().current.ident,
            main_thread=lambda: scheduler().main,
        ),
        "_thread": SimpleNamespace(start_new_thread=primitives.start_new_thread),
        "time": _like(time, monotonic=_now, time=_now, clock_gettime=_now, sleep=_sleep),
        "queue": SimpleNamespace(SimpleQueue=primitives.SimpleQueue, Empty=primitives.Empty),
        "concurrent.futures": _like(concurrent.futures, Future=primitives.Future, wait=primitives.wait),
        "os": _like(
            os,
            getpid=lambda: scheduler().pid if scheduler() else 1,
            dup=lambda number: number,
            dup2=wire.park,
            path=SimpleNamespace(sameopenfile=lambda one, other: one == other),
            register_at_fork=lambda **hooks: at_fork.append(hooks),
        ),
        "socket": _like(socket, socket=wire.Socket),
        "select": SimpleNamespace(
            POLLRDHUP=1, POLLIN=2, EPOLLRDHUP=1, EPOLLONESHOT=2, poll=wire.Poll, epoll=wire.Epoll
        ),
        "signal": SimpleNamespace(valid_signals=lambda: [14], getsignal=lambda _: on_signal),
        "atexit": SimpleNamespace(register=lambda _: None),
    }


class _Importer(MetaPathFinder, Loader):
    """Imports the modules of one copy."""

    def __init__(self, name: str, edits: tuple[Edit, ...], *, lines: bool) -> None:
        self.name = name
        self._edits = edits
        self._lines = lines
        self.at_fork: list[Hooks] = []
        self._modules = _modules(self.at_fork)
        self._builtins = {**vars(builtins), "__import__": self._import, "set": primitives.OrderedSet}
        self.unused = set(edits)

    def _import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:  # noqa: A002
        if not level and name in self._modules:
            return self._modules[name]
        return builtins.__import__(name, globals, locals, fromlist, level)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.name:
            return None
        place = SOURCE.joinpath(*fullname.split(".")[1:])
        is_package = place.is_dir()
        file = place / "__init__.py" if is_package else place.with_suffix(".py")
        return spec_from_loader(fullname, self, origin=str(file), is_package=is_package) if file.exists() else None

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        assert module.__spec__.origin is not None
        file = Path(module.__spec__.origin)
        edits = tuple(edit for edit in self._edits if SOURCE / edit.path == file)
        self.unused.difference_update(edits)
        vars(module)["__builtins__"] = self._builtins
        vars(module).update(__line__=line, __enter__=step)
        lines = self._lines and file.relative_to(SOURCE).parts[0] in STEPPED
        exec(_compile(file, edits, lines=lines), vars(module))


_compiled: dict[tuple[Path, tuple[Edit, ...], bool], CodeType] = {}


def _compile(file: Path, edits: tuple[Edit, ...], *, lines: bool) -> CodeType:
    found = _compiled.get((file, edits, lines))
    if found is None:
        source = file.read_text()
        for edit in edits:
            if source.count(edit.old) != 1:
                raise LookupError(f"{edit.path} has {source.count(edit.old)} places like {edit.old!r}, not one")
            source = source.replace(edit.old, edit.new)
        tree = ast.parse(source)
        if lines:
            tree = ast.fix_missing_locations(_Steps().visit(tree))
        found = _compiled[file, edits, lines] = compile(tree, str(file), "exec")
    return found


class _Steps(ast.NodeTransformer):
    """Puts a step before every line of every function; signals are seen where a function begins, as by Python."""

    def visit_FunctionDef(self, node: Any) -> Any:
        node.body = [_call("__enter__", node.body[0]), *self._stepping(node.body, first=True)]
        return node

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - same

    def _stepping(self, block: list[ast.stmt], *, first: bool = False) -> Iterator[ast.stmt]:
        for number, statement in enumerate(block):
            if not (first and number == 0) and not isinstance(statement, ast.Global | ast.Nonlocal):
                yield _call("__line__", statement)
            yield self._inside(statement)

    def _inside(self, node: Any) -> Any:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return self.visit_FunctionDef(node)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block and not isinstance(node, ast.ClassDef):
                setattr(node, name, list(self._stepping(block)))
        for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            part.body = list(self._stepping(part.body))
        return node


def _call(name: str, place: ast.stmt) -> ast.stmt:
    return ast.copy_location(ast.Expr(ast.Call(ast.Name(name, ast.Load()), [], [])), place)


def load(*edits: Edit, lines: bool = False) -> Core:
    """Load a copy; with `lines`, threads may switch before every line of it.

    Raises:
        LookupError: An edit does not fit the source, which has changed.
    """
    name = f"dlock_core_copy_{next(_numbers)}"
    importer = _Importer(name, edits, lines=lines)
    sys.meta_path.insert(0, importer)
    try:
        core = Core(__import__(name), importer.at_fork)
        for module in ("provider", "coordination.coordinator", "sessions.session", "dialects.base"):
            __import__(f"{name}.{module}")
    finally:
        sys.meta_path.remove(importer)
    if importer.unused:
        raise LookupError(f"not loaded, so not changed: {importer.unused}")
    _add_dialect(core)
    return core


class Statement:
    """A constant statement, by its name, as SQLAlchemy compiles it."""

    positional = False
    positiontup = ()

    def __init__(self, name: str) -> None:
        self.string = name

    def compile(self, **_: object) -> Statement:
        return self


PING, SETTINGS, TOKEN, TRY, WAIT, UNLOCK, HOLDS, KILL = (
    Statement(name) for name in ("ping", "settings", "token", "try", "wait", "unlock", "holds", "kill")
)


def _add_dialect(core: Core) -> None:  # noqa: C901 - a class, since its base is the copy's
    """Teach a copy the simulated database and its drivers."""
    base, drivers = core.dialects.base, core.sessions.drivers
    failures = core.dialects.failures

    class Locks(base.ServerDialect):  # type: ignore[misc,name-defined]
        """Session locks, exclusive and shared, as PostgreSQL has them."""

        capabilities = base.Capabilities(mechanism="simulated", shared=True, server_waits=True, lease=True)
        ping, token = PING, TOKEN

        def name(self, prefix: str, key: Any) -> Any:
            return key

        def lost(self, error: BaseException) -> bool:
            return False

        def guard(self, session: Any, *, allow_unsafe: bool, another: Any = None) -> bool:
            session.number = session.number and session.driver_connection.session.number
            return True

        def prepare(self, session: Any, *, label: str, lease: float | None) -> None:
            session.first(SETTINGS, lease=lease)

        def acquire(
            self,
            session: Any,
            name: Any,
            *,
            mode: str,
            scope: str,
            timeout: float | None,
            label: str | None,
            again: bool = False,
        ) -> bool:
            shared = mode == self.shared
            try:
                if timeout == 0:
                    return bool(session.first(TRY, name=name, shared=shared)[0])
                session.first(WAIT, name=name, shared=shared, seconds=timeout, again=again)
            except failures.DBAPIError as error:
                if error.connection_invalidated:
                    raise
                if timeout != 0:  # it may be granted all the same
                    session.first(UNLOCK, name=name, shared=shared)
                match error.orig.code:
                    case "timed out":
                        return False
                    case "deadlock":
                        raise core.DeadlockError("the server chose this wait as a deadlock's victim") from error
                    case "unsupported":
                        raise core.UnsupportedError("the server cannot do this") from error
                raise
            return True

        def release(self, session: Any, name: Any, *, mode: str, scope: str, label: str | None) -> bool:
            return bool(session.first(UNLOCK, name=name, shared=mode == self.shared)[0])

        def holds(self, session: Any, name: Any, *, mode: str) -> bool:
            return bool(session.first(HOLDS, name=name, shared=mode == self.shared)[0])

    core.dialects.DATABASES["simulated"] = ("the simulated server", Locks)
    core.inspection.VIEWS["simulated"] = None
    whole = drivers.Driver
    drivers.DRIVERS.update(
        {
            "cancels": whole(socket=lambda one: one, cancel=lambda one, _: one.cancel, waits_for_cancel=True),
            "kills": whole(socket=lambda one: one, number=lambda one: one.session.number, kill=KILL),
            "hangs up": whole(socket=lambda one: one),
            "task cancels": whole(socket=lambda one: one, waits_for_cancel=True),
            "task leaves": whole(socket=lambda one: one, number=lambda one: one.session.number, kill=KILL),
        }
    )
