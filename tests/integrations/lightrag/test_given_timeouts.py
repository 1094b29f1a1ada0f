"""A protected LightRAG gives its calls the time that it was given itself; in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from lightrag import QueryParam

from lightrag_resilience import Guards, Policy, TimeoutPolicy
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import protect
from support.guards import now
from support.lightrag_rig import ANSWER, Provider, lightrag_on
from support.virtual_time import anyio_backend

__all__ = ["anyio_backend"]

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

FOR_EVER = 1e6  # seconds


class Slow(Provider):
    """A provider that needs so many seconds for each answer, once a test says so."""

    seconds = 0.0

    async def complete(self, prompt: str, *, stream: bool = False, **more: Any) -> Any:
        self.calls.append("begun")
        await asyncio.sleep(self.seconds)
        return await super().complete(prompt, stream=stream, **more)

    async def embed(self, texts: list[str]) -> np.ndarray[Any, Any]:
        await asyncio.sleep(self.seconds)
        return await super().embed(texts)


def registry(**variables: str) -> Guards:
    clock = asyncio.get_running_loop().time
    return Guards(settings=load_settings(variables), clock=clock)


async def ask(rag: Any) -> Any:
    return await rag.aquery("Who founded Alderwick?", QueryParam(mode="bypass"))


async def seconds_to_fail(rag: Any, call: Any) -> tuple[float, Exception]:
    began = now()
    with pytest.raises(Exception, match=r".") as failed:
        await call()
    return now() - began, failed.value


async def test_a_model_that_needs_less_than_it_was_given_is_called_once_and_answers() -> None:
    provider = Slow()
    async with lightrag_on(provider, default_llm_timeout=600) as rag:
        await protect(rag, registry=registry())
        provider.seconds, began = 550.0, now()
        assert await ask(rag) == ANSWER
        assert 550 <= now() - began < 555
        assert provider.count("begun") == 1


@pytest.mark.parametrize("given", [240, 10])
async def test_a_model_that_hangs_fails_no_later_than_without_protection(given: int) -> None:
    provider = Slow()
    provider.seconds = FOR_EVER
    async with lightrag_on(provider, default_llm_timeout=given) as rag:
        began = now()
        assert await ask(rag) is None
        alone = now() - began
        await protect(rag, registry=registry())
        protected, error = await seconds_to_fail(rag, lambda: ask(rag))
        assert protected < alone <= 2 * given + 1
        assert "Worker" not in str(error)  # it is not LightRAG's queue that ended it


async def test_an_embedding_that_hangs_fails_no_later_than_without_protection() -> None:
    provider = Slow()
    provider.seconds = FOR_EVER
    async with lightrag_on(provider, default_embedding_timeout=90) as rag:
        guards = registry(EMBEDDING_TIMEOUT="30")
        await protect(rag, registry=guards)
        assert guards.get("embedding").policy.timeout == TimeoutPolicy(attempt=90.0, total=175.0)
        seconds, error = await seconds_to_fail(rag, lambda: rag.embedding_func(["a"]))
        assert 174 < seconds < 180
        assert "Worker" not in str(error)


async def test_variables_and_policies_given_in_code_win_over_what_lightrag_was_given() -> None:
    async with lightrag_on(Slow(), default_llm_timeout=600) as rag:
        guards = registry(RESILIENCE_LLM__TIMEOUT__ATTEMPT="70")
        await protect(rag, registry=guards)
        assert guards.get("llm").policy.timeout.attempt == 70.0
        assert guards.get("llm").policy.timeout.total == 1195.0
    async with lightrag_on(Slow(), default_llm_timeout=600) as rag:
        guards = registry()
        own = Policy.llm(attempt_timeout=50.0)
        guards.get("llm", own)
        await protect(rag, registry=guards)
        assert guards.get("llm").policy == own


async def test_a_function_decorated_before_keeps_the_longer_time() -> None:
    guards = registry(LLM_TIMEOUT="900")
    assert guards.get("llm").policy.timeout.attempt == 900.0
    async with lightrag_on(Slow(), default_llm_timeout=600) as rag:
        await protect(rag, registry=guards)
        assert guards.get("llm").policy.timeout.attempt == 900.0


async def test_each_role_has_the_time_that_it_was_given() -> None:
    provider = Slow()
    async with lightrag_on(provider, default_llm_timeout=100) as rag:
        if not hasattr(rag, "role_llm_funcs"):
            pytest.skip("LightRAG 1.4 has no roles")
        guards = registry()
        await protect(rag, registry=guards)
        await rag.aupdate_llm_role_config("extract", timeout=600)
        provider.seconds = 500.0
        assert guards.get("llm").policy.timeout.attempt == 600.0
        extracted = await rag.role_llm_funcs["extract"]("---Input Text---")
        assert "Ada" in extracted
        seconds, error = await seconds_to_fail(rag, lambda: ask(rag))
        assert 194 < seconds < 200
        assert "Worker" not in str(error)
        guards.override({"RESILIENCE_LLM__TIMEOUT__ATTEMPT": "550"})
        provider.seconds = 190.0
        assert await ask(rag) == ANSWER  # an override reaches all roles


async def test_a_lightrag_without_a_timeout_ends_no_call() -> None:
    provider = Slow()
    async with lightrag_on(provider, default_llm_timeout=None) as rag:
        await protect(rag, registry=registry())
        provider.seconds = 3_000.0
        assert await ask(rag) == ANSWER
