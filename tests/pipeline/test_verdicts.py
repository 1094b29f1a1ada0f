"""Results that are judged failures are counted, retried, published and never returned."""

from __future__ import annotations

import asyncio
import math
import pickle
from typing import Any

import pytest

from lightrag_resilience import (
    AllFailedError,
    BreakerPolicy,
    CircuitOpenError,
    Failure,
    FailureKind,
    Guard,
    Guards,
    InvalidResultError,
    Policy,
    PolicyError,
    RetryPolicy,
    StaleCache,
    deadline,
    with_fallbacks,
)
from lightrag_resilience.config.policies import JUDGES
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import AttemptFailed
from lightrag_resilience.telemetry.tracing import TracedGuard
from support.decorated import no_sleep
from support.guards import Scripted, guard_on_loop, outcomes, patient, published_by
from support.streams import Source, collected, verdict

pytestmark = pytest.mark.anyio

EMPTY = Failure(FailureKind.TRANSIENT, reason="with an empty text")


def not_empty(text: str) -> Failure | None:
    return None if text.strip() else EMPTY


def not_none(item: object) -> Failure | None:
    return None if item is not None else EMPTY


def judged(**changes: Any) -> Guard:
    return guard_on_loop(patient(result=not_empty, attempts=3, **changes))


async def test_a_result_that_is_judged_a_failure_is_counted_retried_and_published() -> None:
    guard, function = judged(), Scripted("", " ", "answer")
    events = published_by(guard)
    assert await guard.call(function) == "answer"
    assert verdict(guard) == (3, 2)
    failed = [event for event in events if isinstance(event, AttemptFailed)]
    assert [event.error for event in failed] == ["InvalidResultError"] * 2


async def test_the_caller_gets_an_error_that_names_dependency_and_reason() -> None:
    guard = judged()
    with pytest.raises(InvalidResultError) as raised:
        await guard.call(Scripted(" "))
    assert str(raised.value) == "'llm' answered with an empty text"
    copied = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - own data
    assert copied.__resilience_failure__ == EMPTY
    assert verdict(guard) == (3, 3)


async def test_a_reason_is_shown_without_control_characters_and_not_endlessly() -> None:
    kind = FailureKind.FATAL
    guard = guard_on_loop(Policy(result=lambda _: Failure(kind, reason="with\x1b[31m" + "x" * 999)))
    with pytest.raises(InvalidResultError) as raised:
        await guard.call(Scripted("answer"))
    assert "with[31mxxx" in str(raised.value)
    assert len(str(raised.value)) < 230


async def test_results_that_are_judged_failures_open_the_circuit() -> None:
    guard = guard_on_loop(
        Policy(
            result=not_empty,
            breaker=BreakerPolicy(consecutive_failures=2),
            retry=RetryPolicy(attempts=1),
        )
    )
    await outcomes(guard.call(Scripted("")) for _ in range(2))
    with pytest.raises(CircuitOpenError, match=r"the last InvalidResultError \(with an"):
        await guard.call(Scripted("answer"))


@pytest.mark.parametrize(
    ("kind", "calls", "counted"),
    [(FailureKind.FATAL, 1, 0), (FailureKind.TRANSIENT, 3, 3), (FailureKind.THROTTLED, 3, 0)],
)
async def test_a_verdict_of_a_kind_is_treated_as_an_error_of_that_kind(
    kind: FailureKind, calls: int, counted: int
) -> None:
    guard = guard_on_loop(patient(result=lambda _: kind, attempts=3))
    function = Scripted("answer")
    with pytest.raises(InvalidResultError):
        await guard.call(function)
    assert (function.calls, guard.breaker.snapshot().failed) == (calls, counted)


async def test_a_result_of_none_is_judged_and_a_block_is_not() -> None:
    guard = guard_on_loop(patient(result=not_none))
    with pytest.raises(InvalidResultError):
        await guard.call(Scripted(None))
    async with guard:
        pass
    assert verdict(guard) == (2, 1)


async def test_a_probe_whose_result_is_judged_a_failure_does_not_close_the_circuit() -> None:
    guard = judged(breaker=BreakerPolicy(mode="metrics-only"))
    admission = await guard.breaker.acquire_async()
    error = await guard.send_probe(Scripted(""), admission, 1.0)
    assert isinstance(error, InvalidResultError)


async def test_a_call_under_its_callers_deadline_is_judged_too() -> None:
    guard = guard_on_loop(patient(result=not_empty, attempts=3))
    with deadline(60.0):
        assert await guard.call(Scripted("", "answer")) == "answer"


_FIELD = "returned a Failure with a field of a wrong type"


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda text: text.missing, "raised AttributeError"),
        (lambda _: True, "returned bool"),
        (lambda _: ValueError("secret"), "returned ValueError"),
        (lambda _: asyncio.sleep(0), "returned coroutine"),
        (lambda _: Failure("transient"), _FIELD),  # type: ignore[arg-type]
        (lambda _: Failure(FailureKind.TRANSIENT, reason=None), _FIELD),  # type: ignore[arg-type]
        (lambda _: Failure(FailureKind.THROTTLED, retry_after=math.nan), _FIELD),
        (lambda _: Failure(FailureKind.THROTTLED, retry_after="5"), _FIELD),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("field", JUDGES)
