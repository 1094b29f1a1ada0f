"""The page, `status`, `doctor`, the log and the metrics agree with what a caller sees.

A provider over HTTP that is up and serves no call, with a real Redis and without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry

from lightrag_resilience import Guards
from lightrag_resilience.cli.app import app as commands
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.status import StatusPage
from lightrag_resilience.telemetry.prometheus import observe
from lightrag_resilience.testing import Fault, Simulator
from lightrag_resilience.testing.redis_server import RedisServer
from support.status_app import nothing_here

pytestmark = pytest.mark.anyio

NAME = "llm.openai"
SOON = 5.0  # seconds in which all must have seen it
PATIENCE = 30.0  # seconds on a busy machine
METRIC = "lightrag_resilience_dependency_health"

UNSERVED = [
    pytest.param(Fault.status(401), "401", "check its key", id="a key that is refused"),
    pytest.param(Fault.status(403), "403", "what its key may do", id="a key that may not"),
    pytest.param(Fault.status(404), "404", "the name of its model", id="no such model"),
    pytest.param(Fault.status(402), "402", "check its plan", id="no credit"),
    pytest.param(Fault.no_quota(), "429 of a used-up quota", "check its plan", id="no quota left"),
    pytest.param(Fault.throttle(), "429", "LIMIT__RPM", id="429 without a time"),
    pytest.param(Fault.status(400), "400", "check what is sent", id="no request is right"),
]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


class Service:
    """A process that calls a provider through a guard, and shows how it is."""

    def __init__(self, provider: Simulator, redis_url: str | None, prefix: str) -> None:
        self.provider = provider
        self.environ = {"RESILIENCE_DEFAULT__RETRY__ATTEMPTS": "1"}
        if redis_url is not None:
            self.environ |= {"RESILIENCE_REDIS_URL": redis_url, "RESILIENCE_REDIS_PREFIX": prefix}
        self.guards = Guards(settings=load_settings(self.environ))
        self.registry = CollectorRegistry()
        self.observation = observe(self.guards, registry=self.registry)
        self.page = StatusPage(nothing_here, registry=self.guards)
        self.client = openai.AsyncOpenAI(
            base_url=provider.base_url, api_key="secret-key", max_retries=0
        )

    async def call(self, times: int, text: str = "secret prompt") -> None:
        guard = self.guards.get(NAME)
        message: Any = [{"role": "user", "content": text}]
        for _ in range(times):
            with contextlib.suppress(openai.APIStatusError):
                await guard.call(
                    self.client.chat.completions.create, model="gpt-4o-mini", messages=message
                )

    async def data(self) -> dict[str, Any]:
        transport = httpx.ASGITransport(app=self.page)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as browser:
            answer: dict[str, Any] = (await browser.get("/resilience/data")).json()
            return answer

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            while not condition(seen := await self.data()):  # noqa: ASYNC110 - it is polled
                await asyncio.sleep(0.05)
            return seen

    async def run(self, *arguments: str) -> Result:
        return await asyncio.to_thread(
            CliRunner().invoke, commands, arguments, env={**self.environ, "COLUMNS": "160"}
        )

    async def close(self) -> None:
        self.observation.close()
        await asyncio.to_thread(self.guards.close)
        await self.client.close()


@contextlib.asynccontextmanager
async def service(redis_url: str | None = None, prefix: str = "lr:") -> AsyncIterator[Service]:
    async with Simulator(seed=1) as provider:
        made = Service(provider, redis_url, prefix)
        try:
            yield made
        finally:
            await made.close()


def health(seen: dict[str, Any]) -> str:
    (row,) = (row for row in seen["dependencies"] if row["name"] == NAME)
    return str(row["health"])


def is_green(seen: dict[str, Any]) -> bool:
    return bool(seen["headline"]["condition"] == "healthy" and seen["dependencies"])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name == "lightrag_resilience"]
    return [each.getMessage() for each in ours if each.levelno >= logging.WARNING]


@pytest.mark.no_cover
@pytest.mark.once
@pytest.mark.parametrize("is_shared", [True, False], ids=["redis", "alone"])
@pytest.mark.parametrize(("fault", "status", "advice"), UNSERVED)
async def test_page_log_metrics_and_commands_report_unserved_callers(  # noqa: PLR0913, PLR0917 - fixtures
    fault: Fault,
    status: str,
    advice: str,
    is_shared: bool,  # noqa: FBT001
    redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lightrag_resilience")
    url = redis.url if is_shared else None
    async with service(url, f"{time.monotonic_ns()}:") as it:
        await it.call(20)
        await it.until(is_green)
        it.provider.set_faults([fault])
        await it.call(155)
        seen = await it.until(lambda seen: not is_green(seen))
        assert seen["headline"]["condition"] == "failing"
        sentence = seen["headline"]["sentence"][0]
        assert f"{NAME} answers {status} to" in sentence
        assert advice in sentence
        seen = await it.until(lambda seen: f"answers {status} to 155 of 1" in health(seen))
        assert it.registry.get_sample_value(METRIC, {"dependency": NAME}) == 2
        (warned,) = warnings(caplog)
        assert f"{NAME} answers {status} to 3 of 3 calls" in warned
        assert advice in warned
        if is_shared:
            shown = await it.run("status")
            assert shown.exit_code == 1
            assert f"Not well: {NAME} answers {status} to 155 of 1" in shown.output
            (breaker,) = json.loads((await it.run("status", "--json")).output)["breakers"]
            assert (breaker["condition"], breaker["failed"]) == ("failing", 155)
            doctor = await it.run("doctor")
            assert doctor.exit_code == 1
            lines = doctor.output.splitlines()
            assert lines[0].startswith("1 error")
            assert any(line.startswith(f"error: {NAME}: answers {status} to") for line in lines)
            assert advice in doctor.output
        it.provider.set_faults([])
        await it.call(4)
        await it.until(is_green)
        assert it.registry.get_sample_value(METRIC, {"dependency": NAME}) == 0
        assert len(warnings(caplog)) == 1
        assert f"{NAME} serves its callers again" in caplog.text
        if is_shared:
            assert (await it.run("status")).exit_code == 0
            assert (await it.run("doctor")).exit_code == 0
        assert "secret" not in caplog.text + json.dumps(await it.data())


@pytest.mark.parametrize("is_shared", [True, False], ids=["redis", "alone"])
async def test_a_single_400_leaves_all_well(
    is_shared: bool,  # noqa: FBT001
    redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with service(redis.url if is_shared else None, "single:") as it:
        await it.call(10)
        it.provider.set_faults([Fault.status(400)])
        await it.call(1)
        it.provider.set_faults([])
        await it.call(3)
        await asyncio.sleep(0.3)  # for the report
        assert is_green(await it.until(is_green))
        assert it.registry.get_sample_value(METRIC, {"dependency": NAME}) == 0
        assert not warnings(caplog)
        if is_shared:
            assert (await it.run("status")).exit_code == 0


async def test_calls_of_all_workers_are_counted_together(redis: RedisServer) -> None:
    async with service(redis.url, "cluster:") as sick, service(redis.url, "cluster:") as well:
        for each in (sick, well):
            await each.call(1)
            await each.until(lambda seen: bool(seen["redis"]["round_trip"]) and is_green(seen))
        await asyncio.sleep(0.3)  # for the reports
        for each in (sick, well):
            each.guards.get(NAME).breaker.close("by a test")
        sick.provider.set_faults([Fault.status(401)])
        await well.call(80)
        await sick.call(20)
        for each in (sick, well):
            seen = await each.until(lambda seen: "answers 401 to 20 of 100 calls" in health(seen))
            assert seen["headline"]["condition"] == "degraded"
        assert (await well.run("status")).exit_code == 1


@pytest.mark.parametrize("is_shared", [True, False], ids=["redis", "alone"])
async def test_an_outage_that_turns_into_401_shows_it_and_the_next_probe(
    is_shared: bool,  # noqa: FBT001
    redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with service(redis.url if is_shared else None, "ends:") as it:
        policy = it.guards.get(NAME).policy
        await it.until(lambda seen: not is_shared or seen["redis"]["is_up"])
        it.provider.set_faults([Fault.status(503)])
        await it.call(6)
        seen = await it.until(lambda seen: seen["headline"]["condition"] == "down")
        assert "the last HTTP 503 (InternalServerError)" in seen["headline"]["reasons"][0]["reason"]
        it.provider.set_faults([Fault.status(401)])

        def met(seen: dict[str, Any]) -> bool:
            (row,) = seen["dependencies"]
            return "after a probe met HTTP 401 (AuthenticationError)" in row["reason"]

        async with asyncio.timeout(policy.effective_breaker.breaks().first + PATIENCE):
            while not met(seen := await it.data()):
                with contextlib.suppress(Exception):
                    await it.call(1)
                await asyncio.sleep(0.05)
        (row,) = seen["dependencies"]
        assert (row["condition"], row["state"]) == ("down", "open")
        assert 0 <= row["retry_after"] <= 1.0
        assert row["first_reason"].endswith("the last HTTP 503 (InternalServerError)")
        assert row["last_failure"]["error"] == "HTTP 401 (AuthenticationError)"
        met_it = "met HTTP 401 (AuthenticationError): check its key"
        assert met_it in seen["headline"]["sentence"][-1]
        assert met_it in caplog.text
        if is_shared:
            status, doctor = await it.run("status"), await it.run("doctor")
            assert (status.exit_code, doctor.exit_code) == (1, 1)
            assert "To do: check its key" in status.output
            assert f"error: {NAME}: is down, after a probe met HTTP 401" in doctor.output
            assert "To do: check its key" in doctor.output
        it.provider.set_faults([])
        async with asyncio.timeout(PATIENCE):
            while not is_green(await it.data()):
                with contextlib.suppress(Exception):
                    await it.call(1)
                await asyncio.sleep(0.05)
