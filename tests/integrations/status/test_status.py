"""The status page as a server calls it, without one."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lightrag_resilience.errors import SettingsError
from lightrag_resilience.events import TokensUsed
from lightrag_resilience.integrations.status import StatusPage
from lightrag_resilience.integrations.status import page as page_module
from lightrag_resilience.integrations.status.dependency_rows import dependency_rows
from lightrag_resilience.integrations.status.outage_history import OutageHistory
from support.status_app import nothing_here
from support.status_requests import (
    PATIENCE,
    ask,
    made,
    of,
    page,
    trip,
)

pytestmark = pytest.mark.anyio


async def test_the_page_answers_only_private_and_configured_host_names() -> None:
    page = StatusPage(
        nothing_here, registry=made(STATUS_HOSTS="rag.example.com, *.ops.example.com")
    )
    allowed = ["127.0.0.1:9621", "rag.example.com", "a.ops.example.com:80"]
    for hosts in ([], *([host] for host in allowed)):
        headers = [(b"host", host.encode()) for host in hosts]
        assert (await ask(page, "/resilience/data", headers=headers)).status == 200
    refused = await ask(page, "/resilience/data", headers=[(b"host", b"evil.com")])
    assert refused.status == 421
    assert "RESILIENCE_STATUS_HOSTS" in refused.json["detail"]
    two = [(b"host", b"localhost"), (b"host", b"evil.com")]
    assert (await ask(page, "/resilience", headers=two)).status == 400
    assert (await ask(page, "/elsewhere", headers=two)).status == 404  # the application's own
    own = StatusPage(nothing_here, registry=made(), hosts=["rag.example.com"])
    assert (await ask(own, "/resilience", headers=[(b"host", b"rag.example.com")])).status == 200


def test_invalid_host_names_are_one_clear_error() -> None:
    with pytest.raises(SettingsError, match="RESILIENCE_STATUS_HOSTS is 'a b', but must be host"):
        made(STATUS_HOSTS="a b")


# ---------------------------------------------------------------------- what is served


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/resilience", "text/html; charset=utf-8"),
        ("/resilience/page.css", "text/css; charset=utf-8"),
        ("/resilience/live.js", "text/javascript; charset=utf-8"),
        ("/resilience/render.js", "text/javascript; charset=utf-8"),
        ("/resilience/actions.js", "text/javascript; charset=utf-8"),
        ("/resilience/icon.svg", "image/svg+xml"),
        ("/resilience/data", "application/json"),
    ],
)
async def test_every_answer_has_the_security_headers(path: str, kind: str) -> None:
    answer = await ask(page(made()), path)
    assert (answer.status, answer.headers["content-type"]) == (200, kind)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["content-length"]) == len(answer.body) > 0


def test_the_page_has_no_inline_code_or_external_resources() -> None:
    folder = Path(page_module.__file__).with_name("static")
    markup = (folder / "page.html").read_text()
    assert not re.search(
        r"\son\w+=|style=|<style|javascript:|<script(?! type=\"module\" src=)", markup
    )
    for file in folder.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//cdn|@import", text), file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/", "GET", 204),
        ("/resilience-page", "GET", 204),
        ("/resilience/nothing", "GET", 404),
        ("/resilience/../live.js", "GET", 404),
        ("/resilience", "POST", 405),
        ("/resilience/actions", "GET", 405),
        ("/resilience/", "GET", 307),
    ],
)
async def test_other_paths_and_methods_are_passed_on_or_rejected(
    path: str, method: str, expected: int
) -> None:
    answer = await ask(page(made()), path, method)
    assert answer.status == expected
    if expected == 405:
        assert answer.headers["allow"] in {"GET", "POST"}
    if expected == 307:
        assert answer.headers["location"] == "../resilience"


async def test_the_page_is_found_below_a_root_path() -> None:
    answer = await ask(page(made()), "/rag/resilience", root_path="/rag")
    assert answer.status == 200


async def test_scopes_other_than_http_pass_to_the_application() -> None:
    answer = await ask(page(made()), "/resilience", type="websocket")
    assert answer.status == 204


# ---------------------------------------------------------------------- what it shows


async def test_a_row_shows_state_limits_and_calls_of_this_process() -> None:
    guards = made(
        LLM__LIMIT__RPM="5000", LLM__LIMIT__TPM="900000", LLM__CONCURRENCY__MAX_CONCURRENT="2"
    )
    app = page(guards, None)
    assert (await ask(app, "/resilience/data")).json["headline"]["condition"] == "healthy"
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.sleep(PATIENCE)

    async def stream() -> AsyncIterator[str]:
        yield "one"
        await asyncio.sleep(PATIENCE)

    guard = guards.get("llm.openai")
    running = [asyncio.ensure_future(guard.call(slow))]
    reading = await guards.get("llm.other").call(stream)
    await reading.__anext__()
    await begun.wait()
    running += [asyncio.ensure_future(guard.call(slow)) for _ in range(2)]
    async with asyncio.timeout(PATIENCE):
        while guard.occupancy.waiting < 1:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    await trip(guards, "storage.neo4j", times=3)
    data = (await ask(app, "/resilience/data")).json
    row = of(data, "llm.openai")
    assert (row["rpm"], row["tpm"]) == (5000, 900000)
    assert row["bulkhead"] == {"limit": 2, "in_use": 2, "waiting": 1}
    assert row["in_flight"] == {"calls": 2, "waiting": 1}
    assert of(data, "llm.other")["in_flight"] == {"streams": 1}
    assert of(data, "storage.neo4j")["failed"] == 3
    assert of(data, "storage.neo4j")["last_failure"]["error"] == "ConnectionRefusedError"
    assert of(data, "storage.neo4j")["budget"] == 1.0
    assert data["redis"] is None
    assert data["can_act"] is False
    for each in running:
        each.cancel()
    await asyncio.wait(running)
    await reading.aclose()
    after = (await ask(app, "/resilience/data")).json
    assert {str(each["in_flight"]) for each in after["dependencies"]} == {"{}"}


async def test_rows_of_dependencies_that_are_down_come_first() -> None:
    guards = made()
    app = page(guards)
    began = time.time()
    await trip(guards, "storage.neo4j")
    for name in ("a", "z"):
        guards.get(name)
    guards.get("llm.openai").breaker.open("by Ada: they migrate", open_for=600)
    data = (await ask(app, "/resilience/data")).json
    names = [row["name"] for row in data["dependencies"]]
    assert names[:2] == ["storage.neo4j", "llm.openai"]
    down, isolated = data["dependencies"][:2]
    assert (down["condition"], isolated["condition"]) == ("down", "isolated")
    assert down["first_reason"] == "after 6 failures in a row, the last ConnectionRefusedError"
    assert began - 1 <= down["since"] <= time.time() + 1
    assert 595 < isolated["retry_after"] <= 600
    assert down["since"] in data["headline"]["sentence"]
    assert [change["name"] for change in data["changes"]] == ["llm.openai", "storage.neo4j"]
    guards.get("llm.openai").breaker.close("by Ada")
    guards.get("storage.neo4j").breaker.set_mode("forced-open", "until tomorrow")
    data = (await ask(app, "/resilience/data")).json
    assert of(data, "llm.openai")["condition"] == "healthy"
    forced = of(data, "storage.neo4j")
    assert (forced["condition"], forced["retry_after"], forced["first_reason"]) == (
        "isolated",
        None,
        "until tomorrow",
    )


async def test_a_row_shows_the_cooldown_after_a_429() -> None:
    guards = made()
    app = page(guards)
    guards.get("llm.openai").cool_down(30)
    row = of((await ask(app, "/resilience/data")).json, "llm.openai")
    assert row["condition"] == "paused"
    assert 25 < row["cooldown"] <= 30


async def test_the_worst_of_very_many_dependencies_are_shown() -> None:
    guards = made()
    app = page(guards)
    for number in range(250):
        guards.get(f"host.{number:03}")
    guards.get("host.249").breaker.open("after 5 failures in a row")
    data = (await ask(app, "/resilience/data")).json
    assert (len(data["dependencies"]), data["omitted"]) == (200, 50)
    assert data["dependencies"][0]["name"] == "host.249"


async def test_making_many_rows_does_not_block_the_loop() -> None:
    guards = made()
    for number in range(1100):
        guards.get(f"host.{number:04}")
    guards.get("host.1099").breaker.open("they move")
    making = asyncio.ensure_future(dependency_rows(guards, None, OutageHistory()))
    steps = 0
    while not making.done():
        steps += 1
        await asyncio.sleep(0)
    assert steps >= 1000 // 100
    assert len(making.result()) == 1000
    assert making.result()[0]["name"] == "host.1099"


async def test_tokens_are_added_up_by_work_and_use() -> None:
    registry = made()
    page = StatusPage(nothing_here, registry=registry)
    for dependency in ("llm.one", "llm.two"):
        registry.events.publish(TokensUsed(dependency, "document", "answer", 50))
    data = (await ask(page, "/resilience/data")).json
    assert data["tokens"] == [{"work": "document", "use": "answer", "count": 100}]
