"""A scheduled job on several servers: the first one runs it, the others leave it out."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

import sqlalchemy as sa
from apscheduler.schedulers.background import BackgroundScheduler

from dlock_core import LockProvider

engine = sa.create_engine(os.environ.get("DATABASE_URL", "sqlite:///app.db"))
locks = LockProvider(engine, prefix="scheduled")
runs = sa.Table(
    "runs",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("began", sa.Float, nullable=False),
    sa.Column("ended", sa.Float, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
)


def sync() -> None:
    """Run the job, unless another server runs it."""
    lock = locks.lock("data-sync")
    if not lock.acquire(timeout=0):
        return
    try:
        began = time.monotonic()
        time.sleep(0.1)  # the work
        with engine.begin() as connection:
            connection.execute(runs.insert().values(began=began, ended=time.monotonic(), pid=os.getpid()))
    finally:
        lock.release()


if __name__ == "__main__":
    with locks.lock("schema"):
        runs.create(engine, checkfirst=True)
    scheduler = BackgroundScheduler(timezone="UTC")
    seconds = float(os.environ.get("INTERVAL", "1800"))
    scheduler.add_job(sync, "interval", seconds=seconds, next_run_time=datetime.now(UTC))
    scheduler.start()
    time.sleep(float(os.environ.get("RUN_FOR", "inf")))
    scheduler.shutdown()
