"""Guarded storages by their names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("lightrag")

from lightrag.kg import STORAGE_IMPLEMENTATIONS, STORAGES
from lightrag.kg.json_kv_impl import JsonKVStorage

from lightrag_resilience import CircuitOpenError, Guards, guard
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import by_name, protect, unprotect
from support.backends import POSTGRES, storage_set_of
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]
NAMES = {
    "kv_storage": "GuardedJsonKVStorage",
    "vector_storage": "GuardedNanoVectorDBStorage",
    "graph_storage": "GuardedNetworkXStorage",
    "doc_status_storage": "GuardedJsonDocStatusStorage",
}


@pytest.fixture
def _registered() -> Iterator[None]:
    take_back = by_name.register_guarded_storages()
    yield
    take_back()


@pytest.mark.usefixtures("_registered")
async def test_storages_chosen_by_name_are_guarded() -> None:
    async with lightrag_on(Provider(), **NAMES) as rag:
        await rag.ainsert("Ada founded Alderwick beside the river.")
        assert (await rag.doc_status.get_status_counts())["processed"] == 1
        breaker = guard("storage.graph").breaker
        assert breaker.snapshot().calls > 0
        breaker.open()
        try:
            with pytest.raises(CircuitOpenError):
                await rag.chunk_entity_relation_graph.has_node("Ada")
        finally:
            breaker.close()


@pytest.mark.usefixtures("_registered")
async def test_storages_chosen_by_name_are_guarded_before_and_after_protection() -> None:
    async with lightrag_on(Provider(), **NAMES) as rag:
        before = type(rag.full_docs)
        assert before is not JsonKVStorage
        await protect(rag, registry=Guards(settings=load_settings({})))
        await protect(rag)
        await unprotect(rag)
        assert type(rag.full_docs) is before


@pytest.mark.usefixtures("_registered")
async def test_storages_see_plain_names_in_their_configuration() -> None:
    async with lightrag_on(Provider(), **NAMES) as rag:
        config = rag.doc_status.global_config
        assert {f"Guarded{config[kind]}" for kind in NAMES} == set(NAMES.values())


@pytest.mark.usefixtures("_registered")
async def test_postgres_opens_its_pool_for_vectors_guarded_by_name() -> None:
    with storage_set_of(POSTGRES):
        names = {"kv_storage": "GuardedPGKVStorage", "vector_storage": "GuardedPGVectorStorage"}
        async with lightrag_on(Provider(), **names) as rag:
            await rag.ainsert("Ada founded Alderwick beside the river.")
            assert (await rag.doc_status.get_status_counts())["processed"] == 1


def registry() -> tuple[dict[str, str], list[list[str]]]:
    lists = [list(kind["implementations"]) for kind in STORAGE_IMPLEMENTATIONS.values()]
    return dict(STORAGES), lists


def test_undoing_the_registration_leaves_nothing() -> None:
    before = registry()
    take_back = by_name.register_guarded_storages()
    by_name.register_guarded_storages()()
    assert "GuardedPGKVStorage" in STORAGES
    assert "GuardedGuardedPGKVStorage" not in STORAGES
    take_back()
    take_back()
    assert registry() == before


@pytest.mark.parametrize("name", ["GuardedNothing", "JsonKVStorage", "Guarded"])
def test_other_names_are_unknown(name: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(by_name, name)
