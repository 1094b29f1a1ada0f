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
        self.on_ask: Callable[[SharedBreaker], None] = lambda _: None
        self.on_question: Callable[[Callable[[], None]], None] = lambda answered: answered()

    def begin(self) -> None:
        self.wanted.append("begin")

    def schedule_report(self, breaker: SharedBreaker, when: FlushPriority) -> None:
        self.wanted.append(when)

    def request_probe(self, breaker: SharedBreaker, answered: Callable[[], None]) -> None:
        self.wanted.append("ask")
        self.on_ask(breaker)
        self.on_question(answered)

    def return_probe(self, breaker: SharedBreaker, token: str) -> None:
        self.wanted.append(("give back", token))

    def force_state(
        self, breaker: SharedBreaker, state: State, reason: str, *, open_for: float = 0.0
    ) -> None:
        self.wanted.append((state, reason, open_for))


class Rig:
    def __init__(self, **policy: Any) -> None:
        self.clock, self.sync = Clock(), Sync()
        self.breaker = SharedBreaker(
            "llm", BreakerPolicy(**policy), "lr:", self.sync, clock=self.clock
        )
        self.version = 100

    def hears(self, state: State, *, remaining: float = 0.0, **how: Any) -> None:
        self.version += 1
        self.breaker.apply_remote_state(self.there(state, remaining), **how)

    def there(self, state: State, remaining: float = 0.0) -> Announcement:
        opens = 1 if state is State.OPEN else 0
        return Announcement(state, self.version, remaining, opens, REASON)

    def grants(self, *, lease: float | None = LEASE) -> None:
        """The cluster gives a place to whoever asks next."""

        def answer(breaker: SharedBreaker) -> None:
            self.version += 1
            breaker.on_probe_answer(self.there(State.HALF_OPEN), "token", lease)

        self.sync.on_ask = answer

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
    rig.hears(State.OPEN, remaining=5.0)
    rig.clock.now += 5.0
    rig.grants()
    return rig.ask()


# ---------------------------------------------------------------------- closed


def test_outcomes_are_added_up_and_told_once() -> None:
    rig = Rig(slow_call=1.0)
    rig.breaker.on_success(rig.ask(), 0.1)
    rig.breaker.on_success(rig.ask(), 2.0)
    rig.fails()
    assert rig.sync.wanted == [FlushPriority.SOON, FlushPriority.NEXT]
    told = rig.report()
    assert (told.calls, told.failed, told.slow, told.tripped) == (3, 1, 1, "")
    assert rig.breaker.take_report() is None
    rig.breaker.on_success(rig.ask(), 0.1)
    assert rig.report().batch == told.batch + 1


def test_a_trip_is_told_at_once_and_holds_before_the_cluster_answers() -> None:
    rig = Rig()
    rig.fails(5)
    assert rig.sync.wanted[-1] is FlushPriority.NOW
    assert rig.refuses().reason == REASON
    told = rig.report()
    assert (told.failed, told.tripped) == (5, REASON)
    rig.hears(State.CLOSED)  # decided before it heard of this
    assert rig.state is State.OPEN
    rig.hears(State.OPEN, remaining=9.0, answers=told)
    assert rig.refuses().retry_after == 9.0


def test_a_trip_that_the_cluster_did_not_count_stays_this_workers_own() -> None:
    rig = Rig()
    rig.hears(State.CLOSED)
    rig.fails(5)
    rig.breaker.apply_remote_state(rig.there(State.CLOSED), answers=rig.report())
    assert rig.breaker.is_diverged
    assert rig.refuses().reason == REASON


def test_a_cluster_that_went_on_without_a_trip_is_followed() -> None:
    rig = Rig()
    rig.hears(State.CLOSED)
    rig.fails(5)
    told = rig.report()
    rig.hears(State.CLOSED, answers=told)
    assert rig.state is State.CLOSED


def test_outcomes_from_before_a_change_are_not_told_after_it() -> None:
    rig = Rig()
    rig.fails(2)
    rig.hears(State.OPEN, remaining=5.0)
    rig.hears(State.CLOSED)
    assert rig.breaker.take_report() is None


def test_a_call_from_before_a_change_counts_no_more() -> None:
    rig = Rig()
    old = rig.ask()
    rig.hears(State.OPEN, remaining=5.0)
    rig.hears(State.CLOSED)
    rig.breaker.on_failure(old, 0.1)
    rig.breaker.on_success(old, 0.1)
    assert rig.breaker.take_report() is None
    assert rig.breaker.snapshot().calls == 0


