"""The rows of the acceptance: a script, the seeds it runs with, and what is judged."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.never_worse import endpoints, goals, ingests, outages
from benchmarks.never_worse.parts import Figures
from benchmarks.never_worse.slowness import one_query, timeouts
from lightrag_resilience.testing import Fault


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: What chooses it; so does the part before the first dash.
        title: What happens.
        run: The script; takes `protected`, `seed` and `start`.
        judge: Compares the figures.
        load: How many of the places for scripts it takes up.
    """

    name: str
    title: str
    run: Callable[..., Coroutine[Any, Any, Figures]]
    judge: goals.Judge
    load: int = 1

    def is_chosen(self, names: list[str]) -> bool:
        return not names or self.name in names or self.name.partition("-")[0] in names


def _dead(name: str, title: str, make: Callable[..., Fault] | None, **options: Any) -> Row:
    return Row(f"dead-{name}", title, partial(outages.dead, make, **options), goals.dead)


_PATHS = {"llm": "chat", "embedding": "embeddings", "rerank": "rerank"}


def _slow(kind: str, title: str, seconds: float, timeout: int) -> Row:
    fault = Fault.slow(seconds, path=_PATHS[kind])
    return Row(f"slow-{kind}", title, partial(one_query, fault, timeout), goals.slow)


def _hang(kind: str, title: str) -> Row:
    fault = Fault.hang(path=_PATHS[kind])
    return Row(f"hang-{kind}", title, partial(one_query, fault, 4), goals.hang)


ROWS = (  # the longest first, so that others run beside them
    _slow("llm", "a model takes 130 s, LLM_TIMEOUT=600", 130.0, 600),
    Row(
        "old-outage",
        "each call answers 503, for more than a minute",
        outages.old_outage,
        goals.old_outage,
    ),
    Row(
        "brownout-500",
        "60 % of calls answer 500 for 20 s, a query every 1.5 s",
        partial(outages.brownout, [Fault.status(500, share=0.6, end=20.0)]),
        goals.brownout,
    ),
    Row(
        "brownout-mixed",
        "30 % of calls answer 503 and 30 % are reset for 20 s, a query every 1.5 s",
        partial(
            outages.brownout,
            [Fault.status(503, share=0.3, end=20.0), Fault.reset(share=0.3 / 0.7, end=20.0)],
        ),
        goals.brownout,
    ),
    _dead("503", "each call answers 503 for 20 s", partial(Fault.status, 503)),
    _dead("reset", "each connection is reset for 20 s", Fault.reset),
    _dead("refused", "nothing listens for 20 s", None),
    _dead(
        "hang",
        "each call hangs for 20 s, all timeouts are 4 s",
        Fault.hang,
        **timeouts(4),
    ),
    Row("burst", "20 queries at once to a dead provider", outages.burst, goals.burst),
    Row(
        "ingest",
        "30 % of calls answer 500 while 20 documents are ingested",
        ingests.flaky,
        goals.ingest,
        load=2,
    ),
    _slow("embedding", "an embedding takes 25 s, EMBEDDING_TIMEOUT=60", 25.0, 60),
    _slow("rerank", "a rerank takes 18 s, RERANK_TIMEOUT=60", 18.0, 60),
    _hang("llm", "a model hangs, LLM_TIMEOUT=4"),
    _hang("embedding", "an embedding hangs, EMBEDDING_TIMEOUT=4"),
    _hang("rerank", "a rerank hangs, RERANK_TIMEOUT=4"),
    Row(
        "two-hosts",
        "extractions have a host of their own, which is dead for 20 s",
        endpoints.two_hosts,
        goals.two_hosts,
    ),
)
