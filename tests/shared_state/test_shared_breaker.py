"""What a worker's own breaker does with what the cluster says, and without it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from lightrag_resilience import BreakerPolicy, CircuitOpenError, Guard, Policy, State
from lightrag_resilience.shared_state.messages import Announcement, Report
from lightrag_resilience.shared_state.shared_breaker import FlushPriority, SharedBreaker

LEASE = 60.0
REASON = "after 5 failures in a row"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Sync:
    """Notes what a breaker wants of the side that talks to Redis."""

    def __init__(self) -> None:
        self.connected = True
        self.round_trip = 0.0
        self.wanted: list[Any] = []
        self.on_request: Callable[[SharedBreaker], None] = lambda _: None
        self.on_await: Callable[[Callable[[], None]], None] = lambda answered: answered()

    def begin(self) -> None:
        self.wanted.append("begin")

    def schedule_report(self, breaker: SharedBreaker, when: FlushPriority) -> None:
        self.wanted.append(when)

    def request_probe(
        self, breaker: SharedBreaker, lease: float, answered: Callable[[], None]
    ) -> None:
        del lease
        self.wanted.append("ask")
        self.on_request(breaker)
        self.on_await(answered)

    def return_probe(self, breaker: SharedBreaker, token: str) -> None:
        self.wanted.append(("release", token))

    def force_state(
        self, breaker: SharedBreaker, state: State, reason: str, *, open_for: float = 0.0
    ) -> None:
        self.wanted.append((state, reason, open_for))


class Rig:
    def __init__(self, **policy: Any) -> None:
        self.clock, self.sync = Clock(), Sync()
        thresholds = {"consecutive_failures": 5, "failure_rate": 0.5}
        self.breaker = SharedBreaker(
            "llm", BreakerPolicy(**thresholds | policy), "lr:", self.sync, clock=self.clock
        )
        self.version = 100

    def receives(
        self, state: State, remaining: float = 0.0, reason: str = REASON, **how: Any
    ) -> None:
        self.version += 1
        self.breaker.apply_remote_state(self.there(state, remaining, reason), **how)

    def there(self, state: State, remaining: float = 0.0, reason: str = REASON) -> Announcement:
        opens = 1 if state is State.OPEN else 0
        return Announcement(state, self.version, remaining, opens, reason)

    def grants(self, *, lease: float | None = LEASE) -> None:
        """The cluster gives a permit to the next caller."""

        def answer(breaker: SharedBreaker) -> None:
            self.version += 1
            breaker.on_probe_answer(self.there(State.HALF_OPEN), "token", lease)

        self.sync.on_request = answer

    def ask(self) -> Any:
        return asyncio.run(self.breaker.acquire_async())

    def refuses(self) -> CircuitOpenError:
        with pytest.raises(CircuitOpenError) as refused:
            self.ask()
        return refused.value

    def fails(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.on_failure(self.ask(), 0.1)

    def report(self) -> Report:
        report = self.breaker.take_report()
        assert report is not None
        return report

    @property
    def state(self) -> State:
        return self.breaker.state


def token_of(probe: Any) -> str:
    """By which token the cluster knows a probe."""
    token: str = probe.token
    return token


def half_open(rig: Rig) -> Any:
    """A probe of this worker's, let through by the cluster."""
    rig.receives(State.OPEN, remaining=5.0)
    rig.clock.now += 5.0
    rig.grants()
    return rig.ask()


# ---------------------------------------------------------------------- closed


def test_outcomes_are_summed_and_reported_once() -> None:
    rig = Rig(slow_call=1.0)
    rig.breaker.on_success(rig.ask(), 0.1)
    rig.breaker.on_success(rig.ask(), 2.0)
    rig.fails()
    assert rig.sync.wanted == [FlushPriority.BATCHED, FlushPriority.NEXT]
    report = rig.report()
    assert (report.calls, report.failed, report.slow, report.tripped) == (3, 1, 1, "")
    assert rig.breaker.take_report() is None
    rig.breaker.on_success(rig.ask(), 0.1)
    assert rig.report().batch == report.batch + 1


def test_a_trip_is_reported_at_once_and_holds_before_the_answer() -> None:
    rig = Rig()
    rig.fails(5)
    assert rig.sync.wanted[-1] is FlushPriority.IMMEDIATE
    assert rig.refuses().reason == REASON
    report = rig.report()
    assert (report.failed, report.tripped) == (5, REASON)
    rig.receives(State.CLOSED)  # decided before it got this report
    assert rig.state is State.OPEN
    rig.receives(State.OPEN, remaining=9.0, answers=report)
    assert rig.refuses().retry_after == 9.0


