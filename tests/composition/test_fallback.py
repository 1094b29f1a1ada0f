"""A chain of functions: which is called, which events it publishes, and no invented answer."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import inspect
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from lightrag_resilience import (
    AllFailedError,
    AttemptTimeoutError,
    ChainAnswer,
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
    call_chain,
    resilient,
    with_fallbacks,
)
from lightrag_resilience.calls.call_context import inside_guarded_call
from lightrag_resilience.composition.wait_for_recovery import Patience, retry_until_available
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import Event, FallbackUsed
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.runtime.callables import Kind
from support.chains import Source, named
from support.guards import down, guard_on_loop, now

pytestmark = pytest.mark.anyio
WAIT = 10.0  # seconds, a bound that is never reached


# ---------------------------------------------------------------------- which function is called


async def test_the_first_success_is_the_answer_and_no_other_function_is_called(
    chain: Any, published: list[Event]
) -> None:
    one, two = named("one", "first"), named("two", "second")
    assert await chain(one, two)() == "first"
    assert (two.script.calls, published) == (0, [])


async def test_each_failure_calls_the_next_function_with_the_same_arguments(chain: Any) -> None:
    seen: list[Any] = []

    async def record(*args: Any, **kwargs: Any) -> str:
        seen.append((args, kwargs))
        if len(seen) < 3:
            raise down()
        return "third"

    assert await chain(record, record, record)("a", end="!") == "third"
    assert seen == [(("a",), {"end": "!"})] * 3


async def test_fallback_events_name_both_functions_and_the_error(
    chain: Any, published: list[Event]
) -> None:
    functions = named("one", down()), named("two", TimeoutError("secret")), named("three", "x")
    await chain(*functions)("secret")
    assert published == [
        FallbackUsed("one", "two", "ConnectionRefusedError"),
        FallbackUsed("two", "three", "TimeoutError"),
    ]


async def test_a_guarded_function_is_known_by_its_guard_and_others_by_their_own_names(
    chain: Any, owner: Guards, published: list[Event]
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
    fell = [(event.dependency, event.to) for event in published if isinstance(event, FallbackUsed)]
    names = ["llm.openai", "two", "Model", "two (2)", "three"]
    assert fell == list(itertools.pairwise(names))


async def test_an_open_circuit_costs_no_call(chain: Any, owner: Guards) -> None:
    script = named("one", "first")
    one = resilient("llm.a", Policy(), registry=owner)(script)
    owner.get("llm.a", Policy()).breaker.open()
    found = await call_chain(chain(one, named("two", "second")))
    assert found == ChainAnswer("second", "two", None, ("llm.a: CircuitOpenError by hand",))
    assert script.script.calls == 0


async def test_a_bug_is_raised_and_no_other_function_is_called(chain: Any) -> None:
    bug, two = ValueError("a bug"), named("two", "second")
    with pytest.raises(ValueError, match="a bug") as caught:
        await chain(named("one", bug), two)()
    assert caught.value is bug
    assert not hasattr(bug, "__notes__")
    assert two.script.calls == 0


async def test_a_bug_in_a_fallback_has_a_note_of_the_failures_before(chain: Any) -> None:
    with pytest.raises(TypeError) as caught:
        await chain(named("one", down()), named("two", TypeError("a bug")), named("three", 3))()
    note = "lightrag_resilience: a fallback after one: ConnectionRefusedError"
    assert caught.value.__notes__ == [note]


async def test_when_decides_which_errors_fall_back(chain: Any) -> None:
    picky = functools.partial(chain, when=lambda error: isinstance(error, LookupError))
    assert await picky(named("one", KeyError("a")), named("two", "second"))() == "second"
    with pytest.raises(ConnectionRefusedError):
        await picky(named("one", down()), named("two", "second"))()


async def test_chains_can_be_nested(chain: Any) -> None:
    inner = chain(named("one", down()), named("two", TimeoutError()))
    found = await call_chain(chain(inner, named("three", "third")))
    reason = "one: AllFailedError (one: ConnectionRefusedError; two: TimeoutError)"
    assert (found.value, found.reasons) == ("third", (reason,))


async def test_a_chain_serves_concurrent_calls(chain: Any) -> None:
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


async def test_all_failed_error_names_each_error_and_quotes_no_text(chain: Any) -> None:
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


async def test_all_failed_error_has_no_retry_after_if_none_is_known(chain: Any) -> None:
    with pytest.raises(AllFailedError, match=r"ConnectionRefusedError\)$") as caught:
        await chain(named("one", down()))()
    assert caught.value.retry_after is None


async def test_an_error_with_odd_attributes_does_not_hide_the_chains_failure(chain: Any) -> None:
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
def test_a_guard_around_a_chain_classifies_by_its_best_member(
    errors: tuple[Exception, ...], kind: FailureKind
) -> None:
    assert classify(AllFailedError("llm", 3.0, "", errors)) == Failure(kind)


async def test_ingest_waits_for_a_chain_with_a_rejected_call(chain: Any, owner: Guards) -> None:
    guard = guard_on_loop()
    refused = CircuitOpenError("llm.a", 8.0)
    inner = chain(named("one", refused, "answer"))
    complete = chain(inner, named("two", AllFailedError("x", None, "", (refused,)), "no"))
    assert (
        await retry_until_available(guard, lambda: guard.call(complete), patience=Patience(60))
        == "answer"
    )
    assert 8.0 <= now() <= 8.5


async def test_ingest_does_not_wait_for_a_chain_that_waiting_cannot_mend(chain: Any) -> None:
    guard = guard_on_loop()
    complete = chain(named("one", ValueError()), when=lambda _: True)
    with pytest.raises(AllFailedError):
        await retry_until_available(guard, lambda: guard.call(complete), patience=Patience(60))
    assert now() == 0


@pytest.mark.parametrize("last", [True, False])
async def test_no_reference_cycle_keeps_the_arguments_of_a_call(last: bool, chain: Any) -> None:  # noqa: FBT001
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


async def test_a_cancellation_ends_the_chain(chain: Any, published: list[Event]) -> None:
    two = named("two", "second")
    task = asyncio.create_task(chain(named("one", 60.0), two, total=100)())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (two.script.calls, published) == (0, [])


async def test_a_callers_timeout_is_raised_unchanged(chain: Any) -> None:
    two = named("two", "second")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await chain(named("one", 60.0), two, total=100)()
    with anyio.move_on_after(1) as scope:
        await chain(named("one", 60.0), two)()
    assert scope.cancelled_caught
    assert two.script.calls == 0


async def test_an_attempt_timeout_falls_back(chain: Any, owner: Guards) -> None:
    policy = Policy().with_changes(attempt_timeout=2.0, attempts=1)
    one = resilient("llm.slow", policy, registry=owner)(named("one", 60.0))
    found = await call_chain(chain(one, named("two", "second"), total=10))
    assert found.reasons == ("llm.slow: AttemptTimeoutError after 2 s",)
    assert now() == 2.0


async def test_the_total_time_ends_the_chain(chain: Any) -> None:
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


async def test_a_chain_within_its_total_time_answers(chain: Any) -> None:
    complete = chain(named("one", TimeoutError("its own")), named("two", "second"), total=5)
    assert await complete() == "second"
    await asyncio.sleep(10)
    never = chain(named("one", TimeoutError("its own")), when=lambda _: False, total=5)
    with pytest.raises(TimeoutError, match="its own"):
        await never()


async def test_no_function_follows_one_that_swallows_the_total_timeout(chain: Any) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise down() from None

    two = named("two", "second")
    with pytest.raises(AllFailedError, match="two: not called"):
        await chain(stubborn, two, total=5)()
    assert two.script.calls == 0


# ---------------------------------------------------------------------- sync functions


def test_a_sync_chain_is_called_like_any_function() -> None:
    owner = Guards(settings=load_settings({}))
    chain = functools.partial(with_fallbacks, registry=owner)

    def one(word: str) -> str:
        raise down()

    @resilient("llm.sync", registry=owner)
    def two(word: str) -> str:
        assert inside_guarded_call()
        return word.upper()

    assert chain(one, two)("hello") == "HELLO"
    with pytest.raises(AllFailedError):
        chain(one)("hello")
    owner.close()


async def test_a_sync_chain_is_refused_on_an_event_loop_but_call_chain_works(chain: Any) -> None:
    def one(word: str) -> str:
        return word.upper()

    complete = chain(one)
    with pytest.raises(
        UnsupportedCallError, match="would block the event loop: use 'await call_chain"
    ):
        complete("hello")
    assert (await call_chain(complete, "hello")).value == "HELLO"


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
            "A StaleCache keeps answers, not streams",
        ),
        (
            (len,),
            {"total": 0},
            "with_fallbacks: total must be a number above 0 and at most 86400, or none, not 0",
        ),
    ],
)
def test_invalid_arguments_of_a_chain_are_refused_at_once(
    functions: Any, options: Any, error: str
) -> None:
    with pytest.raises((UnsupportedCallError, PolicyError)) as caught:
        with_fallbacks(*functions, **options)
    assert str(caught.value) == error


async def test_call_chain_refuses_what_is_no_chain(chain: Any, owner: Guards) -> None:
    complete = chain(named("one", "answer"))
    for other in (named("one"), resilient("llm.x", registry=owner)(complete), 7):
        with pytest.raises(UnsupportedCallError, match="needs what with_fallbacks"):
            await call_chain(other)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("function", "is_of_its_kind"),
    [
        (named("one"), inspect.iscoroutinefunction),
        (Source().generator, inspect.isasyncgenfunction),
        (Source().iterator, inspect.isasyncgenfunction),
        (lambda word: word, inspect.isfunction),
    ],
)
def test_a_chain_has_the_names_of_its_first_function_and_can_be_copied(
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


def test_an_attempt_timeout_error_is_no_timeout_error() -> None:
    error = AllFailedError("llm", None, "", (AttemptTimeoutError("llm"),))
    assert not isinstance(error, TimeoutError)
