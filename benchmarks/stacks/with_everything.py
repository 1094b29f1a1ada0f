"""lightrag_resilience as its users get it: all policies, shared through a real Redis."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from benchmarks.server import redis_url
from benchmarks.stacks.ours import everything, make_registry, stack
from lightrag_resilience.telemetry.prometheus import observe

__all__ = ["STACKS"]

_shared = make_registry(redis_url=redis_url())
_observed = make_registry(redis_url=redis_url())
_observation = observe(_observed, registry=CollectorRegistry())

STACKS = [
    stack(
        name="ours, everything, Redis",
        protect=everything(_shared),
        has_bulkhead=True,
        close=_shared.close,
    ),
    stack(
        name="ours, everything, Redis and Prometheus",
        protect=everything(_observed),
        has_bulkhead=True,
        close=_observed.close,
    ),
]
