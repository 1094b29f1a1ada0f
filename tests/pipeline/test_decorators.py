"""`resilient`: a guarded function stays what it is, and its guard is found when it is called."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import functools
import inspect
import pickle
import sqlite3
import threading
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import openai
import pytest

from lightrag_resilience import (
    CircuitOpenError,
    Guard,
    Guards,
    Policy,
    PolicyError,
    RetryPolicy,
    SettingsError,
    UnsupportedCallError,
    guards,
    resilient,
)
from lightrag_resilience.calls.call_context import owned_by_a_guard
from lightrag_resilience.config.settings import Settings, load_settings
from support.guards import down
from support.scripts import output_of

WAIT = 10.0  # seconds, a bound that is never reached
POLICY = Policy.llm(attempts=3)
who = ContextVar("who", default="nobody")


async def no_sleep(seconds: float) -> None:
    """Waits no time."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def owner() -> Iterator[Guards]:
    made = Guards(settings=load_settings({}), sleep=no_sleep)
    yield made
    made.threads.close()


class Flaky:
    """Fails so many times before it is right."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def answer(self, word: str) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError(f"failure {self.calls}")
        return word.upper()


def in_thread(function: Callable[[], Any]) -> Any:
    """What a function gives in a thread where no event loop runs."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(WAIT)


@resilient("llm.module")
async def module_level(prompt: str, *, times: int = 1) -> str:
    """Repeat."""
    return prompt * times


@resilient("llm.module")
async def module_generator(prompt: str) -> AsyncIterator[str]:
    """Repeat as a stream."""
    yield prompt


@resilient("llm.module")
def module_iterator(prompt: str) -> AsyncIterator[str]:
    """Repeat as an iterator."""
    return module_generator(prompt)


@resilient("llm.module")
def module_sync(prompt: str) -> str:
    """Repeat at once."""
    return prompt


MODULE_LEVEL: list[Any] = [module_level, module_generator, module_iterator, module_sync]


# ---------------------------------------------------------------------- what stays


@pytest.mark.parametrize("function", MODULE_LEVEL, ids=lambda function: function.__name__)
def test_a_guarded_function_keeps_its_signature_name_and_text(function: Any) -> None:
    original = function.__wrapped__
    assert inspect.signature(function) == inspect.signature(original)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(function, name) == getattr(original, name)
    assert function is not original
    assert function.__name__.startswith("module_")


@pytest.mark.parametrize("function", MODULE_LEVEL, ids=lambda function: function.__name__)
def test_a_guarded_function_stays_of_its_kind(function: Any) -> None:
    is_coroutine, is_stream = (
        function is module_level,
        function in (module_generator, module_iterator),
    )
    assert inspect.iscoroutinefunction(function) == is_coroutine
    assert asyncio.iscoroutinefunction(function) == is_coroutine
    assert inspect.isasyncgenfunction(function) == is_stream


@pytest.mark.parametrize("function", MODULE_LEVEL, ids=lambda function: function.__name__)
def test_a_guarded_function_can_be_copied_and_pickled(function: Any) -> None:
    assert copy.copy(function) is function
    assert copy.deepcopy(function) is function
    assert copy.deepcopy({"llm": [function]}) == {"llm": [function]}
    assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301 - made in the line itself


def test_the_attributes_of_a_function_stay() -> None:
    async def embed(texts: list[str]) -> list[float]:
        return [0.0 for _ in texts]

    vars(embed)["embedding_dim"] = 1024
    guarded: Any = resilient("embedding")(embed)
    assert guarded.embedding_dim == 1024


@pytest.mark.anyio
async def test_a_partial_and_an_object_can_be_guarded(owner: Guards) -> None:
    class Model:
        async def __call__(self, prompt: str) -> str:
            return prompt.upper()

    decorate = resilient("llm.partial", registry=owner)
    assert await decorate(functools.partial(Model(), "hello"))() == "HELLO"
    assert await decorate(Model())("hello") == "HELLO"


# ---------------------------------------------------------------------- coroutine functions


@pytest.mark.anyio
async def test_a_guard_is_looked_up_on_the_first_call_only() -> None:
    class Counting(Guards):
        looks = 0

        def get(self, name: str, policy: Policy | None = None) -> Guard:
            self.looks += 1
            return super().get(name, policy)

    owner = Counting(settings=Settings())

    @resilient("llm", registry=owner)
    async def answer(number: int) -> int:
        return number

    assert owner.looks == 0
    assert await asyncio.gather(*(answer(number) for number in range(3))) == [0, 1, 2]
    looks = owner.looks
    assert [await answer(number) for number in range(3)] == [0, 1, 2]
    assert owner.looks == looks


