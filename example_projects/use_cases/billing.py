"""Bill a user once, however many workers pick up the task at one time.

The lock keeps two workers from working on one user together; the row keeps a later one from billing
again. Neither is enough alone.
"""

from __future__ import annotations

import os
import sys
import time

import sqlalchemy as sa

from dlock_core import LockProvider, LockTimeoutError

engine = sa.create_engine(os.environ.get("DATABASE_URL", "sqlite:///app.db"))
locks = LockProvider(engine, prefix="billing")
bills = sa.Table(
    "bills",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Integer, nullable=False),
)


def bill(user_id: int) -> str:
    """Bill one user, unless that is done, or being done."""
    try:
        with locks.lock(("user", user_id), timeout=0), engine.begin() as connection:
            if connection.scalar(sa.select(bills.c.number).where(bills.c.user_id == user_id)):
                return "billed before"
            time.sleep(0.3)  # the work: rating, rendering, sending
            connection.execute(bills.insert().values(user_id=user_id))
            return "billed"
    except LockTimeoutError:
        return "another worker bills"


if __name__ == "__main__":
    with locks.lock("schema"):
        bills.create(engine, checkfirst=True)
    print(bill(int(sys.argv[1])))
