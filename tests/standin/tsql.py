"""As much of T-SQL as it takes to run our batches, and what SQLAlchemy and the drivers ask at the start."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .locks import APPLOCK, Client, LockTable, Outcome

__all__ = ["Batch", "Login", "Server", "SqlError"]

VERSION = "Microsoft SQL Server 2022 (a stand-in of the tests) - 16.0.1000.6"
CODES = {
    Outcome.AT_ONCE: 0,
    Outcome.AFTER_WAIT: 1,
    Outcome.TIMEOUT: -1,
    Outcome.CANCELLED: -2,
    Outcome.DEADLOCK: -3,
}
TOKEN = re.compile(r"N?'((?:[^']|'')*)'|(@{0,2}[\w$.#]+)|(<>|>=|<=|[=<>(),;*-])|\S")


class SqlError(Exception):
    """An error that the server reports; its text and severity are for the client."""

    def __init__(self, number: int, text: str, severity: int = 16) -> None:
        super().__init__(text)
        self.number = number
        self.severity = severity


@dataclass
class Server:
    """What all sessions share."""

    locks: LockTable = field(default_factory=lambda: LockTable(APPLOCK))
    logins: dict[int, Login] = field(default_factory=dict)
    updateability: str = "READ_WRITE"
    statements: list[str] = field(default_factory=list)
    script: list[int | Exception] = field(default_factory=list)
    """What the procedures answer before the table is asked again."""
    crashes: list[str] = field(default_factory=list)
    """What would have crashed a driver."""


@dataclass(eq=False)
class Login:
    """One session, and its settings."""

    server: Server
    client: Client
    kill: Callable[[], None]
    trancount: int = 0
    options: dict[str, str] = field(default_factory=dict)

    def end_transaction(self) -> None:
        """Commit or roll back."""
        self.trancount = 0
        self.server.locks.end(self.client, "Transaction")


@dataclass(frozen=True)
class Literal:
    """A text in quotes."""

    text: str


class Batch:
    """One batch of one session."""

    def __init__(self, login: Login, sql: str, variables: dict[str, Any] | None = None) -> None:
        self.login = login
        self.locks = login.server.locks
        self.sql = sql
        self.variables = {name.lower(): value for name, value in (variables or {}).items()}
        self._tokens: list[Any] = [
            Literal(found[1].replace("''", "'")) if found[1] is not None else found[0] for found in TOKEN.finditer(sql)
        ]
        self._at = 0
        self._dry = False

    def run(self) -> Iterator[list[tuple[Any, ...]]]:
        """Run the statements; each SELECT is a result."""
        while self._at < len(self._tokens):
            yield from self._statement()

    def _peek(self) -> str:
        token = self._tokens[self._at] if self._at < len(self._tokens) else ""
        return token.lower() if isinstance(token, str) else "'"

    def _next(self) -> Any:
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, *words: str) -> bool:
        if self._peek() in words:
            self._at += 1
            return True
        return False

    def _expect(self, *words: str) -> None:
        if not self._take(*words):
            raise SqlError(102, f"Incorrect syntax near '{self._peek()}', not {' or '.join(words)}: {self.sql}", 15)

    def _statement(self) -> Iterator[list[tuple[Any, ...]]]:
        word = self._peek()
        self._at += 1
        match word:
            case ";":
                return
            case "declare":
                self._declare()
            case "set":
                self._set()
            case "if":
                yield from self._if()
            case "exec" | "execute":
                self._exec()
            case "select":
                yield from self._select()
            case "begin" | "commit" | "rollback" | "save":
                self._transaction(word)
            case "kill":
                number = int(self._next())
                if not self._dry:
                    self.login.server.logins[number].kill()
            case _:
                raise SqlError(102, f"Incorrect syntax near '{word}': {self.sql}", 15)

    def _declare(self) -> None:
        while True:
            name = self._next().lower()
            length = self._type()
            value = self._expression() if self._take("=") else None
            if not self._dry:
                self.variables[name] = value[:length] if length and isinstance(value, str) else value
            if not self._take(","):
                return

    def _type(self) -> int | None:
        self._next()
        if not self._take("("):
            return None
        length = self._next()
        self._expect(")")
        return int(length) if length.isdigit() else None

    def _set(self) -> None:
        name = self._next().lower()
        if name.startswith("@"):
            self._expect("=")
            value = self._expression()
            if not self._dry:
                self.variables[name] = value
            return
        words = []
        while self._peek() not in (";", "", "set", "select"):
            words.append(str(self._next()))
        self.login.options[name] = " ".join(words).lower()

    def _if(self) -> Iterator[list[tuple[Any, ...]]]:
        left = self._condition()
        before = self._dry
        self._dry = before or not left
        yield from self._statement()
        self._take(";") if self._peek() == ";" and self._after_is_else() else None
        self._dry = before or left
        if self._take("else"):
            yield from self._statement()
        self._dry = before

    def _after_is_else(self) -> bool:
        after = self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else ""
        return isinstance(after, str) and after.lower() == "else"

    def _condition(self) -> bool:
        answer = self._comparison()
        while self._take("and"):
            answer = self._comparison() and answer
        return answer

    def _comparison(self) -> bool:
        left, sign, right = self._expression(), self._next(), self._expression()
        match sign:
            case "=":
                return bool(left == right)
            case "<>":
                return bool(left != right)
            case _:
                return bool(left > right)

    def _expression(self) -> Any:
        token = self._next()
        if isinstance(token, Literal):
            return token.text
        if token == "-":
            return -int(self._next())
        if token.isdigit():
            return int(token)
        if token.startswith("@@"):
            return self._global(token.lower())
        if token.startswith("@"):
            return self.variables[token.lower()]
        return self._call(token.lower())

    def _global(self, name: str) -> Any:
        match name:
            case "@@version":
                return VERSION
            case "@@spid":
                return self.login.client.number
            case "@@trancount":
                return self.login.trancount
            case _:
                raise SqlError(137, f"Must declare the scalar variable {name}", 15)

    def _call(self, function: str) -> Any:
        self._expect("(")
        if function == "cast":
            value = self._expression()
            self._expect("as")
            self._type()
            self._expect(")")
            return value
        arguments = []
        while not self._take(")"):
            arguments.append(self._expression())
            self._take(",")
        return self._function(function, arguments)

    def _function(self, name: str, arguments: list[Any]) -> Any:
        match name, arguments:
            case "serverproperty", ["ProductVersion"]:
                return VERSION.rpartition(" ")[2]
            case "schema_name", []:
                return "dbo"
            case "db_name", []:
                return "dlock"
            case "databasepropertyex", ["dlock", "Updateability"]:
                return self.login.server.updateability
            case "applock_mode", ["public", resource, owner]:
                modes = self.locks.modes(self.login.client, resource, owner)
                return max(modes, key=list(APPLOCK).index) if modes else "NoLock"
            case _:
                raise SqlError(195, f"'{name}' is not a recognized built-in function name: {self.sql}", 15)

    def _exec(self) -> None:
        target = None
        if self._peek().startswith("@"):
            target = self._next().lower()
            self._expect("=")
        procedure = self._next().lower()
        arguments = {}
        while self._peek().startswith("@"):
            name = self._next().lower()
            self._expect("=")
            arguments[name] = self._expression()
            self._take(",")
        if not self._dry:
            self.variables[target or "@"] = self._procedure(procedure, arguments)

    def _procedure(self, name: str, arguments: dict[str, Any]) -> int:
        if self.login.server.script:
            answer = self.login.server.script.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        resource, owner = arguments["@resource"], arguments.get("@lockowner", "Transaction")
        if owner == "Transaction" and not self.login.trancount:
            return -999
        if name == "sp_releaseapplock":
            if not self.locks.release(self.login.client, resource, owner):
                raise SqlError(
                    1223,
                    f"Cannot release the application lock (Database Principal: 'public', Resource: "
                    f"'{resource}') because it is not currently held.",
                )
            return 0
        mode, timeout = arguments["@lockmode"], arguments["@locktimeout"]
        if mode not in APPLOCK or timeout < -1 or not isinstance(resource, str) or len(resource) > 255:
            return -999
        seconds = None if timeout == -1 else timeout / 1000
        return CODES[self.locks.request(self.login.client, resource, mode, seconds, owner)]

    def _transaction(self, word: str) -> None:
        self._take("tran", "transaction")
        while self._peek() not in ("", ";", "begin", "select"):
            self._next()
        if self._dry:
            return
        if word == "begin":
            self.login.trancount += 1
        elif word != "save":
            self.login.end_transaction()

    def _select(self) -> Iterator[list[tuple[Any, ...]]]:
        rest = self.sql.lower()
        if " from " in rest.replace("\n", " "):
            self._at = len(self._tokens)
            yield self._view(re.sub(r"\s+", " ", rest))
            return
        row = [self._expression()]
        while self._take(","):
            row.append(self._expression())
        if not self._dry:
            yield [tuple(row)]

    def _view(self, sql: str) -> list[tuple[Any, ...]]:
        """Answer what SQLAlchemy and the tests' witness ask of the server's views."""
        if self.login.options.get("implicit_transactions") == "on":
            self.login.trancount = max(1, self.login.trancount)
        for words, rows in VIEWS.items():
            if all(word in sql for word in words):
                return rows(self)
        raise SqlError(208, f"Invalid object name: {sql}")


VIEWS: dict[tuple[str, ...], Callable[[Batch], list[tuple[Any, ...]]]] = {
    ("from sys.system_views",): lambda _: [("dm_exec_sessions",)],
    ("from sys.dm_exec_sessions", "transaction_isolation_level"): lambda _: [("READ COMMITTED",)],
    ("from sys.dm_exec_sessions",): lambda batch: [
        (number,) for number in batch.login.server.logins if number != batch.login.client.number
    ],
    ("from sys.dm_tran_locks", "'grant'"): lambda batch: [(holder.number,) for holder in batch.locks.holders()],
    ("from sys.dm_tran_locks", "'wait'"): lambda batch: [(request.client.number,) for request in batch.locks.queue],
    ("from sys.schemas",): lambda _: [(13,)],
    ("fn_listextendedproperty",): lambda _: [],
}