@pytest.mark.parametrize("mode", ["metrics-only", "disabled", "forced-open"])
def test_only_an_enforcing_breaker_shares(mode: Any) -> None:
    rig = Rig(mode=mode)
    state = rig.state
    rig.hears(State.HALF_OPEN)
    assert rig.state is state
    if mode != "forced-open":
        rig.fails()
        assert rig.breaker.take_report() is None
    assert rig.breaker.open_state_to_restore() is None


# ---------------------------------------------------------------------- what is heard


def test_old_news_is_no_news() -> None:
    rig = Rig()
    rig.hears(State.OPEN, remaining=5.0)
    for version in (rig.version, rig.version - 1):
        rig.breaker.apply_remote_state(Announcement(State.CLOSED, version, 0.0, 0, ""))
        assert rig.state is State.OPEN


def test_what_redis_says_wins_when_it_is_there_again() -> None:
    rig = Rig()
    rig.hears(State.OPEN, remaining=5.0)
    rig.breaker.apply_remote_state(Announcement(State.CLOSED, 3, 0.0, 0, ""), rejoined=True)
    assert rig.state is State.CLOSED
    assert rig.breaker.subject.version == 3


def test_closed_here_and_there_keeps_what_is_counted() -> None:
    rig = Rig()
    rig.fails(2)
    rig.hears(State.CLOSED)
    assert rig.breaker.snapshot().failed == 2


def test_one_of_a_quorum_refuses_by_itself_until_the_cluster_decides() -> None:
    rig = Rig(quorum=2, open_for=10.0)
    rig.fails(5)
    told = rig.report()
    rig.hears(State.CLOSED, answers=told)
    rig.hears(State.CLOSED)
    assert rig.breaker.is_diverged
    assert rig.state is State.OPEN
    assert rig.breaker.open_state_to_restore() is None
    rig.breaker.apply_remote_state(rig.there(State.CLOSED), announced=True)
    assert not rig.breaker.is_diverged
    assert rig.state is State.CLOSED


def test_one_of_a_quorum_tries_by_itself() -> None:
    rig = Rig(quorum=2, open_for=10.0)
    rig.fails(5)
    rig.hears(State.CLOSED, answers=rig.report())
    rig.clock.now += 10.0
    probe = rig.ask()
    assert "ask" not in rig.sync.wanted
    assert rig.refuses().state == "half-open"
    rig.breaker.on_success(probe, 0.1)
    assert rig.state is State.CLOSED
    assert not rig.breaker.is_diverged


# ---------------------------------------------------------------------- probes


