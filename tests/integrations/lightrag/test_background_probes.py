"""A protected LightRAG looks for the recovery of its providers by requests of its own."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

pytest.importorskip("openai")

from lightrag import QueryParam
from lightrag.llm.openai import openai_complete_if_cache

from lightrag_resilience import CallRejected, Guards, State
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import BackgroundProbeEnded, Event, ProbeSent
from lightrag_resilience.integrations.lightrag import protect, unprotect
from lightrag_resilience.integrations.lightrag.probes import storage_probe
from lightrag_resilience.testing import Fault, Simulator
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

SETTINGS = {
    "RESILIENCE_LLM__RETRY__ATTEMPTS": "1",
    "RESILIENCE_DEFAULT__BREAKER__CONSECUTIVE_FAILURES": "2",
}
WITHIN = 30.0  # seconds, on a busy machine


async def is_answered(rag: Any, number: int) -> bool:
    try:
        await rag.aquery(f"Who founded Alderwick? ({number})", QueryParam(mode="naive"))
    except Exception:  # noqa: BLE001 - however it fails
        return False
    return True


async def until(guard: Any, state: State) -> None:
    async with asyncio.timeout(WITHIN):
        while guard.breaker.state is not state:  # noqa: ASYNC110 - it is set by any task
            await asyncio.sleep(0.01)


async def test_no_query_is_a_probe_and_the_recovery_is_seen_soon() -> None:
    async with Simulator() as simulator:
        complete = functools.partial(
            openai_complete_if_cache, "m", base_url=simulator.base_url, api_key="none"
        )

        async def model(prompt: str, **kwargs: Any) -> Any:
            kwargs.pop("hashing_kv", None)
            return await complete(prompt, **kwargs)

        registry = Guards(settings=load_settings(SETTINGS))
        events: list[Event] = []
        async with lightrag_on(Provider(), llm_model_func=model) as rag:
            await rag.ainsert("Ada founded Alderwick beside the river.")
            await protect(rag, registry=registry)
            guard = registry.get("llm")
            registry.events.subscribe(events.append, BackgroundProbeEnded, ProbeSent)
            simulator.set_faults([Fault.status(503)])
            for number in range(10):
                assert not await is_answered(rag, number)
                if guard.breaker.state is State.OPEN:
                    break
            for number in range(20, 30):
                assert not await is_answered(rag, number)
                await asyncio.sleep(0.3)
            simulator.set_faults([])
            await until(guard, State.CLOSED)
            assert await is_answered(rag, 100)
            await unprotect(rag)
    sent = [event.origin for event in events if isinstance(event, ProbeSent)]
    ended = [event.outcome for event in events if isinstance(event, BackgroundProbeEnded)]
    assert set(sent) == {"background"}
    assert ended[-1] == "success"
    assert set(ended[:-1]) == {"failure"}
    assert len(sent) == len(ended)


@pytest.mark.parametrize("kind", ["llm", "embedding", "rerank"])
async def test_each_kind_of_provider_is_probed_by_the_smallest_request(kind: str) -> None:
    provider = Provider()
    registry = Guards(settings=load_settings({}))
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=registry)
        guard = registry.get(kind)
        guard.breaker.open("after a test")
        await until(guard, State.CLOSED)
        assert provider.calls == [kind]
        await unprotect(rag)
        guard.breaker.open("after a test")
        await asyncio.sleep(1.0)
        assert provider.calls == [kind]


async def test_embedded_storages_are_not_probed() -> None:
    registry = Guards(settings=load_settings({}))
    async with lightrag_on(Provider()) as rag:
        await protect(rag, registry=registry)
        guard = registry.get("storage.kv")
        guard.breaker.open("after a test")
        await asyncio.sleep(1.0)
        with pytest.raises(CallRejected):
            await rag.text_chunks.get_by_id("none")
        await unprotect(rag)


@pytest.mark.parametrize(
    "attribute",
    ["text_chunks", "doc_status", "chunks_vdb", "chunk_entity_relation_graph"],
)
async def test_each_kind_of_storage_has_a_smallest_read(attribute: str) -> None:
    async with lightrag_on(Provider()) as rag:
        assert not await storage_probe(getattr(rag, attribute))()


async def test_the_background_probe_can_be_turned_off() -> None:
    provider = Provider()
    variables = {"RESILIENCE_LLM__BREAKER__BACKGROUND_PROBE": "false"}
    registry = Guards(settings=load_settings(variables))
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=registry)
        registry.get("llm").breaker.open("after a test")
        await asyncio.sleep(1.0)
        assert provider.calls == []
        await unprotect(rag)
