"""Which guard a request belongs to: by host, by name or by a function."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from support.transports import policy, the_guard
from support.wires import Answer, answers, new_guards, wire

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://API.OpenAI.com/v1", "http.api.openai.com"),
        ("https://api.openai.com:443/v1", "http.api.openai.com"),
        ("http://localhost:11434/api", "http.localhost-11434"),
        ("http://[::1]:8080/", "http.1-8080"),
        ("http://my_host./", "http.my-host"),
        ("http://-/", "http.unknown"),
    ],
)
async def test_each_host_has_a_guard(library: Any, url: str, name: str) -> None:
    registry = new_guards()
    async with wire(library, answers(library, Answer()), registry=registry) as client:
        await client.get(url)
    assert the_guard(registry).name == name


async def test_one_name_serves_all_hosts_or_a_function_names_each_request(library: Any) -> None:
    registry = new_guards()
    transport = answers(library, Answer())
    async with wire(library, transport, name="llm.openai", registry=registry) as client:
        await client.get("http://a.test")
        await client.get("http://b.test")
    assert the_guard(registry).name == "llm.openai"

    def name(request: Any) -> str:
        return f"llm.{request.url.path[1:]}"

    async with wire(library, transport, name=name, registry=registry) as client:
        await client.get("http://a.test/gpt")
    assert [guard.name for guard in registry] == ["llm.gpt", "llm.openai"]


async def test_hosts_beyond_the_bound_share_one_guard_and_are_logged_once(
    library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registry = new_guards()
    options: Any = {"registry": registry, "max_hosts": 2}
    with caplog.at_level(logging.WARNING, "lightrag_resilience"):
        for letters in ("ab", "acd", "cb"):  # a client each
            async with wire(library, answers(library, Answer()), **options) as client:
                for letter in letters:
                    await client.get(f"http://{letter}.test")
    assert [guard.name for guard in registry] == ["http.a.test", "http.b.test", "http.other"]
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2  # once for each client that needs it
    assert "'http.c.test'" in warned[0]
    assert "max_hosts" in warned[0]


async def test_the_shared_guard_of_hosts_beyond_the_bound_serves_transports_of_any_policy(
    library: Any,
) -> None:
    registry = new_guards()
    options: Any = {"registry": registry, "max_hosts": 1}
    for number, more in enumerate(({}, {"policy": policy(attempts=2)}, {"policy": policy()})):
        async with wire(library, answers(library, Answer()), **options, **more) as client:
            assert (await client.get(f"http://host{number}.test")).status_code == 200
    assert [guard.name for guard in registry] == ["http.host0.test", "http.other"]
