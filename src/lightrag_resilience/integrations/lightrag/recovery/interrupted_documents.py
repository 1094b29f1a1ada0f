"""Documents that were under way when a process stopped, as its journal lists them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from lightrag_resilience.draining.journal import AbandonedWork

from .failed_documents import FAILED, RESUMABLE

__all__ = ["in_words", "left_documents"]

_KEPT = 5000  # documents


def left_documents(records: Iterable[AbandonedWork], workspace: str) -> Mapping[str, AbandonedWork]:
    """The last record of each document of a workspace, the oldest first."""
    found: OrderedDict[str, AbandonedWork] = OrderedDict()
    for record in records:
        if record.document and record.workspace == workspace:
            found[record.document] = record
            found.move_to_end(record.document)
            if len(found) > _KEPT:
                found.popitem(last=False)
    return found


def in_words(rows: Iterable[Any]) -> str:
    """What became of documents, by their rows; empty if nothing is left to do."""
    counts = Counter(_state_of(row) for row in rows)
    resumed = sum(counts[state] for state in RESUMABLE)
    if not resumed and not counts[FAILED]:
        return ""
    return (
        f"{resumed} are resumed, {counts['processed']} are done, "
        f"{counts[FAILED]} failed, {counts['']} are gone"
    )


def _state_of(row: Any) -> str:
    if row is None:
        return ""
    state = row.get("status") if isinstance(row, Mapping) else getattr(row, "status", "")
    return str(getattr(state, "value", state)).lower()
