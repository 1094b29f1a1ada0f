"""Settings that are each valid, and contradict each other. No I/O: policies in, findings out."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lightrag_resilience.config.policies import Policy, TimeoutPolicy
from lightrag_resilience.config.process_environment import timeout_variable

__all__ = ["Finding", "Level", "examine"]

_MINUTE = 60.0  # seconds
_TIMES = 2  # LightRAG's queue ends a call after this many of its own timeouts


class Level(enum.StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """Something will not work as configured."""
    WARNING = "warning"
    """Something works, but probably not as intended."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and what to do about it.

    Attributes:
        level: How bad it is.
        subject: The dependency, or ``redis``.
        problem: What is wrong, as a sentence without its full stop.
        advice: What to do, as such a sentence.
    """

    level: Level
    subject: str
    problem: str
    advice: str


def examine(name: str, policy: Policy, queue_timeouts: Mapping[str, float]) -> list[Finding]:
    """Find contradictions in the policy of one dependency.

    Args:
        name: The dependency.
        policy: Its policy in force.
        queue_timeouts: For each family, LightRAG's own timeout, in seconds.
    """
    family = name.partition(".")[0]
    family_timeout = queue_timeouts.get(family)
    found = [
        *_timeouts(policy, family, family_timeout),
        *_queue(policy, family_timeout),
        *_breaker(policy),
        *_limits(policy),
    ]
    return [Finding(level, name, problem, advice) for level, problem, advice in found]


_Found = Iterator[tuple[Level, str, str]]


def _timeouts(policy: Policy, family: str, timeout: float | None) -> _Found:
    attempt, total = policy.timeout.attempt, policy.timeout.total
    retry = policy.retry
    if total is None:
        return
    if attempt is not None and attempt > total:
        yield (
            Level.ERROR,
            f"an attempt may take {attempt:g} s, and all attempts together only {total:g} s",
            _more_time(attempt, family, timeout) or "set TIMEOUT__TOTAL above TIMEOUT__ATTEMPT",
        )
    elif attempt is not None and retry.attempts > 1 and _for_two(attempt) > total:
        yield (
            Level.WARNING,
            (
                f"after an attempt that timed out ({attempt:g} s) a second one is cut "
                f"short, as all "
                f"together get {total:g} s"
            ),
            _more_time(attempt, family, timeout)
            or "set TIMEOUT__TOTAL to twice TIMEOUT__ATTEMPT or more, or RETRY__ATTEMPTS to 1",
        )
    if retry.attempts > 1 and retry.initial_backoff >= total:
        yield (
            Level.WARNING,
            (
                f"the first retry may wait {retry.initial_backoff:g} s, and the call ends after "
                f"{total:g} s"
            ),
            "lower RETRY__INITIAL_BACKOFF",
        )
    gap, whole = policy.timeout.gap, policy.timeout.stream_total
    if gap is not None and whole is not None and gap > whole:
        yield (
            Level.WARNING,
            f"a stream may be silent for {gap:g} s, and last only {whole:g} s",
            "lower TIMEOUT__GAP or raise TIMEOUT__STREAM_TOTAL",
        )


def _more_time(attempt: float, family: str, timeout: float | None) -> str:
    """The advice where LightRAG's queue leaves a larger total no room; else ""."""
    if timeout is None or _for_two(attempt) < _TIMES * timeout:
        return ""
    named = f"{timeout_variable(family)}={math.ceil(attempt)}"
    return f"set {named}, from which both follow, and leave TIMEOUT__ATTEMPT and __TOTAL out"


def _for_two(attempt: float) -> float:
    """Seconds that leave a second attempt about as long as the first, within LightRAG's queue."""
    return TimeoutPolicy().inheriting(attempt).total or math.inf


def _queue(policy: Policy, timeout: float | None) -> _Found:
    if timeout is None:
        return
    allowed = _TIMES * timeout
    longest = policy.timeout.total or policy.timeout.attempt
    if longest is None or longest >= allowed:
        lasts = "as long as it likes" if longest is None else f"{longest:g} s"
        yield (
            Level.ERROR,
            (
                f"a call may take {lasts}, and LightRAG's queue ends it after {allowed:g} s "
                f"({_TIMES} times its timeout of {timeout:g} s), with an error that is not ours"
            ),
            "leave TIMEOUT__TOTAL out, or raise LightRAG's own timeout (LLM_TIMEOUT and the like)",
        )


def _breaker(policy: Policy) -> _Found:
    attempt, breaker = policy.timeout.attempt, policy.effective_breaker
    if breaker.mode == "disabled":
        return
    if attempt is not None and breaker.longest_probe < attempt:
        yield (
            Level.WARNING,
            (
                f"a probe loses its permit after {breaker.longest_probe:g} s, before its "
                f"attempt is over "
                f"({attempt:g} s), so that more probes go out than wanted"
            ),
            "leave BREAKER__PROBE_LEASE out, or set it above TIMEOUT__ATTEMPT",
        )
    if attempt is not None and breaker.slow_call is not None and breaker.slow_call >= attempt:
        yield (
            Level.WARNING,
            f"no call is ever slow ({breaker.slow_call:g} s): it times out before ({attempt:g} s)",
            "lower BREAKER__SLOW_CALL",
        )


def _limits(policy: Policy) -> _Found:
    limit, total = policy.limit, policy.timeout.total
    if limit.rpm is not None and limit.rpm < 1:
        yield (
            Level.WARNING,
            f"{limit.rpm:g} requests a minute are one in {_MINUTE / limit.rpm:.0f} s",
            "check LIMIT__RPM: it counts requests a minute, not a second",
        )
    if limit.rpm is not None and _MINUTE / limit.rpm > limit.max_wait:
        yield (
            Level.WARNING,
            (
                f"a turn comes every {_MINUTE / limit.rpm:.1f} s, and a call waits "
                f"{limit.max_wait:g} "
                "s for it at most, so what is beyond the burst is refused at once"
            ),
            "raise LIMIT__MAX_WAIT or LIMIT__RPM",
        )
    if limit.tpm is not None and limit.tpm < limit.answer_tokens:
        yield (
            Level.ERROR,
            (
                f"an answer is booked with {limit.answer_tokens} tokens, more than a minute has "
                f"({limit.tpm:g})"
            ),
            "raise LIMIT__TPM or lower LIMIT__ANSWER_TOKENS",
        )
    has_limit = limit.rpm is not None or limit.tpm is not None
    if has_limit and total is not None and limit.max_wait >= total:
        yield (
            Level.WARNING,
            (
                f"a call may wait {limit.max_wait:g} s for its turn, and ends after "
                f"{total:g} s, so "
                "that no time is left to make it"
            ),
            "set LIMIT__MAX_WAIT below TIMEOUT__TOTAL",
        )
