"""LightRAG's queues around its functions: where they are kept, and how they are made.

LightRAG 1.5 has a queue for each role of its models; 1.4 has one for all, and none to rerank.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from lightrag.utils import priority_limit_async_func_call

__all__ = ["EMBEDDING", "MODEL", "RERANK", "FunctionSlot", "abandon", "retire", "without_queue"]


@dataclass(frozen=True)
class FunctionSlot:
    """Where LightRAG keeps a function that is no role's, and how it queues it."""

    name: str
    new_queue: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
    put: Callable[[Any, Callable[..., Any]], None]


def _queue(
    function: Callable[..., Any], limit: int, timeout: float, name: str
) -> Callable[..., Any]:
    options = {"llm_timeout": timeout, "queue_name": f"{name} func"}
    if "concurrency_group" in inspect.signature(priority_limit_async_func_call).parameters:
        options["concurrency_group"] = name.lower()
    queued = priority_limit_async_func_call(limit, **options)(function)
    return cast("Callable[..., Any]", queued)


def _queue_model(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    return _queue(function, rag.llm_model_max_async, rag.default_llm_timeout, "LLM")


def _put_model(rag: Any, function: Callable[..., Any]) -> None:
    rag.llm_model_func = function


def _queue_embedding(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    limit, timeout = rag.embedding_func_max_async, rag.default_embedding_timeout
    return _queue(function, limit, timeout, "Embedding")


def _put_embedding(rag: Any, function: Callable[..., Any]) -> None:
    # All storages share this object, so that changing its function reaches each of them.
    rag.embedding_func.func = function


def _queue_rerank(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    if not hasattr(rag, "rerank_model_max_async"):
        return function  # LightRAG 1.4 calls it directly
    return _queue(function, rag.rerank_model_max_async, rag.default_rerank_timeout, "Rerank")


def _put_rerank(rag: Any, function: Callable[..., Any]) -> None:
    rag.rerank_model_func = function
    # Queries take it from the configuration that the storages were made with.
    for storage in vars(rag).values():
        config = getattr(storage, "global_config", None)
        if isinstance(config, dict) and "rerank_model_func" in config:
            config["rerank_model_func"] = function


def without_queue(function: Any) -> Any:
    """What LightRAG put into a queue, and what it did not as it is."""
    return inspect.unwrap(function, stop=lambda layer: not hasattr(layer, "shutdown"))


async def retire(queued: Any) -> None:
    """End a queue that nothing calls any more, after the work it holds."""
    shutdown = getattr(queued, "shutdown", None)
    if shutdown is not None:
        is_known = "graceful" in inspect.signature(shutdown).parameters
        await (shutdown(graceful=True) if is_known else shutdown())


async def abandon(queued: Any) -> None:
    """End a queue with the work it holds; left alone, its workers outlive a cancellation."""
    shutdown = getattr(queued, "shutdown", None)
    if shutdown is not None:
        is_known = "graceful" in inspect.signature(shutdown).parameters
        await (shutdown(graceful=False) if is_known else shutdown())


MODEL = FunctionSlot("llm", _queue_model, _put_model)
EMBEDDING = FunctionSlot("embedding", _queue_embedding, _put_embedding)
RERANK = FunctionSlot("rerank", _queue_rerank, _put_rerank)
