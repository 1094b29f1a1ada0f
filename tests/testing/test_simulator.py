"""The simulated provider, met by the real clients over real HTTP."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, get_args, get_type_hints

import httpx
import openai
import pytest
from typer.testing import CliRunner

from lightrag_resilience.cli.app import app
from lightrag_resilience.testing import Fault, Simulator
from lightrag_resilience.testing.faults import INVALID
from support.waiting import until

pytestmark = pytest.mark.anyio

CHAT: Any = {"model": "simulated", "messages": [{"role": "user", "content": "Say something."}]}
TOKEN = "a-token"  # noqa: S105
SIMULATE = (sys.executable, "-m", "lightrag_resilience", "simulate")
SENT = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    async with Simulator(seed=1, control_token=TOKEN) as simulator:
        yield simulator


@pytest.fixture
async def http(provider: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=provider.base_url.removesuffix("v1")) as http:
        yield http


# ---------------------------------------------------------------------- what it answers


async def test_a_chat_is_answered(client: openai.AsyncOpenAI, provider: Simulator) -> None:
    answer = await client.chat.completions.create(**CHAT)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    assert [(call.path, call.outcome) for call in provider.calls] == [
        ("/v1/chat/completions", "200")
    ]


async def test_a_stream_says_the_same_as_the_whole_answer(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**CHAT)
    stream = await client.chat.completions.create(
        **CHAT, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    words = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(words) == whole.choices[0].message.content
    assert len(words) > 3
    assert chunks[-1].usage == whole.usage


async def test_embeddings_are_unit_vectors_near_where_words_are_shared(
    client: openai.AsyncOpenAI,
) -> None:
    texts = ["the river runs", "the river sleeps", "seven green bottles", "", "?"]
    answer = await client.embeddings.create(model="simulated", input=texts, dimensions=32)
    river, other, bottles, *_ = vectors = [data.embedding for data in answer.data]
    assert {len(vector) for vector in vectors} == {32}
    assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-6) for vector in vectors)
    assert math.dist(river, other) < math.dist(river, bottles)


async def test_both_encodings_of_an_embedding_agree(http: httpx.AsyncClient) -> None:
    import array  # noqa: PLC0415
    import base64  # noqa: PLC0415

    body = {"input": "the river runs", "model": "m"}
    plain = (await http.post("v1/embeddings", json=body)).json()["data"][0]["embedding"]
    packed = (await http.post("v1/embeddings", json=body | {"encoding_format": "base64"})).json()
    numbers = array.array("f", base64.b64decode(packed["data"][0]["embedding"]))
    assert list(numbers) == pytest.approx(plain, abs=1e-6)
    assert len(plain) == 64


async def test_rerank_puts_what_shares_words_first(http: httpx.AsyncClient) -> None:
    body = {"query": "who built the mill", "documents": ["a fish", "he built it"], "top_n": 1}
    results = (await http.post("v1/rerank", json=body)).json()["results"]
    assert results == [{"index": 1, "relevance_score": 0.25}]


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in await client.models.list()] == ["simulated"]


@pytest.mark.parametrize("body", ["{", "[]", "{}", '{"messages": 3}', '{"messages": [1]}'])
async def test_a_request_that_makes_no_sense_gets_a_400(http: httpx.AsyncClient, body: str) -> None:
    answer = await http.post("v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert "makes no sense" in answer.json()["error"]["message"]


# ---------------------------------------------------------------------- how it fails


async def test_statuses_and_retry_after(client: openai.AsyncOpenAI, provider: Simulator) -> None:
    provider.set_faults([Fault.status(503)])
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(**CHAT)
    provider.set_faults([Fault.throttle(retry_after=2)])
    with pytest.raises(openai.RateLimitError) as error:
        await client.chat.completions.create(**CHAT)
    assert error.value.response.headers["retry-after"] == "2"
    assert [call.outcome for call in provider.calls] == ["503", "429"]


@pytest.mark.parametrize("fault", [Fault.reset(), Fault.truncate(pieces=1)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_lost_connection(
    client: openai.AsyncOpenAI,
    provider: Simulator,
    fault: Fault,
    stream: bool,  # noqa: FBT001
) -> None:
    provider.set_faults([fault])

    async def call() -> None:
        answer: Any = await client.chat.completions.create(**CHAT, stream=stream)
        [chunk async for chunk in answer]

    with pytest.raises((openai.APIConnectionError, httpx.TransportError)):
        await call()
    assert provider.count(fault.action) == 1


async def test_a_truncated_stream_gives_its_first_pieces(
    http: httpx.AsyncClient, provider: Simulator
) -> None:
    provider.set_faults([Fault.truncate(pieces=3)])
    seen: list[str] = []

    async def read() -> None:
        body = CHAT | {"stream": True}
        async with http.stream("POST", "v1/chat/completions", json=body) as answer:
            seen.extend([line async for line in answer.aiter_lines()])

    with pytest.raises(httpx.TransportError):
        await read()
    assert sum(line.startswith("data:") for line in seen) <= 3
    assert "data: [DONE]" not in seen


@pytest.mark.parametrize("action", ["end_early", "error_event", "stall", "truncate"])
async def test_a_fault_behind_the_last_piece_hits_no_call(
    client: openai.AsyncOpenAI, provider: Simulator, action: str
) -> None:
    provider.set_faults(Fault.from_json(f'[{{"action": "{action}", "pieces": 1000}}]'))
    stream = await client.chat.completions.create(**CHAT, stream=True)
    assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "stop"
    assert provider.count("200") == 1


async def test_a_whole_answer_may_end_early_too(
    http: httpx.AsyncClient, provider: Simulator
) -> None:
    provider.set_faults([Fault.end_early(pieces=1)])
    answer = await http.post("v1/chat/completions", json=CHAT)
    with pytest.raises(ValueError, match="line 1 column"):
        answer.json()
    assert provider.count("end_early") == 1


async def test_a_hanging_call_never_answers(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    provider.set_faults([Fault.hang()])
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(**CHAT, timeout=0.1)
    assert [call.outcome for call in provider.calls] == ["hang"]


async def test_a_slow_call_answers_later(client: openai.AsyncOpenAI, provider: Simulator) -> None:
    provider.set_faults([Fault.slow(0.1)])
    await client.chat.completions.create(**CHAT)
    assert provider.calls[0].duration >= 0.1
    assert provider.calls[0].outcome == "200"


async def test_a_caller_who_leaves_is_noted(http: httpx.AsyncClient, provider: Simulator) -> None:
    provider.latency = 30.0
    with pytest.raises(httpx.ReadTimeout):
        await http.post("v1/chat/completions", json=CHAT, timeout=0.1)
    await until(lambda: provider.count("gone") == 1)
    assert [call.outcome for call in provider.calls] == ["gone"]


async def test_hanging_calls_do_not_keep_it_from_ending() -> None:
    async with Simulator(faults=[Fault.hang()]) as provider, httpx.AsyncClient() as http:
        url = f"{provider.base_url}/chat/completions"
        calls = [asyncio.create_task(http.post(url, json=CHAT, timeout=60)) for _ in range(3)]
        await until(lambda: provider.count("hang") == 3)
        started = time.monotonic()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - started < 30
    assert all(isinstance(outcome, httpx.TransportError | RuntimeError) for outcome in ended)


# ---------------------------------------------------------------------- control over HTTP


async def test_control_over_http(http: httpx.AsyncClient, provider: Simulator) -> None:
    faults = '[{"action": "status", "code": 503, "path": "chat"}]'
    put = await http.put("_sim/faults", content=faults, headers=SENT)
    assert put.json() == {"faults": 1}
    assert (await http.post("v1/chat/completions", json=CHAT)).status_code == 503
    (call,) = (await http.get("_sim/calls", headers=SENT)).json()
    assert call["outcome"] == "503"
    await http.post("_sim/reset", headers=SENT)
    assert provider.calls == []
    assert (await http.post("v1/chat/completions", json=CHAT)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "calls"), ("PUT", "faults"), ("POST", "reset")]
)
async def test_control_needs_the_token(http: httpx.AsyncClient, method: str, path: str) -> None:
    assert (await http.request(method, f"_sim/{path}")).status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert (await http.request(method, f"_sim/{path}", headers=wrong)).status_code == 401


async def test_control_is_off_by_default() -> None:
    async with Simulator() as provider, httpx.AsyncClient() as http:
        url = provider.base_url.replace("/v1", "/_sim/calls")
        assert (await http.get(url, headers={"Authorization": "Bearer None"})).status_code == 404


@pytest.mark.parametrize("faults", ["{", "{}", '[{"action": "explode"}]', '[{"shar": 1}]'])
async def test_faults_that_make_no_sense_change_nothing(
    http: httpx.AsyncClient, provider: Simulator, faults: str
) -> None:
    answer = await http.put("_sim/faults", content=faults, headers=SENT)
    assert answer.status_code == 400
    assert answer.text
    assert (await http.post("v1/chat/completions", json=CHAT)).status_code == 200


# ---------------------------------------------------------------------- by itself


async def test_it_runs_by_itself() -> None:
    faults = '[{"action": "status", "code": 502}]'
    with subprocess.Popen([*SIMULATE, "--faults", faults], stdout=subprocess.PIPE, text=True) as it:  # noqa: S603, ASYNC220
        try:
            assert it.stdout is not None
            url = it.stdout.readline().split()[1]
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"{url}/models")).status_code == 502
        finally:
            it.send_signal(signal.SIGINT)
            assert it.wait(60) == 130


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--faults", "{"], "Invalid JSON"),
        (["--faults", '[{"action": "explode"}]'], "explode"),
        (["--port", "99999999"], "--port"),
    ],
)
def test_a_wrong_option_is_one_clear_error(option: list[str], told: str) -> None:
    ran = CliRunner().invoke(app, ["simulate", *option])
    assert ran.exit_code == 2
    assert told in ran.stderr


def test_its_help_lists_every_fault_and_every_setting() -> None:
    page = CliRunner().invoke(app, ["simulate", "--help"]).stdout
    hints = get_type_hints(Fault, include_extras=True)
    actions = {name for part in get_args(hints["action"]) for name in get_args(part)}
    head, *listed = re.findall(r"^  ([a-z_0-9]+) {2,}", page, re.MULTILINE)
    assert (head, {*listed}) == ("action", actions)
    assert not [name for name in hints if not re.search(rf"\b{name}\b", page)]


# ---------------------------------------------------------------------- answers that are none


@pytest.mark.parametrize("kind", sorted(INVALID))
async def test_an_invalid_answer_is_a_200_and_seen_as_what_it_is(
    kind: Any, http: httpx.AsyncClient, provider: Simulator
) -> None:
    provider.set_faults([Fault.invalid(kind)])
    messages = [{"role": "user", "content": "based on the last extraction task"}]
    as_json = {"type": "json_object"}
    for path, body in {
        "v1/chat/completions": {"messages": messages, "response_format": as_json},
        "v1/embeddings": {"input": ["one", "two"]},
        "v1/rerank": {"query": "one", "documents": ["one", "two"]},
    }.items():
        assert (await http.post(path, json=body)).status_code == 200
    outcomes = {call.outcome for call in provider.calls}
    is_any = kind in {"html_200", "empty_200"}
    assert outcomes == ({kind} if is_any else {kind, "200"})


async def test_choices_may_be_missing_from_a_stream_too(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    provider.set_faults([Fault.invalid("choices_null")])
    stream = await client.chat.completions.create(**CHAT, stream=True)
    assert [chunk.choices async for chunk in stream] == [None]
