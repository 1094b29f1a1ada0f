"""What the status page shows of each dependency: of all workers where they share, and of this one.

Names, numbers and reasons; no prompt, address or secret.
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
from lightrag_resilience.health import LOOKS
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.shared_state.cluster_view import Overview
from lightrag_resilience.shared_state.messages import Description
from lightrag_resilience.text import is_by_hand

from .headline import health_of_row
from .outage_history import OutageHistory

__all__ = ["dependency_rows", "in_flight"]

_MOST = 1000  # rows that are made
_A_SLICE = 64  # rows: about 1 ms of the event loop
_COUNTED = ("calls", "failed", "slow", "probes", "workers", "causes", "run", "last")


async def dependency_rows(
    registry: Guards, seen: Overview | None, record: OutageHistory
) -> list[dict[str, Any]]:
    """Dependencies, those in trouble first; of more than 1000 at least these and the process's own.

    The event loop goes on after every few of them.

    Args:
        registry: Of this process.
        seen: The breakers of all workers; None where nothing is shared, or Redis is away.
        record: When outages began.
    """
    here = {guard.name: guard for guard in registry}
    there = {} if seen is None else seen.breakers
    alone = Counter(name for worker in seen.workers for name in worker.alone) if seen else {}
    hears = registry.link is not None and registry.link.is_up
    under_way = in_flight(registry)
    made = []
    for count, name in enumerate(_names(here, there), 1):
        if not count % _A_SLICE:
            await asyncio.sleep(0)
        guard, it = here.get(name), there.get(name)
        row = _state(guard, it, hears=hears)
        row |= _limits(guard)
        row |= {"name": name, "here": guard is not None, "alone": alone.get(name, 0)}
        row["in_flight"] = under_way.get(name, {})
        row["last_failure"] = record.last_failure(name)
        row["by_hand"] = row["mode"] == "forced-open" or is_by_hand(row["reason"])
        _date(row, record)
        health = health_of_row(row)
        is_closed = row["state"] == State.CLOSED.value
        row["look"], row["health"] = health.condition, str(health) if is_closed else ""
        made.append(row)
    made.sort(key=lambda row: (LOOKS.index(row["look"]), row["name"]))
    return made


def _names(here: Mapping[str, Guard], there: Mapping[str, Description]) -> list[str]:
    """Those in trouble first, where there are too many for all."""
    circuits = ((name, it.breaker.circuit) for name, it in here.items())
    own = (name for name, it in circuits if it.shared_admission is None or it.outcomes is not None)
    troubled = (name for name, it in there.items() if not it.is_well)
    return list(dict.fromkeys(chain(own, troubled, here, there)))[:_MOST]


def in_flight(registry: Guards) -> dict[str, dict[str, int]]:
    """How many guarded calls of this process are under way: by dependency and kind."""
    counts: dict[str, dict[str, int]] = {}
    for call in list(registry.gate.running):
        kind = "streams" if call.is_streaming else "calls"
        if call.stage != "in_flight":
            kind = "not sent"
        of_name = counts.setdefault(call.name, {})
        of_name[kind] = of_name.get(kind, 0) + 1
    return counts


def _state(guard: Guard | None, it: Description | None, *, hears: bool) -> dict[str, Any]:
    """How a breaker stands.

    What this process knows is newer than what was just asked of Redis, where it hears of changes;
    what is counted is counted by all.
    """
    if guard is None:
        assert it is not None  # noqa: S101 - or nobody would know its name
        return _of_cluster(it)
    breaker = guard.breaker
    by_itself = breaker.circuit.mode != "enforce" or getattr(breaker, "is_diverged", False)
    if it is None or by_itself:
        return _of_process(breaker.snapshot())
    if not hears:
        return _of_cluster(it)
    own, shared = _of_process(breaker.snapshot()), _of_cluster(it)
    if own["state"] != shared["state"]:
        return own
    counts = {name: shared[name] for name in _COUNTED}
    return {**own, **counts, "age": max(own["age"], shared["age"] or 0.0)}


def _of_cluster(it: Description) -> dict[str, Any]:
    now = it.now
    return {
        "state": now.state.value,
        "mode": "enforce",
        "reason": now.reason,
        "next": now.remaining if now.state is State.OPEN else None,
        "breaks": now.opens,
        **_calls(it.tally),
        "slow": it.slow,
        "probes": it.probes,
        "workers": it.workers,
        "age": it.since,
        "told": False,
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
    # The window of the breaker knows of successes before the first failure.
    return {
        "state": seen.state.value,
        "mode": seen.mode,
        "reason": seen.reason,
        "next": seen.retry_after if seen.state is State.OPEN else None,
        "breaks": seen.opens,
        **_calls(seen.tally or OutcomeCounts(failed=seen.failed, run=seen.calls), seen.calls),
        "slow": seen.slow,
        "probes": seen.probes,
        "workers": None,
        "age": seen.since,
        "told": True,
    }


def _limits(guard: Guard | None) -> dict[str, Any]:
    """Limits and budgets as this process has them."""
    if guard is None:
        return {"budget": None, "rpm": None, "tpm": None, "places": None, "standstill": 0.0}
    budget, limit, places = guard.budget, guard.policy.limit, guard.occupancy
    return {
        "budget": budget.share if budget.capacity else None,
        "rpm": limit.rpm,
        "tpm": limit.tpm,
        "places": {
            "limit": places.limit or guard.policy.concurrency.max_concurrent,
            "in_use": places.in_use,
            "waiting": places.waiting,
        },
        "standstill": places.cooldown_remaining,
    }


def _date(row: dict[str, Any], record: OutageHistory) -> None:
    """Since when, in seconds since the epoch, and why: what an outage began with."""
    age, told = row.pop("age"), row.pop("told")
    if row["state"] == State.CLOSED.value:
        row |= {"since": None, "why": "", "tries": 0}
        if not told:
            record.ended(row["name"], row["reason"])
        return
    began = time.time() - (age or 0.0)
    outage = record.outage(row["name"], began, row["state"], row["reason"])
    why = row["reason"] if row["by_hand"] else outage.reason
    row |= {"since": round(outage.since, 1), "why": why, "tries": outage.tries}
