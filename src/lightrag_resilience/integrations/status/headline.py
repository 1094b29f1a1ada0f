"""The sentence at the top of the status page.

A sentence is a list of texts, and of times in seconds since the epoch, which the page shows in the
reader's time zone. It has no running numbers: a screen reader reads it out at each change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightrag_resilience.circuit.outcomes import OutcomeCounts
from lightrag_resilience.health import Health, health_of
from lightrag_resilience.text import MET, symptom_of

__all__ = ["headline", "health_of_row"]

Sentence = list[str | float]

_MOST_NAMES = 2


def health_of_row(row: dict[str, Any]) -> Health:
    """The health of a dependency from its row."""
    tally = OutcomeCounts(
        row["calls"], row["failed"], row.get("causes", {}), row.get("run", 0), row.get("last", "")
    )
    return health_of(
        row["name"],
        state=row["state"],
        mode="forced-open" if row["by_hand"] else row["mode"],
        reason=row.get("reason", ""),
        tally=tally,
        diverged=row["diverged"],
        cooldown=row["cooldown"],
    )


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Say what is wrong, since when, and what is done about it; or that all is well."""
    by_condition: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_condition.setdefault(row["condition"], []).append(row)
    down, probing = by_condition.get("down", []), by_condition.get("probing", [])
    isolated, failing = by_condition.get("isolated", []), by_condition.get("failing", [])
    if down or probing:
        sentence = _outage(down, probing)
        if isolated:
            sentence.append(f" Isolated by hand: {_names(isolated)}.")
        if failing:
            sentence += [" ", *_failure(failing)]
        rows = [*down, *probing, *failing, *isolated]
        return _made("down" if down else "probing", sentence, rows)
    if failing:
        return _made("failing", _failure(failing), failing)
    if isolated:
        return _made("isolated", _isolation(isolated), isolated)
    for condition, describe in (("paused", _pause), ("degraded", _degradation)):
        if found := by_condition.get(condition):
            return _made(condition, describe(found), found)
    if not rows:
        return _made(
            "healthy", ["No dependency has been called yet, so there is nothing to report."], []
        )
    works = "the only dependency works" if len(rows) == 1 else f"all {len(rows)} dependencies work"
    return _made("healthy", [f"All is well: {works}."], [])


def _made(condition: str, sentence: Sentence, rows: list[dict[str, Any]]) -> dict[str, Any]:
    reasons = [
        {"name": row["name"], "reason": reason}
        for row in rows
        if (reason := row["first_reason"] or row.get("health"))
    ]
    return {"condition": condition, "sentence": sentence, "reasons": reasons[:3]}


def _outage(down: list[dict[str, Any]], probing: list[dict[str, Any]]) -> Sentence:
    rows = [*down, *probing]
    has, them, they = ("has", "it", "it is") if len(rows) == 1 else ("have", "them", "they are")
    sentence: Sentence = [f"{_names(rows)} {has} been down", *_since(rows)]
    if down:
        findings = (_probe_finding(row) for row in down[:_MOST_NAMES])
        return [
            *sentence,
            f"; calls to {them} are rejected at once, and {they} probed automatically.",
            *filter(None, findings),
        ]
    return [*sentence, f"; {they} being probed, and other calls follow if the probes succeed."]


def _probe_finding(row: dict[str, Any]) -> str:
    """What the last probe met that waiting does not fix, and what does."""
    reason = row.get("reason", "")
    if not reason.startswith(MET):
        return ""
    advice = health_of_row(row).advice
    return f" The last probe of {row['name']} met {symptom_of(reason)}{advice and ': '}{advice}."


def _isolation(rows: list[dict[str, Any]]) -> Sentence:
    has, them = ("has", "it") if len(rows) == 1 else ("have", "them")
    return [
        f"{_names(rows)} {has} been isolated by hand",
        *_since(rows),
        f"; calls to {them} are rejected until the time is over or the breaker is closed by hand.",
    ]


def _pause(rows: list[dict[str, Any]]) -> Sentence:
    return [f"{_names(rows)} asked for a pause; calls wait until it ends, then one goes first."]


def _failure(rows: list[dict[str, Any]]) -> Sentence:
    if len(rows) > _MOST_NAMES:
        return [f"{_names(rows)} fail most calls in a way that opens no breaker."]
    return [" ".join(f"{health_of_row(row).headline}." for row in rows)]


def _degradation(rows: list[dict[str, Any]]) -> Sentence:
    if len(rows) == 1 and rows[0].get("causes"):
        return [f"{health_of_row(rows[0]).headline}."]
    names, works = _names(rows), "works" if len(rows) == 1 else "work"
    if any(row["diverged"] for row in rows):
        return [f"{names} {works} for most workers; the others reject calls by their own breakers."]
    return [f"{names} {works}, but at least one call in ten fails; failed calls are retried."]


def _since(rows: list[dict[str, Any]]) -> Sentence:
    times = [row["since"] for row in rows if row["since"] is not None]
    return [" since ", min(times)] if times else []


def _names(rows: Sequence[dict[str, Any]]) -> str:
    names = [row["name"] for row in rows]
    if len(names) <= _MOST_NAMES:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} others"
