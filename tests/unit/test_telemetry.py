"""Events as metrics and spans, read back through the real libraries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from dlock_core import DeadlockError, LockProvider
from dlock_core.contrib.opentelemetry import OpenTelemetryListener
from dlock_core.contrib.prometheus import PrometheusListener


@pytest.fixture
def locks() -> Iterator[LockProvider]:
    """Locks to be measured."""
    with LockProvider("sqlite://") as provider:
        yield provider


def use(locks: LockProvider) -> None:
    """Take a lock, be refused one, and run into an error."""
    with locks.lock("k") as lock:
        lock.disown()
        assert not locks.lock("k").acquire(timeout=0.2)
    with locks.lock("own"), pytest.raises(DeadlockError):
        locks.lock("own").acquire()


def test_prometheus_shows_waits_holds_and_what_is_held_now(locks: LockProvider) -> None:
    """In its own text format."""
    registry = CollectorRegistry()
    locks.listen(PrometheusListener(registry))
    use(locks)
    labels = 'database="sqlite",key="",mode="exclusive"'
    with locks.lock("now"):
        text = generate_latest(registry).decode()
    for outcome, count in (("acquired", 3.0), ("timeout", 1.0), ("error", 1.0)):
        wanted = {"database": "sqlite", "mode": "exclusive", "key": "", "outcome": outcome}
        assert registry.get_sample_value("dlock_acquire_seconds_count", wanted) == count
    assert f"dlock_locks_held{{{labels}}} 1.0" in text
    assert f"dlock_hold_seconds_count{{{labels}}} 2.0" in text


def test_prometheus_may_be_given_a_label_for_the_key(locks: LockProvider) -> None:
    """One that keeps the number of time series small."""
    registry = CollectorRegistry()
    locks.listen(PrometheusListener(registry, key_label=lambda key: str(key).partition(":")[0]))
    for number in range(3):
        with locks.lock(f"order:{number}"):
            pass
    wanted = {"database": "sqlite", "mode": "exclusive", "key": "order"}
    assert registry.get_sample_value("dlock_hold_seconds_count", wanted) == 3


class Recorded:
    """An OpenTelemetry SDK that keeps what it is given."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.spans = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meters = MeterProvider([self._reader])

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric."""
        data: Any = self._reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return [
            point for s in scopes for metric in s.metrics if metric.name == name for point in metric.data.data_points
        ]


def test_opentelemetry_gets_a_span_for_each_wait_within_the_caller_s(locks: LockProvider) -> None:
    """Also when a helper waits for the main thread."""
    recorded = Recorded()
    locks.listen(OpenTelemetryListener(recorded.meters, recorded.tracers))
    with recorded.tracers.get_tracer("test").start_as_current_span("request") as request:
        use(locks)
    assert trace.get_current_span() is trace.INVALID_SPAN
    spans = [span for span in recorded.spans.get_finished_spans() if span.name == "dlock acquire"]
    assert [(span.attributes or {})["dlock.outcome"] for span in spans] == ["acquired", "timeout", "acquired", "error"]
    assert {span.parent.span_id for span in spans if span.parent} == {request.get_span_context().span_id}
    assert [span.status.is_ok for span in spans] == [True, True, True, False]
    waited = spans[1]
    assert (waited.attributes or {})["dlock.key"] == "k"
    assert (waited.end_time or 0) - (waited.start_time or 0) >= 180_000_000


def test_opentelemetry_gets_metrics_by_the_conventions(locks: LockProvider) -> None:
    """Durations in seconds, the database by its conventional name, and no key."""
    recorded = Recorded()
    locks.listen(OpenTelemetryListener(recorded.meters, recorded.tracers))
    use(locks)
    by_outcome = {point.attributes["dlock.outcome"]: point for point in recorded.points("dlock.acquire.duration")}
    assert {outcome: point.count for outcome, point in by_outcome.items()} == {"acquired": 2, "timeout": 1, "error": 1}
    assert by_outcome["error"].attributes["error.type"] == "DeadlockError"
    (held,) = recorded.points("dlock.locks.held")
    assert (held.value, dict(held.attributes)) == (0, {"db.system.name": "sqlite", "dlock.mode": "exclusive"})
