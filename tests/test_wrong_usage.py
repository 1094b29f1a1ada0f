"""Wrong usage raises one error of ours at once, and it says what to write instead."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lightrag_resilience import (
    BreakerPolicy,
    Guards,
    LimitPolicy,
    Policy,
    Priority,
    ResilienceError,
    RetryPolicy,
    StaleCache,
    TimeoutPolicy,
    call_chain,
    classify_as,
    collected,
    guard,
    guards,
    hedged,
    priority,
    resilient,
    with_fallbacks,
)
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.events import StateChanged
from lightrag_resilience.integrations.asgi import DrainMiddleware
from lightrag_resilience.integrations.httpx import ResilientTransport
from lightrag_resilience.integrations.status import StatusPage
from lightrag_resilience.shutdown import Coordinator


async def ask(prompt: str = "") -> str:
    return prompt


async def pieces() -> AsyncIterator[str]:
    yield "one"


class Client:
    async def ask(self) -> str:
        return "one"


async def app(scope: Any, receive: Any, send: Any) -> None: ...


def called() -> Any:
    """A coroutine, where its function was meant."""
    return ask()


@resilient("llm.wrong-usage")
async def guarded(prompt: str = "") -> str:
    return prompt


def fail_with(*_: object) -> None: ...


async def later(*_: object) -> None: ...


RIGHT: Any = {"attempts": 3}
NAMES: dict[str, tuple[Any, str]] = {
    "a number": (3, "is a text such as 'llm.openai', not a int"),
    "bytes": (b"llm", "not a bytes"),
    "none": (None, "not a NoneType"),
    "a list": (["llm"], "not a list"),
    "nothing": ("", "such as 'llm.openai'"),
    "a space": (" ", "such as 'llm.openai'"),
    "a space before": (" llm.openai", "did you mean 'llm.openai'?"),
    "a space within": ("llm. openai", "did you mean 'llm.openai'?"),
    "a dot behind": ("llm.openai.", "did you mean 'llm.openai'?"),
    "two dots": ("llm..openai", "did you mean 'llm.openai'?"),
    "capitals": ("LLM.OpenAI", "did you mean 'llm.openai'?"),
    "a capital": ("Storage", "did you mean 'storage'?"),
    "a letter too many": ("lllm.x", "did you mean 'llm.x'?"),
    "a letter too few": ("embeding.x", "did you mean 'embedding.x'?"),
    "a plural": ("embeddings.openai", "did you mean 'embedding.openai'?"),
    "an agent": ("reranker.cohere", "did you mean 'rerank.cohere'?"),
    "an underscore": ("llm_openai", "did you mean 'llm.openai'?"),
    "a colon": ("storage:orders", "did you mean 'storage.orders'?"),
    "a line": ("llm.a\nb", "cannot be printed: 'llm.ab' has none"),
    "an escape": ("llm.\x1b[31m", "cannot be printed"),
    "half a pair": ("llm.\ud800", "cannot be printed"),
    "length": ("x" * 10_000, "has 10000 characters: take at most 200"),
}
POLICIES: dict[str, tuple[Any, str]] = {
    "a dict": ({"attempts": 3}, "not dict: write such as Policy.llm(attempts=4)"),
    "a part": (RetryPolicy(), "not RetryPolicy: write Policy(retry=...) around it"),
    "a class": (Policy, "must be a Policy, not Policy: write such as"),
    "a preset": (Policy.llm, "not method"),
    "a name": ("llm", "not str"),
}
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    # the decorator
    "resilient without parentheses": (lambda: resilient(ask), "write @resilient('llm.openai')"),  # type: ignore[arg-type]
    "resilient on a class, without": (lambda: resilient(Client), "above Client"),  # type: ignore[arg-type]
    "resilient on a class": (
        lambda: resilient("llm")(Client),
        "not the class Client: decorate its methods",
    ),
    "resilient on a coroutine": (
        lambda: resilient("llm")(called()),
        "not the coroutine that calling ask returned: leave out the parentheses",
    ),
    "resilient on nothing": (lambda: resilient("llm")(None), "not a NoneType"),  # type: ignore[arg-type]
    "resilient on a property": (lambda: resilient("llm")(property(ask)), "not a property"),  # type: ignore[arg-type]
    "resilient above staticmethod": (
        lambda: resilient("llm")(staticmethod(ask)),
        "put it below @staticmethod",
    ),
    "resilient for other guards": (
        lambda: resilient("llm", registry=RIGHT),
        "registry takes Guards()",
    ),
    # the guard
    "with, not async with": (lambda: guard("llm.wrong-usage").__enter__(), "Write async with"),
    "a call of a coroutine": (
        lambda: asyncio.run(guard("llm.wrong-usage").call(called())),
        "leave out the parentheses",
    ),
    "a call of a number": (lambda: asyncio.run(guard("llm.wrong-usage").call(3)), "not a int"),  # type: ignore[call-overload]
    # policies
    "an unknown part": (lambda: Policy(retries=RetryPolicy()), "Policy has no retries"),  # type: ignore[call-arg]
    "a shorthand": (lambda: Policy(attempts=3), "Policy.llm(attempts=...)"),  # type: ignore[call-arg]
    "a dict for a part": (lambda: Policy(retry=RIGHT), "Policy.retry must be a RetryPolicy"),
    "another part": (lambda: Policy(retry=LimitPolicy()), "Policy.retry must be a"),  # type: ignore[arg-type]
    "no part": (lambda: Policy(retry=None), "not None"),  # type: ignore[arg-type]
    "by place": (lambda: Policy(RIGHT), "each by its name"),  # type: ignore[call-arg]
    "a number by place": (lambda: RetryPolicy(3), "RetryPolicy has no 3"),  # type: ignore[call-arg]
    "an unknown field": (lambda: RetryPolicy(attempt=3), "it has attempts, "),  # type: ignore[call-arg]
    "an unknown change": (lambda: Policy.llm(retries=3), "A policy has no 'retries'"),  # type: ignore[call-arg]
    "text": (lambda: Policy.llm(attempts="3"), "must be a whole number"),  # type: ignore[arg-type]
    "a fraction": (lambda: RetryPolicy(attempts=2.5), "must be a whole number"),  # type: ignore[arg-type]
    "true": (lambda: RetryPolicy(attempts=True), "must be a whole number"),
    "below zero": (lambda: TimeoutPolicy(attempt=-1.0), "must be a number above 0"),
    "no number": (lambda: TimeoutPolicy(attempt=math.nan), "must be a number above 0"),
    "no end": (lambda: TimeoutPolicy(total=math.inf), "at most 86400"),
    "too many digits": (lambda: LimitPolicy(rpm=10**5000), "not a int"),
    "a long text": (lambda: BreakerPolicy(mode="x" * 10**6), "..."),  # type: ignore[arg-type]
    "a word for another": (lambda: BreakerPolicy(mode="on"), "one of enforce, "),  # type: ignore[arg-type]
    "a word for truth": (lambda: RetryPolicy(idempotent="no"), "true or false"),  # type: ignore[arg-type]
    # chains, hedges, streams
    "a chain of nothing": (with_fallbacks, "at least one function"),
    "a chain of a list": (lambda: with_fallbacks([ask, ask]), "not a list"),  # type: ignore[arg-type]
    "a chain of coroutines": (lambda: with_fallbacks(called()), "leave out the parentheses"),
    "a chain of kinds": (lambda: with_fallbacks(ask, len), "functions of one kind"),
    "a chain in no time": (lambda: with_fallbacks(ask, total=0.0), "total must be"),
    "a chain in a text": (lambda: with_fallbacks(ask, total="5"), "total must be"),  # type: ignore[arg-type]
    "when, of no function": (lambda: with_fallbacks(ask, when=True), "when must be a plain"),  # type: ignore[arg-type]
    "when, later": (lambda: with_fallbacks(ask, when=later), "when must be a plain function"),  # type: ignore[arg-type]
    "stale seconds": (lambda: with_fallbacks(ask, stale=60.0), "StaleCache(max_age=...)"),  # type: ignore[arg-type]
    "answered by no chain": (
        lambda: asyncio.run(call_chain(ask)),
        "what with_fallbacks() returned",
    ),
    "no age": (lambda: StaleCache(max_age=math.nan), "StaleCache.max_age must be"),
    "half an entry": (lambda: StaleCache(max_age=1.0, max_entries=0.5), "whole number"),  # type: ignore[arg-type]
    "a key": (lambda: StaleCache(max_age=1.0, key="prompt"), "key must be a plain function"),  # type: ignore[arg-type]
    "a key, later": (lambda: StaleCache(max_age=1.0, key=later), "key must be a plain function"),  # type: ignore[arg-type]
    "hedged without parentheses": (lambda: hedged(guarded), "write @hedged(after=0.2)"),  # type: ignore[arg-type]
    "hedged at once": (lambda: hedged(0.0), "after must be a number above 0"),
    "hedged by a text": (lambda: hedged("0.2"), "after must be a number"),  # type: ignore[arg-type]
    "hedged, and not guarded": (lambda: hedged(0.2)(ask), "write @resilient('...') between"),
    "hedged coroutine": (lambda: hedged(0.2)(called()), "leave out the parentheses"),
    "gathered name": (lambda: collected("llm"), "collected() needs a function, not a str"),  # type: ignore[call-overload]
    "gathered coroutine": (lambda: collected(called()), "leave out the parentheses"),
    "gathered stream": (lambda: collected(pieces()), "not a async_generator"),  # type: ignore[call-overload]
    # the rest
    "a word for a priority": (lambda: priority("background"), "Priority.BACKGROUND, not 'back"),  # type: ignore[arg-type]
    "a number for a priority": (lambda: priority(1), "Priority.BACKGROUND, not 1"),  # type: ignore[arg-type]
    "the class of a priority": (lambda: priority(Priority), "Priority.BACKGROUND, not"),  # type: ignore[arg-type]
    "a number listens": (lambda: Guards().events.subscribe(3), "a plain function"),  # type: ignore[arg-type]
    "a coroutine function listens": (
        lambda: Guards().events.subscribe(later),  # type: ignore[arg-type]
        "a plain function, called at once, not a coroutine function",
    ),
    "to listen to a word": (
        lambda: Guards().events.subscribe(fail_with, "StateChanged"),  # type: ignore[arg-type]
        "'StateChanged' is no kind of event",
    ),
    "a number counts": (lambda: Guards().events.count(3), "a plain function"),  # type: ignore[arg-type]
    "a number is an error": (lambda: classify_as(503, RIGHT), "a subclass of Exception"),  # type: ignore[arg-type]
    "every exception": (lambda: classify_as(Exception, RIGHT), "a subclass of Exception"),
    "a word for a verdict": (lambda: classify_as(OSError, "fatal"), "needs a FailureKind"),  # type: ignore[arg-type]
    "a verdict, later": (lambda: classify_as(OSError, later), "needs a FailureKind"),  # type: ignore[arg-type]
    "a drain of a text": (lambda: Coordinator(timeout="25"), "timeout must be a number"),  # type: ignore[arg-type]
    "a drain without end": (lambda: Coordinator(timeout=math.nan), "timeout must be a number"),
    "a drain in the past": (lambda: Coordinator(close_timeout=-1.0), "has no room for"),
    "a drain too short": (lambda: Coordinator(timeout=1.0), "has no room for"),
    "a journal of a number": (lambda: Coordinator(journal=3), "the path of a file, not 3"),  # type: ignore[arg-type]
    "a journal of nothing": (lambda: Journal(""), "the path of a file, not ''"),
    "a journal of bytes": (lambda: Journal(b"journal"), "the path of a file"),  # type: ignore[arg-type]
    "a journal with an odd name": (lambda: Journal("a\0b"), "the path of a file"),
    "other guards to end": (lambda: Coordinator(registry=RIGHT), "registry takes Guards()"),
    "no application": (lambda: DrainMiddleware(None), "takes an ASGI application"),  # type: ignore[arg-type]
    "an application by name": (lambda: DrainMiddleware("app:app"), "takes an ASGI application"),  # type: ignore[arg-type]
    "requests in the past": (
        lambda: DrainMiddleware(app, last_requests=-1.0),
        "last_requests must be",
    ),
    "a word for names": (lambda: DrainMiddleware(app, ready_while_closed="llm"), "=['llm']"),
    "a number for names": (
        lambda: DrainMiddleware(app, ready_while_closed=[3]),  # type: ignore[list-item]
        "is a text such as",
    ),
    "a coordinator": (lambda: DrainMiddleware(app, make_coordinator=3), "make_coordinator=lambda"),  # type: ignore[arg-type]
    "a short token": (lambda: StatusPage(app, token="short"), "16 to 256 ASCII characters"),  # noqa: S106
    "no token": (lambda: StatusPage(app, token=3), "16 to 256 ASCII characters"),  # type: ignore[arg-type]
    "a number names hosts": (lambda: ResilientTransport(name=3), "is a text such as"),  # type: ignore[arg-type]
    "a dict for hosts": (lambda: ResilientTransport(policy=RIGHT), "must be a Policy"),
    "hosts in a text": (lambda: ResilientTransport(max_hosts="8"), "max_hosts must be a whole"),  # type: ignore[arg-type]
}


def assert_rejected(write: Callable[[], Any], said: str) -> None:
    with pytest.raises(ResilienceError) as error:
        write()
    assert said in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("usage", WRONG)
@pytest.mark.filterwarnings("error")
def test_wrong_usage_is_an_error_at_once(usage: str) -> None:
    assert_rejected(*WRONG[usage])


@pytest.mark.parametrize("usage", NAMES)
def test_an_invalid_or_misspelt_name_is_an_error_at_once(usage: str) -> None:
    name, said = NAMES[usage]
    before = len(list(guards()))
    for write in (guard, resilient, Guards().get):
        assert_rejected(functools.partial(write, name), said)
    if name is not None:
        assert_rejected(lambda: ResilientTransport(httpx.MockTransport(ask), name=name), said)  # type: ignore[arg-type]
    assert len(list(guards())) == before


@pytest.mark.parametrize("usage", POLICIES)
def test_an_object_that_is_no_policy_is_an_error_at_once(usage: str) -> None:
    policy, said = POLICIES[usage]
    owner = Guards()
    owner.get("llm.there")
    for write in (guard, resilient, owner.get):
        assert_rejected(lambda write=write: write("llm.there", policy), said)  # type: ignore[misc]


@pytest.mark.parametrize(
    "name",
    [
        *("llm", "llm.openai", "llm.OpenAI", "llm.azure-openai", "storage.neo4j", "orders"),
        *("http.localhost-11434", "http.api.openai.com", "litellm", "store", "a b", "gr\xf6\xdfe"),
        *("embed.x", "models.llm", "x" * 200),
    ],
)
def test_any_other_name_is_accepted(name: str) -> None:
    assert Guards().get(name).name == name


@pytest.mark.anyio
async def test_right_usage_works() -> None:
    with priority(Priority.BACKGROUND):
        assert await resilient("llm.twice")(resilient("llm.twice")(guarded))("one") == "one"
    take_back = Guards().events.subscribe(fail_with, StateChanged)
    take_back()
    assert Journal(Path("somewhere")).path == Path("somewhere")
    with_fallbacks(ask, guarded, total=1.0)
    hedged(0.2)(guarded)


@pytest.mark.anyio
async def test_protecting_what_is_no_lightrag_is_an_error() -> None:
    lightrag = pytest.importorskip("lightrag")
    from lightrag_resilience import protect  # noqa: PLC0415

    for rag, said in (
        (lightrag.LightRAG, "write await protect(LightRAG(...))"),
        (None, "not a NoneType"),
        ("rag", "not a str"),
    ):
        with pytest.raises(ResilienceError) as error:
            await protect(rag)
        assert said in str(error.value)


def test_a_protect_call_that_is_not_awaited_is_an_error() -> None:
    pytest.importorskip("lightrag")
    from lightrag_resilience import protect  # noqa: PLC0415

    with pytest.warns(RuntimeWarning, match=r"coroutine 'protect' was never awaited"):
        protect(None)  # type: ignore[unused-coroutine]


@pytest.mark.parametrize("name", ["vllm", "vllm.local", "vLLM.qwen"])
def test_a_servers_own_name_is_accepted(name: str) -> None:
    assert Guards().get(name).name == name
