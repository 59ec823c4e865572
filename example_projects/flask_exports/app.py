"""A page with export buttons: each export runs once at a time, however many people click.

    pip install 'dlock-suite[flask]'
    python app.py

Or `gunicorn 'app:create_app()'`. Its database and files are in `instance/`, unless DATABASE_URL and
EXPORTS_FOLDER say otherwise.

The first click shows the progress; a later one, in another window, on another worker or machine,
shows that the export is already running. Closing the window frees the lock, and so does a worker that dies.
"""

from __future__ import annotations

import csv
import json
import os
import random
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    render_template,
    send_from_directory,
    stream_with_context,
    url_for,
)
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dlock_flask import DLock, LockConflict

if TYPE_CHECKING:
    from collections.abc import Iterator


class Base(DeclarativeBase):
    """What Flask-SQLAlchemy makes models from."""


db = SQLAlchemy(model_class=Base)
dlock = DLock(prefix="exports")


class Order(Base):
    """One item that a customer bought."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    placed: Mapped[date]
    customer: Mapped[str] = mapped_column(sa.String(40))
    item: Mapped[str] = mapped_column(sa.String(40))
    cents: Mapped[int]


euros = sa.func.sum(Order.cents) / 100
REPORTS: dict[str, tuple[str, str, sa.Select[Any]]] = {
    "orders": (
        "All orders",
        "One line for each order, oldest first.",
        sa.select(Order.id, Order.placed, Order.customer, Order.item, Order.cents).order_by(Order.id),
    ),
    "customers": (
        "Revenue by customer",
        "How much each customer bought, in euros.",
        sa.select(Order.customer, sa.func.count().label("orders"), euros.label("euros")).group_by(Order.customer),
    ),
    "items": (
        "Sales by day and item",
        "What sold when, for the accountant.",
        sa.select(Order.placed, Order.item, sa.func.count().label("sold")).group_by(Order.placed, Order.item),
    ),
}


pages = Blueprint("pages", __name__)


def create_app() -> Flask:
    """Make the application."""
    app = Flask(__name__, instance_path=os.environ.get("EXPORTS_FOLDER"))
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ.get("DATABASE_URL", "sqlite:///exports.db")
    app.config["EXPORT_SECONDS"] = float(os.environ.get("EXPORT_SECONDS", "8"))
    Path(app.instance_path).mkdir(parents=True, exist_ok=True)
    db.init_app(app)
    dlock.init_app(app)
    app.register_blueprint(pages)
    with app.app_context(), dlock.lock("first start", timeout=60):
        fill()
    return app


def fill() -> None:
    """Invent some orders, unless another worker has."""
    db.metadata.create_all(db.engine)
    if db.session.scalar(sa.select(sa.func.count(Order.id))):
        return
    chance = random.Random(7)  # noqa: S311 - no secret
    people = ["Ada Nyström", "Ben Okafor", "Chloé Martin", "Dmitri Volkov", "Emi Tanaka", "Farid Haddad"]
    goods = ["Desk lamp", "Walnut shelf", "Linen chair", "Wool rug", "Ceramic vase"]
    first = date(2026, 1, 1)
    for number in range(1800):
        when = first + timedelta(days=number // 6)
        db.session.add(
            Order(
                placed=when,
                customer=chance.choice(people),
                item=chance.choice(goods),
                cents=chance.randrange(900, 9**5, 50),
            )
        )
    db.session.commit()


@pages.get("/")
def page() -> str:
    """Show all reports."""
    count = db.session.scalar(sa.select(sa.func.count(Order.id)))
    return render_template("page.html", reports=REPORTS, count=count)


@pages.get("/reports/<report>")
def state(report: str) -> dict[str, Any]:
    """Tell whether an export runs, anywhere, and about its last file."""
    return {"running": dlock.is_locked(f"export:{report}"), "file": described(file_of(report))}


@pages.post("/reports/<report>")
@dlock.locked("export:{report}", retry_after=3)
def export(report: str) -> Response:
    """Export a report, and tell how far it is, line by line; the lock is held to the last of them."""
    return Response(stream_with_context(progress(report)), mimetype="application/x-ndjson")


@pages.errorhandler(LockConflict)
def already_running(conflict: LockConflict) -> tuple[dict[str, str], int, dict[str, str]]:
    """Answer the second click."""
    return {"busy": "Already running"}, conflict.code or 409, {"Retry-After": str(conflict.retry_after)}


@pages.get("/files/<report>.csv")
def download(report: str) -> Response:
    """Send the last file."""
    return send_from_directory(current_app.instance_path, file_of(report).name, as_attachment=True)


def progress(report: str) -> Iterator[str]:
    """Write the file, and yield how far it is."""
    rows = db.session.execute(REPORTS[report][2]).all()
    step = max(1, len(rows) // 80)
    pause = current_app.config["EXPORT_SECONDS"] * step / len(rows)
    unfinished = file_of(report).with_suffix(".part")
    try:
        with unfinished.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(rows[0]._fields)
            for done, row in enumerate(rows, start=1):
                writer.writerow(row)
                if done % step == 0:
                    time.sleep(pause)  # as if it were real work
                    yield json.dumps({"done": done, "of": len(rows)}) + "\n"
        unfinished.replace(file_of(report))
    finally:
        unfinished.unlink(missing_ok=True)  # the client has left
    yield json.dumps({"file": described(file_of(report))}) + "\n"


def file_of(report: str) -> Path:
    """Return where a report's file is, or will be."""
    if report not in REPORTS:
        abort(404)
    return Path(current_app.instance_path, f"{report}.csv")


def described(file: Path) -> dict[str, str] | None:
    """Return what the page says of a file."""
    if not file.exists():
        return None
    when = datetime.fromtimestamp(file.stat().st_mtime, tz=UTC).astimezone()
    size = f"{file.stat().st_size / 1024:.1f} KB"
    return {"url": url_for("pages.download", report=file.stem), "text": f"{file.name}, {size}, {when:%H:%M:%S}"}


if __name__ == "__main__":
    create_app().run(port=int(os.environ.get("PORT", "5000")), threaded=True)