def test_only_one_caller_asks_for_a_place_and_gets_it() -> None:
    rig = Rig()
    probe = half_open(rig)
    assert rig.sync.wanted.count("ask") == 1
    assert rig.state is State.HALF_OPEN
    rig.sync.on_ask = lambda breaker: breaker.on_probe_answer(
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
    assert rig.sync.wanted[-1] is FlushPriority.NOW


@pytest.mark.parametrize(
    ("how", "verdict"), [("failed", "failed"), ("slow", "was slow"), ("fine", "ok")]
)
def test_the_cluster_judges_a_probe(how: str, verdict: str) -> None:
    rig = Rig(slow_call=1.0)
    probe = half_open(rig)
    if how == "failed":
        rig.breaker.on_failure(probe, 0.1)
    else:
        rig.breaker.on_success(probe, 2.0 if how == "slow" else 0.1)
    assert rig.state is State.HALF_OPEN
    assert rig.report().verdicts == (("token", verdict),)


def test_before_the_break_is_over_nobody_asks() -> None:
    rig = Rig()
    rig.hears(State.OPEN, remaining=5.0)
    assert rig.refuses().retry_after == 5.0
    assert "ask" not in rig.sync.wanted


def test_a_probe_that_ends_without_a_verdict_gives_its_place_back() -> None:
    rig = Rig()
    rig.breaker.release(half_open(rig))
    assert rig.sync.wanted[-1] == ("give back", "token")
    assert rig.breaker.take_report() is None


def test_an_answer_that_comes_late_serves_the_next_caller() -> None:
    rig = Rig()
    rig.hears(State.OPEN, remaining=1.0)
    rig.clock.now += 1.0
    rig.refuses()
    rig.version += 1
    rig.breaker.on_probe_answer(rig.there(State.HALF_OPEN), "late", LEASE)
    assert token_of(rig.ask()) == "late"
    assert not rig.breaker.give_up_unused("late")


def test_a_place_that_nobody_takes_is_given_up_once() -> None:
    rig = Rig()
    rig.hears(State.HALF_OPEN)
    rig.breaker.on_probe_answer(rig.there(State.HALF_OPEN), "unused", LEASE)
    assert not rig.breaker.give_up_unused("another")
    assert rig.breaker.give_up_unused("unused")
    assert not rig.breaker.give_up_unused("unused")


def test_a_place_that_has_lapsed_is_not_used() -> None:
    rig = Rig()
    rig.hears(State.HALF_OPEN)
    rig.breaker.on_probe_answer(rig.there(State.HALF_OPEN), "token", LEASE)
    rig.clock.now += LEASE
    assert rig.refuses()


def test_a_question_without_an_answer_is_given_up() -> None:
    rig = Rig()
    rig.hears(State.HALF_OPEN)
    rig.sync.on_question = lambda _: None
    for _ in range(3):
        rig.refuses()
    assert rig.sync.wanted.count("ask") == 1
    rig.clock.now += 1.0
    rig.refuses()
    assert rig.sync.wanted.count("ask") == 2


def test_an_answer_to_a_loop_that_has_ended_is_dropped() -> None:
    rig = Rig()
    rig.hears(State.HALF_OPEN)
    answers: list[Callable[[], None]] = []
    rig.sync.on_question = answers.append
    rig.refuses()
    answers[0]()
    rig.grants()
    rig.sync.on_question = Sync().on_question
    assert rig.ask()


def test_a_cancelled_caller_leaves_the_place_to_the_next() -> None:
    rig = Rig()
    rig.hears(State.HALF_OPEN)
    answers: list[Callable[[], None]] = []
    rig.sync.on_question = answers.append
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


def test_without_redis_it_opens_tries_and_closes_by_itself() -> None:
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


def test_a_break_that_the_cluster_decided_stays_its_own_when_redis_goes() -> None:
    rig = Rig(quorum=2)
    rig.hears(State.OPEN, remaining=30.0)
    rig.sync.connected = False
    assert rig.refuses().retry_after == 30.0
    held = rig.breaker.open_state_to_restore()
    assert held is not None
    assert (held.left, held.opens, held.reason) == (30.0, 1, REASON)


@pytest.mark.parametrize("failed", [True, False])
def test_a_probe_that_ends_without_redis_is_judged_here(failed: bool) -> None:  # noqa: FBT001
    rig = Rig()
    probe = half_open(rig)
    rig.sync.connected = False
    if failed:
        rig.breaker.on_failure(probe, 0.1)
    else:
        rig.breaker.on_success(probe, 0.1)
    assert rig.state is (State.OPEN if failed else State.CLOSED)


@pytest.mark.parametrize(("verdict", "state"), [("ok", State.CLOSED), ("failed", State.OPEN)])
def test_a_verdict_that_could_not_be_told_is_taken_here(verdict: str, state: State) -> None:
    rig = Rig()
    half_open(rig)
    rig.breaker.on_report_lost(Report(1, verdicts=(("token", verdict), ("other", verdict))))
    assert rig.state is state


@pytest.mark.parametrize("state", list(State))
def test_only_a_break_that_is_not_over_is_planted(state: State) -> None:
    rig = Rig()
    rig.hears(state, remaining=5.0)
    assert (rig.breaker.open_state_to_restore() is not None) == (state is State.OPEN)
    rig.clock.now += 5.0
    assert rig.breaker.open_state_to_restore() is None


# ---------------------------------------------------------------------- by hand, after a fork


def test_what_is_done_by_hand_is_done_to_all() -> None:
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


def test_a_child_process_inherits_no_report_and_no_place() -> None:
    rig = Rig()
    rig.fails(2)
    rig.hears(State.HALF_OPEN)
    rig.breaker.on_probe_answer(rig.there(State.HALF_OPEN), "parent's", LEASE)
    rig.breaker.reset_after_fork()
    assert rig.breaker.take_report() is None
    rig.grants()
    assert token_of(rig.ask()) == "token"


def test_the_wait_for_an_answer_is_short_and_grows_with_the_way_to_redis() -> None:
    for round_trip, longest in ((0.0, 0.001), (0.004, 0.012), (9.0, 0.05)):
        rig = Rig()
        rig.hears(State.HALF_OPEN)
        rig.sync.round_trip = round_trip
        rig.sync.on_question = lambda _: None
        waits: list[float] = []

        async def wait(_: Any, *, waits: list[float] = waits, **limits: float) -> None:
            waits.append(limits["timeout"])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "wait", wait)
            rig.refuses()
        assert math.isclose(waits[0], longest)


@pytest.mark.anyio
async def test_each_success_is_counted_for_the_cluster() -> None:
    rig = Rig(window_calls=10)
    guard = Guard("llm", Policy(), breaker=rig.breaker, clock=rig.clock)
    for _ in range(25):
        await guard.call(asyncio.sleep, 0)
    report = rig.breaker.take_report()
    assert report is not None
    assert (report.calls, report.failed) == (25, 0)