def test_a_trip_that_the_cluster_did_not_count_stays_with_this_worker() -> None:
    rig = Rig()
    rig.receives(State.CLOSED)
    rig.fails(5)
    rig.breaker.apply_remote_state(rig.there(State.CLOSED), answers=rig.report())
    assert rig.breaker.is_diverged
    assert rig.refuses().reason == REASON


def test_a_worker_follows_a_cluster_that_did_not_take_its_trip() -> None:
    rig = Rig()
    rig.receives(State.CLOSED)
    rig.fails(5)
    report = rig.report()
    rig.receives(State.CLOSED, answers=report)
    assert rig.state is State.CLOSED


def test_outcomes_of_the_previous_state_are_not_reported() -> None:
    rig = Rig()
    rig.fails(2)
    rig.receives(State.OPEN, remaining=5.0)
    rig.receives(State.CLOSED)
    assert rig.breaker.take_report() is None


def test_a_call_admitted_in_the_previous_state_does_not_count() -> None:
    rig = Rig()
    old = rig.ask()
    rig.receives(State.OPEN, remaining=5.0)
    rig.receives(State.CLOSED)
    rig.breaker.on_failure(old, 0.1)
    rig.breaker.on_success(old, 0.1)
    assert rig.breaker.take_report() is None
    assert rig.breaker.snapshot().calls == 0


@pytest.mark.parametrize("mode", ["metrics-only", "disabled", "forced-open"])
def test_only_an_enforcing_breaker_shares_its_state(mode: Any) -> None:
    rig = Rig(mode=mode)
    state = rig.state
    rig.receives(State.HALF_OPEN)
    assert rig.state is state
    if mode != "forced-open":
        rig.fails()
        assert rig.breaker.take_report() is None
    assert rig.breaker.open_state_to_restore() is None


# ---------------------------------------------------------------------- states of the cluster


def test_a_circuit_that_is_closed_by_hand_anywhere_forgets_its_evidence() -> None:
    rig = Rig(consecutive_failures=None, failure_rate=None)
    for reason, is_known in [(REASON, True), ("by Ada: repaired", False)]:
        rig.fails(2)
        assert rig.breaker.circuit.evidence is not None
        rig.receives(State.CLOSED, reason=reason)
        assert (rig.breaker.circuit.evidence is not None) == is_known


def test_an_older_state_is_ignored() -> None:
    rig = Rig()
    rig.receives(State.OPEN, remaining=5.0)
    for version in (rig.version, rig.version - 1):
        rig.breaker.apply_remote_state(Announcement(State.CLOSED, version, 0.0, 0, ""))
        assert rig.state is State.OPEN


def test_the_state_in_redis_wins_after_an_outage() -> None:
    rig = Rig()
    rig.receives(State.OPEN, remaining=5.0)
    rig.breaker.apply_remote_state(Announcement(State.CLOSED, 3, 0.0, 0, ""), rejoined=True)
    assert rig.state is State.CLOSED
    assert rig.breaker.ref.version == 3


def test_a_breaker_closed_in_worker_and_cluster_keeps_its_window() -> None:
    rig = Rig()
    rig.fails(2)
    rig.receives(State.CLOSED)
    assert rig.breaker.snapshot().failed == 2


def test_a_worker_with_a_quorum_stays_open_until_the_cluster_decides() -> None:
    rig = Rig(quorum=2, open_for=10.0)
    rig.fails(5)
    report = rig.report()
    rig.receives(State.CLOSED, answers=report)
    rig.receives(State.CLOSED)
    assert rig.breaker.is_diverged
    assert rig.state is State.OPEN
    assert rig.breaker.open_state_to_restore() is None
    rig.breaker.apply_remote_state(rig.there(State.CLOSED), announced=True)
    assert not rig.breaker.is_diverged
    assert rig.state is State.CLOSED


def test_a_worker_with_a_quorum_probes_by_itself() -> None:
    rig = Rig(quorum=2, open_for=10.0)
    rig.fails(5)
    rig.receives(State.CLOSED, answers=rig.report())
    rig.clock.now += 10.0
    probe = rig.ask()
    assert "ask" not in rig.sync.wanted
    assert rig.refuses().state == "half-open"
    rig.breaker.on_success(probe, 0.1)
    assert rig.state is State.CLOSED
    assert not rig.breaker.is_diverged


