"""The queues around LightRAG's embedding and rerank functions: where and how they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from lightrag.utils import priority_limit_async_func_call

__all__ = ["EMBEDDING", "RERANK", "Slot", "retire"]


@dataclass(frozen=True)
class Slot:
    """Where LightRAG keeps a function that is no role's, and how it queues it."""

    name: str
    new_queue: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
    put: Callable[[Any, Callable[..., Any]], None]


def _queue_embedding(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    queue = priority_limit_async_func_call(
        rag.embedding_func_max_async,
        llm_timeout=rag.default_embedding_timeout,
        queue_name="Embedding func",
        concurrency_group="embedding",
    )
    return cast("Callable[..., Any]", queue(function))


def _put_embedding(rag: Any, function: Callable[..., Any]) -> None:
    # All storages share this object, so that changing its function reaches each of them.
    rag.embedding_func.func = function


def _queue_rerank(rag: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    queue = priority_limit_async_func_call(
        rag.rerank_model_max_async,
        llm_timeout=rag.default_rerank_timeout,
        queue_name="Rerank func",
        concurrency_group="rerank",
    )
    return cast("Callable[..., Any]", queue(function))


def _put_rerank(rag: Any, function: Callable[..., Any]) -> None:
    rag.rerank_model_func = function
    # Queries take it from the configuration that the storages were made with.
    for storage in vars(rag).values():
        config = getattr(storage, "global_config", None)
        if isinstance(config, dict) and "rerank_model_func" in config:
            config["rerank_model_func"] = function


async def retire(queued: Any) -> None:
    """End a queue that nothing calls any more, after the work it holds."""
    await queued.shutdown(graceful=True)


EMBEDDING = Slot("embedding", _queue_embedding, _put_embedding)
RERANK = Slot("rerank", _queue_rerank, _put_rerank)
