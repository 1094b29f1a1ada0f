"""Protection costs its user nothing that LightRAG alone would have given.

Both live through the same schedules of faults on virtual time (`support.never_worse`). Whatever
alone answers, protection answers, no later than by `_SLACK` and the slowest answer: callers that
wait are probed for every 4.1 s at the least, a probe takes up to an answer's time, and waits have
jitter. What cannot hold is named here, and its bounds are `_why_not`'s:

- A query of an outage older than a minute is refused at once, until a probe has seen the return:
  10.1 s and a probe's time after it at the latest.
- LightRAG alone may hold a call for longer than its retries take, 8.1 s: in its queue, or because
  an attempt hung. A query waits 12 s for a dependency that is down, and then is refused.
- Protection's attempts begin at other moments. One of them may hang that alone's did not.
- A return that is shorter than the time between two probes may go unseen.
- A query that is later than alone, within these bounds, may meet an outage that begins just as
  alone has its answer.
- What protection has saved takes places in the queue.

Where only a share of the calls fails, luck differs call by call, and so sums are compared. A
circuit that opens by bad luck is among them (once in a million runs, `circuit.evidence`).

Calls are compared per answer: where alone gives up after three attempts, whoever goes on calls more
often. Of one schedule they are at most 1.25 times alone's, and 12 to open the circuit, and a probe
every 1.2 s.

`SCHEDULES=2000 pytest tests/composition/test_never_worse.py` lives through more schedules.
"""

from __future__ import annotations

import os
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.never_worse import Ended, FailsWith, Lived, Phase, Schedule, Work, alone, protected

_SCHEDULES = int(os.environ.get("SCHEDULES", "100"))
_SLACK = 4.5  # seconds
_OWN_RETRIES = 8.2  # seconds from LightRAG's first attempt to its third
_YOUNG = 60.0  # seconds of an outage in which queries wait
_LONGEST_IDLE = 10.5  # seconds between two probes that no caller waits for
_MOST_CALLS = 1.25  # of alone's


def _tenths(least: int, most: int) -> st.SearchStrategy[float]:
    return st.integers(least, most).map(lambda tenths: tenths / 10)


_PHASES = st.builds(
    Phase,
    _tenths(5, 120) | _tenths(5, 900),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(["500", "503", "refused", "hang"]),
    st.sampled_from([0.1, 0.3, 1.0, 3.0, 8.0, 20.0]),
)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """1 to 4 phases, up to 25 queries and a document."""
    phases = draw(st.lists(_PHASES, min_size=1, max_size=4))
    at = _tenths(0, 10 * int(sum(phase.seconds for phase in phases) + 5))
    queries = st.builds(Work, at, st.integers(1, 3))
    documents = st.builds(Work, at, st.integers(1, 6), st.just(value=True))
    most = draw(st.sampled_from([2, 5, 25]))
    works = draw(st.lists(queries, min_size=1, max_size=most))
    works += draw(st.lists(documents, max_size=1))
    timeout, probe_share = st.sampled_from([20.0, 60.0, 240.0]), st.sampled_from([0.1, 1.0])
    return Schedule(tuple(phases), tuple(works), draw(timeout), draw(probe_share))


def _outages(schedule: Schedule, shortest_return: float) -> list[tuple[float, float]]:
    """When no call is answered; over returns that are shorter."""
    outages, now = list[tuple[float, float]](), 0.0
    for phase in schedule.phases:
        if phase.share == 1.0 or phase.latency >= schedule.timeout:
            began, ends = now, now + phase.seconds
            if outages and now - outages[-1][1] <= shortest_return:
                began = outages.pop()[0]
            outages.append((began, ends))
        now += phase.seconds
    return outages


