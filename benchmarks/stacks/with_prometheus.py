"""lightrag_resilience with its metrics for Prometheus kept, to compare with it without."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from benchmarks.stacks.ours import decorator, make_registry, stack
from lightrag_resilience.telemetry.prometheus import observe

__all__ = ["STACKS"]

_observed = make_registry()
_observation = observe(_observed, registry=CollectorRegistry())

STACKS = [stack(name="ours, with Prometheus", protect=decorator(_observed))]
