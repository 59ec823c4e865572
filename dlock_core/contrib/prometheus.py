"""Metrics of locks for Prometheus; needs the extra `dlock-suite[prometheus]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from ..coordination.events import LockAcquired, LockEvent, LockLost, LockNotAcquired, LockReleased

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

__all__ = ["PrometheusListener"]

# Seconds; waits are often short and holds often long.
WAITS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120)
HOLDS = (0.01, 0.1, 1, 10, 60, 600, 3600)


class PrometheusListener:
    """Count and time the locks of the providers that it listens to: `locks.listen(PrometheusListener())`.

    - `dlock_acquire_seconds`, a histogram: from asking to the answer, by `outcome` ("acquired", "timeout" or "error")
    - `dlock_hold_seconds`, a histogram: held
    - `dlock_locks_held`, a gauge: held now
    - `dlock_locks_lost_total`, a counter

    All have the labels `database`, `mode` and `key`. Make one for all providers of a process: the metrics' names can be
    taken only once in a registry.

    Args:
        registry: Where the metrics are registered; by default the client's own.
        key_label: Makes the label `key` out of a lock's key. By default it is empty: keys such as "order:42" would
            make a time series each.
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, key_label: Callable[[object], str] = lambda _: ""
    ) -> None:
        names = ("database", "mode", "key")
        self._key_label = key_label
        self._wait = Histogram(
            "dlock_acquire_seconds",
            "Time from asking for a lock to the answer.",
            (*names, "outcome"),
            buckets=WAITS,
            registry=registry,
        )
        self._hold = Histogram(
            "dlock_hold_seconds", "Time that locks were held.", names, buckets=HOLDS, registry=registry
        )
        self._held = Gauge("dlock_locks_held", "Locks held now.", names, registry=registry)
        self._lost = Counter("dlock_locks_lost", "Locks lost while held.", names, registry=registry)

    def __call__(self, event: LockEvent) -> None:
        """Count an event."""
        labels = (event.database, event.mode, self._key_label(event.key))
        match event:
            case LockAcquired(waited=waited):
                self._wait.labels(*labels, "acquired").observe(waited)
                self._held.labels(*labels).inc()
            case LockNotAcquired(waited=waited, error=error):
                self._wait.labels(*labels, "error" if error else "timeout").observe(waited)
            case LockReleased(held_for=held_for) | LockLost(held_for=held_for):
                self._hold.labels(*labels).observe(held_for)
                self._held.labels(*labels).dec()
                if isinstance(event, LockLost):
                    self._lost.labels(*labels).inc()
