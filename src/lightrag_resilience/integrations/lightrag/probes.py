"""The smallest request of each kind, which a background probe sends while a circuit is open.

It takes the way of a real one, since a provider may list its models while completions fail, but not
through LightRAG's queues and caches. It has no options that some provider would refuse. Each one
has a number of its own: a gateway that caches answers must not answer for a provider that is down.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from lightrag_resilience.pipeline.recovery_probe import Probe

from .compat import EMBEDDING, MODEL, RERANK

__all__ = ["probe_of", "storage_probe"]

_NO_ID = "lightrag-resilience-probe"
_REQUESTS: dict[str, Callable[[str], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    MODEL.name: lambda number: ((f"Reply with OK. ({number})",), {}),
    EMBEDDING.name: lambda number: (([f"probe {number}"],), {}),
    RERANK.name: lambda number: (
        (),
        # The same text passes the threshold of any reranker.
        {"query": f"probe {number}", "documents": [f"probe {number}", "other"], "top_n": 1},
    ),
}
"""The arguments of a probe with a number, by the name of LightRAG's slot."""


def probe_of(slot: str, function: Callable[..., Awaitable[Any]], **options: Any) -> Probe:
    """A probe of a model, an embedding function or a reranker.

    Args:
        slot: The name of its slot.
        function: What calls the provider.
        options: That LightRAG passes to it with each call.
    """
    request = _REQUESTS[slot]

    async def probe() -> Any:
        arguments, more = request(secrets.token_hex(4))
        return await function(*arguments, **more, **options)

    return probe


def storage_probe(storage: Any) -> Probe:
    """A probe of a storage: the smallest read through the client that it uses."""
    read = storage.has_node if hasattr(storage, "has_node") else storage.get_by_id

    async def probe() -> Any:
        return await read(_NO_ID)

    return probe