@pytest.mark.anyio
async def test_a_coroutine_function_is_called_again_when_it_fails(owner: Guards) -> None:
    flaky = Flaky(2)

    @resilient("llm.coroutine", POLICY, registry=owner)
    async def complete(word: str, *, end: str = "!") -> str:
        return flaky.answer(word) + end

    assert await complete("hello", end="?") == "HELLO?"
    assert flaky.calls == 3


@pytest.mark.anyio
async def test_an_error_keeps_its_identity_and_its_traceback(owner: Guards) -> None:
    original = LookupError("of the function")

    @resilient("llm.error", registry=owner)
    async def complete() -> None:
        raise original

    with pytest.raises(LookupError) as caught:
        await complete()
    assert caught.value is original
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "complete"


@pytest.mark.anyio
async def test_a_guarded_function_runs_inside_its_call(owner: Guards) -> None:
    @resilient("llm.inside", registry=owner)
    async def complete() -> bool:
        return owned_by_a_guard()

    assert await complete()
    assert not owned_by_a_guard()


@pytest.mark.anyio
async def test_context_variables_pass_into_a_coroutine_function_and_out(owner: Guards) -> None:
    @resilient("llm.context", registry=owner)
    async def complete() -> str:
        seen = who.get()
        who.set("callee")
        return seen

    token = who.set("caller")
    assert (await complete(), who.get()) == ("caller", "callee")
    who.reset(token)


# ---------------------------------------------------------------------- methods


class Client:
    """Has one method of each kind, all guarded."""

    owner = Guards(settings=load_settings({}), sleep=no_sleep)

    def __init__(self, word: str) -> None:
        self.word = word

    @resilient("llm.method", registry=owner)
    async def complete(self, end: str) -> str:
        return self.word + end

    @resilient("llm.method", registry=owner)
    async def stream(self, end: str) -> AsyncIterator[str]:
        yield self.word
        yield end

    @resilient("llm.method", registry=owner)
    def iterate(self, end: str) -> AsyncIterator[str]:
        return self.stream(end)

    @classmethod
    @resilient("llm.method", registry=owner)
    async def of_class(cls, end: str) -> str:
        return cls.__name__ + end

    @staticmethod
    @resilient("llm.method", registry=owner)
    async def static(end: str) -> str:
        return end


@pytest.mark.anyio
async def test_methods_of_every_kind_can_be_guarded() -> None:
    one, other = Client("one"), Client("other")
    assert await one.complete("!") == "one!"
    assert await other.complete("?") == "other?"
    assert [item async for item in one.stream("!")] == ["one", "!"]
    assert [item async for item in other.iterate("!")] == ["other", "!"]
    assert await Client.of_class("!") == "Client!"
    assert await Client.static("!") == await one.static("!") == "!"
    assert inspect.iscoroutinefunction(one.complete)
    assert [guard.name for guard in Client.owner] == ["llm.method"]


def test_a_bound_method_is_copied_with_its_object() -> None:
    client = Client("one")
    copied: Any = copy.deepcopy(client.complete)
    assert copied.__self__ is not client
    assert copied.__func__ is Client.complete


# ---------------------------------------------------------------------- whose guard, and when


@pytest.mark.anyio
async def test_the_same_name_is_the_same_guard_and_the_same_breaker(owner: Guards) -> None:
    @resilient("llm.shared", Policy(), registry=owner)
    async def broken() -> None:
        raise ConnectionError("down")

    @resilient("llm.shared", registry=owner)
    async def sound() -> str:
        return "never reached"

    for _ in range(2):
        with pytest.raises(Exception, match=r"down|is open"):
            await broken()
    with pytest.raises(CircuitOpenError):
        await sound()
    assert owner.get("llm.shared").breaker.state.value == "open"
    assert [guard.name for guard in owner] == ["llm.shared"]


