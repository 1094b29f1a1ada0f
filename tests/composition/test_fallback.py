"""A chain of functions: who is called, what is told of it, and no answer that nobody gave."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import inspect
import itertools
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest

from lightrag_resilience import (
    AllFailedError,
    Answered,
    AttemptTimeoutError,
    CircuitOpenError,
    DeadlineExceededError,
    Failure,
    FailureKind,
    Guards,
    Policy,
    PolicyError,
    ResilienceError,
    StaleCache,
    UnsupportedCallError,
    answered,
    resilient,
    with_fallbacks,
)
from lightrag_resilience.calls.call_context import owned_by_a_guard
from lightrag_resilience.composition.wait_for_recovery import patiently
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import Event, FellBack, StaleAnswered
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.runtime.callables import Kind
from lightrag_resilience.testing import VirtualTimeLoop
from support.guards import Scripted, down, guard_on_loop, now

pytestmark = pytest.mark.anyio
WAIT = 10.0  # seconds, a bound that is never reached


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def owner() -> Iterator[Guards]:
    made = Guards(settings=load_settings({}), clock=lambda: asyncio.get_running_loop().time())
    yield made
    made.close()


@pytest.fixture
def heard(owner: Guards) -> list[Event]:
    events: list[Event] = []
    owner.events.listen(events.append)
    return events


@pytest.fixture
def chain(owner: Guards) -> Callable[..., Any]:
    return functools.partial(with_fallbacks, registry=owner)


def named(name: str, *steps: Any) -> Any:
    """A coroutine function that does its steps in turn."""
    script = Scripted(*steps)

    async def function(*args: Any, **kwargs: Any) -> Any:
        return await script(*args, **kwargs)

    function.__name__ = name
    vars(function)["script"] = script
    return function


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------------- who is called


async def test_the_first_that_succeeds_answers_and_no_other_is_called(
    chain: Any, heard: list[Event]
) -> None:
    one, two = named("one", "first"), named("two", "second")
    assert await chain(one, two)() == "first"
    assert (two.script.calls, heard) == (0, [])


async def test_each_failure_leads_to_the_next_with_the_same_arguments(chain: Any) -> None:
    seen: list[Any] = []

    async def record(*args: Any, **kwargs: Any) -> str:
        seen.append((args, kwargs))
        if len(seen) < 3:
            raise down()
        return "third"

    assert await chain(record, record, record)("a", end="!") == "third"
    assert seen == [(("a",), {"end": "!"})] * 3


async def test_listeners_hear_who_takes_over_from_whom_and_why(
    chain: Any, heard: list[Event]
) -> None:
    functions = named("one", down()), named("two", TimeoutError("secret")), named("three", "x")
    await chain(*functions)("secret")
    assert heard == [
        FellBack("one", "two", "ConnectionRefusedError"),
        FellBack("two", "three", "TimeoutError"),
    ]


async def test_a_guarded_function_is_known_by_its_guard_and_others_by_their_own_names(
    chain: Any, owner: Guards, heard: list[Event]
) -> None:
    class Model:
        async def __call__(self) -> None:
            raise down()

    functions = (
        resilient("llm.openai", Policy(), registry=owner)(named("one", down())),
        functools.partial(named("two", down()), api_key="secret"),
        Model(),
        named("two", down()),
        named("three", "answer"),
    )
    await chain(*functions)()
    fell = [(event.dependency, event.to) for event in heard if isinstance(event, FellBack)]
    names = ["llm.openai", "two", "Model", "two (2)", "three"]
    assert fell == list(itertools.pairwise(names))


async def test_an_open_circuit_costs_no_call(chain: Any, owner: Guards) -> None:
    script = named("one", "first")
    one = resilient("llm.a", Policy(), registry=owner)(script)
    owner.get("llm.a", Policy()).breaker.open()
    found = await answered(chain(one, named("two", "second")))
    assert found == Answered("second", "two", None, ("llm.a: CircuitOpenError by hand",))
    assert script.script.calls == 0


async def test_a_bug_is_raised_as_it_is_and_nobody_else_is_called(chain: Any) -> None:
    bug, two = ValueError("a bug"), named("two", "second")
    with pytest.raises(ValueError, match="a bug") as caught:
        await chain(named("one", bug), two)()
    assert caught.value is bug
    assert not hasattr(bug, "__notes__")
    assert two.script.calls == 0


async def test_a_bug_in_a_fallback_says_what_it_stands_in_for(chain: Any) -> None:
    with pytest.raises(TypeError) as caught:
        await chain(named("one", down()), named("two", TypeError("a bug")), named("three", 3))()
    note = "lightrag_resilience: a fallback after one: ConnectionRefusedError"
    assert caught.value.__notes__ == [note]


async def test_when_decides_what_leads_to_the_next(chain: Any) -> None:
    picky = functools.partial(chain, when=lambda error: isinstance(error, LookupError))
    assert await picky(named("one", KeyError("a")), named("two", "second"))() == "second"
    with pytest.raises(ConnectionRefusedError):
        await picky(named("one", down()), named("two", "second"))()


async def test_a_chain_may_be_a_function_of_a_chain(chain: Any) -> None:
    inner = chain(named("one", down()), named("two", TimeoutError()))
    found = await answered(chain(inner, named("three", "third")))
    reason = "one: AllFailedError (one: ConnectionRefusedError; two: TimeoutError)"
    assert (found.value, found.reasons) == ("third", (reason,))


async def test_functions_of_a_chain_are_called_by_many_at_once(chain: Any) -> None:
    async def one(number: int) -> int:
        await asyncio.sleep(number % 3)
        if number % 2:
            raise down()
        return number

    async def two(number: int) -> int:
        return -number

    complete = chain(one, two)
    answers = await asyncio.gather(*map(complete, range(20)))
    assert answers == [-number if number % 2 else number for number in range(20)]


# ---------------------------------------------------------------------- when all fail


async def test_when_all_fail_one_error_tells_of_each_and_quotes_none(chain: Any) -> None:
    request = httpx.Request("POST", "https://provider.invalid/secret")
    response = httpx.Response(529, headers={"retry-after": "7"}, request=request)
    errors = [
        CircuitOpenError("llm.a", 8.2, "after 5 failures in a row"),
        httpx.HTTPStatusError("secret", request=request, response=response),
        ConnectionRefusedError("secret"),
    ]
    with pytest.raises(AllFailedError) as caught:
        await chain(*(named(f"llm.{n}", e) for n, e in zip("abc", errors, strict=True)))("secret")
    failed = caught.value
    assert str(failed) == (
        "'llm.a' and its fallbacks failed ("
        "llm.a: CircuitOpenError after 5 failures in a row; "
        "llm.b: HTTPStatusError 529; llm.c: ConnectionRefusedError); try again in 7.0 s"
    )
    assert failed.errors == tuple(errors)
    assert (failed.dependency, failed.retry_after) == ("llm.a", 7.0)
    assert failed.__cause__ is errors[-1]
    assert isinstance(failed, ResilienceError)
    assert not isinstance(failed, (TimeoutError, BaseExceptionGroup))


async def test_a_wait_that_nobody_knows_is_not_told(chain: Any) -> None:
    with pytest.raises(AllFailedError, match=r"ConnectionRefusedError\)$") as caught:
        await chain(named("one", down()))()
    assert caught.value.retry_after is None


async def test_an_error_with_odd_attributes_does_not_hide_the_failure(chain: Any) -> None:
    class OddError(Exception):
        @property
        def status_code(self) -> int:
            raise RuntimeError

    with pytest.raises(AllFailedError, match=r"\(one: OddError\)"):
        await chain(named("one", OddError()))()


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ((down(), ValueError()), FailureKind.TRANSIENT),
        ((down(), TimeoutError()), FailureKind.UNKNOWN_OUTCOME),
        ((CircuitOpenError("a", 3.0), CircuitOpenError("b", 4.0)), FailureKind.FATAL),
        ((), FailureKind.TRANSIENT),
    ],
)
def test_a_guard_around_a_chain_learns_what_another_call_could_do(
    errors: tuple[Exception, ...], kind: FailureKind
) -> None:
    assert classify(AllFailedError("llm", 3.0, "", errors)) == Failure(kind)


async def test_ingest_waits_for_a_chain_that_was_refused(chain: Any, owner: Guards) -> None:
    guard = guard_on_loop()
    refused = CircuitOpenError("llm.a", 8.0)
    inner = chain(named("one", refused, "answer"))
    complete = chain(inner, named("two", AllFailedError("x", None, "", (refused,)), "no"))
    assert await patiently(guard, lambda: guard.call(complete), patience=60) == "answer"
    assert 8.0 <= now() <= 8.5


async def test_ingest_does_not_wait_for_a_chain_that_waiting_cannot_mend(chain: Any) -> None:
    guard = guard_on_loop()
    complete = chain(named("one", ValueError()), when=lambda _: True)
    with pytest.raises(AllFailedError):
        await patiently(guard, lambda: guard.call(complete), patience=60)
    assert now() == 0


@pytest.mark.parametrize("last", [True, False])
async def test_no_circle_keeps_what_a_call_was_given(last: bool, chain: Any) -> None:  # noqa: FBT001
    class Prompt:
        pass

    async def one(prompt: Prompt) -> None:
        raise down()

    async def two(prompt: Prompt) -> str:
        if last:
            raise down()
        return "answer"

    prompt = Prompt()
    gone = weakref.ref(prompt)
    gc.disable()
    try:
        with contextlib.suppress(AllFailedError):
            await chain(one, two)(prompt)
        del prompt
        assert gone() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------------- time and cancellation


async def test_being_cancelled_ends_the_chain(chain: Any, heard: list[Event]) -> None:
    two = named("two", "second")
    task = asyncio.create_task(chain(named("one", 60.0), two, total=100)())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (two.script.calls, heard) == (0, [])


async def test_a_callers_time_limit_stays_the_callers(chain: Any) -> None:
    two = named("two", "second")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await chain(named("one", 60.0), two, total=100)()
    with anyio.move_on_after(1) as scope:
        await chain(named("one", 60.0), two)()
    assert scope.cancelled_caught
    assert two.script.calls == 0


async def test_an_attempt_that_times_out_leads_to_the_next(chain: Any, owner: Guards) -> None:
    policy = Policy().with_changes(attempt_timeout=2.0, attempts=1)
    one = resilient("llm.slow", policy, registry=owner)(named("one", 60.0))
    found = await answered(chain(one, named("two", "second"), total=10))
    assert found.reasons == ("llm.slow: AttemptTimeoutError after 2 s",)
    assert now() == 2.0


async def test_the_time_for_all_ends_the_chain(chain: Any) -> None:
    three = named("three", "third")
    functions = named("one", down()), named("two", 60.0), three
    with pytest.raises(AllFailedError) as caught:
        await chain(*functions, total=5)()
    assert now() == 5.0
    assert "(one: ConnectionRefusedError; two: DeadlineExceededError after 5 s for all; " in str(
        caught.value
    )
    assert "three: not called)" in str(caught.value)
    assert isinstance(caught.value.errors[1], DeadlineExceededError)
    assert caught.value.__cause__ is caught.value.errors[1]
    assert three.script.calls == 0


async def test_a_chain_within_its_time_is_not_disturbed(chain: Any) -> None:
    complete = chain(named("one", TimeoutError("its own")), named("two", "second"), total=5)
    assert await complete() == "second"
    await asyncio.sleep(10)
    never = chain(named("one", TimeoutError("its own")), when=lambda _: False, total=5)
    with pytest.raises(TimeoutError, match="its own"):
        await never()


async def test_a_function_that_swallows_the_end_of_the_time_is_the_last(chain: Any) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise down() from None

    two = named("two", "second")
    with pytest.raises(AllFailedError, match="two: not called"):
        await chain(stubborn, two, total=5)()
    assert two.script.calls == 0


# ---------------------------------------------------------------------- streams


class Source:
    """Streams words; an exception among them is raised. Says how often it was begun and closed."""

    def __init__(self, *words: Any) -> None:
        self.words = words
        self.begun = self.closed = 0

    async def generator(self) -> AsyncIterator[Any]:
        self.begun += 1
        try:
            for word in self.words:
                if isinstance(word, Exception):
                    raise word
                if isinstance(word, int):
                    await asyncio.sleep(word)
                else:
                    yield word
        finally:
            self.closed += 1

    def iterator(self) -> AsyncIterator[Any]:
        return self.generator()

    async def coroutine(self) -> AsyncIterator[Any]:
        return self.generator()


async def received(function: Any) -> list[Any]:
    stream = function()
    return [word async for word in (await stream if inspect.isawaitable(stream) else stream)]


KINDS_OF_STREAM = pytest.mark.parametrize("kind", ["generator", "iterator", "coroutine"])


@KINDS_OF_STREAM
@pytest.mark.parametrize("guarded", [True, False])
async def test_a_stream_that_cannot_begin_is_begun_elsewhere(
    kind: str,
    guarded: bool,  # noqa: FBT001
    chain: Any,
    owner: Guards,
    heard: list[Event],
) -> None:
    one, two = Source(down(), "never"), Source("a", "b")
    first, second = getattr(one, kind), getattr(two, kind)
    if guarded:
        plain = Policy().with_changes(attempts=1)
        first = resilient("llm.a", plain, registry=owner)(first)
        second = resilient("llm.b", plain, registry=owner)(second)
    assert await received(chain(first, second)) == ["a", "b"]
    assert (one.begun, one.closed, two.closed) == (1, 1, 1)
    assert [type(event) for event in heard].count(FellBack) == 1


@KINDS_OF_STREAM
async def test_after_its_first_item_a_streams_error_is_the_callers(kind: str, chain: Any) -> None:
    one, two = Source("a", down()), Source("b")
    stream = chain(getattr(one, kind), getattr(two, kind))()
    stream = await stream if inspect.isawaitable(stream) else stream
    assert await anext(stream) == "a"
    with pytest.raises(ConnectionRefusedError):
        await anext(stream)
    assert (two.begun, one.closed) == (0, 1)


@KINDS_OF_STREAM
async def test_a_stream_without_items_is_an_answer(kind: str, chain: Any) -> None:
    two = Source("b")
    assert await received(chain(getattr(Source(), kind), getattr(two, kind))) == []
    assert two.begun == 0


@KINDS_OF_STREAM
async def test_a_stream_that_is_left_early_is_closed(kind: str, chain: Any) -> None:
    source = Source("a", "b")
    stream = chain(getattr(source, kind))()
    async with contextlib.aclosing(await stream if inspect.isawaitable(stream) else stream) as it:
        assert await anext(it) == "a"
        assert source.closed == 0
    assert source.closed == 1


async def test_a_stream_knows_its_source(chain: Any) -> None:
    found = await answered(chain(Source(down()).generator, Source("b").iterator))
    assert (found.source, found.is_stale) == ("iterator", False)
    assert [word async for word in found.value] == ["b"]


async def test_a_stream_whose_time_is_up_before_its_first_item_fails(chain: Any) -> None:
    one = Source(60, "a")
    with pytest.raises(AllFailedError, match="after 5 s for all"):
        await received(chain(one.generator, total=5))
    assert one.closed == 1
    assert await received(chain(Source("a", 60, "b").generator, total=5)) == ["a", "b"]


async def test_a_stream_that_cannot_begin_is_closed(chain: Any) -> None:
    closed: list[str] = []

    class Broken:
        def __aiter__(self) -> Broken:
            return self

        async def __anext__(self) -> str:
            raise down()

        async def aclose(self) -> None:
            closed.append("closed")

    async def begin() -> Any:
        return Broken()

    assert await received(chain(begin, Source("b").coroutine)) == ["b"]
    assert closed == ["closed"]


async def test_an_iterator_that_cannot_be_closed_passes_through(chain: Any) -> None:
    class Once:
        def __init__(self) -> None:
            self.words = ["a"]

        def __aiter__(self) -> Once:
            return self

        async def __anext__(self) -> str:
            if not self.words:
                raise StopAsyncIteration
            return self.words.pop()

    def begin() -> AsyncIterator[str]:
        return Once()

    assert await received(chain(begin)) == ["a"]


# ---------------------------------------------------------------------- sync functions


def test_a_sync_chain_is_called_like_any_function() -> None:
    owner = Guards(settings=load_settings({}))
    chain = functools.partial(with_fallbacks, registry=owner)

    def one(word: str) -> str:
        raise down()

    @resilient("llm.sync", registry=owner)
    def two(word: str) -> str:
        assert owned_by_a_guard()
        return word.upper()

    assert chain(one, two)("hello") == "HELLO"
    with pytest.raises(AllFailedError):
        chain(one)("hello")
    owner.close()


async def test_a_sync_chain_is_refused_on_an_event_loop_but_can_be_awaited(chain: Any) -> None:
    def one(word: str) -> str:
        return word.upper()

    complete = chain(one)
    with pytest.raises(UnsupportedCallError, match="would block the event loop: use 'await ans"):
        complete("hello")
    assert (await answered(complete, "hello")).value == "HELLO"


# ---------------------------------------------------------------------- old answers


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> StaleCache:
    return StaleCache(max_age=60, max_entries=2, clock=clock)


async def test_an_old_answer_is_given_to_who_asks_for_it_and_says_that_it_is_old(
    chain: Any, cache: StaleCache, clock: Clock, heard: list[Event]
) -> None:
    functions = named("one", down()), named("two", "answer", TimeoutError())
    complete = chain(*functions, stale=cache)
    fresh = await answered(complete, "prompt")
    assert (fresh.is_stale, fresh.stale_for) == (False, None)
    clock.now += 10
    heard.clear()
    old = await answered(complete, "prompt")
    reasons = ("one: ConnectionRefusedError", "two: TimeoutError")
    assert old == Answered("answer", "two", 10.0, reasons)
    assert old.is_stale
    assert heard[-1] == StaleAnswered("one", "two", 10.0)


async def test_who_calls_the_chain_itself_gets_no_old_answer(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete("prompt")
    with pytest.raises(AllFailedError):
        await complete("prompt")
    assert (await answered(complete, "prompt")).is_stale


async def test_without_a_cache_there_is_no_old_answer(chain: Any) -> None:
    complete = chain(named("one", "answer", down()))
    await answered(complete)
    with pytest.raises(AllFailedError):
        await answered(complete)


async def test_another_question_has_no_old_answer(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete(1, end=1)
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((2,), {"end": 1}),
        ((1,), {"end": 2}),
        ((1,), {}),
        ((1, 1), {}),
        ((True,), {"end": 1}),
        ((1,), {"end": 1.0}),
        (((1,),), {"end": 1}),
        (((True,),), {"end": 1}),
        ((frozenset({1}),), {"end": 1}),
        ((frozenset({1.0}),), {"end": 1}),
    ]
    for args, kwargs in others:
        with pytest.raises(AllFailedError):
            await answered(complete, *args, **kwargs)
    keys = [cache.key_of(complete, args, kwargs) for args, kwargs in others]
    assert len(set(keys)) == len(others)
    assert (await answered(complete, 1, end=1)).value == "answer"


async def test_the_order_of_named_arguments_does_not_matter(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete(a=1, b="x")
    assert (await answered(complete, b="x", a=1)).value == "answer"


async def test_another_chain_has_other_answers(chain: Any, cache: StaleCache) -> None:
    await chain(named("one", "answer"), stale=cache)("prompt")
    with pytest.raises(AllFailedError):
        await answered(chain(named("two", down()), stale=cache), "prompt")


async def test_an_answer_that_is_too_old_is_forgotten(
    chain: Any, cache: StaleCache, clock: Clock
) -> None:
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete()
    clock.now += 60
    assert (await answered(complete)).stale_for == 60.0
    clock.now += 0.5
    with pytest.raises(AllFailedError):
        await answered(complete)
    assert len(cache) == 0


async def test_the_latest_answer_is_remembered(chain: Any, cache: StaleCache, clock: Clock) -> None:
    complete = chain(named("one", "old", "new", down()), stale=cache)
    await complete()
    clock.now += 50
    await complete()
    clock.now += 50
    found = await answered(complete)
    assert (found.value, found.stale_for, len(cache)) == ("new", 50.0, 1)


async def test_the_longest_unused_answer_makes_room(chain: Any, cache: StaleCache) -> None:
    up = True

    async def one(word: str) -> str:
        if not up:
            raise down()
        return word.upper()

    complete = chain(one, stale=cache)
    for word in "aba":
        await complete(word)
    up = False
    assert (await answered(complete, "b")).value == "B"
    up = True
    await complete("c")
    up = False
    assert len(cache) == 2
    assert (await answered(complete, "b")).value == "B"
    with pytest.raises(AllFailedError):
        await answered(complete, "a")


async def test_an_answer_given_anew_is_the_last_to_make_room(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "A", "B", "A", "C", down()), stale=cache)
    for word in "abac":
        await complete(word)
    assert (await answered(complete, "a")).value == "A"
    with pytest.raises(AllFailedError):
        await answered(complete, "b")


async def test_nobody_can_change_what_is_remembered(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", [1], down()), stale=cache)
    (await complete()).append(2)
    (await answered(complete)).value.append(3)
    assert (await answered(complete)).value == [1]


async def test_what_cannot_be_copied_is_not_remembered(chain: Any, cache: StaleCache) -> None:
    answer = (each for each in "answer")
    assert await chain(named("one", answer), stale=cache)() is answer
    assert len(cache) == 0


async def test_a_stream_is_not_remembered(chain: Any, cache: StaleCache) -> None:
    class Words:
        def __aiter__(self) -> Words:
            return self

        async def __anext__(self) -> str:
            raise StopAsyncIteration

    async def begin() -> Any:
        return Words()

    assert await received(chain(begin, stale=cache)) == []
    assert len(cache) == 0


async def test_a_bug_gets_no_old_answer(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "answer", ValueError("a bug")), stale=cache)
    await complete()
    with pytest.raises(ValueError, match="a bug"):
        await answered(complete)


async def test_a_chain_whose_time_is_up_has_an_old_answer(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "answer", 60.0), stale=cache, total=5)
    await complete()
    found = await answered(complete)
    assert found.reasons == ("one: DeadlineExceededError after 5 s for all",)


async def test_arguments_that_cannot_be_told_apart_are_refused_before_anything_is_called(
    chain: Any, cache: StaleCache
) -> None:
    one = named("one", "answer")
    complete = chain(one, stale=cache)
    for args, kwargs, place in [(("a", ["secret"]), {}, "2"), ((), {"b": ["secret"]}, "'b'")]:
        with pytest.raises(UnsupportedCallError) as caught:
            await complete(*args, **kwargs)
        assert str(caught.value) == (
            f"Argument {place} of a call with a StaleCache must be hashable, not a list; "
            "give StaleCache(key=…) a function that returns what the answer depends on"
        )
    assert one.script.calls == 0


async def test_a_key_function_tells_calls_apart(chain: Any) -> None:
    cache = StaleCache(max_age=60, key=lambda prompt, **_: prompt)
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete("prompt", history=[1])
    assert (await answered(complete, "prompt", history=[2])).value == "answer"
    with pytest.raises(AllFailedError):
        await answered(complete, "other", history=[1])
    with pytest.raises(UnsupportedCallError, match="What the key function of a StaleCache returns"):
        await complete(["prompt"])


async def test_a_cleared_cache_knows_nothing(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete()
    cache.clear()
    with pytest.raises(AllFailedError):
        await answered(complete)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"max_age": 0}, "max_age"),
        ({"max_age": float("nan")}, "max_age"),
        ({"max_age": 60, "max_entries": 0}, "max_entries"),
        ({"max_age": 60, "max_entries": 1.5}, "max_entries"),
    ],
)
def test_a_cache_without_bounds_is_refused(wrong: Any, name: str) -> None:
    with pytest.raises(PolicyError, match=rf"StaleCache\.{name} must be a"):
        StaleCache(**wrong)


# ---------------------------------------------------------------------- how it is made


@pytest.mark.parametrize(
    ("functions", "options", "error"),
    [
        ((), {}, "with_fallbacks needs at least one function"),
        ((named("one"), 7), {}, "with_fallbacks needs functions, not a int"),
        ((staticmethod(len),), {}, "with_fallbacks needs functions, not a staticmethod"),
        (
            (named("one"), Source().generator),
            {},
            "with_fallbacks needs functions of one kind, not coroutine function, "
            + Kind.STREAM.value,
        ),
        (
            (named("one"), len),
            {},
            "with_fallbacks needs functions of one kind, not coroutine function, function",
        ),
        (
            (Source().generator,),
            {"stale": StaleCache(max_age=1)},
            "A StaleCache remembers answers, not streams",
        ),
        (
            (len,),
            {"total": 0},
            "with_fallbacks: total must be a number above 0 and at most 86400, or none, not 0",
        ),
    ],
)
def test_what_makes_no_chain_is_refused_at_once(functions: Any, options: Any, error: str) -> None:
    with pytest.raises((UnsupportedCallError, PolicyError)) as caught:
        with_fallbacks(*functions, **options)
    assert str(caught.value) == error


async def test_only_a_chain_can_say_who_answered(chain: Any, owner: Guards) -> None:
    complete = chain(named("one", "answer"))
    for other in (named("one"), resilient("llm.x", registry=owner)(complete), 7):
        with pytest.raises(UnsupportedCallError, match="needs what with_fallbacks"):
            await answered(other)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("function", "is_of_its_kind"),
    [
        (named("one"), inspect.iscoroutinefunction),
        (Source().generator, inspect.isasyncgenfunction),
        (Source().iterator, inspect.isasyncgenfunction),
        (lambda word: word, inspect.isfunction),
    ],
)
def test_a_chain_looks_like_its_first_function_and_can_be_copied(
    function: Any, is_of_its_kind: Callable[[Any], bool]
) -> None:
    complete: Any = with_fallbacks(function)
    assert complete.__name__ == function.__name__
    assert complete.__wrapped__ is function
    assert inspect.signature(complete) == inspect.signature(function)
    assert is_of_its_kind(complete)
    assert copy.deepcopy({"llm": [complete]}) == {"llm": [complete]}


async def test_a_chain_keeps_the_attributes_of_its_first_function(chain: Any) -> None:
    one = named("one", "answer")
    one.embedding_dim = 1024
    assert chain(one, named("two")).embedding_dim == 1024


async def test_a_chain_can_be_a_method(chain: Any) -> None:
    class Client:
        word = "a"

        async def one(self, end: str) -> str:
            raise down()

        async def two(self, end: str) -> str:
            return self.word + end

        complete = chain(one, two)

    assert await Client().complete("!") == "a!"


def test_an_attempt_timeout_is_no_reason_for_a_timeout_error() -> None:
    error = AllFailedError("llm", None, "", (AttemptTimeoutError("llm"),))
    assert not isinstance(error, TimeoutError)
