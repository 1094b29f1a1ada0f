"""What the demo compares, by experiment, and how far two figures lie apart by chance."""

from __future__ import annotations

from .comparison import Figure, Kind
from .measurements import Measured
from .workers import Cluster

__all__ = ["BROWNOUT", "DEAD", "FLAKY", "INGEST", "OUTAGE", "RULE", "WORKERS"]

_GAINED = Kind(more_is_better=True)
_LOST = Kind()
_ANSWERS = Kind(tolerance=1, share=0.05, more_is_better=True)
_CALLS = Kind(tolerance=6, share=0.25)
_CALLS_EACH = Kind(tolerance=3, share=0.25)
_TIME = Kind(tolerance=2.0, share=0.25, is_time=True)
_UNJUDGED = Kind(more_is_better=None)
_UNJUDGED_TIME = Kind(more_is_better=None, is_time=True)

RULE = (
    "Equal: no further apart than a probe's second, the six calls that open a breaker, and the "
    "noise of a busy machine, which is 2 s or 25 % for a time, 6 or 25 % for HTTP calls (3 for "
    "those of an answer), 1 or 5 % for answers, and none for documents and silent losses. "
    "Not judged (-): a refused query counts as one that is not answered; "
    "RESILIENCE_QUERY__PATIENCE is how long it waits before."
)

_PROCESSED: Figure[Measured] = Figure(
    "documents processed", _GAINED, lambda run: run.processed, lambda run: run.all_documents
)
_FAILED: Figure[Measured] = Figure(
    "documents failed for good", _LOST, lambda run: run.failed_documents
)
_QUERIES: tuple[Figure[Measured], ...] = (
    Figure("queries answered", _ANSWERS, lambda run: run.answered, lambda run: len(run.queries)),
    Figure("queries silently empty or broken", _LOST, lambda run: run.empty + run.failed),
    Figure("queries refused with a clear error", _UNJUDGED, lambda run: run.refused),
    Figure("  each after at most", _UNJUDGED_TIME, lambda run: run.longest_refusal),
)
_ALL_CALLS: Figure[Measured] = Figure("HTTP calls", _CALLS, lambda run: run.http_calls)
_CALLS_WHILE_DOWN: Figure[Measured] = Figure(
    "HTTP calls while it is down", _CALLS, lambda run: run.calls_while_down
)

FLAKY: tuple[Figure[Measured], ...] = (
    _PROCESSED,
    _FAILED,
    _ALL_CALLS,
    Figure("the ingest took", _TIME, lambda run: run.took),
)
INGEST: tuple[Figure[Measured], ...] = (_PROCESSED, _FAILED, _CALLS_WHILE_DOWN)
BROWNOUT: tuple[Figure[Measured], ...] = (
    *_QUERIES,
    Figure("HTTP calls for each answer", _CALLS_EACH, lambda run: run.calls_per_answer),
    Figure("query p50", _TIME, lambda run: run.query_p50),
    Figure("query p95", _TIME, lambda run: run.query_p95),
)
OUTAGE: tuple[Figure[Measured], ...] = (
    *_QUERIES,
    _CALLS_WHILE_DOWN,
    Figure("first answer after its return", _TIME, lambda run: run.recovery),
)
DEAD: tuple[Figure[Measured], ...] = (
    *_QUERIES,
    _ALL_CALLS,
    Figure("all have ended after", _TIME, lambda run: run.longest),
    Figure("a minute later one more ends after", _TIME, lambda run: run.refusal),
    Figure("  with retry_after", _UNJUDGED_TIME, lambda run: run.refusal_retry_after),
)
WORKERS: tuple[Figure[Cluster], ...] = (
    Figure("the last worker rejects after", _TIME, lambda run: run.last_rejects),
    Figure("HTTP calls to the dead provider", _CALLS, lambda run: run.calls),
    Figure("probes until recovery", _CALLS, lambda run: run.probes),
    Figure("recovery of the last worker", _TIME, lambda run: run.recovery),
)