def _why_not(schedule: Schedule, without: Ended, with_it: Ended) -> str:  # noqa: PLR0911 - one a reason
    """Why protection may answer this work later than alone, or not at all; empty if it may not."""
    began, probe = without.work.at, min(schedule.slowest * schedule.probe_share, 5.0)
    unseen = _LONGEST_IDLE + probe
    ended = with_it.answered or with_it.failed or 0.0
    if without.waited > _OWN_RETRIES:
        return "LightRAG held it for longer than its retries take"
    if with_it.hung > without.hung:
        return "another attempt hung"
    for start, end in _outages(schedule, unseen):
        if max(began, start + _YOUNG) <= min(ended, end + unseen) + 0.001:
            return "the outage is old"
    for (_, end), (start, _) in pairwise(_outages(schedule, 0.0)):
        is_short = start - end <= _SLACK + probe
        if is_short and began <= start and (without.answered or 0.0) >= end:
            return "the return was too short"
    answered = without.answered or 0.0
    for start, _ in _outages(schedule, 0.0):
        if began < start and answered - schedule.slowest <= start <= answered + _SLACK:
            return "alone had its answer just before the next outage"
    if with_it.queued > without.queued + 1.0:
        return "others are in the queue that alone has lost"
    return ""


def _worse(schedule: Schedule, without: Lived, with_it: Lived) -> list[tuple[Ended, Ended]]:
    """What alone answers, and protection does not or too late, for no reason named here."""
    return [
        (before, after)
        for before, after in zip(without.works, with_it.works, strict=True)
        if before.answered is not None
        and (after.answered is None or after.answered > before.answered + _latest(schedule))
        and not _why_not(schedule, before, after)
    ]


def _latest(schedule: Schedule) -> float:
    return _SLACK + schedule.slowest


@pytest.mark.no_cover
@settings(max_examples=_SCHEDULES)
@given(schedules())
def test_what_lightrag_alone_answers_protection_answers_as_soon(schedule: Schedule) -> None:
    without, with_it = alone(schedule), protected(schedule)
    assert not _worse(schedule, without, with_it)
    seconds = sum(phase.seconds for phase in schedule.phases) + 12.0
    assert len(with_it.calls) <= _MOST_CALLS * len(without.calls) + 12 + seconds / 1.2


_EVERY = tuple(Work(1.5 * number, 2) for number in range(14))
_FOUND = {
    "twenty queries at once wait for a return": Schedule((Phase(8, 1.0),), (Work(0.0, 2),) * 20),
    "a query comes just after the one that opened the circuit": Schedule(
        (Phase(31.8, 1.0, "refused"),), (Work(22.3, 3), Work(25.1, 2))
    ),
    "a query meets two outages": Schedule(
        (Phase(5, 1.0), Phase(9, 0.0, latency=4.0), Phase(7.5, 1.0)),
        (Work(0.0, 3),),
        probe_share=0.1,
    ),
    "an outage ends in a hang": Schedule(
        (Phase(10, 1.0), Phase(12, 1.0, "hang")),
        (*(Work(1.5 * number) for number in range(12)), Work(23.0)),
    ),
    "the provider comes back slow": Schedule(
        (Phase(13.7, 1.0), Phase(30, 0.0, latency=8.0)), (Work(7.5), Work(8.9))
    ),
    "an attempt hangs until just before the return": Schedule(
        (Phase(23, 1.0, "hang"),), (Work(0.0),), timeout=20.0
    ),
    "ingest waits while the circuit is closed": Schedule(
        (Phase(4.1, 1.0),), (Work(0.2, is_ingest=True),)
    ),
}


@pytest.mark.no_cover
@pytest.mark.parametrize("schedule", _FOUND.values(), ids=_FOUND)
def test_a_schedule_that_was_worse_once_is_worse_no_more(schedule: Schedule) -> None:
    for seed in range(10):
        random.seed(seed)
        without, with_it = alone(schedule), protected(schedule)
        ends = [each.answered for each in without.works]
        assert any(ends)
        for before, after in zip(ends, with_it.works, strict=True):
            assert before is None or (after.answered or 999.0) <= before + _latest(schedule), seed


@pytest.mark.no_cover
@pytest.mark.parametrize("fails_with", ["503", "hang"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.8, 0.9])
def test_in_a_brownout_more_is_answered_with_as_few_calls_for_each_answer(
    share: float, fails_with: FailsWith
) -> None:
    answers, calls = [0, 0], [0, 0]
    for seed in range(10):
        random.seed(seed)
        schedule = Schedule((Phase(20, share, fails_with),), _EVERY, 30.0, 0.3, seed)
        for side, live in enumerate((alone, protected)):
            lived = live(schedule)
            answers[side] += len(lived.answers)
            calls[side] += len(lived.calls)
    assert answers[1] >= answers[0]
    assert calls[1] / answers[1] <= 1.3 * calls[0] / answers[0]
