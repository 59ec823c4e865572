"""Sites: a broker, a result backend and a database for the locks, alone with their names on shared servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.exceptions import KombuError

from tests.conftest import server
from tests.contract.witnesses import FileWitness, Witness, witness_of
from tests.servers import wait_until
from tests.servers.base import Addressed

from .files import BROKER_URL
from .project import make_app

__all__ = [
    "DRIVERS",
    "PAIRS",
    "PRODUCT",
    "REDIS_URL",
    "Site",
    "broker_of",
    "delete_from_rabbitmq",
    "open_site",
    "require_rabbitmq",
    "require_redis",
]

REDIS_URL = os.environ.get("DLOCK_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
AMQP_URL = os.environ.get("DLOCK_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
# What CI runs; the full product is for `make test-all`.
PAIRS = [("filesystem", "sqlite"), ("rabbitmq", "postgresql"), ("redis", "mariadb")]
PRODUCT = [(broker, database) for broker, _ in PAIRS for _, database in PAIRS]
DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql", "mysql": "mysql+pymysql"}


class Site:
    """One broker with one database."""

    def __init__(self, broker: str, database: str, folder: Path) -> None:
        self.name = f"dlock{uuid4().hex[:12]}"
        self.broker = broker
        self.folder = folder
        self.lock_url, self.witness = _locks(database, folder)
        self.configuration: dict[str, Any] = {
            "dlock_url": self.lock_url,
            "dlock_retry_delay": 0.2,
            "dlock_retry_backoff": 1,
            "dlock_binds": {"down": "postgresql+psycopg://nobody@127.0.0.1:9/nowhere"},
            "task_default_queue": self.name,
            "control_exchange": self.name,
            "event_exchange": f"{self.name}.events",
            "event_queue_prefix": self.name,
            "broker_connection_retry_on_startup": True,
            "worker_prefetch_multiplier": 1,
            "broker_transport_options": {},
            **_BROKERS[broker](self.name, folder, self.lock_url),
        }
        self.app: Celery = make_app(self.configuration)
        self._open = ExitStack()

    def send(self, task: str, stage: str, do: str = "end", **options: Any) -> Any:
        """Send a message; its result has `get` and `state`."""
        return self.app.send_task(task, (stage, do), **options)

    def wait_for_state(self, result: Any, *states: str, seconds: float = 20) -> None:
        """Wait until a task has one of these states."""
        wait_until(lambda: result.state in states, f"{result.id} to become {states}, not {result.state}", seconds)

    def declare_dead_letters(self) -> tuple[Queue, Callable[[], str | None]]:
        """Declare a queue with dead letters that the workers consume; return it, and what looks for a dead one."""
        connection = self._open.enter_context(Connection(AMQP_URL))
        dead = Queue(f"{self.name}.dead", channel=connection.channel())
        dead.declare()
        letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name}
        live = Queue(f"{self.name}.live", queue_arguments=letters)
        live(connection.channel()).declare()
        self.app.control.add_consumer(live.name, reply=True, options={"queue_arguments": letters})

        def look() -> str | None:
            message = dead.get(no_ack=True)
            return str(message.headers["id"]) if message else None

        return live, look

    def assert_all_free(self) -> None:
        """No lock is left on the server."""
        wait_until(lambda: self.witness.holders() == 0, "all locks to be free", 10)

    def close(self) -> None:
        """Leave nothing behind on the servers."""
        self._open.close()
        _CLEANERS[self.broker](self)
        self.app.close()
        self.witness.close()


def broker_of(site: Site) -> Addressed:
    """Return the address of a site's broker, for a proxy before it."""
    return Addressed(sa.make_url(site.configuration["broker_url"]))


def _locks(database: str, folder: Path) -> tuple[str, Witness]:
    if database == "sqlite":
        path = folder / "locks.db"
        return f"sqlite:///{path}", FileWitness(path)
    running = server(database)
    return running.url(DRIVERS[database]), witness_of(running)


