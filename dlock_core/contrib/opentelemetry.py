"""Metrics and traces of locks for OpenTelemetry; needs the extra `dlock-suite[otel]`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from ..coordination.events import LockAcquired, LockEvent, LockLost, LockNotAcquired, LockReleased

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

__all__ = ["OpenTelemetryListener"]

# What OpenTelemetry's conventions call databases whose name SQLAlchemy writes otherwise.
SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}


class OpenTelemetryListener:
    """Measure locks, and trace each wait as a span: `locks.listen(OpenTelemetryListener())`.

    - `dlock.acquire.duration`, a histogram: seconds from asking to the answer, by `dlock.outcome` ("acquired",
      "timeout" or "error", with `error.type`)
    - `dlock.hold.duration`, a histogram: seconds held
    - `dlock.locks.held`: locks held now
    - `dlock.locks.lost`, a counter

    All have the attributes `db.system.name` and `dlock.mode`. The span `dlock acquire` has the key too, as `dlock.key`:
    in a metric each of its values would be a time series.
    https://opentelemetry.io/docs/specs/semconv/database/

    Args:
        meter_provider: Where the metrics go; by default the global one.
        tracer_provider: Where the spans go; by default the global one.
    """

    def __init__(
        self, meter_provider: MeterProvider | None = None, tracer_provider: TracerProvider | None = None
    ) -> None:
        meter = metrics.get_meter("dlock_core", meter_provider=meter_provider)
        self._tracer = trace.get_tracer("dlock_core", tracer_provider=tracer_provider)
        self._wait = meter.create_histogram("dlock.acquire.duration", "s", "Time from asking for a lock to the answer.")
        self._hold = meter.create_histogram("dlock.hold.duration", "s", "Time that locks were held.")
        self._held = meter.create_up_down_counter("dlock.locks.held", "{lock}", "Locks held now.")
        self._lost = meter.create_counter("dlock.locks.lost", "{lock}", "Locks lost while held.")

    def __call__(self, event: LockEvent) -> None:
        """Measure an event."""
        facts = {"db.system.name": SYSTEMS.get(event.database, event.database), "dlock.mode": event.mode}
        match event:
            case LockAcquired(waited=waited):
                self._waited(event, waited, {**facts, "dlock.outcome": "acquired"}, None)
                self._held.add(1, facts)
            case LockNotAcquired(waited=waited, error=None):
                self._waited(event, waited, {**facts, "dlock.outcome": "timeout"}, None)
            case LockNotAcquired(waited=waited, error=str(error)):
                self._waited(event, waited, {**facts, "dlock.outcome": "error", "error.type": error}, error)
            case LockReleased(held_for=held_for) | LockLost(held_for=held_for):
                self._hold.record(held_for, facts)
                self._held.add(-1, facts)
                if isinstance(event, LockLost):
                    self._lost.add(1, facts)

    def _waited(self, event: LockEvent, waited: float, facts: dict[str, str], error: str | None) -> None:
        self._wait.record(waited, facts)
        now = time.time_ns()
        span = self._tracer.start_span(
            "dlock acquire",
            kind=SpanKind.CLIENT,
            start_time=now - int(waited * 1e9),
            attributes={**facts, "dlock.key": str(event.key)},
        )
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(now)