# ---------------------------------------------------------------------- probes


def test_only_one_caller_requests_a_probes_permit() -> None:
    rig = Rig()
    probe = half_open(rig)
    assert rig.sync.wanted.count("ask") == 1
    assert rig.state is State.HALF_OPEN
    rig.sync.on_request = lambda breaker: breaker.on_probe_answer(
        rig.there(State.HALF_OPEN, 5.0), "", None
    )
    assert rig.refuses().state == "half-open"
    assert rig.refuses()
    assert rig.sync.wanted.count("ask") == 2
    rig.clock.now += 0.25
    assert rig.refuses()
    assert rig.sync.wanted.count("ask") == 3
    rig.breaker.on_success(probe, 0.1)
    assert rig.report().verdicts == (("token", "ok"),)
    assert rig.sync.wanted[-1] is FlushPriority.IMMEDIATE


@pytest.mark.parametrize(
    ("how", "verdict"), [("failed", "failed"), ("slow", "was slow"), ("fine", "ok")]
)
def test_the_verdict_of_a_probe_is_reported_to_the_cluster(how: str, verdict: str) -> None:
    rig = Rig(slow_call=1.0)
    probe = half_open(rig)
    if how == "failed":
        rig.breaker.on_failure(probe, 0.1)
    else:
        rig.breaker.on_success(probe, 2.0 if how == "slow" else 0.1)
    assert rig.state is State.HALF_OPEN
    assert rig.report().verdicts == (("token", verdict),)


def test_no_permit_is_requested_before_the_break_is_over() -> None:
    rig = Rig()
    rig.receives(State.OPEN, remaining=5.0)
    assert rig.refuses().retry_after == 5.0
    assert "ask" not in rig.sync.wanted


def test_a_probe_without_a_verdict_releases_its_permit() -> None:
    rig = Rig()
    rig.breaker.release(half_open(rig))
    assert rig.sync.wanted[-1] == ("release", "token")
    assert rig.breaker.take_report() is None


def test_a_late_permit_is_used_by_the_next_caller() -> None:
    rig = Rig()
    rig.receives(State.OPEN, remaining=1.0)
    rig.clock.now += 1.0
    rig.refuses()
    rig.version += 1
    rig.breaker.on_probe_answer(rig.there(State.HALF_OPEN), "late", LEASE)
    assert token_of(rig.ask()) == "late"
    assert not rig.breaker.abandon_unused_probe("late")


def test_an_unused_permit_is_dropped_once() -> None:
    rig = Rig()
    rig.receives(State.HALF_OPEN)
    rig.breaker.on_probe_answer(rig.there(State.HALF_OPEN), "unused", LEASE)
    assert not rig.breaker.abandon_unused_probe("another")
    assert rig.breaker.abandon_unused_probe("unused")
    assert not rig.breaker.abandon_unused_probe("unused")


def test_a_permit_whose_lease_ended_is_not_used() -> None:
    rig = Rig()
    rig.receives(State.HALF_OPEN)
    rig.breaker.on_probe_answer(rig.there(State.HALF_OPEN), "token", LEASE)
    rig.clock.now += LEASE
    assert rig.refuses()


def test_an_unanswered_request_times_out() -> None:
    rig = Rig()
    rig.receives(State.HALF_OPEN)
    rig.sync.on_await = lambda _: None
    for _ in range(3):
        rig.refuses()
    assert rig.sync.wanted.count("ask") == 1
    rig.clock.now += 1.0
    rig.refuses()
    assert rig.sync.wanted.count("ask") == 2


def test_an_answer_to_a_closed_loop_is_dropped() -> None:
    rig = Rig()
    rig.receives(State.HALF_OPEN)
    answers: list[Callable[[], None]] = []
    rig.sync.on_await = answers.append
    rig.refuses()
    answers[0]()
    rig.grants()
    rig.sync.on_await = Sync().on_await
    assert rig.ask()


def test_the_permit_of_a_cancelled_caller_is_used_by_the_next() -> None:
    rig = Rig()
    rig.receives(State.HALF_OPEN)
    answers: list[Callable[[], None]] = []
    rig.sync.on_await = answers.append
    rig.sync.round_trip = 1.0

    async def cancelled() -> None:
        caller = asyncio.create_task(rig.breaker.acquire_async())
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        rig.breaker.on_probe_answer(rig.there(State.HALF_OPEN), "token", LEASE)
        answers[0]()
        assert await rig.breaker.acquire_async()

    asyncio.run(cancelled())


