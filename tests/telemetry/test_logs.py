"""Logs: never a flood, one line a record; and one id for all that a request leads to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience import CallRejected, Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.telemetry.correlation import (
    CorrelationFilter,
    CorrelationMiddleware,
    add_header,
    correlated,
    correlation_id,
    read_id,
)
from lightrag_resilience.telemetry.logs import JsonFormatter
from lightrag_resilience.testing.virtual_time import VirtualTimeLoop

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_an_outage_of_an_hour_makes_tens_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    loop = VirtualTimeLoop()
    guards = Guards(settings=load_settings({}), clock=loop.time, sleep=asyncio.sleep)
    outage = 3600.0  # seconds

    async def call() -> None:
        if loop.time() - began < outage:
            raise ConnectionRefusedError

    async def live() -> None:
        guard = guards.get("llm.openai")
        while loop.time() - began < outage + 60:
            with contextlib.suppress(ConnectionRefusedError, CallRejected):
                await guard.call(call)
            await asyncio.sleep(1.0)

    began = loop.time()
    with caplog.at_level(logging.INFO, "lightrag_resilience"):
        loop.run_until_complete(live())
    loop.close()
    changes = [text for text in caplog.messages if text.startswith("Circuit")]
    assert 5 <= len(changes) <= 30
    assert "break 64 in a row" in "".join(changes)
    assert changes[-1].startswith("Circuit 'llm.openai' is closed")


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("lightrag_resilience", logging.WARNING, "", 1, "a\n%s", ("b",), None)
    vars(made).update(extra)
    return made


def test_a_record_is_one_line_of_json_with_its_extras() -> None:
    text = JsonFormatter().format(record(dependency="llm", state="open", status=503, created=0.25))
    assert "\n" not in text
    assert json.loads(text) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "WARNING",
        "logger": "lightrag_resilience",
        "message": "a\nb",
        "dependency": "llm",
        "state": "open",
        "status": 503,
    }


def test_a_line_has_the_request_id_and_the_traceback() -> None:
    try:
        raise ValueError("odd")
    except ValueError as error:
        made = record(exc_info=(ValueError, error, error.__traceback__))
    with correlated("r-1"):
        line = json.loads(JsonFormatter().format(made))
    assert line["correlation_id"] == "r-1"
    assert line["exception"].endswith("ValueError: odd")


def test_the_filter_adds_the_id_to_every_record() -> None:
    before, inside = record(), record()
    assert CorrelationFilter().filter(before)
    with correlated("r-1"):
        CorrelationFilter().filter(inside)
    assert (vars(before)["correlation_id"], vars(inside)["correlation_id"]) == ("-", "r-1")


# ---------------------------------------------------------------------- where ids come from


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-request-id": "r-1", "traceparent": PARENT}, "r-1"),
        ({"traceparent": PARENT}, TRACE),
        ({"x-request-id": "a b", "traceparent": PARENT}, TRACE),
        ({"x-request-id": "a" * 64}, "a" * 64),
        ({"x-request-id": "a" * 65}, None),
        ({"x-request-id": "a\n"}, None),
        ({"x-request-id": "é"}, None),
        ({"traceparent": PARENT.upper()}, None),
        ({"traceparent": PARENT + "-more"}, None),
        ({"traceparent": "01" + PARENT[2:] + "-more"}, TRACE),
        ({"traceparent": "01" + PARENT[2:] + "-" + "x" * 256}, None),
        ({"traceparent": "ff" + PARENT[2:]}, None),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"00-{TRACE}-{'0' * 16}-01"}, None),
        ({}, None),
    ],
)
def test_invalid_ids_in_headers_are_ignored(headers: dict[str, str], expected: str | None) -> None:
    assert read_id(headers) == expected


@given(st.text(), st.text())
def test_an_id_from_any_header_is_short_and_harmless(given_id: str, parent: str) -> None:
    found = read_id({"x-request-id": given_id, "traceparent": parent})
    assert found is None or (0 < len(found) <= 64 and found.isascii() and found.isprintable())


def test_an_id_holds_for_its_block_and_is_made_if_missing() -> None:
    with correlated() as outer:
        with correlated("r-1"):
            assert correlation_id() == "r-1"
        assert correlation_id() == outer
    assert correlation_id() is None
    with pytest.raises(ValueError, match="1 to 64"), correlated("a\nb"):
        pass


# ---------------------------------------------------------------------- through a server and out


async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    headers = [(b"X-Request-ID", b"of the app")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": (correlation_id() or "none").encode()})


@pytest.mark.parametrize("sent", ["r-1", None])
def test_a_request_keeps_its_id_and_the_response_returns_it(sent: str | None) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(CorrelationMiddleware(app))
        hooks: Any = {"request": [add_header]}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://a", event_hooks=hooks
        ) as client:
            if sent is None:
                return await client.get("/")
            with correlated(sent):
                return await client.get("/")

    answer = asyncio.run(ask())
    assert answer.headers.get_list("x-request-id") == [answer.text]
    assert answer.text == sent or (sent is None and len(answer.text) == 32)


def test_scopes_other_than_requests_pass_through() -> None:
    seen = []

    async def lifespan(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        seen.append(correlation_id())

    asyncio.run(CorrelationMiddleware(lifespan)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == [None]
