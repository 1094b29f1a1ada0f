"""What the demo measures."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from lightrag_resilience.errors import ResilienceError

__all__ = ["Asked", "Measured", "Queries", "percentile"]

ANSWERED, REFUSED, EMPTY, WRONG = "answered", "refused", "empty", "failed"


@dataclass(frozen=True, slots=True)
class Asked:
    """One query: when it was asked and how it ended.

    Attributes:
        at: Seconds since the experiment began.
        took: Seconds until the end.
        outcome: ``answered``, ``refused`` (a typed error), ``empty`` (no answer and no error), or
            ``failed`` (another error).
        retry_after: Seconds after which to ask again, as the error said.
    """

    at: float
    took: float
    outcome: str
    retry_after: float | None = None


class Queries:
    """Asks, and notes how each query ended. `begin` sets the time from which `at` counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked: list[Asked] = []
        self._clock = clock
        self._begin = clock()

    def begin(self) -> None:
        """The experiment begins now."""
        self._begin = self._clock()

    async def ask(self, query: Callable[[], Awaitable[str | None]], expected: str) -> Asked:
        """Run one query; it is answered if the answer holds what is expected."""
        started = self._clock()
        retry_after = None
        try:
            answer = await query()
        except ResilienceError as error:
            outcome, retry_after = REFUSED, getattr(error, "retry_after", None)
        except Exception:  # noqa: BLE001 - whatever it is, it is an outcome here
            outcome = WRONG
        else:
            outcome = ANSWERED if answer and expected in answer else EMPTY
        ended = self._clock()
        asked = Asked(started - self._begin, ended - started, outcome, retry_after)
        self.asked.append(asked)
        return asked

    def count(self, outcome: str) -> int:
        """How many queries ended so."""
        return Counter(asked.outcome for asked in self.asked)[outcome]


@dataclass(slots=True)
class Measured:
    """The figures of one instance in one experiment; durations are seconds.

    Attributes:
        documents: How many documents stand where in LightRAG's pipeline.
        calls: When each HTTP call reached the provider, and its outcome.
        calls_while_down: How many of them did while the provider was down.
        recovery: From the provider's return until the first answer; None if none came.
        refusal: What one more query took, in an outage that is no longer young.
        refusal_retry_after: When its error says to ask again.
    """

    documents: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    refused: int = 0
    empty: int = 0
    failed: int = 0
    http_calls: int = 0
    calls_while_down: int | None = None
    query_p50: float | None = None
    query_p95: float | None = None
    took: float = 0.0
    recovery: float | None = None
    refusal: float | None = None
    refusal_retry_after: float | None = None
    queries: list[Asked] = field(default_factory=list)
    calls: list[tuple[float, str]] = field(default_factory=list)

    def take_queries(self, queries: Queries) -> None:
        """Add what the queries showed."""
        durations = [asked.took for asked in queries.asked]
        self.queries = list(queries.asked)
        self.answered = queries.count(ANSWERED)
        self.refused = queries.count(REFUSED)
        self.empty = queries.count(EMPTY)
        self.failed = queries.count(WRONG)
        self.query_p50 = percentile(durations, 0.50)
        self.query_p95 = percentile(durations, 0.95)

    def take_outage(self, start: float, end: float) -> None:
        """Add what the queries and calls show of an outage between these seconds."""
        self.calls_while_down = sum(start <= at < end for at, _ in self.calls)
        answered = [one.at + one.took for one in self.queries if one.outcome == ANSWERED]
        self.recovery = min((at - end for at in answered if at > end), default=None)

    def take_calls(self, calls: Any) -> None:
        """Add the HTTP calls that reached the provider."""
        self.calls = [(round(call.at, 3), call.outcome) for call in calls]
        self.http_calls = len(self.calls)

    @property
    def longest(self) -> float:
        """Seconds that the slowest query took."""
        return max((asked.took for asked in self.queries), default=0.0)

    @property
    def longest_refusal(self) -> float | None:
        """Seconds until the slowest refusal; None if no query was refused."""
        refused = (asked.took for asked in self.queries if asked.outcome == REFUSED)
        return max(refused, default=None)

    @property
    def calls_per_answer(self) -> float | None:
        """HTTP calls for each query that was answered; None if none was."""
        return self.http_calls / self.answered if self.answered else None

    @property
    def all_documents(self) -> int:
        """Documents, wherever they stand."""
        return sum(self.documents.values())

    @property
    def processed(self) -> int:
        """Documents that can be asked about."""
        return self.documents.get("processed", 0)

    @property
    def failed_documents(self) -> int:
        """Documents that LightRAG gave up."""
        return self.documents.get("failed", 0)


def percentile(values: list[float], share: float) -> float | None:
    """The value below which `share` of the values lie (nearest rank)."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
