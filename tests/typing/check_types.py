"""What type checkers make of the public functions; `mypy` and `pyright` read it, nothing runs it.

A line with an error that is expected says so: an ignore that is not needed is an error itself.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, assert_type

from lightrag_resilience import (
    ChainAnswer,
    Failure,
    FailureKind,
    Guard,
    Guards,
    Policy,
    StaleCache,
    call_chain,
    classify_as,
    collected,
    guard,
    guards,
    protect,
    resilient,
    unprotect,
    with_fallbacks,
)
from lightrag_resilience.streams.guarded_stream import GuardedStream


@resilient("llm")
async def complete(prompt: str, *, times: int = 1) -> list[str]:
    return [prompt] * times


@resilient("llm", Policy.llm(attempts=2), registry=Guards())
async def stream(prompt: str) -> AsyncIterator[str]:
    yield prompt


@resilient("llm")
def iterate(prompt: str) -> AsyncIterator[str]:
    return stream(prompt)


@resilient("llm")
def count(prompt: str, /) -> int:
    return len(prompt)


class Client:
    @resilient("llm")
    async def complete(self, prompt: str) -> str:
        return prompt

    @resilient("llm")
    async def stream(self) -> AsyncIterator[int]:
        yield 1


async def plain_complete(prompt: str, *, times: int = 1) -> list[str]:
    return [prompt] * times


async def plain_stream(prompt: str) -> AsyncIterator[str]:
    yield prompt


async def awaited_stream(prompt: str) -> AsyncIterator[str]:
    return plain_stream(prompt)


def plain_count(prompt: str, /) -> int:
    return len(prompt)


async def decorated_functions_keep_their_types() -> None:
    assert_type(await complete("a", times=2), list[str])
    assert_type(stream("a"), AsyncIterator[str])
    assert_type(iterate("a"), AsyncIterator[str])
    assert_type(count("a"), int)
    assert_type(await Client().complete("a"), str)
    assert_type(Client().stream(), AsyncIterator[int])
    async for item in stream("a"):
        assert_type(item, str)
    coroutine: Coroutine[Any, Any, list[str]] = complete("a")
    same: Callable[[str], int] = count
    del coroutine, same


async def decorated_functions_refuse_wrong_arguments() -> None:
    await complete(1)  # type: ignore[arg-type]
    await complete("a", time=1)  # type: ignore[call-arg]
    count(prompt="a")  # type: ignore[call-arg]
    await Client().complete()  # type: ignore[call-arg]


async def a_call_gives_what_the_function_gives() -> None:
    assert_type(await guard("llm").call(plain_complete, "a", times=2), list[str])
    assert_type(await guard("llm").call(plain_stream, "a"), GuardedStream[str])
    assert_type(await guard("llm").call(iterate, "a"), GuardedStream[str])
    assert_type(await guard("llm").call(plain_count, "a"), int)
    async for item in await guard("llm").call(plain_stream, "a"):
        assert_type(item, str)


async def a_call_refuses_wrong_arguments() -> None:
    call = guard("llm").call
    await call(plain_count, 1)  # type: ignore[call-overload]
    await call(plain_complete, "a", time=1)  # type: ignore[call-arg]
    await call(plain_stream)  # type: ignore[call-overload]


async def a_gathered_stream_is_a_list() -> None:
    assert_type(await collected(plain_stream)("a"), list[str])
    assert_type(await resilient("llm")(collected(plain_stream))("a"), list[str])
    assert_type(await guard("llm").call(collected(awaited_stream), "a"), list[str])
    await collected(plain_stream)(1)  # type: ignore[arg-type]
    collected(plain_complete)  # type: ignore[arg-type]


async def a_chain_is_typed_as_its_functions() -> None:
    chain = with_fallbacks(complete, plain_complete, total=1.0, stale=StaleCache(max_age=1.0))
    assert_type(await chain("a", times=2), list[str])
    assert_type(await call_chain(chain, "a", times=2), ChainAnswer[list[str]])
    assert_type(with_fallbacks(stream, iterate)("a"), AsyncIterator[str])
    assert_type(await call_chain(with_fallbacks(stream), "a"), ChainAnswer[AsyncIterator[str]])
    assert_type(with_fallbacks(plain_count)("a"), int)
    assert_type((await call_chain(with_fallbacks(plain_count), "a")).value, int)


async def a_chain_refuses_wrong_arguments() -> None:
    await with_fallbacks(complete, plain_complete)(1)  # type: ignore[arg-type]
    await call_chain(with_fallbacks(complete), "a", time=1)  # type: ignore[call-arg]


async def a_block_gives_its_guard() -> None:
    async with guard("llm", Policy()) as inside:
        assert_type(inside, Guard)
    assert_type(guards(), Guards)
    assert_type(guards().get("llm"), Guard)


def an_instance_is_protected_in_place() -> None:
    protecting: Callable[[Any], Coroutine[Any, Any, None]] = protect
    unprotecting: Callable[[Any], Coroutine[Any, Any, None]] = unprotect
    del protecting, unprotecting


async def protection_takes_a_registry(rag: object) -> None:
    await protect(rag, registry=Guards())
    await protect(rag, Guards())  # type: ignore[call-arg]
    await protect()  # type: ignore[call-arg]
    await unprotect(rag)


class GatewayError(Exception):
    wait: float | None = None


def read_gateway(error: GatewayError) -> Failure | None:
    return None if error.wait is None else Failure(FailureKind.THROTTLED, error.wait)


def an_error_of_ones_own_is_classified() -> None:
    assert_type(classify_as(GatewayError, FailureKind.FATAL), Callable[[], None])
    classify_as(GatewayError, Failure(FailureKind.THROTTLED, 2.0))
    classify_as(GatewayError, read_gateway)
    classify_as(GatewayError, lambda error: FailureKind.FATAL if error.wait else None)
    classify_as(int, FailureKind.FATAL)  # type: ignore[type-var]
    classify_as(GatewayError, "fatal")  # type: ignore[arg-type]
    classify_as(OSError, read_gateway)  # type: ignore[arg-type]
