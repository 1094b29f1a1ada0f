"""Old answers of a chain: what is cached, for how long, and when it is served."""

from __future__ import annotations

from typing import Any

import pytest

from lightrag_resilience import (
    AllFailedError,
    ChainAnswer,
    PolicyError,
    StaleCache,
    UnsupportedCallError,
    call_chain,
)
from lightrag_resilience.events import Event, StaleAnswerServed
from support.chains import named, received
from support.guards import down

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------------- old answers


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> StaleCache:
    return StaleCache(max_age=60, max_entries=2, clock=clock)


async def test_call_chain_returns_a_stale_answer_with_its_age(
    chain: Any, cache: StaleCache, clock: Clock, published: list[Event]
) -> None:
    functions = named("one", down()), named("two", "answer", TimeoutError())
    complete = chain(*functions, stale=cache)
    fresh = await call_chain(complete, "prompt")
    assert (fresh.is_stale, fresh.stale_for) == (False, None)
    clock.now += 10
    published.clear()
    old = await call_chain(complete, "prompt")
    reasons = ("one: ConnectionRefusedError", "two: TimeoutError")
    assert old == ChainAnswer("answer", "two", 10.0, reasons)
    assert old.is_stale
    assert published[-1] == StaleAnswerServed("one", "two", 10.0)


async def test_calling_the_chain_itself_returns_no_stale_answer(
    chain: Any, cache: StaleCache
) -> None:
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete("prompt")
    with pytest.raises(AllFailedError):
        await complete("prompt")
    assert (await call_chain(complete, "prompt")).is_stale


async def test_without_a_cache_there_is_no_stale_answer(chain: Any) -> None:
    complete = chain(named("one", "answer", down()))
    await call_chain(complete)
    with pytest.raises(AllFailedError):
        await call_chain(complete)


async def test_other_arguments_have_no_stale_answer(chain: Any, cache: StaleCache) -> None:
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
            await call_chain(complete, *args, **kwargs)
    keys = [cache.key_of(complete, args, kwargs) for args, kwargs in others]
    assert len(set(keys)) == len(others)
    assert (await call_chain(complete, 1, end=1)).value == "answer"


async def test_the_order_of_named_arguments_does_not_matter(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete(a=1, b="x")
    assert (await call_chain(complete, b="x", a=1)).value == "answer"


async def test_chains_do_not_share_cached_answers(chain: Any, cache: StaleCache) -> None:
    await chain(named("one", "answer"), stale=cache)("prompt")
    with pytest.raises(AllFailedError):
        await call_chain(chain(named("two", down()), stale=cache), "prompt")


async def test_an_answer_older_than_max_age_is_removed(
    chain: Any, cache: StaleCache, clock: Clock
) -> None:
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete()
    clock.now += 60
    assert (await call_chain(complete)).stale_for == 60.0
    clock.now += 0.5
    with pytest.raises(AllFailedError):
        await call_chain(complete)
    assert len(cache) == 0


async def test_the_latest_answer_is_cached(chain: Any, cache: StaleCache, clock: Clock) -> None:
    complete = chain(named("one", "old", "new", down()), stale=cache)
    await complete()
    clock.now += 50
    await complete()
    clock.now += 50
    found = await call_chain(complete)
    assert (found.value, found.stale_for, len(cache)) == ("new", 50.0, 1)


async def test_the_least_recently_used_answer_is_evicted(chain: Any, cache: StaleCache) -> None:
    up = True

    async def one(word: str) -> str:
        if not up:
            raise down()
        return word.upper()

    complete = chain(one, stale=cache)
    for word in "aba":
        await complete(word)
    up = False
    assert (await call_chain(complete, "b")).value == "B"
    up = True
    await complete("c")
    up = False
    assert len(cache) == 2
    assert (await call_chain(complete, "b")).value == "B"
    with pytest.raises(AllFailedError):
        await call_chain(complete, "a")


async def test_an_answer_stored_again_is_the_last_to_be_evicted(
    chain: Any, cache: StaleCache
) -> None:
    complete = chain(named("one", "A", "B", "A", "C", down()), stale=cache)
    for word in "abac":
        await complete(word)
    assert (await call_chain(complete, "a")).value == "A"
    with pytest.raises(AllFailedError):
        await call_chain(complete, "b")


async def test_a_cached_answer_cannot_be_changed(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", [1], down()), stale=cache)
    (await complete()).append(2)
    (await call_chain(complete)).value.append(3)
    assert (await call_chain(complete)).value == [1]


async def test_an_answer_that_cannot_be_copied_is_not_cached(chain: Any, cache: StaleCache) -> None:
    answer = (each for each in "answer")
    assert await chain(named("one", answer), stale=cache)() is answer
    assert len(cache) == 0


async def test_a_stream_is_not_cached(chain: Any, cache: StaleCache) -> None:
    class Words:
        def __aiter__(self) -> Words:
            return self

        async def __anext__(self) -> str:
            raise StopAsyncIteration

    async def begin() -> Any:
        return Words()

    assert await received(chain(begin, stale=cache)) == []
    assert len(cache) == 0


async def test_a_bug_gets_no_stale_answer(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "answer", ValueError("a bug")), stale=cache)
    await complete()
    with pytest.raises(ValueError, match="a bug"):
        await call_chain(complete)


async def test_a_chain_whose_total_time_is_up_has_a_stale_answer(
    chain: Any, cache: StaleCache
) -> None:
    complete = chain(named("one", "answer", 60.0), stale=cache, total=5)
    await complete()
    found = await call_chain(complete)
    assert found.reasons == ("one: DeadlineExceededError after 5 s for all",)


async def test_arguments_that_cannot_be_hashed_are_refused_before_any_call(
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


async def test_a_key_function_decides_which_calls_share_an_answer(chain: Any) -> None:
    cache = StaleCache(max_age=60, key=lambda prompt, **_: prompt)
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete("prompt", history=[1])
    assert (await call_chain(complete, "prompt", history=[2])).value == "answer"
    with pytest.raises(AllFailedError):
        await call_chain(complete, "other", history=[1])
    with pytest.raises(UnsupportedCallError, match="The result of a StaleCache's key function"):
        await complete(["prompt"])


async def test_a_cleared_cache_is_empty(chain: Any, cache: StaleCache) -> None:
    complete = chain(named("one", "answer", down()), stale=cache)
    await complete()
    cache.clear()
    with pytest.raises(AllFailedError):
        await call_chain(complete)


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
