"""The background probe looks for the recovery, so that no user's call has to."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lightrag_resilience import (
    BreakerPolicy,
    CircuitOpenError,
    Guard,
    Guards,
    Policy,
    UnsupportedCallError,
    resilient,
)
from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import BackgroundProbeEnded, Event, ProbeSent
from support.guards import Scripted, down, guard_on_loop, now, published_by

pytestmark = pytest.mark.anyio


class AnswerError(Exception):
    """An HTTP answer that is no success."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(status)
        self.status_code = status
        self.response = type("Response", (), {"status_code": status, "headers": headers})()


async def opened(*steps: Any, young_for: float = 60.0, **changes: Any) -> tuple[Guard, Scripted]:
    """A guard whose circuit has just opened, and its probe. Callers want answers all the time."""
    guard, probe = guard_on_loop(consecutive_failures=1, **changes), Scripted(*steps)
    guard.set_probe(probe, young_for=young_for)
    with pytest.raises(ConnectionRefusedError):
        await guard.call(Scripted(down()))
    assert guard.breaker.state is State.OPEN
    guard.demanded_at = math.inf
    return guard, probe


async def is_admitted(guard: Guard) -> bool:
    try:
        await guard.call(Scripted("answer"))
    except CircuitOpenError:
        return False
    return True


def its_tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("recovery probe")]


def outcomes(published: list[Event]) -> list[str]:
    return [event.outcome for event in published if isinstance(event, BackgroundProbeEnded)]


async def test_the_first_probe_comes_soon_and_closes_the_circuit() -> None:
    guard, probe = await opened("ok")
    await asyncio.sleep(0.95)
    assert guard.breaker.state is State.CLOSED
    assert len(probe.at) == 1
    assert 0.8 <= probe.at[0] <= 0.91


async def test_no_probe_is_sent_while_the_circuit_is_closed() -> None:
    guard, probe = await opened("ok")
    await asyncio.sleep(600)
    assert probe.calls == 1
    assert guard.breaker.state is State.CLOSED


async def test_probes_come_every_second_and_rarer_in_a_long_outage() -> None:
    _, probe = await opened(down())
    await asyncio.sleep(60)
    early = probe.gaps()[:12]
    assert all(1.35 <= gap <= 1.55 for gap in early), early
    await asyncio.sleep(3600)
    assert all(5.0 <= gap <= 5.11 for gap in probe.gaps()[-10:])


async def test_probes_become_rarer_while_no_caller_wants_an_answer() -> None:
    """20 queries at once, and none after them, cost a provider four probes in a minute."""
    guard, probe = await opened(down())
    await asyncio.sleep(0.3)
    assert not await is_admitted(guard)  # it was in a queue when the circuit opened
    await asyncio.gather(*(guard.wait_for_recovery(59.0) for _ in range(20)))
    assert probe.calls <= 4
    await asyncio.sleep(600.0)
    gaps = probe.gaps()[-10:]
    assert all(9.99 <= gap <= 10.2 for gap in gaps), gaps


async def test_an_outage_in_which_callers_wait_for_less_is_probed_more_often() -> None:
    guard, probe = await opened(down(), young_for=20.0)
    guard.demanded_at = now()
    await asyncio.sleep(100.0)
    gaps = probe.gaps()
    assert max(gaps) <= 13.0, gaps
    assert probe.calls >= 10


async def test_callers_that_wait_are_probed_for_when_lightrag_alone_would_try_again() -> None:
    """20 queries at once are answered within the 8 s for which LightRAG alone tries."""
    guard, probe = await opened(down())
    guard.demanded_at = now()
    await asyncio.gather(*(guard.wait_for_recovery(12.0) for _ in range(20)))
    first, second, third = probe.at
    assert 0.8 <= first <= 0.9
    assert 4.05 <= second <= 4.3
    assert 8.1 <= third <= 8.5


async def test_a_new_call_makes_the_next_probe_come_soon() -> None:
    guard, probe = await opened(down())
    guard.demanded_at = now()
    await asyncio.sleep(100.0)
    count = probe.calls
    assert not await is_admitted(guard)
    await asyncio.sleep(1.7)
    assert probe.calls > count


