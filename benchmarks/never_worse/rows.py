"""The rows of the acceptance: a script, the seeds it runs with, and what is judged."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.never_worse import goals, scripts
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
    run: Callable[..., Coroutine[Any, Any, scripts.Figures]]
    judge: goals.Judge
    load: int = 1

    def is_chosen(self, names: list[str]) -> bool:
        return not names or self.name in names or self.name.partition("-")[0] in names


_SHORT_TIMEOUTS = {
    "default_llm_timeout": 4,
    "llm_model_kwargs": {"timeout": 4},  # as LightRAG's server passes it to the client
    "default_embedding_timeout": 4,
    "default_rerank_timeout": 4,
}


def _dead(name: str, title: str, make: Callable[..., Fault] | None, **options: Any) -> Row:
    return Row(f"dead-{name}", title, partial(scripts.dead, make, **options), goals.dead)


ROWS = (
    Row(
        "brownout-500",
        "60 % of calls answer 500 for 20 s, a query every 1.5 s",
        partial(scripts.brownout, [Fault.status(500, share=0.6, end=20.0)]),
        goals.brownout,
    ),
    Row(
        "brownout-mixed",
        "30 % of calls answer 503 and 30 % are reset for 20 s, a query every 1.5 s",
        partial(
            scripts.brownout,
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
        **_SHORT_TIMEOUTS,
    ),
)
