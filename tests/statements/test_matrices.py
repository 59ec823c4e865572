"""Random histories of sessions, against what the manuals say about modes: which go together, and which do not."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from dlock_core.dialects.mssql import MSSQL
from dlock_core.dialects.oracle import Oracle

from .scenes import MSSQLScene, OracleScene

# Pairs that go together, beside each pair turned round; from the tables in the manuals.
TOGETHER_ON_SQL_SERVER = {
    ("IntentShared", "IntentShared"),
    ("IntentShared", "Shared"),
    ("IntentShared", "Update"),
    ("IntentShared", "IntentExclusive"),
    ("Shared", "Shared"),
    ("Shared", "Update"),
    ("IntentExclusive", "IntentExclusive"),
}
TOGETHER_ON_ORACLE = {
    *(("NL", mode) for mode in ("NL", "SS", "SX", "S", "SSX", "X")),
    *(("SS", mode) for mode in ("SS", "SX", "S", "SSX")),
    ("SX", "SX"),
    ("S", "S"),
}
NAMES = st.sampled_from([1, 2])
SESSIONS = 3


class Machine(RuleBasedStateMachine):
    """Some sessions and what each holds: for each name, its modes in the order of taking."""

    together: set[tuple[str, str]]
    scene: Any
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.scene = self.make_scene()
        self.held: dict[Any, dict[int, list[str]]] = {}

    def make_scene(self) -> Any:
        """Return the server."""
        raise NotImplementedError

    def fits(self, session: Any, name: int, mode: str) -> bool:
        """Tell by the manual whether a mode is free for a session."""
        others = [modes for other, held in self.held.items() if other is not session for modes in (held.get(name, []),)]
        pairs = [(mode, other) for modes in others for other in modes]
        return all(pair in self.together or pair[::-1] in self.together for pair in pairs)

    @precondition(lambda self: len(self.held) < SESSIONS)
    @rule(target=sessions)
    def open(self) -> Any:
        """Open a session."""
        session = self.scene.session()
        self.held[session] = {}
        return session

    @rule(session=consumes(sessions))
    def end(self, session: Any) -> None:
        """End a session, and with it what it holds."""
        session.end()
        del self.held[session]

    @invariant()
    def the_server_holds_what_the_manual_says(self) -> None:
        """No more, no less."""
        assert self.scene.held == sum(bool(modes) for held in self.held.values() for modes in held.values())


class SQLServerMachine(Machine):
    """Modes of sp_getapplock; an upgrade is a second grant."""

    together = TOGETHER_ON_SQL_SERVER

    def make_scene(self) -> MSSQLScene:
        return MSSQLScene()

    @rule(
        session=Machine.sessions,
        name=NAMES,
        mode=st.sampled_from(sorted({m for p in together for m in p} | {"Exclusive"})),
    )
    def request(self, session: Any, name: int, mode: str) -> None:
        """Try once; a session that holds the lock is refused by ourselves."""
        free = not self.held[session].get(name) and self.fits(session, name, mode)
        assert MSSQL().acquire(session, str(name), mode=mode, scope="session", timeout=0, label=None) is free
        if free:
            self.held[session][name] = [mode]

    @rule(session=Machine.sessions, name=NAMES)
    def upgrade(self, session: Any, name: int) -> None:
        """Ask for Exclusive beside what is held."""
        held = self.held[session].get(name)
        expected = self.fits(session, name, "Exclusive") if held else None
        assert MSSQL().upgrade(session, str(name), scope="session", timeout=0) is expected
        if held and expected:
            held.append("Exclusive")

    @rule(session=Machine.sessions, name=NAMES)
    def release(self, session: Any, name: int) -> None:
        """Undo one grant."""
        held = self.held[session].get(name, [])
        assert MSSQL().release(session, str(name), mode="", scope="session", label=None) is bool(held)
        del held[-1:]


class OracleMachine(Machine):
    """Modes of DBMS_LOCK; a conversion exchanges the mode."""

    together = TOGETHER_ON_ORACLE

    def make_scene(self) -> OracleScene:
        return OracleScene()

    @rule(session=Machine.sessions, name=NAMES, mode=st.sampled_from(["NL", "SS", "SX", "S", "SSX", "X"]))
    def request(self, session: Any, name: int, mode: str) -> None:
        """Try once; the server refuses a session that holds the lock."""
        free = not self.held[session].get(name) and self.fits(session, name, mode)
        assert Oracle().acquire(session, name, mode=mode, scope="session", timeout=0, label=None) is free
        if free:
            self.held[session][name] = [mode]

    @rule(session=Machine.sessions, name=NAMES)
    def convert(self, session: Any, name: int) -> None:
        """Exchange the mode for X."""
        held = self.held[session].get(name)
        expected = self.fits(session, name, "X") if held else None
        assert Oracle().upgrade(session, name, scope="session", timeout=0) is expected
        if held and expected:
            held[:] = ["X"]

    @rule(session=Machine.sessions, name=NAMES)
    def release(self, session: Any, name: int) -> None:
        """Unlock."""
        held = self.held[session].pop(name, [])
        assert Oracle().release(session, name, mode="", scope="session", label=None) is bool(held)


TestSQLServer = SQLServerMachine.TestCase
TestOracle = OracleMachine.TestCase
TestSQLServer.settings = TestOracle.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
