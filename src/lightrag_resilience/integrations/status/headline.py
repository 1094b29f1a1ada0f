"""One sentence at the top of the status page, and the words for each dependency.

A sentence is a list of texts, and of times in seconds since the epoch, which the page shows in the
reader's own time. Nothing in it counts, so that it is read out only when it says something new.
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
    """How a dependency is for who calls it."""
    tally = OutcomeCounts(
        row["calls"], row["failed"], row.get("causes", {}), row.get("run", 0), row.get("last", "")
    )
    return health_of(
        row["name"],
        state=row["state"],
        mode="forced-open" if row["by_hand"] else row["mode"],
        reason=row.get("reason", ""),
        tally=tally,
        alone=row["alone"],
        standstill=row["standstill"],
    )


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is wrong, since when, and what is done about it; or that all is well.

    Args:
        rows: All dependencies.
    """
    by_look: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_look.setdefault(row["look"], []).append(row)
    down, tried = by_look.get("down", []), by_look.get("tried", [])
    isolated, failing = by_look.get("isolated", []), by_look.get("failing", [])
    if down or tried:
        sentence = _outage(down, tried)
        if isolated:
            sentence.append(f" Kept off by hand: {_names(isolated)}.")
        if failing:
            sentence += [" ", *_failure(failing)]
        rows = [*down, *tried, *failing, *isolated]
        return _made("down" if down else "tried", sentence, rows)
    if failing:
        return _made("failing", _failure(failing), failing)
    if isolated:
        return _made("isolated", _isolation(isolated), isolated)
    for look, tell in (("paused", _pause), ("uneasy", _unease)):
        if found := by_look.get(look):
            return _made(look, tell(found), found)
    if not rows:
        return _made("works", ["Nothing has been called yet, so there is nothing to tell."], [])
    works = "the only dependency works" if len(rows) == 1 else f"all {len(rows)} dependencies work"
    return _made("works", [f"All is well: {works}."], [])


def _made(look: str, sentence: Sentence, rows: list[dict[str, Any]]) -> dict[str, Any]:
    why = [
        {"name": row["name"], "reason": reason}
        for row in rows
        if (reason := row["why"] or row.get("health"))
    ]
    return {"look": look, "sentence": sentence, "why": why[:3]}


def _outage(down: list[dict[str, Any]], tried: list[dict[str, Any]]) -> Sentence:
    rows = [*down, *tried]
    has, them, they = ("has", "it", "it is") if len(rows) == 1 else ("have", "them", "they are")
    sentence: Sentence = [f"{_names(rows)} {has} been down", *_since(rows)]
    if down:
        told = (_met(row) for row in down[:_MOST_NAMES])
        return [
            *sentence,
            f"; calls to {them} are refused at once, and {they} tried again automatically.",
            *filter(None, told),
        ]
    return [*sentence, f"; a single call is trying {them} now, and the others follow if it works."]


def _met(row: dict[str, Any]) -> str:
    """What its last probe met that waiting does not mend, and what does."""
    reason = row.get("reason", "")
    if not reason.startswith(MET):
        return ""
    advice = health_of_row(row).advice
    return f" The last try of {row['name']} met {symptom_of(reason)}{advice and ': '}{advice}."


def _isolation(rows: list[dict[str, Any]]) -> Sentence:
    has, them = ("has", "it") if len(rows) == 1 else ("have", "them")
    return [
        f"{_names(rows)} {has} been kept off by hand",
        *_since(rows),
        f"; calls to {them} are refused until the time is over or somebody closes the breaker.",
    ]


def _pause(rows: list[dict[str, Any]]) -> Sentence:
    return [f"{_names(rows)} asked for a pause; calls wait for its end, and then go one by one."]


def _failure(rows: list[dict[str, Any]]) -> Sentence:
    if len(rows) > _MOST_NAMES:
        return [f"{_names(rows)} serve hardly any call, and no breaker opens for that."]
    return [" ".join(f"{health_of_row(row).headline}." for row in rows)]


def _unease(rows: list[dict[str, Any]]) -> Sentence:
    if len(rows) == 1 and rows[0].get("causes"):
        return [f"{health_of_row(rows[0]).headline}."]
    names, works = _names(rows), "works" if len(rows) == 1 else "work"
    if any(row["alone"] for row in rows):
        return [f"{names} {works} for most workers; those it fails refuse calls by themselves."]
    return [f"{names} {works}, but one call in ten fails, or more; they are tried again."]


def _since(rows: list[dict[str, Any]]) -> Sentence:
    times = [row["since"] for row in rows if row["since"] is not None]
    return [" since ", min(times)] if times else []


def _names(rows: Sequence[dict[str, Any]]) -> str:
    names = [row["name"] for row in rows]
    if len(names) <= _MOST_NAMES:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} others"
