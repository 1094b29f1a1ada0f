"""A real LightRAG whose providers are functions of the test, to fail as it pleases."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lightrag import LightRAG
from lightrag.utils import EmbeddingFunc, Tokenizer

from lightrag_resilience import Guards
from lightrag_resilience.integrations.lightrag import protect, unprotect

DIMENSIONS = 8
EXTRACTED = """\
entity<|#|>Ada<|#|>Person<|#|>Ada founded Alderwick.
entity<|#|>Alderwick<|#|>Location<|#|>A town beside the river.
relation<|#|>Ada<|#|>Alderwick<|#|>founder<|#|>Ada founded Alderwick.
<|COMPLETE|>"""
KEYWORDS = json.dumps({"high_level_keywords": ["founder"], "low_level_keywords": ["Alderwick"]})
ANSWER = "Ada founded Alderwick."


class Characters:
    """A tokenizer without downloads."""

    def encode(self, content: str) -> list[int]:
        return [ord(character) for character in content]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


@dataclass
class Provider:
    """Counts what is called, and fails where a test says so.

    `fail` is asked before each call with ``llm``, ``embedding`` or ``rerank``, and after each item
    with ``stream``; what it returns is raised.
    """

    fail: Callable[[str], Exception | None] = lambda _: None
    calls: list[str] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return self.calls.count(kind)

    def _called(self, kind: str) -> None:
        self.calls.append(kind)
        if (error := self.fail(kind)) is not None:
            # One error for many calls: with the ways of them all it would take minutes to log.
            error.__context__ = None
            raise error.with_traceback(None)

    async def complete(self, prompt: str, *, stream: bool = False, **_: Any) -> Any:
        await asyncio.sleep(0)
        self._called("llm")
        if "---Input Text---" in prompt or "<Input Text>" in prompt:  # LightRAG 1.5, 1.4
            return EXTRACTED
        if "keyword extractor" in prompt:
            return KEYWORDS
        return self._stream() if stream else ANSWER

    async def _stream(self) -> AsyncIterator[str]:
        for word in ANSWER.split():
            yield word if word == "Ada" else f" {word}"
            if (error := self.fail("stream")) is not None:
                raise error

    async def embed(self, texts: list[str]) -> np.ndarray[Any, Any]:
        await asyncio.sleep(0)
        self._called("embedding")
        return np.ones((len(texts), DIMENSIONS), dtype=np.float32)

    async def rerank(self, query: str, documents: list[str], top_n: int | None = None) -> Any:
        del query, top_n
        await asyncio.sleep(0)
        self._called("rerank")
        return [{"index": i, "relevance_score": 1.0} for i in range(len(documents))]


@contextlib.asynccontextmanager
async def lightrag_on(provider: Provider, **changes: Any) -> AsyncIterator[Any]:
    """A LightRAG with embedded storages, by default in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "working_dir": folder,
            "workspace": folder.rsplit("/", 1)[-1],
            "llm_model_func": provider.complete,
            "embedding_func": EmbeddingFunc(embedding_dim=DIMENSIONS, func=provider.embed),
            "rerank_model_func": provider.rerank,
            "tokenizer": Tokenizer("characters", Characters()),
            "entity_extract_max_gleaning": 0,
        }
        rag = LightRAG(**(options | changes))
        await rag.initialize_storages()
        try:
            yield rag
        finally:
            await rag.finalize_storages()
            models = getattr(rag, "role_llm_funcs", {"llm": rag.llm_model_func})
            for queue in (*models.values(), rag.embedding_func.func, rag.rerank_model_func):
                if hasattr(queue, "shutdown"):
                    await queue.shutdown()


@contextlib.asynccontextmanager
async def protected_on(guards: Guards, **changes: Any) -> AsyncIterator[Any]:
    """A protected LightRAG. All those of a process share what replaces httpx for its clients."""
    async with lightrag_on(Provider(), **changes) as rag:
        await protect(rag, registry=guards)
        try:
            yield rag
        finally:
            await unprotect(rag)
