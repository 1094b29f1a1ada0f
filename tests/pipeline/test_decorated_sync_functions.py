"""Guarded sync functions: threads, results, refusals on an event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import sqlite3
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lightrag_resilience import (
    Guards,
    Policy,
    RetryPolicy,
    UnsupportedCallError,
    resilient,
)
from lightrag_resilience.calls.call_context import inside_guarded_call
from support.decorated import POLICY, WAIT, Flaky, in_thread, role
from support.guards import down


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ---------------------------------------------------------------------- sync functions


def test_a_failed_sync_function_is_retried(owner: Guards) -> None:
    flaky = Flaky(2)

    @resilient("llm.sync", POLICY, registry=owner)
    def complete(word: str, *, end: str = "!") -> str:
        return flaky.answer(word) + end

    assert complete("hello", end="?") == "HELLO?"
    assert flaky.calls == 3


def test_a_sync_function_runs_beside_its_caller_and_not_on_the_loop(owner: Guards) -> None:
    @resilient("llm.sync", registry=owner)
    def thread_and_role() -> tuple[int, str]:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return threading.get_ident(), threading.current_thread().name

    ident, name = thread_and_role()
    assert ident != threading.get_ident()
    assert name != "lightrag-resilience"
    assert in_thread(thread_and_role)


def test_context_variables_pass_into_a_sync_function(owner: Guards) -> None:
    @resilient("llm.sync", registry=owner)
    def seen() -> str:
        return role.get()

    token = role.set("caller")
    assert seen() == "caller"
    role.reset(token)
    assert seen() == "none"


def test_a_sync_function_that_returns_an_awaitable_is_awaited(owner: Guards) -> None:
    async def answer() -> str:
        return "awaited"

    @resilient("llm.sync", registry=owner)
    def complete() -> Any:
        return answer()

    assert complete() == "awaited"


@pytest.mark.processes  # openai's first request of a process asks `uname` about the machine
@pytest.mark.anyio
async def test_what_passes_a_coroutine_on_is_guarded_on_the_event_loop(owner: Guards) -> None:
    client = openai.AsyncOpenAI(api_key="a", base_url="http://127.0.0.1:1")
    create = resilient("llm.openai", Policy.llm(retry=RetryPolicy(attempts=1)), registry=owner)(
        client.chat.completions.create
    )
    with pytest.raises(openai.APIConnectionError):
        await create(model="m", messages=[])
    assert owner.get("llm.openai").breaker.snapshot().failed == 1


@pytest.mark.anyio
async def test_a_future_is_awaited_on_the_loop_of_its_caller(owner: Guards) -> None:
    runs = iter([down(), None])

    async def work() -> str:
        if (error := next(runs)) is not None:
            raise error
        return "done"

    @resilient("llm.sync", registry=owner)
    def annotated() -> asyncio.Future[str]:
        return asyncio.ensure_future(work())

    assert await annotated() == "done"
    assert owner.get("llm.sync").breaker.snapshot().failed == 1


@pytest.mark.anyio
async def test_an_unannotated_function_that_needs_the_loop_raises_with_advice(
    owner: Guards,
) -> None:
    def hidden() -> Any:
        asyncio.get_running_loop()

    with pytest.raises(UnsupportedCallError, match=r"hidden needs the event loop.*Awaitable"):
        await owner.get("llm.sync").call(hidden)
    assert owner.get("llm.sync").breaker.snapshot().calls == 0


class SyncStream:
    """As openai's `Stream`."""

    def __init__(self) -> None:
        self.is_closed = False

    def __iter__(self) -> SyncStream:
        return self

    def __next__(self) -> str:
        raise ConnectionResetError

    def close(self) -> None:
        self.is_closed = True


def sync_generator() -> Iterator[str]:
    yield "item"


@pytest.mark.parametrize(
    "function",
    [
        sync_generator,
        functools.partial(sync_generator),
        type("A", (), {"__call__": sync_generator})(),
    ],
)
def test_a_sync_generator_function_is_refused_when_it_is_decorated(function: Any) -> None:
    with pytest.raises(UnsupportedCallError, match="is a sync generator function"):
        resilient("llm.sync")(function)


