"""How exact limits are that four processes share, and how seldom Redis is asked for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.sharing.cluster import Cluster, cluster

__all__ = ["Accuracy", "request_accuracy", "token_accuracy"]

_WINDOW = 2.0  # seconds
_REQUESTS = 200  # in a window
_TOKENS = 200_000  # in a window
_CALLERS = 50  # in each process


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Four processes that want more than they may.

    Attributes:
        calls: Calls that were sent.
        worst: The most that was sent in any window, as a share of what may be sent in it.
        used: What was sent over the whole time, as a share of what might have been.
        round_trips: Scripts that Redis ran for each 1000 calls.
        refused: Calls that were refused.
    """

    calls: int
    worst: float
    used: float
    round_trips: float
    refused: int


def request_accuracy(seconds: float) -> Accuracy:
    """200 requests in any 2 s, a tenth of them at once."""
    limits = {"RPM": _REQUESTS * 60 / _WINDOW, "BURST": _REQUESTS // 10}
    with _limited(limits) as four:
        return _measure(four, seconds, _REQUESTS)


def token_accuracy(seconds: float) -> Accuracy:
    """100 000 tokens a second, a tenth of a window's at once; each call books 1500 of them.

    What calls really use is spread log-normally, with the same mean.
    """
    limits = {"TPM": _TOKENS * 60 / _WINDOW, "TOKEN_BURST": _TOKENS // 10}
    with _limited(limits) as four:
        four.all("use_tokens", booked=1500)
        return _measure(four, seconds, _TOKENS)


@contextmanager
def _limited(limits: dict[str, float]) -> Iterator[Cluster]:
    """Workers whose breakers report nothing, so that all scripts are those of the limit."""
    variables = {f"LIMIT__{name}": f"{value:g}" for name, value in limits.items()}
    with cluster(4, shared=True, MODE="disabled", **variables) as four:
        yield four


def _measure(four: Cluster, seconds: float, allowed: int) -> Accuracy:
    four.all("behave", takes=0.01)
    four.all("begin", callers=_CALLERS)
    time.sleep(0.2)
    before, began = four.sent().get("evalsha", 0), time.monotonic()
    time.sleep(seconds)
    ran = four.sent()["evalsha"] - before
    took = time.monotonic() - began
    answers = four.all("end")
    spent = sorted((at, cost) for one in answers for at, cost in one["spent"])
    counted = [(at, cost) for at, cost in spent if began <= at < began + took]
    return Accuracy(
        calls=len(counted),
        worst=_worst_window(spent) / allowed,
        used=sum(cost for _, cost in counted) / (allowed * took / _WINDOW),
        round_trips=ran / len(counted) * 1000,
        refused=sum(one["refused"] for one in answers),
    )


def _worst_window(spent: list[tuple[float, float]]) -> float:
    worst = total = 0.0
    first = 0
    for at, cost in spent:
        total += cost
        while spent[first][0] <= at - _WINDOW:
            total -= spent[first][1]
            first += 1
        worst = max(worst, total)
    return worst