async def test_a_judge_that_is_wrong_costs_no_answer_and_no_permit(
    mistake: Any, said: str, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    guard = guard_on_loop(patient(**{field: mistake}, max_concurrent=1))
    for _ in range(2):
        if field == "result":
            assert await guard.call(Scripted("secret")) == "secret"
        else:
            assert await collected(await guard.call(Source("secret").words)) == ["secret"]
    assert verdict(guard) == (2, 0)
    assert caplog.text.count(f"{said}, so the result passes") == 2
    assert "secret" not in caplog.text


async def test_a_judge_that_is_interrupted_releases_the_permit() -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    guard = guard_on_loop(patient(result=interrupted, max_concurrent=1))
    with pytest.raises(KeyboardInterrupt):
        await guard.call(Scripted("answer"))
    assert guard.occupancy.in_use == 0


async def test_a_failure_is_not_kept_as_a_stale_answer() -> None:
    guard = guard_on_loop(patient(result=not_empty))
    cache: StaleCache = StaleCache(max_age=60.0)

    async def complete() -> str:
        answer: str = await guard.call(Scripted(""))
        return answer

    with pytest.raises(AllFailedError):
        await with_fallbacks(complete, stale=cache)()
    assert len(cache) == 0


# ---------------------------------------------------------------------- streams


async def test_a_first_item_that_is_judged_a_failure_begins_the_stream_again() -> None:
    guard = guard_on_loop(patient(stream_item=not_empty, attempts=3))
    bad, good = Source("", "more"), Source("one", "two")
    function = Scripted(lambda: _opened(bad), lambda: _opened(good))
    assert await collected(await guard.call(function)) == ["one", "two"]
    assert (verdict(guard), bad.closed) == ((2, 1), 1)


async def test_a_later_item_that_is_judged_a_failure_ends_the_stream() -> None:
    guard, source = guard_on_loop(patient(stream_item=not_empty)), Source("one", "", "two")
    stream = await guard.call(source.words)
    assert await anext(stream) == "one"
    with pytest.raises(InvalidResultError):
        await anext(stream)
    assert (verdict(guard), source.closed) == ((1, 1), 1)


async def test_the_end_of_a_stream_is_judged_by_its_last_item() -> None:
    ended: list[object] = []

    def end(last: object) -> Failure | None:
        ended.append(last)
        return EMPTY if last is None else None

    guard = guard_on_loop(patient(stream_end=end, attempts=2))
    assert await collected(await guard.call(Source("one", "two").words)) == ["one", "two"]
    with pytest.raises(InvalidResultError):
        await guard.call(Source().words)
    assert ended == ["two", None, None]
    assert verdict(guard) == (3, 2)


async def test_a_judge_of_results_gets_no_stream_and_nothing_of_its_end() -> None:
    judged: list[object] = []
    guard = guard_on_loop(patient(result=judged.append))
    for words in (("one", "two"), ()):
        assert await collected(await guard.call(Source(*words).words)) == [*words]
    assert (judged, verdict(guard)) == ([], (2, 0))


async def test_what_is_sent_into_a_judged_stream_reaches_its_generator() -> None:
    async def echo() -> Any:
        sent = yield "first"
        yield sent

    guard = guard_on_loop(patient(stream_item=not_empty))
    stream: Any = await guard.call(echo)
    assert await anext(stream) == "first"
    assert await stream.asend("sent") == "sent"


async def _opened(source: Source) -> Any:
    return source.words()


# ---------------------------------------------------------------------- which guards


def test_a_guard_without_a_judge_is_a_plain_guard() -> None:
    assert type(Guard("llm", Policy())) is Guard
    assert isinstance(Guard("llm", Policy(result=not_empty)), Guard)


async def test_a_judge_comes_into_force_with_a_later_policy() -> None:
    guard = guard_on_loop(patient())
    assert await guard.call(Scripted("")) == ""
    guard.update_policy(patient(result=not_empty))
    with pytest.raises(InvalidResultError):
        await guard.call(Scripted(""))
    guard.update_policy(patient())
    assert await guard.call(Scripted("")) == ""


async def test_tracing_keeps_the_verdicts_and_variables_the_judges() -> None:
    settings = load_settings({"RESILIENCE_LLM__RETRY__ATTEMPTS": "2"})
    owner = Guards(settings=settings, sleep=no_sleep)
    guard = owner.get("llm", Policy(result=not_empty))
    owner.trace(None, TracedGuard)
    function = Scripted("")
    with pytest.raises(InvalidResultError):
        await guard.call(function)
    assert isinstance(guard, TracedGuard)
    assert function.calls == 2
    owner.trace(None, Guard)
    assert not isinstance(guard, TracedGuard)
    assert await guard.call(Scripted("", "answer")) == "answer"


def test_a_judge_is_a_plain_function() -> None:
    async def judge(_: Any) -> None: ...

    class Judge:
        async def __call__(self, _: Any) -> None: ...

    with pytest.raises(PolicyError, match=r"Policy\.result must be a plain function"):
        Policy(result=judge)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"Policy\.result must be a plain function"):
        Policy(result=Judge())  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"Policy\.stream_end must be a plain function"):
        Policy.llm(stream_end=True)  # type: ignore[arg-type]
