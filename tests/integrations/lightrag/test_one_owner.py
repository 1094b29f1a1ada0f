"""One owner of retries: what LightRAG's own bindings send, with and without a guard around them."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

pytest.importorskip("lightrag")
anthropic = pytest.importorskip("anthropic")
pytest.importorskip("ollama")

import openai  # noqa: E402
from lightrag.llm.anthropic import anthropic_complete_if_cache  # noqa: E402
from lightrag.llm.ollama import _ollama_model_if_cache  # noqa: E402
from lightrag.llm.openai import openai_complete_if_cache, openai_embed  # noqa: E402

from lightrag_resilience import Guards, Policy  # noqa: E402
from lightrag_resilience.config.settings import load_settings  # noqa: E402
from lightrag_resilience.integrations.lightrag.inner_retries import (  # noqa: E402
    make_inner_retries_yield,
    restore_inner_retries,
)
from lightrag_resilience.integrations.sdks import disable_sdk_retries  # noqa: E402

# Most of the time SDKs work: measured, it would double.
pytestmark = [pytest.mark.anyio, pytest.mark.lightrag, pytest.mark.no_cover]
ATTEMPTS = 4


class Provider:
    """Refuses every request in the same way, and counts them."""

    def __init__(self) -> None:
        self.requests = 0
        self.status = 503
        self.url = ""

    async def refuse(self, request: web.Request) -> web.Response:
        del request
        self.requests += 1
        return web.json_response({"error": {"message": "no"}}, status=self.status)


@pytest.fixture(autouse=True)
def _no_other_code_disables_sdk_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instances protected in other tests may still be there."""
    for sdk in (openai, anthropic):
        options = sdk._models.FinalRequestOptions
        original = inspect.unwrap(options.get_max_retries)
        monkeypatch.setattr(options, "get_max_retries", original)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", provider.refuse)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield provider
    gc.collect()  # LightRAG 1.4 leaves a client open, which must close itself while its loop runs
    for _ in range(5):
        await asyncio.sleep(0)
    await runner.cleanup()


Call = Callable[[str], Awaitable[Any]]


async def by_openai(url: str) -> Any:
    return await openai_complete_if_cache("m", "hello", base_url=url, api_key="none")


async def by_openai_embedding(url: str) -> Any:
    return await openai_embed.func(["hello"], model="m", base_url=url, api_key="none")


async def by_anthropic(url: str) -> Any:
    return await anthropic_complete_if_cache(
        "m", "hello", base_url=url, api_key="none", max_tokens=5
    )


async def by_ollama(url: str) -> Any:
    return await _ollama_model_if_cache("m", "hello", host=url)


async def by_openai_sdk(url: str) -> Any:
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
        return await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}]
        )


async def by_anthropic_sdk(url: str) -> Any:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as client:
        return await client.messages.create(
            model="m", max_tokens=5, messages=[{"role": "user", "content": "hello"}]
        )


CALLS = [by_openai, by_openai_embedding, by_anthropic, by_ollama, by_openai_sdk, by_anthropic_sdk]


async def no_wait(_: float) -> None:
    await asyncio.sleep(0)


def guards() -> Guards:
    return Guards(settings=load_settings({"RESILIENCE_QUERY__PATIENCE": "0"}), sleep=no_wait)


@pytest.fixture
def _one_owner() -> Any:
    make_inner_retries_yield()
    take_back = disable_sdk_retries(openai, anthropic)
    yield
    take_back()
    restore_inner_retries()


@pytest.mark.usefixtures("_one_owner")
@pytest.mark.parametrize("status", [429, 503, 500])
@pytest.mark.parametrize("call", CALLS)
async def test_a_call_is_sent_as_often_as_its_guard_allows(
    call: Call, status: int, provider: Provider
) -> None:
    provider.status = status
    guard = guards().get("llm", Policy.llm(attempts=ATTEMPTS))
    with pytest.raises(Exception):  # noqa: B017, PT011 - each SDK has its own
        await guard.call(call, provider.url)
    spent = call in {by_anthropic, by_anthropic_sdk} and status == 429
    assert provider.requests == (1 if spent else ATTEMPTS)


@pytest.mark.usefixtures("_one_owner")
@pytest.mark.parametrize("call", [by_openai_sdk, by_anthropic_sdk])
async def test_outside_a_guarded_call_an_sdk_retries_as_before(
    call: Call, provider: Provider
) -> None:
    provider.status = 500
    with pytest.raises((openai.APIError, anthropic.APIError)):
        await call(provider.url)
    assert provider.requests == 3


@pytest.mark.parametrize("call", [by_openai_sdk, by_anthropic_sdk])
async def test_undoing_restores_the_retries_of_an_sdk(call: Call, provider: Provider) -> None:
    provider.status = 500
    first, second = disable_sdk_retries(openai, anthropic), disable_sdk_retries(openai, anthropic)
    first()
    first()
    guard = guards().get("llm", Policy.llm(attempts=1))
    with pytest.raises((openai.APIError, anthropic.APIError)):
        await guard.call(call, provider.url)
    assert provider.requests == 1
    second()
    for sdk in (openai, anthropic):
        assert not hasattr(sdk._models.FinalRequestOptions.get_max_retries, "__wrapped__")
    with pytest.raises((openai.APIError, anthropic.APIError)):
        await guard.call(call, provider.url)
    assert provider.requests == 4
