"""Policies: what a guard does, as frozen dataclasses. Durations are seconds.

A field is declared once: name, type and bounds in its annotation, default and sentence in
`setting()`. The constructors check code against it, ``env_parsing.py`` checks variables against it,
and ``reference.py`` writes the page of variables, ``.env.example`` and the JSON schema from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypedDict, Unpack

from annotated_types import Ge, Gt, Le

from lightrag_resilience.errors import PolicyError, UnsupportedCallError
from lightrag_resilience.verdicts import Failure, FailureKind

from .validation import field_hints, problem_with, setting, shown

__all__ = [
    "FAMILIES",
    "LIGHTRAG_TIMEOUTS",
    "RENEWALS",
    "BreakerPolicy",
    "Breaks",
    "ConcurrencyPolicy",
    "Judge",
    "LimitPolicy",
    "Policy",
    "RetryPolicy",
    "StreamPolicy",
    "TimeoutPolicy",
    "check_policy",
]

FAMILIES = ("llm", "embedding", "rerank", "storage", "parser")
JUDGES = ("result", "stream_item", "stream_end")
"""The fields of `Policy` that are functions; no variable sets them."""

_DAY = 86_400.0  # seconds

Share = Annotated[float, Gt(0), Le(1)]
Seconds = Annotated[float, Gt(0), Le(86_400)]
Wait = Annotated[float, Ge(0), Le(86_400)]
Growth = Annotated[float, Ge(1), Le(10)]
Mode = Literal["enforce", "metrics-only", "disabled", "forced-open"]
Count = Annotated[int, Ge(1), Le(100_000)]

Judge = Callable[[Any], Failure | FailureKind | None]
"""Judges a result: None is a success, a `Failure` or a `FailureKind` is that failure."""

RENEWALS = 4
"""How often the lease of a probe is renewed while its call runs."""
_LEASE = 60.0  # seconds, for a probe whose attempt has no timeout
_MARGIN = 10.0  # seconds from the end of a probe's attempt, for its report to arrive
_QUEUE_MARGIN = 5.0  # seconds for the error of a call to come before LightRAG's queue ends it

LIGHTRAG_TIMEOUTS = {"llm": 240.0, "embedding": 30.0, "rerank": 30.0}
"""Seconds of LightRAG's own timeouts by default, as its `constants` have them."""


class _ByName:
    """Names the fields that exist, where Python would only say that an argument is unexpected."""

    __slots__ = ()

    if not TYPE_CHECKING:  # type checkers read the signature of the dataclass

        def __new__(cls, *args: Any, **values: Any) -> Self:
            names = cls.__dataclass_fields__
            unknown = [*map(shown, args), *(name for name in values if name not in names)]
            if unknown:
                raise UnsupportedCallError(
                    f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(names)}, each "
                    f"by its name{cls._hint(unknown)}"
                )
            return super().__new__(cls)

    @staticmethod
    def _hint(unknown: list[str]) -> str:
        del unknown
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked(_ByName):
    def __post_init__(self) -> None:
        cls: Any = type(self)
        problems = [
            f"{cls.__name__}.{name} {problem}"
            for name, hint in field_hints(cls).items()
            if (problem := problem_with(getattr(self, name), hint))
        ]
        if problems:
            raise PolicyError("; ".join(problems))


class Breaks(NamedTuple):
    """How long a circuit is open.

    Attributes:
        first: Seconds of the first break of an outage.
        base: Seconds from which further breaks grow.
        growth: Their factor.
        longest: Seconds of the longest: a recovery is noticed this late at the most.
    """

    first: float
    base: float
    growth: float
    longest: float

    def length(self, opens: int) -> float:
        """Seconds of break number `opens` in a row."""
        if opens <= 1:
            return self.first
        growth = self.growth ** min(opens - 1, _MOST_GROWN)
        return min(self.base * growth, self.longest)


