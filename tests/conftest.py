"""A provider over real HTTP, and the openai SDK's client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from hypothesis import HealthCheck, settings

from lightrag_resilience.testing import Simulator

# A busy machine is slow, and that is no mistake of what is tested.
settings.register_profile(
    "patient",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")


@pytest.fixture
def anyio_backend() -> str:
    """Not trio, which selenium brings along."""
    return "asyncio"


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    async with Simulator(seed=1) as simulator:
        yield simulator


@pytest.fixture
async def client(provider: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    url = provider.base_url
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client
