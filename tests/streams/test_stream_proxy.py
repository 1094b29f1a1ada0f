"""What a guarded stream keeps of its source, and how the source is closed."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
from typing import Any

import pytest

from lightrag_resilience import ConcurrencyPolicy, Guard, StreamPolicy, TruncatedStreamError
from lightrag_resilience.calls.call_context import current_call
from lightrag_resilience.limits.bulkhead import Occupancy
from lightrag_resilience.streams.stream_proxy import PrimedStream
from support.guards import down, guard_on_loop

pytestmark = pytest.mark.anyio


class Source:
    """What an SDK returns: iterated over by an iterator of its own, and closed by itself."""

    response = "the response"

    def __init__(
        self, *steps: Any, name: str = "aclose", error: Exception | None = None, whole: bool = True
    ) -> None:
        self.steps = list(steps)
        self.closed: list[str] = []
        self.error = error
        self.parts: tuple[Any] = (Iterator(self) if whole else None,)
        if name:
            setattr(self, name, self._close_now if name == "close" else self._close)

    async def connect(self) -> Source:
        return self

    def __aiter__(self) -> Any:
        return self.parts[0]

    def _close_now(self) -> None:
        self.closed.append("source")

    async def _close(self) -> None:
        self.closed.append("source")


class Iterator:
    def __init__(self, source: Source) -> None:
        self.source = source

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        if not self.source.steps:
            raise StopAsyncIteration
        step = self.source.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
        return step

    async def aclose(self) -> None:
        self.source.closed.append("iterator")
        if self.source.error is not None:
            raise self.source.error


async def guarded(source: Source, guard: Guard | None = None) -> Any:
    return await (guard or guard_on_loop()).call(source.connect)


def verdict(guard: Guard) -> tuple[int, int]:
    shown = guard.breaker.snapshot()
    return shown.calls, shown.failed


FACES = pytest.mark.parametrize(
    "face", [guarded, lambda source: PrimedStream(source).open()], ids=["guarded", "opened"]
)


@FACES
async def test_what_is_public_on_the_source_is_there(face: Any) -> None:
    source = Source("one")
    stream = await face(source)
    assert stream.response == "the response"
    assert stream.steps is source.steps
    with pytest.raises(AttributeError, match="'Source' object has no attribute 'unknown_name'"):
        _ = stream.unknown_name


@FACES
async def test_what_is_private_of_the_source_is_not_there(face: Any) -> None:
    stream = await face(Source("one"))
    with pytest.raises(AttributeError, match=r"Stream' object has no attribute '_close_now'"):
        _ = stream._close_now
    with pytest.raises(AttributeError, match="_source"):
        _ = PrimedStream.__new__(PrimedStream).response


@FACES
@pytest.mark.parametrize("step", [down(), 60.0], ids=["broken", "cancelled"])
async def test_a_close_that_fails_does_not_hide_why_there_is_no_first_item(
    face: Any, step: Any
) -> None:
    source = Source(step, error=OSError("stuck"))
    task = asyncio.ensure_future(face(source))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises((ConnectionRefusedError, asyncio.CancelledError)):
        await task
    assert source.closed == ["iterator", "source"]


@FACES
@pytest.mark.parametrize("name", ["aclose", "close"])
async def test_the_iterator_and_the_source_are_closed(face: Any, name: str) -> None:
    source = Source("one", name=name)
    await (await face(source)).aclose()
    assert source.closed == ["iterator", "source"]


@FACES
async def test_the_iterator_of_a_source_without_a_close_method_is_closed(face: Any) -> None:
    source = Source("one", name="")
    await (await face(source)).close()
    assert source.closed == ["iterator"]


@FACES
async def test_the_source_is_closed_though_its_iterator_cannot_be(face: Any) -> None:
    source = Source("one", error=OSError("stuck"))
    stream = await face(source)
    with pytest.raises(OSError, match="stuck"):
        await stream.aclose()
    assert source.closed == ["iterator", "source"]


@FACES
async def test_a_block_gives_the_stream_and_closes_it(face: Any) -> None:
    source = Source("one", "two")
    stream = await face(source)
    with pytest.raises(ValueError, match="a bug"):  # noqa: PT012 - the block is what is tested
        async with stream as same:
            assert same is stream
            raise ValueError("a bug")
    assert source.closed == ["iterator", "source"]


async def test_an_iterator_that_is_its_own_source_is_closed_once() -> None:
    iterator = Source("one").parts[0]

    async def connect() -> Any:
        return iterator

    await (await guard_on_loop().call(connect)).aclose()
    assert iterator.source.closed == ["iterator"]


@pytest.mark.parametrize("steps", [(down(),), ("one", down())])
async def test_an_error_is_not_hidden_by_one_of_closing(steps: Any) -> None:
    source, guard = Source(*steps, error=OSError("stuck")), guard_on_loop()
    with pytest.raises(ConnectionRefusedError):
        [item async for item in await guarded(source, guard)]
    assert source.closed == ["iterator", "source"]
    assert verdict(guard) == (1, 1)


async def test_a_cancellation_is_not_hidden_by_an_error_of_closing() -> None:
    source, guard = Source("one", 60.0, error=OSError("stuck")), guard_on_loop()
    stream = await guarded(source, guard)
    await anext(stream)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert (source.closed, verdict(guard)) == (["iterator", "source"], (0, 0))


async def test_a_source_that_is_dropped_is_closed_by_its_loop() -> None:
    source, guard = Source("one", "two", error=OSError("stuck")), guard_on_loop()
    await anext(await guarded(source, guard))
    gc.collect()
    assert source.closed == []
    await asyncio.sleep(0.1)
    assert (source.closed, verdict(guard)) == (["iterator", "source"], (0, 0))


def test_a_stream_that_outlives_its_loop_is_dropped_in_silence() -> None:
    source = Source("one", "two")

    async def begin() -> Any:
        return await guarded(source)

    stream = asyncio.run(begin())
    del stream
    gc.collect()
    assert source.closed == []


async def test_a_stream_that_cannot_begin_is_settled_once() -> None:
    class Noting(Guard):
        __slots__ = ()

        def settle_without_verdict(self, call: Any) -> None:
            settled.append("none")

    guard, settled = guard_on_loop(), list[str]()
    guard.__class__ = Noting
    with pytest.raises(ConnectionRefusedError):
        await guarded(Source(down()), guard)
    with pytest.raises(TypeError):
        await guarded(Source(whole=False), guard)
    gc.collect()
    assert settled == []


async def test_what_cannot_be_iterated_over_fails_once() -> None:
    class Spent:
        def __aiter__(self) -> Any:
            raise RuntimeError("read already")

    async def connect() -> Any:
        return Spent()

    guard = guard_on_loop(concurrency=ConcurrencyPolicy(max_concurrent=2))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="read already"):
            await guard.call(connect)
    gc.collect()
    assert guard._loop_state is not None
    assert guard.occupancy == Occupancy(limit=2)
    assert guard.breaker.snapshot().calls == 3


async def test_a_wait_that_is_dropped_is_no_verdict() -> None:
    source, guard = Source("one", 60.0), guard_on_loop()
    stream = await guarded(source, guard)
    await anext(stream)
    waiting: Any = stream.__anext__()
    of_a_task = contextvars.copy_context()
    of_a_task.run(waiting.send, None)
    assert guard.gate.running
    of_a_task.run(waiting.close)
    assert (verdict(guard), dict(guard.gate.running), current_call.get()) == ((0, 0), {}, None)
    complaints = list[str]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, about: complaints.append(str(about["exception"])))
    await asyncio.sleep(0.1)
    gc.collect()
    assert source.closed == ["iterator", "source"]
    assert [item async for item in stream] == []
    # Before 3.13 no async generator learns that a wait for its item was dropped.
    known = ["aclose(): asynchronous generator is already running"]
    assert complaints in ([], known[: sys.version_info < (3, 13)])


# ---------------------------------------------------------------------- the finish marker


def chunk(*reasons: str | None) -> Any:
    """A chunk with a choice for each reason."""
    choices: list[Any] = [
        {"index": index, "delta": {}, "finish_reason": reason}
        for index, reason in enumerate(reasons)
    ]
    return {"choices": choices}


async def test_a_stream_without_its_finish_marker_fails_at_its_end_and_is_closed() -> None:
    source, guard = Source(chunk(None), chunk(None)), guard_on_loop(attempts=3)
    stream = await guarded(source, guard)
    assert [await anext(stream), await anext(stream)]
    assert verdict(guard) == (0, 0)
    with pytest.raises(TruncatedStreamError) as cut_off:
        await anext(stream)
    assert cut_off.value.dependency == "llm"
    assert cut_off.value.__cause__ is None
    assert (source.closed, verdict(guard)) == (["iterator", "source"], (1, 1))


async def test_a_stream_of_one_item_is_judged_too() -> None:
    with pytest.raises(TruncatedStreamError):
        [item async for item in await guarded(Source(chunk(None)))]
    assert [item async for item in await guarded(Source(chunk("stop")))]
    assert [item async for item in await guarded(Source(chunk(None), chunk("stop"), chunk()))]


@pytest.mark.parametrize("steps", [("one", chunk(None)), (), ("text",), (chunk(),)])
async def test_what_is_not_recognised_ends_well(steps: Any) -> None:
    guard = guard_on_loop()
    assert len([item async for item in await guarded(Source(*steps), guard)]) == len(steps)
    assert verdict(guard) == (1, 0)


@pytest.mark.parametrize(
    ("steps", "calls"),
    [((chunk(None),), 0), ((chunk("stop"),), 1), ((chunk("stop", None),), 0), ((chunk(),), 0)],
)
async def test_leaving_after_the_finish_marker_is_no_early_leaving(steps: Any, calls: int) -> None:
    guard = guard_on_loop()
    async with await guarded(Source(*steps, 60.0), guard) as stream:
        await anext(stream)
    assert verdict(guard) == (calls, 0)


async def test_a_cancellation_after_the_finish_marker_is_no_verdict() -> None:
    guard = guard_on_loop()
    stream = await guarded(Source(chunk("stop"), 60.0), guard)
    await anext(stream)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 1)
    await stream.aclose()
    assert verdict(guard) == (0, 0)


async def test_a_provider_without_finish_markers_is_not_judged() -> None:
    guard = guard_on_loop(stream=StreamPolicy(finish_marker=False))
    assert [item async for item in await guarded(Source(chunk(None)), guard)]
    assert verdict(guard) == (1, 0)