# ---------------------------------------------------------------------- without Redis


def test_without_redis_a_breaker_opens_probes_and_closes_by_itself() -> None:
    rig = Rig(open_for=10.0, open_growth=1.0)
    rig.sync.connected = False
    rig.fails(5)
    rig.clock.now += 10.0
    rig.fails()
    assert rig.refuses().retry_after == 10.0
    assert rig.breaker.is_diverged
    rig.clock.now += 10.0
    rig.breaker.on_success(rig.ask(), 0.1)
    assert rig.state is State.CLOSED
    assert "ask" not in rig.sync.wanted


def test_a_break_of_the_cluster_is_not_diverged_when_redis_is_lost() -> None:
    rig = Rig(quorum=2)
    rig.receives(State.OPEN, remaining=30.0)
    rig.sync.connected = False
    assert rig.refuses().retry_after == 30.0
    held = rig.breaker.open_state_to_restore()
    assert held is not None
    assert (held.left, held.opens, held.reason) == (30.0, 1, REASON)


@pytest.mark.parametrize("failed", [True, False])
def test_a_probe_that_ends_without_redis_is_decided_in_this_worker(failed: bool) -> None:  # noqa: FBT001
    rig = Rig()
    probe = half_open(rig)
    rig.sync.connected = False
    if failed:
        rig.breaker.on_failure(probe, 0.1)
    else:
        rig.breaker.on_success(probe, 0.1)
    assert rig.state is (State.OPEN if failed else State.CLOSED)


@pytest.mark.parametrize(("verdict", "state"), [("ok", State.CLOSED), ("failed", State.OPEN)])
def test_a_verdict_that_could_not_be_reported_is_applied_in_this_worker(
    verdict: str, state: State
) -> None:
    rig = Rig()
    rig.fails(2)
    half_open(rig)
    rig.breaker.on_report_lost(Report(1, verdicts=(("token", verdict), ("other", verdict))))
    assert rig.state is state
    assert rig.breaker.circuit.evidence is not None


@pytest.mark.parametrize("state", list(State))
def test_only_a_break_that_is_not_over_is_restored(state: State) -> None:
    rig = Rig()
    rig.receives(state, remaining=5.0)
    assert (rig.breaker.open_state_to_restore() is not None) == (state is State.OPEN)
    rig.clock.now += 5.0
    assert rig.breaker.open_state_to_restore() is None


# ---------------------------------------------------------------------- by hand, after a fork


def test_a_forced_state_is_sent_to_all_workers() -> None:
    rig = Rig(open_for=10.0)
    rig.breaker.open("one")
    rig.breaker.open("two", open_for=99.0)
    assert rig.refuses().retry_after == 99.0
    rig.breaker.half_open("three")
    rig.breaker.close("four")
    assert rig.sync.wanted == [
        (State.OPEN, "one", 10.0),
        (State.OPEN, "two", 99.0),
        (State.HALF_OPEN, "three", 0.0),
        (State.CLOSED, "four", 0.0),
    ]


def test_a_child_process_inherits_no_report_and_no_permit() -> None:
    rig = Rig()
    rig.fails(2)
    rig.receives(State.HALF_OPEN)
    rig.breaker.on_probe_answer(rig.there(State.HALF_OPEN), "parent's", LEASE)
    rig.breaker.reset_after_fork()
    assert rig.breaker.take_report() is None
    rig.grants()
    assert token_of(rig.ask()) == "token"


def test_the_wait_for_a_permit_grows_with_the_round_trip_and_is_bounded() -> None:
    for round_trip, longest in ((0.0, 0.001), (0.004, 0.012), (9.0, 0.05)):
        rig = Rig()
        rig.receives(State.HALF_OPEN)
        rig.sync.round_trip = round_trip
        rig.sync.on_await = lambda _: None
        waits: list[float] = []

        async def wait(_: Any, *, waits: list[float] = waits, **limits: float) -> None:
            waits.append(limits["timeout"])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "wait", wait)
            rig.refuses()
        assert math.isclose(waits[0], longest)


@pytest.mark.anyio
async def test_each_success_is_reported_to_the_cluster() -> None:
    rig = Rig(window_calls=10)
    guard = Guard("llm", Policy(), breaker=rig.breaker, clock=rig.clock)
    for _ in range(25):
        await guard.call(asyncio.sleep, 0)
    report = rig.breaker.take_report()
    assert report is not None
    assert (report.calls, report.failed) == (25, 0)
