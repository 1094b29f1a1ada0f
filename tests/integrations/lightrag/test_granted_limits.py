"""A protected LightRAG follows the limits that its provider names, up and down."""

from __future__ import annotations

import functools
from typing import Any

import openai
import pytest
import tenacity
from lightrag.llm.openai import openai_complete_if_cache

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import protect, unprotect
from lightrag_resilience.testing.faults import Fault
from lightrag_resilience.testing.simulator import Simulator
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag, pytest.mark.once]

VARIABLES = {
    "RESILIENCE_LLM__LIMIT__RPM": "6000",
    "RESILIENCE_LLM__LIMIT__TPM": "6000000",
    "RESILIENCE_LLM__RETRY__ATTEMPTS": "1",
}


def granted(requests: int, tokens: int) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(requests),
        "x-ratelimit-limit-tokens": str(tokens),
    }


async def test_a_limit_that_a_429_lowered_rises_with_the_next_answer() -> None:
    before = openai._base_client.AsyncAPIClient._process_response  # other tests may follow, too
    async with Simulator() as provider:
        model = functools.partial(
            openai_complete_if_cache, "simulated", base_url=provider.base_url, api_key="none"
        )
        async with lightrag_on(Provider(), llm_model_func=model) as rag:
            guards = Guards(settings=load_settings(VARIABLES))
            await protect(rag, registry=guards)
            (guard,) = (it for it in guards if it.name.startswith("llm"))
            queue = rag.role_llm_funcs["query"] if hasattr(rag, "role_llm_funcs") else None

            async def ask(requests: int, tokens: int) -> tuple[Any, Any]:
                provider.headers = granted(requests, tokens)
                await (queue or rag.llm_model_func)("Why?", max_tokens=9)
                return guard.policy.limit.rpm, guard.policy.limit.tpm

            assert await ask(3000, 9_000_000) == (3000.0, 6_000_000.0)
            provider.set_faults([Fault.status(429)])
            with pytest.raises(tenacity.RetryError):
                await ask(2000, 60_000)
            assert (guard.policy.limit.rpm, guard.policy.limit.tpm) == (2000.0, 60_000.0)
            provider.set_faults([])
            assert await ask(9000, 120_000) == (6000.0, 120_000.0)
            await unprotect(rag)
            assert openai._base_client.AsyncAPIClient._process_response is before


async def test_an_sdk_without_its_private_method_is_named_and_protection_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai._base_client.AsyncAPIClient, "_process_response", None)
    async with lightrag_on(Provider()) as rag:
        await protect(rag, registry=Guards(settings=load_settings({})))
        await unprotect(rag)
    assert "sdk.openai: a rate limit that a 429 has lowered does not rise again" in caplog.text
    assert "'openai' has no _base_client.AsyncAPIClient._process_response" in caplog.text