async def test_a_call_that_is_rejected_in_a_break_is_probed_for_at_its_end() -> None:
    guard, probe = await opened(down())
    guard.demanded_at = now()
    for number in range(1, 20):
        assert not await is_admitted(guard)  # once after each probe
        async with asyncio.timeout(10.0):
            while probe.calls < number:  # noqa: ASYNC110 - in virtual time
                await asyncio.sleep(0.05)
    gaps = probe.gaps()
    assert all(1.35 <= gap <= 1.65 for gap in gaps), gaps


async def test_an_explicit_time_open_is_kept() -> None:
    _, probe = await opened(down(), open_for=7.0)
    await asyncio.sleep(15)
    assert 7.0 <= probe.at[0] <= 7.2


async def test_users_calls_are_no_probes_even_when_the_break_is_over() -> None:
    guard, probe = await opened(down())
    admitted = False
    for _ in range(600):
        await asyncio.sleep(0.05)
        admitted |= await is_admitted(guard)
    assert not admitted
    assert probe.calls > 15


async def test_a_rejection_names_a_wait_while_a_probe_is_due() -> None:
    guard, _ = await opened(30.0)
    await asyncio.sleep(0.95)
    assert guard.breaker.state is State.HALF_OPEN
    with pytest.raises(CircuitOpenError) as caught:
        await guard.call(Scripted("answer"))
    assert caught.value.retry_after == 1.0


async def test_users_probe_again_two_seconds_after_a_probe_that_does_not_come() -> None:
    guard, _ = await opened("ok")
    circuit = guard.breaker.circuit
    await asyncio.sleep(0.1)
    until = circuit.probed_until
    assert circuit.open_until + 2.0 <= until <= circuit.open_until + 2.2
    (task,) = its_tasks()
    task.cancel()
    await asyncio.sleep(0.1)
    circuit.probed_until = until  # as if it had died without a chance to change that
    await asyncio.sleep(until - 0.1 - now())
    assert not await is_admitted(guard)
    await asyncio.sleep(0.2)
    assert await is_admitted(guard)


async def test_a_probe_ends_after_the_time_of_an_attempt() -> None:
    guard, _ = await opened(10_000.0, attempt_timeout=100.0)
    published = published_by(guard)
    await asyncio.sleep(250)
    ended = [event.duration for event in published if isinstance(event, BackgroundProbeEnded)]
    assert [round(seconds, 1) for seconds in ended] == [100.0, 100.0]
    assert set(outcomes(published)) == {"timeout"}


async def test_a_request_that_hangs_holds_up_none_after_it() -> None:
    """A provider that hung for 20 s is found well 4 s after its return, not at a timeout's end."""
    guard, probe = await opened(10_000.0, attempt_timeout=240.0)
    published = published_by(guard)
    await asyncio.sleep(20.0)
    probe.steps = ["ok"]
    assert 5 <= probe.calls <= 7
    await asyncio.sleep(3.6)
    assert guard.breaker.state is State.CLOSED
    assert outcomes(published) == ["success"]
    assert sum(isinstance(event, ProbeSent) for event in published) == probe.calls


async def test_a_probe_has_four_requests_at_once_at_the_most() -> None:
    running = most = 0

    async def hang() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(10_000.0)
        finally:
            running -= 1

    guard, _ = await opened(down(), attempt_timeout=240.0)
    guard.set_probe(hang)
    await asyncio.sleep(200)
    assert (running, most) == (4, 4)
    guard.gate.close()
    await asyncio.sleep(0.1)
    assert running == 0


async def test_a_slow_model_recovers_by_its_probe() -> None:
    guard, _ = await opened(30.0, attempt_timeout=120.0)
    await asyncio.sleep(80)
    assert guard.breaker.state is State.CLOSED


