"""A real LightRAG with embedded storages, on a provider simulator of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from lightrag import ROLES, LightRAG, QueryParam, RoleLLMConfig
from lightrag.llm.openai import openai_complete_if_cache, openai_embed
from lightrag.rerank import jina_rerank
from lightrag.utils import EmbeddingFunc, Tokenizer
from openai import DefaultAsyncHttpxClient

from lightrag_resilience.integrations.lightrag import protect, unprotect
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.testing import Simulator

from .corpus import Fact, document

__all__ = ["Rig", "build_rig"]

_DIMENSIONS = 64
_MODEL = "simulated"
_KEY = "not-a-secret"


class _Characters:
    """A tokenizer without downloads or state: a token is a character."""

    def encode(self, content: str) -> list[int]:
        return [ord(character) for character in content]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


class _ClientConfigs(Mapping[str, Any]):
    """Gives each client that LightRAG makes, one for each call, an HTTP client of its own.

    It reads no certificates: that takes two thirds of the time that a query costs this machine,
    and calls of the simulator need none.
    """

    def __getitem__(self, key: str) -> Any:
        if key != "http_client":
            raise KeyError(key)
        return DefaultAsyncHttpxClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def __iter__(self) -> Iterator[str]:
        return iter(["http_client"])

    def __len__(self) -> int:
        return 1


@dataclass(slots=True)
class Rig:
    """One LightRAG, its provider, and its guards where it is protected."""

    rag: Any
    provider: Simulator
    guards: Guards | None

    async def ingest(self, chosen: Sequence[Fact]) -> None:
        """Insert documents as an application does; LightRAG records which of them fail."""
        await self.rag.ainsert(
            [document(fact) for fact in chosen],
            file_paths=[f"{fact.town}.txt" for fact in chosen],
        )

    async def ask(self, question: str, mode: Literal["mix", "naive"] = "mix") -> str | None:
        """A real query: ``mix`` by knowledge graph and vectors, ``naive`` by vectors alone."""
        answer: str | None = await self.rag.aquery(question, QueryParam(mode=mode))
        return answer

    async def documents_by_status(self) -> dict[str, int]:
        """How many documents stand where in LightRAG's pipeline."""
        counts: dict[str, int] = await self.rag.doc_status.get_status_counts()
        return {status: count for status, count in counts.items() if count}


@contextlib.asynccontextmanager
async def build_rig(
    *,
    protected: bool,
    seed: int,
    latency: float = 0.02,
    guards: Guards | None = None,
    hosts: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """A fresh LightRAG on a fresh provider, ended in full afterwards.

    Args:
        protected: Whether to `protect` it.
        seed: For the provider's faults.
        latency: Seconds the provider takes to answer.
        guards: What it is protected with; guards of its own by default.
        hosts: Base URLs of the roles that call another provider, by role. With it, every role
            names its binding, host and model, as in LightRAG's server.
        options: Further arguments of `LightRAG`.
    """
    async with Simulator(seed=seed, latency=latency) as provider:
        with tempfile.TemporaryDirectory(prefix="lightrag-resilience-") as folder:
            if hosts is not None:
                options["role_llm_configs"] = _roles(provider.base_url, hosts)
            rag = _make_rag(provider.base_url, folder, options)
            await rag.initialize_storages()
            registry = (guards or Guards()) if protected else None
            if registry is not None:
                await protect(rag, registry=registry)
            try:
                yield Rig(rag, provider, registry)
            finally:
                provider.set_faults([])  # ending flushes, and should not meet trouble
                await _end(rag)


def _roles(base_url: str, hosts: Mapping[str, str]) -> dict[str, RoleLLMConfig]:
    urls = {**{role.name: base_url for role in ROLES}, **hosts}
    return {
        role: RoleLLMConfig(
            func=_completion(url), metadata={"binding": "openai", "host": url, "model": _MODEL}
        )
        for role, url in urls.items()
    }


def _completion(base_url: str) -> Callable[..., Any]:
    async def complete(
        prompt: str,
        system_prompt: str | None = None,
        history_messages: list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> Any:
        return await openai_complete_if_cache(
            _MODEL,
            prompt,
            system_prompt=system_prompt,
            history_messages=history_messages or [],
            base_url=base_url,
            api_key=_KEY,
            openai_client_configs=_ClientConfigs(),
            **options,
        )

    return complete


def _make_rag(base_url: str, folder: str, options: Mapping[str, Any]) -> Any:
    async def embed(texts: list[str]) -> np.ndarray[Any, Any]:
        vectors: np.ndarray[Any, Any] = await openai_embed.func(
            texts,
            model=_MODEL,
            base_url=base_url,
            api_key=_KEY,
            embedding_dim=_DIMENSIONS,
            client_configs=_ClientConfigs(),
        )
        return vectors

    async def rerank(query: str, documents: list[str], top_n: int | None = None) -> Any:
        return await jina_rerank(
            query, documents, top_n=top_n, api_key=_KEY, base_url=f"{base_url}/rerank"
        )

    return LightRAG(
        working_dir=folder,
        workspace=f"demo{uuid.uuid4().hex}",
        llm_model_func=_completion(base_url),
        embedding_func=EmbeddingFunc(embedding_dim=_DIMENSIONS, func=embed),
        rerank_model_func=rerank,
        tokenizer=Tokenizer("characters", _Characters()),
        entity_extract_max_gleaning=0,
        **options,
    )


async def _end(rag: Any) -> None:
    """End an instance's storages and queues; LightRAG leaves the queues to the process's end."""
    await rag.finalize_storages()
    await unprotect(rag)
    queues: list[Any] = [
        *rag.role_llm_funcs.values(),
        rag.embedding_func.func,
        rag.rerank_model_func,
    ]
    await asyncio.gather(*(queue.shutdown(graceful=False) for queue in queues))
