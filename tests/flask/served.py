"""The application that a real server serves to the tests; the environment says where its database is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import flask
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

from dlock_flask import DLock

app = flask.Flask("served")
app.config.update(
    SQLALCHEMY_DATABASE_URI=os.environ["SERVED_URL"],
    SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 2, "max_overflow": 0, "pool_timeout": 10},
)
db, dlock = SQLAlchemy(app), DLock(app)
journal = os.open(Path(os.environ["SERVED_JOURNAL"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def work(seconds: float = 0.005) -> str:
    """Do what only one may do at a time: query, and note its beginning and its end."""
    os.write(journal, f"begin {os.getpid()}\n".encode())
    db.session.scalar(sa.text("SELECT 1"))
    time.sleep(seconds)
    os.write(journal, f"end {os.getpid()}\n".encode())
    return str(os.getpid())


@app.get("/try")
def try_once() -> str:
    """Work, or answer 409."""
    with dlock.lock("work"):
        return work(0.05)


@app.get("/wait")
def wait() -> str:
    """Work in turn."""
    with dlock.lock("work", timeout=60):
        return work()


@app.get("/await")
async def wait_async() -> str:
    """Work in turn, in an async view."""
    async with dlock.alock("work", timeout=60):
        return work()


@app.get("/stream")
@dlock.locked("stream")
def stream() -> Iterator[bytes]:
    """Send a chunk every moment, without end."""
    while True:
        yield b"chunk\n"
        time.sleep(0.02)


@app.get("/die")
def die() -> str:
    """Kill this worker while it holds."""
    with dlock.lock("work"):
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"


with app.app_context():  # what an application may do at import: in the parent, if the server preloads
    with dlock.lock("warm-up", timeout=60):
        db.session.scalar(sa.text("SELECT 1"))
    db.session.remove()
    imported_by = os.getpid()
    # What any application must do for its own pool, whose connections forked children must not share.
    os.register_at_fork(after_in_child=partial(db.engine.dispose, close=False))


@app.get("/born")
def born() -> list[int]:
    """Tell which process imported this, and which answers."""
    return [imported_by, os.getpid()]