@pytest.mark.anyio
async def test_without_a_registry_the_guards_of_the_process_are_used(
    owner: Guards, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = guards()
    monkeypatch.setattr("lightrag_resilience.pipeline.registry._process_guards", owner)

    @resilient("llm.process")
    async def complete() -> str:
        return "done"

    assert await complete() == "done"
    assert [guard.name for guard in owner] == ["llm.process"]
    assert "llm.process" not in [guard.name for guard in before]


def test_decorating_makes_no_guard_and_reads_no_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(environ: object = None) -> Settings:
        raise AssertionError("the environment was read")

    monkeypatch.setattr("lightrag_resilience.config.settings.load_settings", read)
    lazy = Guards()
    for function in MODULE_LEVEL:
        resilient("llm.lazy", POLICY, registry=lazy)(function.__wrapped__)
    assert list(lazy) == []


async def drain(stream: AsyncIterable[Any], into: list[Any] | None = None) -> list[Any]:
    items = [] if into is None else into
    async for item in stream:
        items.append(item)
    return items


CALLS: list[tuple[Any, Callable[[Any], Any]]] = [
    (module_level, lambda function: asyncio.run(function("x"))),
    (module_generator, lambda function: asyncio.run(drain(function("x")))),
    (module_iterator, lambda function: asyncio.run(drain(function("x")))),
    (module_sync, lambda function: function("x")),
]


@pytest.mark.parametrize(("function", "call"), CALLS, ids=["coroutine", "stream", "it", "sync"])
def test_a_wrong_variable_is_reported_by_the_first_call(
    function: Any, call: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESILIENCE_LLM__RETRY__ATTEMPTS", "many")
    lazy = Guards(sleep=no_sleep)
    guarded = resilient("llm.wrong", registry=lazy)(function.__wrapped__)
    for _ in range(2):
        with pytest.raises(SettingsError, match="RESILIENCE_LLM__RETRY__ATTEMPTS is 'many'"):
            call(guarded)
    monkeypatch.delenv("RESILIENCE_LLM__RETRY__ATTEMPTS")
    assert "x" in call(guarded)
    lazy.threads.close()


@pytest.mark.parametrize(("function", "call"), CALLS, ids=["coroutine", "stream", "it", "sync"])
def test_a_second_policy_for_a_name_is_reported_by_the_first_call(
    function: Any, call: Callable[[Any], Any], owner: Guards
) -> None:
    owner.get("llm.twice", POLICY)
    guarded = resilient("llm.twice", Policy(), registry=owner)(function.__wrapped__)
    with pytest.raises(PolicyError, match=r"'llm\.twice' exists with another policy"):
        call(guarded)


def test_a_guarded_function_works_on_one_loop_after_the_other(owner: Guards) -> None:
    guarded = resilient("llm.loops", registry=owner)(module_level.__wrapped__)  # type: ignore[attr-defined]
    assert [asyncio.run(guarded("x", times=times)) for times in (1, 2)] == ["x", "xx"]


# ---------------------------------------------------------------------- streams


class Source:
    """A stream that fails at given starts, and says how often it was begun and closed."""

    def __init__(self, failures: int, *, after: int = 0) -> None:
        self.flaky = Flaky(failures)
        self.after = after
        self.closed = 0

    async def items(self, *words: str) -> AsyncIterator[str]:
        try:
            for position, word in enumerate(words):
                yield self.flaky.answer(word) if position == self.after else word
        finally:
            self.closed += 1

    def iterator(self, *words: str) -> AsyncIterator[str]:
        return self.items(*words)


KINDS_OF_STREAM = pytest.mark.parametrize("kind", ["items", "iterator"])


@pytest.mark.anyio
@KINDS_OF_STREAM
async def test_a_stream_is_begun_again_before_its_first_item(kind: str, owner: Guards) -> None:
    source = Source(2)
    guarded = resilient("llm.stream", POLICY, registry=owner)(getattr(source, kind))
    assert await drain(guarded("one", "two")) == ["ONE", "two"]
    assert (source.flaky.calls, source.closed) == (3, 3)


@pytest.mark.anyio
@KINDS_OF_STREAM
async def test_a_stream_is_not_begun_again_after_its_first_item(kind: str, owner: Guards) -> None:
    source = Source(1, after=1)
    guarded = resilient("llm.stream", POLICY, registry=owner)(getattr(source, kind))
    received: list[str] = []
    with pytest.raises(ConnectionError, match="failure 1"):
        await drain(guarded("one", "two"), received)
    assert received == ["one"]
    assert (source.flaky.calls, source.closed) == (1, 1)


@pytest.mark.anyio
@KINDS_OF_STREAM
async def test_a_stream_that_is_left_early_is_closed(kind: str, owner: Guards) -> None:
    source = Source(0)
    guarded: Any = resilient("llm.stream", registry=owner)(getattr(source, kind))
    async with contextlib.aclosing(guarded("one", "two")) as stream:
        async for item in stream:
            assert item == "ONE"
            break
        assert source.closed == 0
    assert source.closed == 1


@pytest.mark.anyio
async def test_a_stream_is_not_begun_before_it_is_iterated_over(owner: Guards) -> None:
    source = Source(0)
    guarded: Any = resilient("llm.stream", registry=owner)(source.items)
    stream = guarded("one")
    assert list(owner) == []
    await stream.aclose()
    assert source.flaky.calls == 0


@pytest.mark.anyio
async def test_a_guarded_stream_inside_its_own_guard_is_closed_too(owner: Guards) -> None:
    source = Source(0)
    inner = resilient("llm.nested", registry=owner)(source.items)
    outer = resilient("llm.nested", registry=owner)(inner)
    assert await drain(outer("one", "two")) == ["ONE", "two"]
    assert source.closed == 1


@pytest.mark.anyio
async def test_an_iterator_that_cannot_be_closed_passes_through(owner: Guards) -> None:
    class Countdown:
        def __init__(self) -> None:
            self.left = 2

        def __aiter__(self) -> Countdown:
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    @resilient("llm.countdown", registry=owner)
    def count() -> AsyncIterator[int]:
        return Countdown()

    async with owner.get("llm.countdown"):
        assert await drain(count()) == [1, 0]
    assert await drain(count()) == [1, 0]


# ---------------------------------------------------------------------- sync functions


def test_a_sync_function_is_called_again_when_it_fails(owner: Guards) -> None:
    flaky = Flaky(2)

    @resilient("llm.sync", POLICY, registry=owner)
    def complete(word: str, *, end: str = "!") -> str:
        return flaky.answer(word) + end

    assert complete("hello", end="?") == "HELLO?"
    assert flaky.calls == 3


def test_a_sync_function_runs_beside_its_caller_and_not_on_the_loop(owner: Guards) -> None:
    @resilient("llm.sync", registry=owner)
    def place() -> tuple[int, str]:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return threading.get_ident(), threading.current_thread().name

    ident, name = place()
    assert ident != threading.get_ident()
    assert name != "lightrag-resilience"
    assert in_thread(place)


def test_context_variables_pass_into_a_sync_function(owner: Guards) -> None:
    @resilient("llm.sync", registry=owner)
    def seen() -> str:
        return who.get()

    token = who.set("caller")
    assert seen() == "caller"
    who.reset(token)
    assert seen() == "nobody"


def test_a_sync_function_that_returns_an_awaitable_is_awaited(owner: Guards) -> None:
    async def answer() -> str:
        return "awaited"

    @resilient("llm.sync", registry=owner)
    def complete() -> Any:
        return answer()

    assert complete() == "awaited"


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
async def test_a_function_that_needs_the_loop_and_does_not_say_so_is_told(owner: Guards) -> None:
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
        return owned_by_a_guard()

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


# ---------------------------------------------------------------------- without a loop


def test_importing_and_decorating_need_no_event_loop() -> None:
    script = """
import asyncio, threading

def refuse(*args):
    raise AssertionError("an event loop was asked for")

kept = asyncio.new_event_loop, asyncio.get_event_loop
asyncio.new_event_loop = asyncio.get_event_loop = refuse
from lightrag_resilience import resilient

@resilient("llm")
async def complete(prompt: str) -> str:
    return prompt

@resilient("llm")
async def stream(prompt: str):
    yield prompt

@resilient("llm")
def sync(prompt: str) -> str:
    return prompt

assert threading.active_count() == 1
asyncio.new_event_loop, asyncio.get_event_loop = kept
assert asyncio.run(complete("a")) + sync("b") == "ab"
print("fine")
"""
    assert output_of(script) == ("fine\n", "")


def test_sync_functions_inside_each_other_never_run_out_of_threads(owner: Guards) -> None:
    depth = 60  # more than anyio's shared threads

    def descend(level: int) -> int:
        inner = resilient(f"level.{level}", registry=owner)(descend)
        return 1 + inner(level + 1) if level < depth else 1

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(descend, 1).result(60) == depth


@pytest.mark.parametrize("wrapped", [staticmethod(in_thread), classmethod(in_thread), 7, None])
def test_what_is_no_function_is_refused_when_it_is_decorated(wrapped: Any) -> None:
    with pytest.raises(UnsupportedCallError, match=f"not a {type(wrapped).__name__}"):
        resilient("llm")(wrapped)