def _missing(what: str, error: Exception) -> NoReturn:
    """Skip on a laptop; fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI needs {what}: {error}")
    pytest.skip(f"{what}: {error}")


def _results(folder: Path, lock_url: str) -> str:
    """Return a result backend in a database: that of the locks, or a file of its own."""
    return f"db+sqlite:///{folder}/results.db" if lock_url.startswith("sqlite") else f"db+{lock_url}"


def require_rabbitmq() -> str:
    """Return the URL of RabbitMQ; skip without it, but fail in CI."""
    try:
        with Connection(AMQP_URL, connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
    except (OSError, KombuError) as error:
        _missing(f"RabbitMQ at {AMQP_URL}", error)
    return AMQP_URL


def delete_from_rabbitmq(name: str) -> None:
    """Delete what an app with this name for its queue has declared."""
    with Connection(AMQP_URL) as connection:
        for queue in (name, f"{name}.dead", f"{name}.live"):
            with suppress(*connection.channel_errors):  # it may never have been declared
                Queue(queue, channel=connection.channel()).delete()
        for exchange in (name, f"{name}.live", f"{name}.pidbox", f"reply.{name}.pidbox", f"{name}.events"):
            with suppress(*connection.channel_errors):
                Exchange(exchange, channel=connection.channel()).delete()


def _rabbitmq(name: str, folder: Path, lock_url: str) -> dict[str, Any]:
    require_rabbitmq()
    return {"broker_url": AMQP_URL, "result_backend": _results(folder, lock_url)}


def require_redis() -> str:
    """Return the URL of Redis; skip without it, but fail in CI."""
    try:
        with redis.Redis.from_url(REDIS_URL, socket_connect_timeout=3) as client:
            client.ping()
    except redis.RedisError as error:
        _missing(f"Redis at {REDIS_URL}", error)
    return REDIS_URL


def _redis(name: str, folder: Path, lock_url: str) -> dict[str, Any]:
    require_redis()
    return {
        "broker_url": REDIS_URL,
        "result_backend": REDIS_URL,
        "broker_transport_options": {"global_keyprefix": f"{name}:"},
        "result_backend_transport_options": {"global_keyprefix": f"{name}:"},
    }


def _clean_redis(site: Site) -> None:
    # What app.close() only forgets; the pools of other brokers are shared by all apps with their URL.
    pool: Any = site.app.pool
    results: Any = site.app.backend
    pool.force_close_all()
    results.result_consumer.stop()
    results.result_consumer._pubsub = None  # a result that is collected later would unsubscribe over a new connection
    results.client.connection_pool.disconnect()
    client = redis.Redis.from_url(REDIS_URL)
    for key in client.scan_iter(match=f"*{site.name}*", count=1000):
        client.delete(key)
    client.close()


def _filesystem(name: str, folder: Path, lock_url: str) -> dict[str, Any]:
    places = {place: folder / place for place in ("queue", "control")}
    for path in places.values():
        path.mkdir()
    return {
        "broker_url": BROKER_URL,
        "result_backend": _results(folder, lock_url),
        "broker_transport_options": {
            "data_folder_in": str(places["queue"]),
            "data_folder_out": str(places["queue"]),
            "control_folder": str(places["control"]),
            "polling_interval": 0.05,
        },
    }


_BROKERS: dict[str, Callable[[str, Path, str], dict[str, Any]]] = {
    "rabbitmq": _rabbitmq,
    "redis": _redis,
    "filesystem": _filesystem,
}
_CLEANERS: dict[str, Callable[[Site], None]] = {
    "rabbitmq": lambda site: delete_from_rabbitmq(site.name),
    "redis": _clean_redis,
    "filesystem": lambda _: None,
}


@contextmanager
def open_site(broker: str, database: str, folder: Path) -> Iterator[Site]:
    """Make a site, and clean up after it."""
    site = Site(broker, database, folder)
    try:
        yield site
    finally:
        site.close()