@pytest.mark.parametrize("result", [SyncStream(), sync_generator(), iter([1]), map(str, [1])])
def test_a_sync_iterator_is_closed_and_refused(result: Any, owner: Guards) -> None:
    @resilient("llm.sync", registry=owner)
    def begin() -> Any:
        return result

    with pytest.raises(UnsupportedCallError, match="begin returned a sync iterator"):
        begin()
    with pytest.raises(UnsupportedCallError, match="lambda> returned a sync iterator"):
        asyncio.run(owner.get("llm.sync").call(lambda: result))
    assert getattr(result, "is_closed", True)
    assert owner.get("llm.sync").breaker.snapshot().calls == 0


def test_files_and_cursors_are_results_like_others(owner: Guards, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("line")
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    with resilient("storage.a", registry=owner)(path.open)() as file:
        assert file.read() == "line"
    assert resilient("storage.b", registry=owner)(connection.execute)("select 1").fetchone() == (1,)
    connection.close()


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[str]:
    yield "connection"


@contextlib.contextmanager
def sync_session() -> Iterator[str]:
    yield "connection"


@pytest.mark.parametrize("function", [session, sync_session, functools.partial(session)])
def test_what_makes_a_context_manager_is_refused_when_it_is_decorated(function: Any) -> None:
    with pytest.raises(UnsupportedCallError, match="put the guard below @asynccontextmanager"):
        resilient("storage.db")(function)


@pytest.mark.anyio
async def test_what_makes_a_context_manager_is_refused_by_a_call(owner: Guards) -> None:
    with pytest.raises(UnsupportedCallError, match="session makes a context manager"):
        await owner.get("storage.db").call(session)


def test_an_error_of_a_sync_function_keeps_its_identity_and_its_traceback(owner: Guards) -> None:
    original = LookupError("of the function")

    @resilient("llm.sync", registry=owner)
    def complete() -> None:
        raise original

    with pytest.raises(LookupError) as caught:
        complete()
    assert caught.value is original
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "complete"
    assert names.count("complete") == 1


def test_sync_functions_inside_each_other_share_one_call(owner: Guards) -> None:
    @resilient("llm.sync", registry=owner)
    def inner() -> bool:
        return inside_guarded_call()

    @resilient("llm.sync", registry=owner)
    def outer() -> bool:
        return inner()

    assert outer()


@pytest.mark.anyio
async def test_a_sync_function_is_refused_on_an_event_loop(owner: Guards) -> None:
    @resilient("llm.sync", registry=owner)
    def complete() -> str:
        return "done"

    name = "test_a_sync_function_is_refused_on_an_event_loop.<locals>.complete"
    with pytest.raises(UnsupportedCallError) as caught:
        complete()
    assert str(caught.value) == (
        f"{name} is a sync function and would block the event loop: "
        f"use 'await guard(…).call({name}, …)', or call it from a thread; "
        "if it returns an awaitable, annotate it so"
    )
    assert list(owner) == []
    assert await asyncio.wait_for(asyncio.to_thread(complete), WAIT) == "done"
    unguarded = complete.__wrapped__  # type: ignore[attr-defined]
    assert await owner.get("llm.sync").call(unguarded) == "done"


@pytest.mark.anyio
async def test_a_nameless_callable_is_named_by_what_it_is(owner: Guards) -> None:
    guarded = resilient("llm.sync", registry=owner)(functools.partial(len, "four"))
    with pytest.raises(UnsupportedCallError, match=r"^functools\.partial\(.* is a sync function"):
        guarded()


class Interrupted:
    """A wait for an outcome that the user interrupts once the call is under way."""

    def __init__(self, outcome: concurrent.futures.Future[Any], begun: threading.Event) -> None:
        self.outcome = outcome
        self.begun = begun

    def result(self) -> None:
        assert self.begun.wait(WAIT)
        raise KeyboardInterrupt

    def cancel(self) -> bool:
        return self.outcome.cancel()


def test_interrupting_a_sync_call_cancels_it(
    owner: Guards, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled = threading.Event(), threading.Event()
    submit = asyncio.run_coroutine_threadsafe

    async def hang() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def submit_and_be_interrupted(*args: Any) -> Interrupted:
        return Interrupted(submit(*args), begun)

    @resilient("llm.sync", registry=owner)
    def complete() -> Any:
        return hang()

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", submit_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        complete()
    assert cancelled.wait(WAIT)


def test_sync_functions_inside_each_other_never_run_out_of_threads(owner: Guards) -> None:
    depth = 60  # more than anyio's shared threads

    def descend(level: int) -> int:
        inner = resilient(f"level.{level}", registry=owner)(descend)
        return 1 + inner(level + 1) if level < depth else 1

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(descend, 1).result(60) == depth
