"""Billing with Celery: no customer is billed twice at the same time, and no report overlaps the next.

Run `python billing.py`; it starts a worker and a beat, bills three customers, and prints the ledger. By default it
uses the filesystem as broker and SQLite, in the current folder. With a real broker and database:

    CELERY_BROKER_URL=amqp://guest:guest@localhost// DATABASE_URL=postgresql+psycopg://localhost/billing
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery import Celery, chain, chord

from dlock_celery import DLock, assert_locked, single_instance

BROKER_URL = os.environ.get("CELERY_BROKER_URL", "filesystem://")
DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite:///{Path.cwd()}/billing.db")

app = Celery("billing", broker=BROKER_URL, backend=f"db+{DATABASE_URL}")
DLock(app, url=DATABASE_URL, prefix="billing")
app.conf.update(
    task_default_queue=os.environ.get("QUEUE", "billing"),
    broker_connection_retry_on_startup=True,
    beat_schedule={"report": {"task": "billing.report", "schedule": 1.0}},
    beat_schedule_filename=str(Path.cwd() / "beat"),
)
if BROKER_URL.startswith("filesystem"):
    folders = {name: Path.cwd() / "broker" / name for name in ("queue", "control")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    app.conf.broker_transport_options = {
        "data_folder_in": str(folders["queue"]),
        "data_folder_out": str(folders["queue"]),
        "control_folder": str(folders["control"]),
    }

metadata = sa.MetaData()
ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("customer", sa.Integer, primary_key=True),
    sa.Column("month", sa.String(7), primary_key=True),
    sa.Column("amount", sa.Integer, nullable=False),
)


def database() -> sa.Engine:
    """Return an engine for one task; locks have connections of their own."""
    return sa.create_engine(DATABASE_URL, poolclass=sa.NullPool)


@app.task(name="billing.bill")
@single_instance(key="customer:{customer}", on_conflict="retry", retry_delay=0.2)
def bill(customer: int, month: str) -> int:
    """Bill a customer once a month: look, think, write. A task that meets another one comes back later."""
    assert_locked()
    mine = (ledger.c.customer == customer) & (ledger.c.month == month)
    with database().begin() as connection:
        found = connection.scalar(sa.select(ledger.c.amount).where(mine))
    if found is not None:
        return int(found)
    time.sleep(0.3)  # the payment provider takes its time
    with database().begin() as connection:
        connection.execute(sa.insert(ledger).values(customer=customer, month=month, amount=customer * 100))
    return customer * 100


@app.task(name="billing.receipt")
def receipt(amount: int, customer: int) -> str:
    """Come after the bill in a chain."""
    return f"customer {customer} paid {amount}"


@app.task(name="billing.total")
def total(receipts: list[str]) -> str:
    """End the chord: all customers are billed."""
    return "; ".join(sorted(set(receipts)))


@app.task(name="billing.report")
@single_instance(skip_result="the last report still runs")
def report() -> str:
    """Run every second, by beat, and take longer than that: the runs between are skipped."""
    time.sleep(2)
    return "reported"


def main() -> None:
    """Start worker and beat, bill all customers twice at the same time, and print what came of it."""
    metadata.create_all(database())
    command = [sys.executable, "-m", "celery", "-A", "billing", "worker", "--beat", "-c", "4", "-l", "INFO"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    worker = subprocess.Popen(command, env=environment)  # noqa: S603 - this Python with our own worker
    try:
        bills = [chain(bill.s(customer, "2026-01"), receipt.s(customer)) for customer in (1, 2, 3) * 2]
        result: Any = chord(bills)(total.s())
        print(result.get(timeout=60), flush=True)
        time.sleep(4)  # beat goes on
    finally:
        worker.terminate()
        worker.wait(30)


if __name__ == "__main__":
    main()
