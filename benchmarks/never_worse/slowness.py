"""One query to a model that is slow, or never answers."""

from __future__ import annotations

from typing import Any

from benchmarks.never_worse.parts import KNOWN, Figures, Start, begin, told
from lightrag_resilience.demo.rig import build_rig
from lightrag_resilience.testing import Fault


def timeouts(seconds: int) -> dict[str, Any]:
    """LightRAG's options for LLM_TIMEOUT, EMBEDDING_TIMEOUT and RERANK_TIMEOUT."""
    return {
        "default_llm_timeout": seconds,
        "llm_model_kwargs": {"timeout": seconds},  # as LightRAG's server passes it to the client
        "default_embedding_timeout": seconds,
        "default_rerank_timeout": seconds,
    }


async def one_query(
    fault: Fault, given: int, *, protected: bool, seed: int, start: Start
) -> Figures:
    """A query by vectors alone, which calls each model once.

    Args:
        fault: What happens to the calls of one of them.
        given: Seconds that LightRAG was given for each, as a timeout.
        protected: Whether it is protected.
        seed: For the texts.
        start: When it begins.
    """
    async with build_rig(protected=protected, seed=seed, **timeouts(given)) as rig:
        queries = await begin(rig, [fault], start)
        fact = KNOWN[seed % len(KNOWN)]
        asked = await queries.ask(lambda: rig.ask(fact.question(seed), "naive"), fact.founder)
        calls = sum(fault.path in call.path for call in rig.provider.calls)
        return told(queries, asked=1) | {"took": asked.took, "calls": calls}
