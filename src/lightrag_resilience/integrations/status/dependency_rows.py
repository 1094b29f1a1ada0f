"""Rows of the status page: each dependency, as all workers share it and as this process sees it.

They hold names, numbers and reasons; no prompt, address or secret.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any

from lightrag_resilience.circuit.outcomes import OutcomeCounts
from lightrag_resilience.circuit.state_machine import Snapshot, State
from lightrag_resilience.health import CONDITIONS
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.shared_state.cluster_view import Overview
from lightrag_resilience.shared_state.messages import Description
from lightrag_resilience.text import is_by_hand

from .headline import health_of_row
from .outage_history import OutageHistory

__all__ = ["dependency_rows", "in_flight"]

_MOST = 1000  # rows
_A_SLICE = 64  # rows between two yields to the event loop: about 1 ms
_SHARED_COUNTS = ("calls", "failed", "slow", "probes", "workers", "causes", "run", "last")


async def dependency_rows(
    registry: Guards, cluster: Overview | None, history: OutageHistory
) -> list[dict[str, Any]]:
    """Make the rows, the worst first; of more than 1000 those in trouble and this process's own.

    Args:
        registry: Of this process.
        cluster: The breakers of all workers; None without Redis.
        history: When outages began.
    """
    own = {guard.name: guard for guard in registry}
    shared = {} if cluster is None else cluster.breakers
    workers = [] if cluster is None else cluster.workers
    diverged = Counter(name for worker in workers for name in worker.diverged)
    is_subscribed = registry.link is not None and registry.link.is_up
    calls = in_flight(registry)
    made = []
    for count, name in enumerate(_names(own, shared), 1):
        if not count % _A_SLICE:
            await asyncio.sleep(0)
        guard, it = own.get(name), shared.get(name)
        row = _state(guard, it, is_subscribed=is_subscribed)
        row |= _limits(guard)
        row |= {"name": name, "local": guard is not None, "diverged": diverged[name]}
        row["in_flight"] = calls.get(name, {})
        row["last_failure"] = history.last_failure(name)
        row["by_hand"] = row["mode"] == "forced-open" or is_by_hand(row["reason"])
        _date(row, history)
        health = health_of_row(row)
        is_closed = row["state"] == State.CLOSED.value
        row["condition"], row["health"] = health.condition, str(health) if is_closed else ""
        made.append(row)
    made.sort(key=lambda row: (CONDITIONS.index(row["condition"]), row["name"]))
    return made


def _names(own: Mapping[str, Guard], shared: Mapping[str, Description]) -> list[str]:
    """Choose the dependencies to show: those in trouble first, then the process's own."""
    circuits = ((name, it.breaker.circuit) for name, it in own.items())
    failed = (
        name for name, it in circuits if it.shared_admission is None or it.outcomes is not None
    )
    troubled = (name for name, it in shared.items() if not it.is_well)
    return list(dict.fromkeys(chain(failed, troubled, own, shared)))[:_MOST]


def in_flight(registry: Guards) -> dict[str, dict[str, int]]:
    """Count this process's calls in flight by dependency and kind: calls, streams, waiting."""
    counts: dict[str, dict[str, int]] = {}
    for call in list(registry.gate.running):
        kind = "streams" if call.is_streaming else "calls"
        if call.stage != "in_flight":
            kind = "waiting"
        of_name = counts.setdefault(call.name, {})
        of_name[kind] = of_name.get(kind, 0) + 1
    return counts


def _state(guard: Guard | None, it: Description | None, *, is_subscribed: bool) -> dict[str, Any]:
    """The state of a breaker.

    A process that is subscribed to changes knows a newer state than the one just fetched from
    Redis; counts are those of all workers.
    """
    if guard is None:
        assert it is not None  # noqa: S101 - a name comes from one of both
        return _of_cluster(it)
    breaker = guard.breaker
    is_own = breaker.circuit.mode != "enforce" or getattr(breaker, "is_diverged", False)
    if it is None or is_own:
        return _of_process(breaker.snapshot())
    if not is_subscribed:
        return _of_cluster(it)
    own, shared = _of_process(breaker.snapshot()), _of_cluster(it)
    if own["state"] != shared["state"]:
        return own
    counts = {name: shared[name] for name in _SHARED_COUNTS}
    return {**own, **counts, "age": max(own["age"], shared["age"] or 0.0)}


def _of_cluster(it: Description) -> dict[str, Any]:
    now = it.now
    return {
        "state": now.state.value,
        "mode": "enforce",
        "reason": now.reason,
        "retry_after": now.remaining if now.state is State.OPEN else None,
        "opens": now.opens,
        **_calls(it.tally),
        "slow": it.slow,
        "probes": it.probes,
        "workers": it.workers,
        "age": it.since,
        "is_live": False,
    }


def _calls(tally: OutcomeCounts, remembered: int = 0) -> dict[str, Any]:
    return {
        "calls": max(tally.calls, remembered + tally.uncounted),
        "failed": tally.failed,
        "causes": dict(tally.causes),
        "run": tally.run,
        "last": tally.last,
    }


def _of_process(seen: Snapshot) -> dict[str, Any]:
    # Outcomes are counted from the first failure on; the breaker's window has earlier successes.
    return {
        "state": seen.state.value,
        "mode": seen.mode,
        "reason": seen.reason,
        "retry_after": seen.retry_after if seen.state is State.OPEN else None,
        "opens": seen.opens,
        **_calls(seen.tally or OutcomeCounts(failed=seen.failed, run=seen.calls), seen.calls),
        "slow": seen.slow,
        "probes": seen.probes,
        "workers": None,
        "age": seen.since,
        "is_live": True,
    }


def _limits(guard: Guard | None) -> dict[str, Any]:
    """Limits and budgets of this process."""
    if guard is None:
        return {"budget": None, "rpm": None, "tpm": None, "bulkhead": None, "cooldown": 0.0}
    budget, limit, occupancy = guard.budget, guard.policy.limit, guard.occupancy
    return {
        "budget": budget.share if budget.capacity else None,
        "rpm": limit.rpm,
        "tpm": limit.tpm,
        "bulkhead": {
            "limit": occupancy.limit or guard.policy.concurrency.max_concurrent,
            "in_use": occupancy.in_use,
            "waiting": occupancy.waiting,
        },
        "cooldown": occupancy.cooldown_remaining,
    }


def _date(row: dict[str, Any], history: OutageHistory) -> None:
    """Add when the outage began, in seconds since the epoch, its first reason and failed probes."""
    age, is_live = row.pop("age"), row.pop("is_live")
    if row["state"] == State.CLOSED.value:
        row |= {"since": None, "first_reason": "", "failed_probes": 0}
        if not is_live:  # no event of this process ends the outage
            history.ended(row["name"], row["reason"])
        return
    began = time.time() - (age or 0.0)
    outage = history.outage(row["name"], began, row["state"], row["reason"])
    row |= {
        "since": round(outage.since, 1),
        "first_reason": row["reason"] if row["by_hand"] else outage.reason,
        "failed_probes": outage.failed_probes,
    }
