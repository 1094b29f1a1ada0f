"""What calls notice when Redis is killed or hangs, and how soon workers agree afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.sharing.cluster import Cluster, cluster
from benchmarks.sharing.speed import Spread, spread

__all__ = ["Outage", "loop_lag", "outages"]

_CALLERS, _PAUSE = 20, 0.02


@dataclass(frozen=True, slots=True)
class Outage:
    """Four processes while Redis was down.

    Attributes:
        calls: Seconds of each call of an instant function.
        wrong: Calls that failed.
        leaked: Calls that reached a dependency whose breaker was open before, and stayed so.
        agreed: Seconds after the return until all processes had a change that one of them made
            meanwhile.
    """

    calls: Spread
    wrong: int
    leaked: int
    agreed: float


def outages(seconds: float) -> dict[str, Outage | Spread]:
    """Calls while Redis is well, killed, and hung."""
    with cluster(OPEN_FOR="120", OPEN_MAX="120") as four:
        well = _calls(four, seconds)[0]
        killed = _outage(four, seconds, four.server.kill, four.server.start)
    with cluster(OPEN_FOR="120", OPEN_MAX="120") as four:
        hung = _outage(four, seconds, four.server.pause, four.server.resume)
    return {"well": well, "killed": killed, "hung": hung}


def _outage(
    four: Cluster, seconds: float, begin: Callable[[], None], end: Callable[[], None]
) -> Outage:
    begin()
    calls, wrong = _calls(four, seconds)
    four.workers[0].request("trip")  # its breaker diverges: no other can receive the trip
    end()
    back = time.monotonic()
    agreed = max(worker.request("is_in", state="open") for worker in four.workers[1:]) - back
    begin()
    four.all("take")
    four.all("begin", callers=_CALLERS, pause=_PAUSE)
    time.sleep(seconds)
    leaked = sum(one["made"] for one in four.all("end"))
    end()
    return Outage(calls, wrong, leaked, agreed)


def _calls(four: Cluster, seconds: float) -> tuple[Spread, int]:
    four.all("take")
    four.all("begin", callers=_CALLERS, pause=_PAUSE)
    time.sleep(seconds)
    answers = four.all("end")
    durations = [duration for one in answers for duration in one["durations"]]
    return spread(durations), sum(one["wrong"] for one in answers)


def loop_lag(seconds: float) -> dict[str, Spread]:
    """How late timers run in four processes, beside 50 callers each whose calls take 50 ms.

    Bare, guarded, and guarded with a shared breaker.
    """
    lags = {}
    with cluster(shared=False) as local, cluster() as shared:
        for name, four, guarded in (
            ("bare", local, False),
            ("not shared", local, True),
            ("shared", shared, True),
        ):
            four.all("behave", takes=0.05)
            four.all("begin", callers=50, guarded=guarded)
            answers = four.all("lag", seconds=seconds)
            lags[name] = spread([lag for one in answers for lag in one])
            four.all("end")
    return lags