async def test_a_probe_is_an_attempt_that_is_counted_as_a_probe() -> None:
    guard, _ = await opened(down(), "ok")
    published = published_by(guard)
    await asyncio.sleep(3)
    sent = [event.origin for event in published if isinstance(event, ProbeSent)]
    assert sent == ["background", "background"]
    assert outcomes(published) == ["failure", "success"]


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_request_that_is_refused_leaves_probing_to_users_in_this_outage(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    guard, probe = await opened(AnswerError(status), "ok")
    published = published_by(guard)
    with caplog.at_level(logging.WARNING):
        await asyncio.sleep(60)
    assert probe.calls == 1
    assert outcomes(published) == ["unsuitable"]
    (logged,) = [one for one in caplog.messages if "recovery probe" in one]
    assert f"HTTP {status} (AnswerError)" in logged
    assert guard.breaker.circuit.breaks.first == 5.0
    assert await is_admitted(guard)
    guard.breaker.open("after a test")
    await asyncio.sleep(1)
    assert probe.calls == 2
    assert guard.breaker.state is State.CLOSED


@pytest.mark.no_cover
@pytest.mark.parametrize("status", [401, 403, 429])
async def test_an_answer_that_serves_no_caller_is_probed_again_ever_more_rarely(
    status: int,
) -> None:
    guard, probe = await opened(AnswerError(status))
    published = published_by(guard)
    await asyncio.sleep(3600)
    assert set(outcomes(published)) == {"unserved"}
    assert guard.breaker.circuit.reason.startswith("after a probe met HTTP")
    assert 1.35 <= probe.gaps()[1] <= 1.55
    assert 5.0 <= probe.gaps()[-1] <= 5.3, probe.gaps()


@pytest.mark.parametrize("status", [429, 503])
async def test_a_wait_that_the_provider_asks_for_is_kept(status: int) -> None:
    headers = {"retry-after": "20"}
    _, probe = await opened(AnswerError(status, **headers), "ok")
    await asyncio.sleep(30)
    assert probe.calls == 2
    assert 20.0 <= probe.gaps()[0] <= 20.3


async def test_several_probes_are_sent_one_after_another_where_the_policy_wants_them() -> None:
    guard, probe = await opened("ok", breaker=BreakerPolicy(probes=3))
    await asyncio.sleep(1.5)
    assert probe.calls <= 4
    assert guard.breaker.state is State.CLOSED


@pytest.mark.parametrize("reason", ["by hand", "by ann (isolated): repairs"])
async def test_a_dependency_that_an_operator_opened_is_not_probed(reason: str) -> None:
    guard, probe = await opened(down())
    await asyncio.sleep(3)
    sent = probe.calls
    guard.breaker.open(reason, open_for=60.0)
    await asyncio.sleep(300)
    assert probe.calls == sent
    assert await is_admitted(guard)


async def test_a_dependency_that_is_forced_open_is_not_probed() -> None:
    guard, probe = await opened("ok")
    guard.breaker.set_mode("forced-open")
    await asyncio.sleep(600)
    assert probe.calls == 0


async def test_a_drain_ends_the_probe_and_does_not_wait_for_it() -> None:
    guard, probe = await opened(100.0)
    await asyncio.sleep(1)
    assert probe.calls == 1
    assert not guard.gate.running
    guard.gate.close()
    await asyncio.sleep(0.1)
    assert not its_tasks()
    assert guard.breaker.snapshot().probes == 0
    await asyncio.sleep(600)
    assert probe.calls == 1


async def test_no_probe_begins_during_a_drain() -> None:
    guard, probe = guard_on_loop(consecutive_failures=1), Scripted("ok")
    guard.set_probe(probe)
    guard.gate.close()
    guard.breaker.open("after a test")
    await asyncio.sleep(600)
    assert probe.calls == 0


async def test_a_variable_turns_the_probe_off() -> None:
    variables = {"RESILIENCE_LLM__BREAKER__BACKGROUND_PROBE": "false"}
    policy = load_settings(variables).policy_for("llm").with_changes(consecutive_failures=1)
    guard, probe = guard_on_loop(policy), Scripted("ok")
    guard.set_probe(probe)
    guard.breaker.open("after a test")
    await asyncio.sleep(4.9)
    assert not await is_admitted(guard)
    await asyncio.sleep(0.2)
    assert await is_admitted(guard)
    assert probe.calls == 0


async def test_a_variable_turns_the_probe_off_and_on_in_an_outage() -> None:
    owner = Guards(settings=load_settings({}), clock=now)
    guard, probe = owner.get("llm.own"), Scripted("ok")
    guard.set_probe(probe)
    owner.override({"RESILIENCE_LLM__BREAKER__BACKGROUND_PROBE": "false"})
    guard.breaker.open("after a test")
    await asyncio.sleep(60)
    assert probe.calls == 0
    owner.override({})
    await asyncio.sleep(0.2)
    assert guard.breaker.state is State.CLOSED
    assert probe.calls == 1


async def test_a_task_that_dies_is_logged_and_begun_again_a_few_times(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, _ = await opened(down())
    monkeypatch.setattr(type(guard), "send_probe", None)
    with caplog.at_level(logging.ERROR):
        await asyncio.sleep(600)
        assert sum("recovery probe" in line for line in caplog.messages) == 4
        assert guard.breaker.circuit.probed_until < now()
        assert await is_admitted(guard)
    monkeypatch.undo()
    guard.breaker.open("after a test")
    await asyncio.sleep(1)
    assert not await is_admitted(guard)


async def test_a_cancelled_probe_gives_its_permit_back() -> None:
    guard, _ = await opened(100.0)
    await asyncio.sleep(1)
    for task in its_tasks():
        task.cancel()
    await asyncio.sleep(0.01)
    assert guard.breaker.snapshot().probes == 0
    assert await is_admitted(guard)


async def test_the_last_probe_that_was_set_holds_and_can_be_ended() -> None:
    guard, first = await opened("ok")
    second = Scripted(down())
    end = guard.set_probe(second)
    await asyncio.sleep(10)
    assert first.calls == 0
    assert second.calls > 3
    end()
    sent = second.calls
    await asyncio.sleep(5)
    assert (first.calls, second.calls) == (1, sent)
    assert await is_admitted(guard)


async def test_the_probe_before_the_one_that_was_ended_holds_again() -> None:
    """Two instances of LightRAG call one endpoint, and one of them is closed."""
    guard, first = guard_on_loop(consecutive_failures=1), Scripted("ok")
    guard.set_probe(first)
    end = guard.set_probe(second := Scripted("ok"))
    end_again = guard.set_probe(second)
    end()
    end_again()
    with pytest.raises(ConnectionRefusedError):
        await guard.call(Scripted(down()))
    await asyncio.sleep(1)
    assert (first.calls, second.calls) == (1, 0)
    assert guard.breaker.state is State.CLOSED


async def test_eight_probes_are_kept_at_the_most() -> None:
    guard, oldest = guard_on_loop(consecutive_failures=1), Scripted("ok")
    guard.set_probe(oldest)
    for end in [guard.set_probe(Scripted("ok")) for _ in range(8)]:
        end()
    with pytest.raises(ConnectionRefusedError):
        await guard.call(Scripted(down()))
    await asyncio.sleep(1)
    assert oldest.calls == 0


async def test_a_probe_that_is_set_in_an_outage_begins_at_once() -> None:
    guard = guard_on_loop(consecutive_failures=1)
    with pytest.raises(ConnectionRefusedError):
        await guard.call(Scripted(down()))
    guard.set_probe(Scripted("ok"))
    await asyncio.sleep(5.3)
    assert guard.breaker.state is State.CLOSED


async def test_a_decorated_function_names_its_probe() -> None:
    owner = Guards(settings=load_settings({}), clock=asyncio.get_running_loop().time)
    probe = Scripted("ok")

    @resilient(
        "llm.own",
        Policy.llm(consecutive_failures=1, attempts=1),
        probe=probe,
        registry=owner,
    )
    async def complete() -> str:
        raise down()

    with pytest.raises(ConnectionRefusedError):
        await complete()
    await asyncio.sleep(1)
    assert probe.calls == 1
    assert owner.get("llm.own").breaker.state is State.CLOSED


@pytest.fixture
def threads_take_turns_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("threads_take_turns_often")
def test_a_probe_that_many_threads_set_at_once_is_one() -> None:
    ready, probe = threading.Barrier(6), Scripted("ok")

    def set_it(guard: Guard) -> Callable[[], None]:
        ready.wait(10.0)
        return guard.set_probe(probe)

    with ThreadPoolExecutor(6) as threads:
        for _ in range(100):
            guard = Guard("llm", Policy())
            end, *_ = threads.map(set_it, [guard] * 6)
            end()
            assert not guard.events.subscribers


async def test_a_probe_must_be_a_function() -> None:
    with pytest.raises(UnsupportedCallError, match="must be an async function without arguments"):
        guard_on_loop().set_probe("ping")  # type: ignore[arg-type]


async def test_a_probe_inside_of_which_its_guard_is_called_passes_straight_through() -> None:
    guard = guard_on_loop(consecutive_failures=1)
    inner = Scripted("ok")
    guard.set_probe(lambda: guard.call(inner))
    with pytest.raises(ConnectionRefusedError):
        await guard.call(Scripted(down()))
    await asyncio.sleep(1)
    assert inner.calls == 1
    assert guard.breaker.state is State.CLOSED
