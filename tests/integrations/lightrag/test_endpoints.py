"""A guard for each endpoint of a real LightRAG: its name, and what it keeps from the others."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock
from urllib.parse import urlsplit

import pytest

pytest.importorskip("lightrag.llm_roles", reason="LightRAG 1.4 has no roles")

from lightrag import QueryParam
from lightrag.lightrag import RoleLLMConfig
from lightrag.llm.openai import openai_complete_if_cache, openai_embed
from lightrag.rerank import cohere_rerank
from lightrag.utils import EmbeddingFunc

from lightrag_resilience import AttemptTimeoutError, DeadlineExceededError, Guards, State
from lightrag_resilience.config.endpoint_names import Endpoint
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import CallSucceeded, TokensUsed
from lightrag_resilience.integrations.lightrag import protect
from lightrag_resilience.integrations.lightrag.endpoints import endpoint_of
from lightrag_resilience.integrations.lightrag.server import protect_server
from lightrag_resilience.testing import Fault, Simulator
from support.lightrag_rig import DIMENSIONS, Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

QUICK = {
    "RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.01",
    "RESILIENCE_DEFAULT__RETRY__MAX_BACKOFF": "0.02",
}


def models(guards: Guards) -> list[str]:
    return [guard.name for guard in guards if guard.name.startswith("llm")]


def roles(**metadata: dict[str, str]) -> dict[str, RoleLLMConfig]:
    return {name: RoleLLMConfig(metadata=it) for name, it in metadata.items()}


def at(host: str, model: str = "m") -> dict[str, str]:
    return {"binding": "openai", "host": host, "model": model}


ALL = ("extract", "keyword", "query", "vlm")


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        (dict.fromkeys(ALL, at("http://a")), ["llm.openai"]),
        (
            {**dict.fromkeys(ALL, at("http://a")), "extract": at("http://b")},
            ["llm.openai.a", "llm.openai.b"],
        ),
        (
            {**dict.fromkeys(ALL, at("http://a")), "query": at("http://a", "large")},
            ["llm.openai.large", "llm.openai.m"],
        ),
        (
            {**dict.fromkeys(ALL, at("http://a")), "query": {"binding": "ollama"}},
            ["llm.ollama", "llm.openai"],
        ),
    ],
    ids=["one", "two hosts", "two models", "two bindings"],
)
async def test_roles_are_named_for_what_they_call(
    metadata: dict[str, dict[str, str]], names: list[str]
) -> None:
    guards = Guards(settings=load_settings({}))
    async with lightrag_on(Provider(), role_llm_configs=roles(**metadata)) as rag:
        await protect(rag, registry=guards)
        assert models(guards) == names


async def test_names_stay_when_a_role_moves_to_another_host() -> None:
    settings = load_settings({"RESILIENCE_QUERY__PATIENCE": "0"})
    guards, provider = Guards(settings=settings), Provider()
    same = roles(**dict.fromkeys(ALL, at("http://a")))
    async with lightrag_on(provider, role_llm_configs=same) as rag:
        await protect(rag, registry=guards)
        first = guards.get("llm.openai")
        rag.register_role_llm_builder(lambda *_: (provider.complete, None))
        await rag.aupdate_llm_role_config("query", host="http://b")
        assert models(guards) == ["llm.openai", "llm.openai.b"]
        await rag.aupdate_llm_role_config("query", host="http://a")
        assert models(guards) == ["llm.openai", "llm.openai.b"]
        assert guards.get("llm.openai") is first
        first.breaker.open()
        with pytest.raises(Exception, match="is open"):
            await rag.aquery("Who?", QueryParam(mode="bypass"))
    async with lightrag_on(provider, role_llm_configs=same) as rag:
        await protect(rag, registry=guards)
        assert models(guards) == ["llm.openai", "llm.openai.b"]


def a_function_of_ones_own(address: str) -> Callable[..., Any]:
    async def complete(prompt: str, **options: Any) -> Any:
        return await openai_complete_if_cache("m", prompt, base_url=address, **options)

    return complete


async def written_out(texts: list[str]) -> Any:
    return await openai_embed(texts, base_url="http://gpu1:8000/v1")


async def rerank(query: str, documents: list[str], top_n: int | None = None) -> Any:
    return await cohere_rerank(query, documents, top_n=top_n)


async def of_two_bindings(prompt: str) -> Any:
    return await openai_complete_if_cache("m", prompt), await cohere_rerank(prompt, [])


@pytest.mark.parametrize(
    ("family", "function", "arguments", "endpoint"),
    [
        (
            "llm",
            functools.partial(openai_complete_if_cache, "large", base_url="http://gpu2"),
            {},
            Endpoint("llm", "openai", "gpu2", None, "large"),
        ),
        ("llm", a_function_of_ones_own("http://b:1"), {}, Endpoint("llm", "openai", "b", 1)),
        ("embedding", written_out, {}, Endpoint("embedding", "openai", "gpu1", 8000)),
        ("rerank", rerank, {}, Endpoint("rerank", "cohere")),
        ("llm", of_two_bindings, {}, Endpoint("llm")),
        ("llm", Provider().complete, {"host": "http://c"}, Endpoint("llm", "", "c")),
        ("llm", len, {"host": 5, "model": 7}, Endpoint("llm")),
    ],
)
async def test_the_endpoint_of_a_function_is_found_in_what_it_says(
    family: str, function: Any, arguments: dict[str, Any], endpoint: Endpoint
) -> None:
    assert endpoint_of(family, function, None, arguments) == endpoint


async def test_a_function_may_mention_anything() -> None:
    draw, circle = random.random, AsyncMock()  # of no module; its code is a mock
    circle.__wrapped__ = circle

    async def drawn(prompt: str) -> str:
        return f"{prompt} {draw()}"

    async def unfinished(prompt: str) -> str:
        return later(prompt)

    for function in (drawn, unfinished, AsyncMock(), circle):
        assert endpoint_of("llm", function) == Endpoint("llm")

    def later(prompt: str) -> str:
        return prompt


async def test_the_environment_says_where_lightrags_own_functions_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)
    assert endpoint_of("llm", openai_complete_if_cache).host == "api.openai.com"
    monkeypatch.setenv("OPENAI_API_BASE", "http://gpu3:8000/v1")
    assert endpoint_of("llm", openai_complete_if_cache).host == "gpu3"


async def test_serve_and_protect_give_the_same_names() -> None:
    def functions() -> dict[str, Any]:
        return {
            "llm_model_func": a_function_of_ones_own("http://a"),
            "embedding_func": EmbeddingFunc(embedding_dim=DIMENSIONS, func=written_out),
            "rerank_model_func": rerank,
        }

    in_code = Guards(settings=load_settings({}))
    async with lightrag_on(Provider(), **functions()) as rag:
        await protect(rag, registry=in_code)

    async def embed(texts: list[str]) -> Any: ...  # as the server's: its binding is an option

    async def rerank_of_the_server(query: str, documents: list[str]) -> Any: ...

    served = Guards(settings=load_settings({}))
    options = SimpleNamespace(embedding_binding="openai", rerank_binding="cohere")
    made: list[Any] = []
    server: Any = SimpleNamespace(LightRAG=lambda **them: made.append(them), create_app=None)

    def create_app(options: Any) -> Any:
        del options
        them = {"embedding_func": EmbeddingFunc(DIMENSIONS, embed)}
        server.LightRAG(**them, rerank_model_func=rerank_of_the_server)

    server.create_app = create_app
    undo = protect_server(server)
    with pytest.raises(AttributeError):  # it makes no application
        server.create_app(options)
    undo()
    (them,) = made
    metadata = roles(**dict.fromkeys(ALL, at("http://a")))
    async with lightrag_on(Provider(), role_llm_configs=metadata, **them) as rag:
        await protect(rag, registry=served)
        names = [guard.name for guard in served]
        assert names[:3] == ["embedding.openai", "llm.openai", "rerank.cohere"]
        assert names == [guard.name for guard in in_code]


async def test_a_dead_host_costs_the_calls_of_another_nothing() -> None:
    guards, events = Guards(settings=load_settings(QUICK)), list[Any]()
    guards.events.subscribe(events.append)
    async with Simulator() as dead, Simulator() as alive:
        dead.set_faults([Fault.status(500)])

        def role(provider: Simulator) -> RoleLLMConfig:
            called = functools.partial(
                openai_complete_if_cache, "m", base_url=provider.base_url, api_key="none"
            )
            return RoleLLMConfig(func=called)

        configs = {name: role(dead if name == "extract" else alive) for name in ALL}
        async with lightrag_on(Provider(), role_llm_configs=configs) as rag:
            await protect(rag, registry=guards)
            of_dead, of_alive = (
                f"llm.openai.127.0.0.1-{urlsplit(each.base_url).port}" for each in (dead, alive)
            )
            assert set(models(guards)) == {of_dead, of_alive}
            extract = rag.role_llm_funcs["extract"]
            await asyncio.gather(*map(extract, "0123456789"), return_exceptions=True)
            assert guards.get(of_dead).breaker.state is State.OPEN
            for number in range(5):
                asked = QueryParam(mode="bypass")
                assert await rag.aquery(f"Who rules town {number}?", asked)
            assert guards.get(of_alive).breaker.state is State.CLOSED
            assert alive.count() == 5
            about = {type(it) for it in events if getattr(it, "dependency", "") == of_alive}
            assert about <= {CallSucceeded, TokensUsed}


async def test_a_slow_model_answers_its_only_call_and_a_hanging_one_fails_before_the_queue() -> (
    None
):
    async with Simulator() as provider:
        model = functools.partial(
            openai_complete_if_cache, "m", base_url=provider.base_url, api_key="none"
        )
        async with lightrag_on(Provider(), llm_model_func=model, default_llm_timeout=2) as rag:
            await protect(rag, registry=Guards(settings=load_settings({})))
            asked = QueryParam(mode="bypass")
            provider.set_faults([Fault.slow(1.5)])
            assert await rag.aquery("Who founded Alderwick?", asked)
            assert provider.count() == 1
            provider.set_faults([Fault.hang()])
            ended = (AttemptTimeoutError, DeadlineExceededError)  # not LightRAG's "Worker timeout"
            with pytest.raises(ended):
                await rag.aquery("Who rules Alderwick?", asked)
