"""Guards around LightRAG's storages: the rules, on storages of the test."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("lightrag.kg.factory", reason="LightRAG 1.5")

from lightrag import base
from lightrag.kg import STORAGES
from lightrag.kg.factory import get_storage_class
from lightrag.kg.json_doc_status_impl import JsonDocStatusStorage
from lightrag.kg.nano_vector_db_impl import NanoVectorDBStorage
from lightrag.utils_pipeline import describe_doc_status_capabilities

from lightrag_resilience import (
    AttemptTimeoutError,
    CircuitOpenError,
    Guard,
    Guards,
    Policy,
    State,
    UnsupportedCallError,
)
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag.storage_methods import _UNGUARDED, Effect, effect_of
from lightrag_resilience.integrations.lightrag.storages import (
    dependency_of,
    guard_storage,
    guarded_class,
    guarding,
    release_storage,
)
from lightrag_resilience.integrations.lightrag.work.context import as_work, call_guarded
from lightrag_resilience.testing.virtual_time import VirtualTimeLoop

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

BASES = [base.BaseKVStorage, base.BaseVectorStorage, base.BaseGraphStorage, base.DocStatusStorage]
LOST = TimeoutError("no answer")  # of unknown outcome


async def no_wait(_: float) -> None:
    await asyncio.sleep(0)


def registry(**variables: str) -> Guards:
    return Guards(settings=load_settings(variables), sleep=no_wait)


@dataclass
class Shelf(base.BaseKVStorage):  # type: ignore[misc]
    """A storage of the test: each call does what the next of `steps` says."""

    def __post_init__(self) -> None:
        self.steps: list[Any] = []
        self.calls: list[str] = []

    async def _do(self, name: str) -> Any:
        self.calls.append(name)
        step = self.steps.pop(0) if self.steps else "done"
        if isinstance(step, BaseException):
            raise step
        return await step() if callable(step) else step

    async def get_by_id(self, id: str) -> Any:  # noqa: A002 - as LightRAG names it
        return await self._do("get_by_id")

    async def get_by_ids(self, ids: list[str]) -> Any:
        self.calls.append("get_by_ids")
        return [await self.get_by_id(each) for each in ids]

    async def filter_keys(self, keys: set[str]) -> Any:
        return await self._do("filter_keys")

    async def upsert(self, data: dict[str, dict[str, Any]]) -> None:
        await self._do("upsert")

    async def delete(self, ids: list[str]) -> None:
        await self._do("delete")

    async def is_empty(self) -> Any:
        return await self._do("is_empty")

    async def index_done_callback(self) -> None:
        await self._do("index_done_callback")

    async def drop(self) -> Any:
        return await self._do("drop")

    async def finalize(self) -> None:
        await self._do("finalize")


def shelf(guards: Guards | None = None) -> tuple[Shelf, Any]:
    made = Shelf(namespace="n", workspace="w", global_config={}, embedding_func=None)
    return made, guard_storage(made, registry=guards or registry())


def failures(guard: Guard) -> int:
    return guard.breaker.snapshot().failed


# ---------------------------------------------------------------------- which methods, how


@pytest.mark.parametrize("abstract", BASES)
def test_each_method_of_lightrags_storages_is_known(abstract: type) -> None:
    names = [
        name
        for name, method in inspect.getmembers(abstract, inspect.iscoroutinefunction)
        if not name.startswith("_")
    ]
    assert len(names) >= 10
    unknown = [name for name in names if effect_of(name) is None and name not in _UNGUARDED]
    assert unknown == []


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("get_node_edges", Effect.READ),
        ("has_nodes_batch", Effect.READ),
        ("node_degrees_batch", Effect.READ),
        ("query", Effect.READ),
        ("upsert_edges_batch", Effect.WRITE),
        ("index_done_callback", Effect.WRITE),
        ("delete_entity_relation", Effect.DESTRUCTION),
        ("remove_nodes", Effect.DESTRUCTION),
        ("drop", Effect.DESTRUCTION),
        ("drop_pending_index_ops", None),
        ("finalize", None),
        ("_get_graph", None),
        ("create_index_if_not_exists", None),
    ],
)
def test_the_effect_of_a_method_follows_from_its_name(name: str, effect: Effect | None) -> None:
    assert effect_of(name) is effect


READ: Callable[[Shelf], Any] = lambda made: made.get_by_id("1")  # noqa: E731
WRITE: Callable[[Shelf], Any] = lambda made: made.upsert({})  # noqa: E731
FLUSH: Callable[[Shelf], Any] = lambda made: made.index_done_callback()  # noqa: E731
DESTROY: Callable[[Shelf], Any] = lambda made: made.delete(["1"])  # noqa: E731
DROP: Callable[[Shelf], Any] = lambda made: made.drop()  # noqa: E731


@pytest.mark.parametrize("call", [READ, WRITE, FLUSH])
async def test_an_idempotent_call_is_retried_after_an_unknown_outcome(
    call: Callable[[Shelf], Any],
) -> None:
    made, _ = shelf()
    made.steps = [LOST, LOST]
    await call(made)
    assert len(made.calls) == 3


@pytest.mark.parametrize("call", [DESTROY, DROP])
async def test_a_deletion_is_retried_only_if_it_was_not_done(
    call: Callable[[Shelf], Any],
) -> None:
    made, _ = shelf()
    made.steps = [LOST]
    with pytest.raises(TimeoutError):
        await call(made)
    assert len(made.calls) == 1
    made.steps = [ConnectionRefusedError()]
    await call(made)
    assert len(made.calls) == 3


async def test_a_batch_of_reads_is_one_call() -> None:
    made, guard = shelf()
    assert await made.get_by_ids(["1", "2"]) == ["done", "done"]
    assert guard.breaker.snapshot().calls == 1
    made.steps = [ConnectionResetError()]
    assert await made.get_by_ids(["1", "2"]) == ["done", "done"]
    again = ["get_by_ids", "get_by_id"]  # the whole batch
    assert made.calls == ["get_by_ids", *["get_by_id"] * 2, *again, *again, "get_by_id"]


async def test_an_open_circuit_rejects_calls_but_not_finalize() -> None:
    made, guard = shelf(registry(RESILIENCE_STORAGE__BREAKER__OPEN_FOR="30"))
    guard.breaker.open()
    with pytest.raises(CircuitOpenError):
        await made.get_by_id("1")
    await made.finalize()
    assert made.calls == ["finalize"]


async def test_ingest_waits_for_a_storage() -> None:
    made, guard = shelf(registry(RESILIENCE_STORAGE__BREAKER__OPEN_FOR="0.01"))
    made.steps = [ConnectionRefusedError()] * 20

    async def ingest() -> None:
        await made.upsert({})

    await as_work(ingest, patience=600.0)()
    assert guard.breaker.state is State.CLOSED
    assert made.calls.count("upsert") == 21


async def test_a_callers_mistake_is_no_failure_of_the_storage() -> None:
    class MistakeError(Exception):
        pass

    MistakeError.__module__ = "lightrag.exceptions"
    made, guard = shelf()
    made.steps = [MistakeError("no such namespace")]
    with pytest.raises(MistakeError):
        await made.get_by_id("1")
    assert len(made.calls) == 1
    assert guard.breaker.snapshot().calls == 0


# ---------------------------------------------------------------------- other dependencies inside


async def test_a_nested_failure_of_another_dependency_is_not_the_storages() -> None:
    guards = registry()
    made, guard = shelf(guards)
    embedding = guards.get("embedding", Policy.embedding(attempts=1))
    error = ConnectionRefusedError("embedding is down")

    async def fail() -> None:
        raise error

    async def embed() -> None:
        try:
            await call_guarded(embedding, lambda: embedding.call(fail))
        except ConnectionRefusedError as cause:
            raise RuntimeError("flush failed") from cause

    made.steps = [embed]
    with pytest.raises(RuntimeError) as raised:
        await made.upsert({})
    assert raised.value.__cause__ is error
    assert made.calls == ["upsert"]
    assert guard.breaker.snapshot().calls == 0
    assert failures(embedding) == 1


def test_ingest_waits_once_for_a_nested_dependency() -> None:
    async def give_up() -> tuple[float, list[str]]:
        now = asyncio.get_running_loop().time
        variables = {"RESILIENCE_EMBEDDING__BREAKER__MODE": "metrics-only"}
        guards = Guards(settings=load_settings(variables), clock=now)
        made, _ = shelf(guards)
        embedding = guards.get("embedding")

        async def fail() -> None:
            raise ConnectionRefusedError("embedding is down")

        made.steps = [lambda: call_guarded(embedding, lambda: embedding.call(fail))] * 2
        with pytest.raises(ConnectionRefusedError):
            await as_work(made.upsert, patience=600.0)({})
        return now(), made.calls

    for _ in range(4):  # what is left of the patience differs, and with it whether it was waited
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            seconds, calls = runner.run(give_up())
        assert calls == ["upsert"]
        assert seconds < 600.0


async def test_the_time_of_a_nested_dependency_is_not_the_storages() -> None:
    guards = registry(RESILIENCE_STORAGE__TIMEOUT__ATTEMPT="0.2")
    made, guard = shelf(guards)
    guard = guards.get("storage.kv")
    embedding = guards.get("embedding")

    async def embed() -> None:
        await asyncio.gather(
            *(call_guarded(embedding, lambda: asyncio.sleep(0.15 * n)) for n in range(1, 5))  # noqa: B023
        )

    made.steps = [embed]
    await made.upsert({})
    assert made.calls == ["upsert"]
    made.steps = [lambda: asyncio.sleep(30)] * 3
    with pytest.raises(AttemptTimeoutError):
        await made.upsert({})
    assert failures(guard) == 3


# ---------------------------------------------------------------------- whose class it is


async def test_a_guarded_storage_keeps_its_type_repr_and_signatures() -> None:
    made = Shelf(namespace="n", workspace="w", global_config={}, embedding_func=None)
    same = Shelf(namespace="n", workspace="w", global_config={}, embedding_func=None)
    text = repr(made)
    guard_storage(made, registry=registry())
    assert isinstance(made, Shelf)
    assert type(made).__name__ == "Shelf"
    assert repr(made) == text
    assert inspect.signature(made.get_by_ids) == inspect.signature(same.get_by_ids)
    copied = copy.deepcopy(made)
    assert guarding(copied) is guarding(made)
    release_storage(made)
    release_storage(made)
    assert type(made) is Shelf
    assert guarding(made) is None
    assert made == same


def test_lightrags_checks_of_a_class_give_the_same_results() -> None:
    bare = object.__new__(JsonDocStatusStorage)
    guarded: Any = object.__new__(guarded_class(JsonDocStatusStorage))
    assert describe_doc_status_capabilities(guarded) == describe_doc_status_capabilities(bare)
    assert hasattr(guarded_class(NanoVectorDBStorage), "client_storage")


def test_guarding_twice_is_harmless() -> None:
    guards = registry()
    made, guard = shelf(guards)
    cls = type(made)
    assert guard_storage(made, registry=guards) is guard
    assert type(made) is cls is guarded_class(Shelf) is guarded_class(cls)


@pytest.mark.parametrize("wrong", [object(), None, "storage"])
def test_an_object_that_is_no_storage_is_rejected(wrong: Any) -> None:
    with pytest.raises(UnsupportedCallError, match="is no storage of LightRAG's"):
        guard_storage(wrong, registry=registry())


@pytest.mark.parametrize(
    ("name", "dependency"),
    [
        ("JsonKVStorage", "storage.kv"),
        ("NanoVectorDBStorage", "storage.vector"),
        ("NetworkXStorage", "storage.graph"),
        ("JsonDocStatusStorage", "storage.doc_status"),
        ("RedisKVStorage", "storage.redis"),
        ("RedisDocStatusStorage", "storage.redis"),
        ("NoopVectorDBStorage", "storage.vector"),
    ],
)
def test_storages_of_one_server_share_a_guard(name: str, dependency: str) -> None:
    if name not in STORAGES:
        pytest.skip(f"this LightRAG has no {name}")
    assert dependency_of(get_storage_class(name)) == dependency


def test_a_custom_storage_may_name_its_guard() -> None:
    class Own(Shelf):
        resilience_name = "storage.shelf"

    assert dependency_of(Own) == "storage.shelf"
    assert dependency_of(Shelf) == "storage.kv"


def test_an_embedded_storage_has_no_time_limit_and_one_of_another_kind_has() -> None:
    guards = registry()
    embedded = guard_storage(object.__new__(JsonDocStatusStorage), registry=guards)
    assert embedded.policy.timeout.attempt is None
    assert shelf(guards)[1].policy.timeout.attempt == 10.0
