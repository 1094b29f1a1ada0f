"""Whether a run of failures shows that a dependency is down, or only browned out. No clock.

Browned out, a share of the calls passes: then runs of five failures are common, and rejecting calls
loses answers that would have come. So the run that opens a circuit is as long as
chance alone makes unlikely, given how calls ended before it: the longer, the more of them failed.
"""

from __future__ import annotations

import math

from .outcomes import are_over

__all__ = ["Evidence", "run_to_open"]

_CHANCE = math.log(1e-6)  # of so long a run by chance; benchmarks/brownout_model compares others
_PRIOR_CALLS, _PRIOR_SHARE = 5, 0.1  # what is assumed of a dependency before its first failures
_SHORTEST_RUN, _LONGEST_RUN = 6, 60
_MEMORY = 200  # calls; beyond it both counts are halved, so that recent calls weigh more
_KEPT = 600.0  # seconds after the last failure, as in the Lua scripts
_ENOUGH = 10  # calls, before any is shed
_ACCEPTED_FACTOR = 2  # K of the client-side throttle in Google's SRE book, chapter 21


def run_to_open(calls: int, failed: int) -> int:
    """Failures in a row that show that a dependency is down: 6 to 60.

    A dependency that goes on failing as before gives so long a run by chance once in a million.

    Args:
        calls: Calls before the run, since the dependency began to fail.
        failed: How many of them failed.
    """
    share = (failed + _PRIOR_CALLS * _PRIOR_SHARE) / (calls + _PRIOR_CALLS)
    share = max(share, _PRIOR_SHARE)
    return min(math.ceil(_CHANCE / math.log(share) - 1e-9), _LONGEST_RUN)


class Evidence:
    """How calls ended since a dependency began to fail.

    It outlasts the circuit's changes of state: a circuit that was opened by bad luck needs a longer
    run the next time.

    Attributes:
        calls: Calls before the present run of failures.
        failed: How many of them failed.
        failed_at: Monotonic seconds of the last failure.
        run: Failures in a row, the last ones.
        successes: Successes in a row, the last ones.
    """

    __slots__ = ("calls", "failed", "failed_at", "run", "successes")

    def __init__(self) -> None:
        self.failed_at = 0.0
        self.calls = self.failed = self.run = self.successes = 0

    def on_failure(self) -> None:
        """Count a failure that the dependency is to blame for."""
        self.run += 1
        self.successes = 0

    def on_success(self) -> None:
        """Count a success, which ends the run of failures."""
        self.successes += 1
        self.end_run(1)

    def end_run(self, more: int = 0, more_failed: int = 0) -> None:
        """End the run of failures, after which so many more calls came."""
        self.calls += self.run + more
        self.failed += self.run + more_failed
        self.run = 0
        while self.calls > _MEMORY:
            self.calls //= 2
            self.failed //= 2

    def is_stale(self, now: float) -> bool:
        """Whether the last failure is more than ten minutes old, and shows nothing any more."""
        return now > self.failed_at + _KEPT

    @property
    def shows_down(self) -> bool:
        """Whether the present run is too long for chance."""
        return self.run >= _SHORTEST_RUN and self.failures_to_open <= 0  # most need no logarithm

    @property
    def failures_to_open(self) -> int:
        """How many more failures in a row would show it."""
        return run_to_open(self.calls, self.failed) - self.run

    @property
    def shows_brownout(self) -> bool:
        """Whether some calls passed since the dependency began to fail."""
        return self.calls > self.failed

    @property
    def shed_share(self) -> float:
        """Share of background calls to hold back, 0 to 1.

        None while half of the calls pass; nor where no call passes, as the circuit decides then.
        Google's SRE book, "Handling Overload": what the dependency accepts is asked for twice.
        """
        calls, passed = self.calls + self.run, self.calls - self.failed
        if calls < _ENOUGH or not passed:
            return 0.0
        return max(0.0, (calls - _ACCEPTED_FACTOR * passed) / (calls + 1))

    @property
    def is_over(self) -> bool:
        """Whether so many calls succeeded in a row that the failures are over."""
        return are_over(self.calls, self.failed, self.successes)
