"""The status page's stream of changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightrag_resilience.integrations.status import page as page_module
from lightrag_resilience.shutdown import Coordinator
from support.status_requests import (
    PATIENCE,
    Watcher,
    ask,
    made,
    of,
    page,
    scope_of,
    trip,
    watching,
)

pytestmark = pytest.mark.anyio
HOSTILE = "<img src=x onerror=alert(1)>"


# ---------------------------------------------------------------------- the stream


async def test_a_change_is_sent_to_all_viewers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_POLL", 10 * PATIENCE)  # it is the change that wakes them
    guards = made()
    app = page(guards)
    async with watching(app) as (one, _), watching(app) as (other, _):
        await one.until(lambda data: not data["dependencies"])
        await trip(guards, HOSTILE)
        for watcher in (one, other):
            data = await watcher.until(lambda data: of(data, HOSTILE)["state"] == "open")
            assert (
                data["changes"][0]["reason"]
                == "after 6 failures in a row, the last ConnectionRefusedError"
            )
        assert one.headers["content-type"] == "text/event-stream"
        assert "default-src 'none'" in one.headers["content-security-policy"]
    assert app._observer.viewers == 0


async def test_an_idle_stream_sends_heartbeats_and_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_module, "_HEARTBEAT", 0.3)
    monkeypatch.setattr(page_module, "_STREAM_LIFE", 1.5)
    async with watching(page(made())) as (watcher, task):
        await asyncio.wait_for(asyncio.shield(task), PATIENCE)
        assert watcher.has_ended
        assert 2 <= len(watcher.events) <= 6


async def test_a_viewer_that_stops_reading_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_SEND_TIMEOUT", 0.05)
    app = page(made())

    async def stuck(message: Any) -> None:
        if message.get("body", b"").startswith(b"data"):
            await asyncio.sleep(PATIENCE * 2)

    watcher = Watcher()
    async with asyncio.timeout(PATIENCE):
        await app(scope_of("/resilience/events"), watcher.receive, stuck)
    assert app._observer.viewers == 0


async def test_the_number_of_viewers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_MOST_VIEWERS", 1)
    app = page(made())
    async with watching(app) as (watcher, _):
        await watcher.until(bool)
        for path in ("/resilience/events", "/resilience/data"):
            answer = await ask(app, path)
            assert (answer.status, "pages are open" in answer.json["detail"]) == (503, True)
    assert (await ask(app, "/resilience/data")).status == 200


async def test_a_stream_ends_when_a_drain_has_no_work_left() -> None:
    guards = made()
    app = page(guards)
    goes_on = asyncio.Event()
    async with Coordinator(registry=guards, handle_signals=False, timeout=PATIENCE + 10) as ours:
        call = asyncio.ensure_future(guards.get("llm").call(goes_on.wait))
        async with watching(app) as (watcher, task):
            task.set_name("GET /resilience/…")  # as where requests are waited for, too
            ours.track(task)
            await watcher.until(lambda data: of(data, "llm").get("in_flight") == {"calls": 1})
            drain = asyncio.ensure_future(ours.drain("SIGTERM"))
            data = await watcher.until(lambda data: data["drain"])
            assert data["drain"]["phase"] == "draining"
            assert data["drain"]["reason"] == "SIGTERM"
            assert data["drain"]["in_flight"] == 1
            assert data["drain"]["seconds_left"] > 0
            goes_on.set()
            await asyncio.wait_for(asyncio.shield(task), PATIENCE)
            assert watcher.has_ended
        await asyncio.gather(call, drain)


async def test_a_closed_gate_ends_a_stream_without_a_coordinator() -> None:
    guards = made()
    guards.gate.close()
    async with watching(page(guards)) as (watcher, task):
        await asyncio.wait_for(asyncio.shield(task), PATIENCE)
        assert watcher.events[0]["drain"]["phase"] == "draining"