_MOST_GROWN = 256  # breaks; of more, the power overflows a float
_CLASSICAL = Breaks(5.0, 5.0, 1.5, 10.0)
# A recovery is noticed within 1.7 s in the first minute, and 20 s of an outage cost 14 requests,
# while calls keep coming. The first is sooner: a circuit that bad luck opened costs little.
_PROBED = Breaks(0.8, 1.35, 1.006, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy(_Checked):
    """When a circuit opens, for how long, and how it probes for recovery.

    By default evidence opens it (`circuit.evidence`): a run of failures, 6 at the least, that is
    longer the more calls failed before, so that a brownout in which some calls pass does not open
    it. A threshold of failures in a row, as in pybreaker, or a failure rate, as in resilience4j,
    takes the place of this rule where it is set.

    Sources of the defaults: slow-call rate and window of resilience4j; a minimum of 10 calls, since
    LLM traffic is thin; one probe as in Polly; 5 s open as LiteLLM's cool-down. The time open grows
    as Envoy's ejection time does, but less: one probe costs little, and users wait until the
    recovery is noticed.
    """

    mode: Mode = setting(
        "enforce",
        "`enforce`; `metrics-only` records outcomes, and only an operator can open the circuit; "
        "`disabled` records nothing; `forced-open` rejects every call.",
    )
    failure_rate: Share | None = setting(
        None,
        "Share of failed calls in the window that opens the circuit. `none`: see "
        "`consecutive_failures`.",
    )
    slow_rate: Share = setting(1.0, "Share of slow calls in the window that opens the circuit.")
    slow_call: Seconds | None = setting(
        None,
        "Seconds from which a call, or a stream's first item, counts as slow. `none`: no call is "
        "slow, since what is slow for one model is usual for another.",
    )
    window: Literal["count", "time"] = setting(
        "count",
        "`count`: rates are taken over the last `window_calls`; `time`: over the last "
        "`window_seconds`.",
    )
    window_calls: Count = setting(100, "Calls in a count window.")
    window_seconds: Annotated[float, Ge(1), Le(86_400)] = setting(
        60.0, "Length of a time window, in seconds."
    )
    min_calls: Count = setting(10, "Calls that the window must hold before rates count.")
    consecutive_failures: Count | None = setting(
        None,
        "Failures in a row that open the circuit. `none`, with no `failure_rate`: as many as "
        "chance does not explain, 6 to 60; the more calls failed before, the more.",
    )
    open_for: Seconds | None = setting(
        None,
        "Seconds for which the circuit is open the first time. `none`: 5; where a background probe "
        "looks for the recovery, 0.8 and then 1.35.",
    )
    open_growth: Growth | None = setting(
        None,
        "Factor for each further time open, until the dependency recovers. `none`: 1.5, or 1.006 "
        "with a background probe.",
    )
    open_max: Seconds | None = setting(
        None,
        "Longest time open, in seconds. `none`: twice `open_for`, or 5 with a background probe.",
    )
    background_probe: bool = setting(
        True,
        "Whether one worker probes an open circuit in the background with a small request of its "
        "own, where one is known, so that no user's call is the probe.",
    )
    probes: Count = setting(
        1, "Calls admitted while half-open. All must succeed to close the circuit."
    )
    probe_lease: Seconds | None = setting(
        None,
        "Seconds for which a probe keeps its permit without a renewal. A running call renews it "
        "up to 4 times. `none`: the attempt timeout plus 10, but 60 at the most, or as much as "
        "its renewals need to cover the attempt.",
    )
    quorum: Count = setting(
        1, "Workers that must have recorded failures before all workers open, with Redis."
    )

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        problems: list[str] = []
        if self.window == "count" and self.min_calls > self.window_calls:
            problems.append(
                f"BreakerPolicy.min_calls is {self.min_calls}, more than window_calls "
                f"({self.window_calls}) can ever hold"
            )
        if self.open_max is not None and self.open_max < (self.open_for or 0.0):
            problems.append(
                f"BreakerPolicy.open_max is {self.open_max:g} s, less than open_for "
                f"({self.open_for:g} s)"
            )
        if problems:
            raise PolicyError("; ".join(problems))

    def breaks(self, *, is_probed: bool = False) -> Breaks:
        """How long the circuit is open each time.

        Args:
            is_probed: Whether a background probe looks for the recovery. Its request is small and
                no user's, so it may come soon and often, unless `open_for` is set.
        """
        is_probed = is_probed and self.background_probe and self.open_for is None
        first, base, growth, longest = _PROBED if is_probed else _CLASSICAL
        if self.open_for is not None:
            first = base = self.open_for
            longest = 2.0 * self.open_for
        if self.open_max is not None:
            longest = self.open_max
        if self.open_growth is not None:
            growth = self.open_growth
        return Breaks(min(first, longest), base, growth, longest)

    @property
    def decides_by_evidence(self) -> bool:
        """Whether no threshold is set, so that evidence opens the circuit."""
        return self.failure_rate is None and self.consecutive_failures is None

    @property
    def longest_probe(self) -> float:
        """Seconds after which a probe loses its permit, even while its call runs."""
        return self.lease * (1 + RENEWALS)

    @property
    def lease(self) -> float:
        """Seconds of a probe's lease; `Policy.circuit` derives it from the attempt timeout."""
        return _LEASE if self.probe_lease is None else self.probe_lease


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy(_Checked):
    """Which failures are retried, how often, and how long to wait between attempts.

    Full and decorrelated jitter are AWS's ("Exponential Backoff And Jitter", 2015). With full
    jitter a second wait is shorter than the first one time in four, so the default is a jitter that
    grows. The budget is the retry quota of AWS SDKs' standard mode: 500 tokens, 5 a retry, 10 after
    a timeout, 1 back for each success; a retry that succeeds gives back what it cost.
    """

    attempts: Annotated[int, Ge(1), Le(20)] = setting(
        3, "Attempts of a call at the most, the first included. 1 turns retries off."
    )
    brownout_attempts: Annotated[int, Ge(1), Le(100)] = setting(
        10,
        "Attempts of a call while some calls of a failing dependency pass, where that is more than "
        "`attempts`. Which call passes is chance, so these are at most 4 s apart.",
    )
    initial_backoff: Seconds = setting(0.5, "Seconds before the second attempt, before jitter.")
    backoff_growth: Growth = setting(2.0, "Factor for each further attempt.")
    max_backoff: Seconds = setting(
        30.0, "Longest backoff, in seconds. For a provider's Retry-After see `max_retry_after`."
    )
    jitter: Literal["growing", "full", "decorrelated", "none"] = setting(
        "growing",
        "`growing`: the first wait is spread from 0 on, each further one is at least half of its "
        "backoff; `full`: every wait is spread from 0 on; `decorrelated`; `none`.",
    )
    max_retry_after: Wait = setting(
        60.0,
        "Longest Retry-After of a provider that is waited for, in seconds. With a longer one the "
        "call fails.",
    )
    idempotent: bool | None = setting(
        None,
        "Whether a call of unknown outcome may be repeated. `none`: as the preset says; without "
        "one, an HTTP request by its method, any other call yes.",
    )
    budget: Annotated[int, Ge(0), Le(100_000)] = setting(
        500, "Tokens of the retry budget, for all workers that share a Redis. 0 turns it off."
    )

    def with_idempotent(self, *, idempotent: bool | None) -> RetryPolicy:
        """The same policy, for a call that may or may not be repeated; None changes nothing."""
        if idempotent is None or idempotent == self.idempotent:
            return self
        return replace(self, idempotent=idempotent)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPolicy(_Checked):
    """How many requests and tokens a minute all workers that share a Redis may send.

    No minute gets more than the limit plus the burst, so the default burst of a tenth exceeds the
    limit by at most a tenth.
    """

    rpm: Annotated[float, Gt(0), Le(10_000_000)] | None = setting(
        None, "Requests a minute. `none` sets no limit."
    )
    tpm: Annotated[float, Gt(0), Le(10_000_000_000)] | None = setting(
        None, "Tokens a minute, of prompts and answers together. `none` sets no limit."
    )
    burst: Count | None = setting(
        None, "Requests that may be sent at once. `none`: a tenth of `rpm`, at least 1."
    )
    token_burst: Annotated[int, Ge(1), Le(1_000_000_000)] | None = setting(
        None, "Tokens that may be sent at once. `none`: a tenth of `tpm`."
    )
    answer_tokens: Count = setting(
        500, "Tokens to expect of an answer, where the call sets no maximum."
    )
    max_wait: Wait = setting(
        30.0, "Seconds that a call may wait for the rate limit before it is rejected."
    )

    @property
    def request_burst(self) -> float:
        """Requests that may be sent at once."""
        return self.burst or max(1.0, (self.rpm or 0.0) // 10)

    @property
    def tokens_at_once(self) -> float:
        """Tokens that may be sent at once."""
        return self.token_burst or (self.tpm or 0.0) / 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutPolicy(_Checked):
    """How long an attempt, a call as a whole, and the gaps of a stream may take.

    Models, embeddings and reranking inherit what LightRAG was given: an attempt may take its
    `LLM_TIMEOUT`, `EMBEDDING_TIMEOUT` or `RERANK_TIMEOUT`, and a call a little less than the double
    of that, at which LightRAG's queue ends it.

    A stream has three times of its own, since a good one may be long: until its first item, between
    two items, and in total. 60 s between the items of a model is the idle timeout of nginx and of
    AWS's load balancers; a model that thinks silently for longer needs more. A gap is the wait for
    an item only, never the time that its reader spends on the last one.
    """

    attempt: Seconds | None = setting(
        30.0, "Seconds for one attempt; for a stream, up to its first item."
    )
    total: Seconds | None = setting(
        60.0,
        "Seconds for all attempts and waits of a call together; for a stream, up to its first "
        "item.",
    )
    first_item: Seconds | None = setting(
        None,
        "Seconds from sending to a stream's first item; it replaces `attempt` once the function "
        "has returned its stream. `none`: as `attempt`.",
    )
    gap: Seconds | None = setting(
        None, "Seconds between two items of a stream. `none`: as `attempt`."
    )
    stream_total: Seconds | None = setting(
        None, "Seconds from sending to a stream's last item. `none` sets no limit."
    )

    def inheriting(self, given: float) -> Self:
        """These times, for calls that LightRAG gives so many seconds; infinity sets no limit.

        An attempt may take all of them. LightRAG's queue ends a call after twice as many, so the
        total is 5 s less than that, or a tenth of an attempt where that is shorter.
        """
        if given == math.inf:
            return replace(self, attempt=None, total=None)
        total = 2 * given - min(_QUEUE_MARGIN, given / 10)
        return replace(self, attempt=min(given, _DAY), total=min(total, _DAY))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyPolicy(_Checked):
    """How many calls may be in flight at once, in one process.

    An adaptive limit follows additive increase and multiplicative decrease, as in TCP and in
    Netflix's concurrency-limits: it shrinks after a 429, a timeout, or a window of calls whose
    slowest tenth took longer than the goal.
    """

    max_concurrent: Count | None = setting(None, "Calls in flight at once. `none` sets no limit.")
    max_queue: Annotated[int, Ge(0), Le(100_000)] = setting(
        1000, "Calls that may wait for a permit. Further ones are rejected at once."
    )
    max_wait: Wait = setting(
        30.0, "Seconds that a call may wait for a permit before it is rejected."
    )
    adaptive: bool = setting(
        False,
        "Whether the limit adapts to the dependency, with `max_concurrent` as its upper bound.",
    )
    min_concurrent: Count = setting(1, "The lower bound of an adaptive limit.")
    latency_goal: Seconds | None = setting(
        None,
        "Seconds that nine calls in ten should stay below; for a stream, up to its first item. "
        "`none`: only 429s and timeouts shrink an adaptive limit.",
    )

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.adaptive and self.max_concurrent is None:
            raise PolicyError("ConcurrencyPolicy.adaptive needs max_concurrent, its upper bound")
        if self.adaptive and self.min_concurrent > (self.max_concurrent or 0):
            raise PolicyError(
                f"ConcurrencyPolicy.min_concurrent is {self.min_concurrent}, more than "
                f"max_concurrent ({self.max_concurrent})"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPolicy(_Checked):
    """What a stream of a model must contain to be a success."""

    finish_marker: bool = setting(
        True,
        "Whether a stream of OpenAI, Anthropic, Gemini or Ollama chunks that ends without its "
        "finish marker is a failure. Turn it off for a provider that sends no marker, and for a "
        "function that keeps the last chunk to itself. Plain text needs no marker.",
    )


class Changes(TypedDict, total=False):
    """What `Policy.with_changes` and the presets take: whole parts, or the most-used fields."""

    breaker: BreakerPolicy
    retry: RetryPolicy
    limit: LimitPolicy
    timeout: TimeoutPolicy
    concurrency: ConcurrencyPolicy
    stream: StreamPolicy
    result: Judge | None
    stream_item: Judge | None
    stream_end: Judge | None
    attempt_timeout: float | None
    total_timeout: float | None
    attempts: int
    idempotent: bool
    failure_rate: float | None
    consecutive_failures: int | None
    open_for: float
    rpm: float | None
    max_concurrent: int | None


_SHORTHANDS = {
    "attempt_timeout": ("timeout", "attempt"),
    "total_timeout": ("timeout", "total"),
    "attempts": ("retry", "attempts"),
    "idempotent": ("retry", "idempotent"),
    "failure_rate": ("breaker", "failure_rate"),
    "consecutive_failures": ("breaker", "consecutive_failures"),
    "open_for": ("breaker", "open_for"),
    "rpm": ("limit", "rpm"),
    "max_concurrent": ("concurrency", "max_concurrent"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(_ByName):
    """Everything about one dependency. Start from a preset and change what differs.

    Its fields are its parts. A variable names one as ``RESILIENCE_LLM__RETRY__ATTEMPTS`` does.

    `result`, `stream_item` and `stream_end` are functions that judge results, as Polly's
    ``ShouldHandle`` and resilience4j's ``recordResult`` do. A result that one judges a failure is
    treated as an exception of that `FailureKind`: counted, retried, published and never returned.
    The caller gets an `InvalidResultError` after the last attempt.

    Attributes:
        result: Judges what the function returns, unless that is a stream.
        stream_item: Judges each item of a stream before its reader gets it. A failure of the first
            is retried, one of a later item ends the stream.
        stream_end: Judges the end of a stream: it gets the last item, or None if there was none.
    """

    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    limit: LimitPolicy = field(default_factory=LimitPolicy)
    timeout: TimeoutPolicy = field(default_factory=TimeoutPolicy)
    concurrency: ConcurrencyPolicy = field(default_factory=ConcurrencyPolicy)
    stream: StreamPolicy = field(default_factory=StreamPolicy)
    result: Judge | None = None
    stream_item: Judge | None = None
    stream_end: Judge | None = None

    def __post_init__(self) -> None:
        for name in JUDGES:
            judge = getattr(self, name)
            if judge is not None and not _is_plain_function(judge):
                raise PolicyError(f"Policy.{name} must be a plain function, not {shown(judge)}")
        for name, kind in PARTS.items():
            part = getattr(self, name)
            if not isinstance(part, kind):
                raise PolicyError(f"Policy.{name} must be a {kind.__name__}, not {shown(part)}")

    @staticmethod
    def _hint(unknown: list[str]) -> str:
        short = [name for name in unknown if name in _SHORTHANDS]
        return f"; Policy.llm({short[0]}=...) and the other presets take it" if short else ""

    @classmethod
    def llm(cls, **changes: Unpack[Changes]) -> Policy:
        """Completions, for as long as LightRAG waits by default: 240 s an attempt, 475 s in all."""
        return cls(
            timeout=TimeoutPolicy(gap=60.0).inheriting(LIGHTRAG_TIMEOUTS["llm"]),
            retry=RetryPolicy(attempts=4, idempotent=True),
        ).with_changes(**changes)

    @classmethod
    def embedding(cls, **changes: Unpack[Changes]) -> Policy:
        """Embeddings, for as long as LightRAG waits by default: 30 s an attempt, 57 s in all."""
        return cls(
            timeout=TimeoutPolicy().inheriting(LIGHTRAG_TIMEOUTS["embedding"]),
            retry=RetryPolicy(attempts=4, max_backoff=10.0, idempotent=True),
        ).with_changes(**changes)

    @classmethod
    def rerank(cls, **changes: Unpack[Changes]) -> Policy:
        """Reranking, as long as embeddings. Fewer retries, as LightRAG can answer without it."""
        return cls(
            timeout=TimeoutPolicy().inheriting(LIGHTRAG_TIMEOUTS["rerank"]),
            retry=RetryPolicy(attempts=3, max_backoff=5.0, idempotent=True),
        ).with_changes(**changes)

    @classmethod
    def storage(cls, **changes: Unpack[Changes]) -> Policy:
        """Databases: short times, and no repeated call unless the policy says idempotent."""
        return cls(
            timeout=TimeoutPolicy(attempt=10.0, total=30.0),
            retry=RetryPolicy(attempts=3, initial_backoff=0.1, max_backoff=2.0, idempotent=False),
        ).with_changes(**changes)

    @classmethod
    def parser(cls, **changes: Unpack[Changes]) -> Policy:
        """Parsers of documents, without a time limit: LightRAG's client has its own, per read.

        Parsing a file twice does no harm, so an upload of unknown outcome is repeated.
        """
        return cls(
            timeout=TimeoutPolicy(attempt=None, total=None),
            retry=RetryPolicy(attempts=3, max_backoff=10.0, idempotent=True),
        ).with_changes(**changes)

    @classmethod
    def for_name(cls, name: str) -> Policy:
        """The preset of a dependency's family, the first part of its name; else plain defaults."""
        family = name.partition(".")[0]
        preset = getattr(cls, family) if family in FAMILIES else cls
        policy: Policy = preset()
        return policy

    @property
    def judges_results(self) -> bool:
        """Whether one of its functions judges results."""
        return any(getattr(self, name) is not None for name in JUDGES)

    @property
    def effective_breaker(self) -> BreakerPolicy:
        """The breaker's part, with a lease that its renewals make longer than a probe's attempt.

        A killed worker's lease keeps others from probing: it is no longer than that requires.
        """
        attempt = self.timeout.attempt
        if self.breaker.probe_lease is not None or attempt is None:
            return self.breaker
        needed = attempt + _MARGIN
        return _with_lease(self.breaker, max(min(needed, _LEASE), needed / (1 + RENEWALS)))

    def with_changes(self, **changes: Unpack[Changes]) -> Self:
        """A copy where whole parts, or single fields by their shorthands, are changed.

        Raises:
            PolicyError: A name is unknown, or a value is out of bounds.
        """
        parts: dict[str, Any] = {}
        for name in sorted(changes, key=_SHORTHANDS.__contains__):  # whole parts first
            value: Any = changes[name]  # type: ignore[literal-required]
            if isinstance(value, RetryPolicy) and value.idempotent is None:
                value = value.with_idempotent(idempotent=self.retry.idempotent)
            part, attribute = _SHORTHANDS.get(name, (name, ""))
            if part in JUDGES:
                parts[part] = value
                continue
            if part not in PARTS:
                known = ", ".join([*PARTS, *JUDGES, *_SHORTHANDS])
                raise PolicyError(f"A policy has no {name!r}; it has {known}")
            before = parts.get(part, getattr(self, part))
            parts[part] = replace(before, **{attribute: value}) if attribute else value
        return replace(self, **parts)


def _is_plain_function(judge: Any) -> bool:
    methods = (judge, getattr(judge, "__call__", None))  # noqa: B004 - of an object, it may be async
    return callable(judge) and not any(map(iscoroutinefunction, methods))


@lru_cache(maxsize=64)  # dependencies with equal policies share one object, which saves memory
def _with_lease(breaker: BreakerPolicy, seconds: float) -> BreakerPolicy:
    return replace(breaker, probe_lease=seconds)


PARTS: dict[str, Any] = {
    part.name: part.default_factory for part in fields(Policy) if part.name not in JUDGES
}
"""The classes of a policy's parts by their names, in the order of `Policy`'s fields."""


def check_policy(policy: object, name: str) -> None:
    """Check that an argument is a whole policy, not a part of one or a preset.

    Raises:
        PolicyError: It is not.
    """
    if isinstance(policy, Policy):
        return
    part = next((part for part, kind in PARTS.items() if isinstance(policy, kind)), None)
    write = f"Policy({part}=...) around it" if part else "such as Policy.llm(attempts=4)"
    kind = policy.__name__ if isinstance(policy, type) else type(policy).__name__
    raise PolicyError(f"The policy of {name!r} must be a Policy, not {kind}: write {write}")
