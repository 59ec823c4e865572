"""What every test server can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NoReturn, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Callable

S_co = TypeVar("S_co", bound="Server", covariant=True)


@dataclass(frozen=True)
class Factory(Generic[S_co]):
    """Make a server of a kind that is available, described for a report's header."""

    make: Callable[[], S_co]
    description: str

    def __call__(self) -> S_co:
        """Make the server; it still has to be started."""
        return self.make()


class Addressed:
    """Something that listens at an address, named by SQLAlchemy URLs."""

    connect_options: ClassVar[dict[str, Any]] = {"connect_timeout": 10}
    """Arguments of the driver."""

    def __init__(self, address: sa.URL) -> None:
        """Set the default user, database and place."""
        self.address = address

    @property
    def host(self) -> str:
        """Return the address to connect to."""
        return self.address.host or "127.0.0.1"

    @property
    def port(self) -> int:
        """Return the TCP port to connect to."""
        assert self.address.port is not None
        return self.address.port

    def url(self, drivername: str, database: str | None = None, user: str | None = None) -> str:
        """Return a URL for SQLAlchemy, such as ``postgresql+psycopg://postgres@127.0.0.1:20001/dlock``."""
        address = self.address.set(drivername=drivername, database=database, username=user)
        return address.render_as_string(hide_password=False)

    def engine_options(self, drivername: str) -> dict[str, Any]:
        """Return arguments of `create_engine` without which a driver does not connect."""
        return {}

    def connect(self) -> sa.Connection:
        """Open a connection of its own, outside any pool."""
        options = {"connect_args": self.connect_options, **self.engine_options(self.address.drivername)}
        return sa.create_engine(self.url(self.address.drivername), poolclass=NullPool, **options).connect()


class Server(Addressed, ABC):
    """A database server for tests; use it as a context manager."""

    kind: str
    controllable = True

    @property
    @abstractmethod
    def version(self) -> str:
        """Return the server's version, such as "15.20"."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Tell whether the server's main process lives, frozen or not."""

    @abstractmethod
    def start(self) -> None:
        """Start the server, unless it runs, and wait until it answers."""

    @abstractmethod
    def stop(self, *, final: bool = False) -> None:
        """End all sessions and shut down cleanly; a final stop also removes the data."""

    @abstractmethod
    def kill(self) -> None:
        """Kill all processes of the server with SIGKILL."""

    @abstractmethod
    def freeze(self) -> None:
        """Halt all processes of the server with SIGSTOP: connections stay open, nothing answers."""

    @abstractmethod
    def thaw(self) -> None:
        """Let a frozen server go on."""

    @abstractmethod
    def log_text(self) -> str:
        """Return what the server has logged since it was created."""

    def restart(self, mode: Literal["clean", "kill"] = "clean") -> None:
        """Stop or kill the server and start it again, with its data, on the same port."""
        if mode == "clean":
            self.stop()
        else:
            self.kill()
        self.start()

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and remove its data."""
        self.stop(final=True)


class Uncontrollable(Server):
    """A server that tests may use but not stop, kill or freeze."""

    controllable = False
    running = True

    @abstractmethod
    def _refuse(self) -> NoReturn:
        """Say why."""

    def start(self) -> None:
        """Do nothing: the server runs."""

    def stop(self, *, final: bool = False) -> None:
        """Do nothing at the final stop, else refuse."""
        if not final:
            self._refuse()

    def kill(self) -> None:
        self._refuse()

    def freeze(self) -> None:
        self._refuse()

    def thaw(self) -> None:
        self._refuse()

    def log_text(self) -> str:
        return ""
