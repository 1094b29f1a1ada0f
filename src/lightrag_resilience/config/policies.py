"""Policies: what a guard shall do, as frozen data. Durations are seconds.

The bounds of a field stand in its type, once: policies made in code are checked against them here,
and those made from environment variables in ``settings.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypedDict, Unpack

from annotated_types import Ge, Gt, Le

from lightrag_resilience.errors import PolicyError, UnsupportedCallError

from .validation import field_hints, problem_with, shown

__all__ = [
    "FAMILIES",
    "RENEWALS",
    "BreakerPolicy",
    "ConcurrencyPolicy",
    "LimitPolicy",
    "Policy",
    "RetryPolicy",
    "StreamPolicy",
    "TimeoutPolicy",
    "check_policy",
]

FAMILIES = ("llm", "embedding", "rerank", "storage")

_DAY = 86_400.0  # seconds

Share = Annotated[float, Gt(0), Le(1)]
Seconds = Annotated[float, Gt(0), Le(86_400)]
Wait = Annotated[float, Ge(0), Le(86_400)]
Growth = Annotated[float, Ge(1), Le(10)]
Mode = Literal["enforce", "metrics-only", "disabled", "forced-open"]
Count = Annotated[int, Ge(1), Le(100_000)]

RENEWALS = 4
"""How often the lease of a probe whose call goes on is renewed."""
_LEASE = 60.0  # seconds of a probe whose attempt has no end
_MARGIN = 10.0  # seconds from the end of a probe's attempt, for its report to arrive


class _ByName:
    """Says what there is, where Python would only say that an argument is unexpected."""

    __slots__ = ()

    if not TYPE_CHECKING:  # which sees it in the signature

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
        for name, hint in field_hints(cls).items():
            if problem := problem_with(getattr(self, name), hint):
                raise PolicyError(f"{cls.__name__}.{name} {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy(_Checked):
    """When a circuit opens, for how long, and how it is tried again.

    Sources of the defaults: failure rate, slow-call rate and window of resilience4j; a minimum of
    10 calls, since LLM traffic is thin; five failures in a row as in pybreaker; one probe as in
    Polly; a break of 5 s as LiteLLM's cool-down, growing as Envoy's ejection time does, but
    less: one probe costs little, and users wait until the recovery is seen.

    Attributes:
        mode: ``enforce``; ``metrics-only`` records and opens by hand alone; ``disabled`` does not
            even record; ``forced-open`` refuses everything.
        failure_rate: Share of failed calls in the window that opens the circuit.
        slow_rate: Share of slow calls in the window that opens the circuit.
        slow_call: Seconds from which a call, or a stream's first item, counts as slow; None counts
            none: what is slow for one model is usual for another.
        window: ``count`` looks at the last `window_calls`, ``time`` at the last `window_seconds`.
        window_calls: Calls in a count window.
        window_seconds: Length of a time window, in seconds.
        min_calls: Rates are not looked at before the window holds as many calls.
        consecutive_failures: Failures in a row that open the circuit; None turns that off.
        open_for: Seconds of the first break.
        open_growth: Factor for each further break with no recovery between.
        open_max: Longest break, in seconds; None is twice the first.
        probes: Calls let through half-open; all must succeed.
        probe_lease: Seconds for which a probe keeps its place unless its lease is renewed, which it
            is four times at the most while its call goes on; None is 10 more than its attempt may
            take, and 60 where that has no end.
        quorum: Workers that must have seen failures before all open, where Redis is shared.
    """

    mode: Mode = "enforce"
    failure_rate: Share = 0.5
    slow_rate: Share = 1.0
    slow_call: Seconds | None = None
    window: Literal["count", "time"] = "count"
    window_calls: Count = 100
    window_seconds: Annotated[float, Ge(1), Le(86_400)] = 60.0
    min_calls: Count = 10
    consecutive_failures: Count | None = 5
    open_for: Seconds = 5.0
    open_growth: Growth = 1.5
    open_max: Seconds | None = None
    probes: Count = 1
    probe_lease: Seconds | None = None
    quorum: Count = 1

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.window == "count" and self.min_calls > self.window_calls:
            raise PolicyError(
                f"BreakerPolicy.min_calls is {self.min_calls}, more than window_calls "
                f"({self.window_calls}) can ever hold"
            )
        if self.open_max is not None and self.open_max < self.open_for:
            raise PolicyError(
                f"BreakerPolicy.open_max is {self.open_max:g} s, less than open_for "
                f"({self.open_for:g} s)"
            )

    @property
    def longest_break(self) -> float:
        """Seconds: a recovery is seen so late at the most, and one probe costs little."""
        return 2.0 * self.open_for if self.open_max is None else self.open_max

    @property
    def longest_probe(self) -> float:
        """Seconds after which a probe whose call goes on loses its place all the same."""
        return self.lease * (1 + RENEWALS)

    @property
    def lease(self) -> float:
        """Seconds; where it is to follow an attempt's timeout, see `Policy.circuit`."""
        return _LEASE if self.probe_lease is None else self.probe_lease


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy(_Checked):
    """Which failures are tried again, how often, and how long to wait between.

    Full and decorrelated jitter are AWS's ("Exponential Backoff And Jitter", 2015). With full
    jitter a second wait is shorter than the first one time in four; the default is a jitter that
    grows. The budget is the retry quota of AWS SDKs' standard mode: 500 tokens, 5 a retry, 10 after
    a timeout, 1 back for each success; a retry that succeeds gives back what it cost.

    Attributes:
        attempts: Calls at the most, the first included; 1 turns retries off.
        initial_backoff: Seconds before the second attempt, before jitter.
        backoff_growth: Factor for each further attempt.
        max_backoff: Longest wait of our own choice, in seconds.
        jitter: ``growing`` spreads the first wait from 0 on, and lets the next ones grow half as
            fast at least; ``full`` spreads each from 0 on; ``decorrelated``; ``none``.
        max_retry_after: Longest wait a provider may ask for, in seconds; beyond it the call fails.
        idempotent: Whether a call of unknown outcome may be repeated. None: as the preset says that
            it is given to; else an HTTP request at the wire by its method, any other call may.
        budget: Tokens of the retry budget, for all workers that share a Redis; 0 turns it off.
    """

    attempts: Annotated[int, Ge(1), Le(20)] = 3
    initial_backoff: Seconds = 0.5
    backoff_growth: Growth = 2.0
    max_backoff: Seconds = 30.0
    jitter: Literal["growing", "full", "decorrelated", "none"] = "growing"
    max_retry_after: Wait = 60.0
    idempotent: bool | None = None
    budget: Annotated[int, Ge(0), Le(100_000)] = 500

    def knowing(self, *, idempotent: bool | None) -> RetryPolicy:
        """The same for a call of which it is known whether it may be repeated."""
        if idempotent is None or idempotent == self.idempotent:
            return self
        return replace(self, idempotent=idempotent)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPolicy(_Checked):
    """How many requests and tokens a minute may be sent: by all workers that share a Redis.

    What goes in any minute is the limit and the burst at the most, so a burst of a tenth is at most
    a tenth too much.

    Attributes:
        rpm: Requests a minute; None sets no limit.
        tpm: Tokens a minute, asked and answered; None sets no limit.
        burst: Requests that may go at once; None is a tenth of `rpm`, at least 1.
        token_burst: Tokens that may go at once; None is a tenth of `tpm`.
        answer_tokens: Tokens to expect of an answer where a call does not bound them.
        max_wait: Seconds a call may wait for its turn before it is refused.
    """

    rpm: Annotated[float, Gt(0), Le(10_000_000)] | None = None
    tpm: Annotated[float, Gt(0), Le(10_000_000_000)] | None = None
    burst: Count | None = None
    token_burst: Annotated[int, Ge(1), Le(1_000_000_000)] | None = None
    answer_tokens: Count = 500
    max_wait: Wait = 30.0

    @property
    def request_burst(self) -> float:
        """Requests that may go at once."""
        return self.burst or max(1.0, (self.rpm or 0.0) // 10)

    @property
    def tokens_at_once(self) -> float:
        """Tokens that may go at once."""
        return self.token_burst or (self.tpm or 0.0) / 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutPolicy(_Checked):
    """How long an attempt, and a call as a whole, may take; and a stream, from item to item.

    A stream has three times of its own, since a good one may be long: until it begins, between two
    items, and in all. 60 s between the items of a model is what nginx and AWS's load balancers let
    a silent connection live; a model that is silent for longer while it thinks needs more. Only the
    wait for an item counts as a gap, never what its reader does with the last one.

    Attributes:
        attempt: Seconds for one attempt; for a stream, up to its first item.
        total: Seconds for all attempts and waits together; for a stream, up to its first item.
        first_item: Seconds from sending to a stream's first item, in place of `attempt` as soon as
            the function has returned its stream; None is `attempt`.
        gap: Seconds between a stream's items; None is `attempt`.
        stream_total: Seconds from sending to a stream's last item; None sets no limit.
    """

    attempt: Seconds | None = 30.0
    total: Seconds | None = 60.0
    first_item: Seconds | None = None
    gap: Seconds | None = None
    stream_total: Seconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyPolicy(_Checked):
    """How many calls may be under way at once, in one process.

    An adaptive limit is found by additive increase and multiplicative decrease, as in TCP and in
    Netflix's concurrency-limits: it is cut after a 429, a timeout, or a window of calls the slowest
    tenth of which took longer than the goal.

    Attributes:
        max_concurrent: Calls at once; None sets no limit.
        max_queue: Calls that may wait for a place; further ones are refused at once.
        max_wait: Seconds a call may wait for a place before it is refused.
        adaptive: Whether the limit is found out, with `max_concurrent` as its upper bound.
        min_concurrent: The lower bound of an adaptive limit.
        latency_goal: Seconds that nine calls in ten should not exceed; for a stream, up to its
            first item. None looks at 429s and timeouts alone.
    """

    max_concurrent: Count | None = None
    max_queue: Annotated[int, Ge(0), Le(100_000)] = 1000
    max_wait: Wait = 30.0
    adaptive: bool = False
    min_concurrent: Count = 1
    latency_goal: Seconds | None = None

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
    """What a stream of a model must hold to be a success.

    Attributes:
        finish_marker: Whether a stream of OpenAI, Anthropic, Gemini or Ollama chunks that ends
            without its finish marker is a failure. Turn it off for a provider that sends none, and
            for a function that keeps the last chunk to itself; text is never judged.
    """

    finish_marker: bool = True


class Changes(TypedDict, total=False):
    """What `Policy.with_changes` and the presets take: whole parts, or the fields tuned most."""

    breaker: BreakerPolicy
    retry: RetryPolicy
    limit: LimitPolicy
    timeout: TimeoutPolicy
    concurrency: ConcurrencyPolicy
    stream: StreamPolicy
    attempt_timeout: float | None
    total_timeout: float | None
    attempts: int
    idempotent: bool
    failure_rate: float
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
    """Everything about one dependency. Start from a preset and change what differs."""

    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    limit: LimitPolicy = field(default_factory=LimitPolicy)
    timeout: TimeoutPolicy = field(default_factory=TimeoutPolicy)
    concurrency: ConcurrencyPolicy = field(default_factory=ConcurrencyPolicy)
    stream: StreamPolicy = field(default_factory=StreamPolicy)

    def __post_init__(self) -> None:
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
        """Completions. The total stays below the 480 s at which LightRAG's queue gives up."""
        timeout = TimeoutPolicy(attempt=120.0, total=300.0, gap=60.0)
        return cls(timeout=timeout, retry=RetryPolicy(attempts=4, idempotent=True)).with_changes(
            **changes
        )

    @classmethod
    def embedding(cls, **changes: Unpack[Changes]) -> Policy:
        """Embeddings. The total stays below the 60 s at which LightRAG's queue gives up."""
        return cls(
            timeout=TimeoutPolicy(attempt=20.0, total=50.0),
            retry=RetryPolicy(attempts=4, max_backoff=10.0, idempotent=True),
        ).with_changes(**changes)

    @classmethod
    def rerank(cls, **changes: Unpack[Changes]) -> Policy:
        """Reranking: LightRAG can answer without it, so it gives up sooner."""
        return cls(
            timeout=TimeoutPolicy(attempt=15.0, total=30.0),
            retry=RetryPolicy(attempts=3, max_backoff=5.0, idempotent=True),
        ).with_changes(**changes)

    @classmethod
    def storage(cls, **changes: Unpack[Changes]) -> Policy:
        """Databases: quick, and not repeated unless said to be idempotent."""
        return cls(
            timeout=TimeoutPolicy(attempt=10.0, total=30.0),
            retry=RetryPolicy(attempts=3, initial_backoff=0.1, max_backoff=2.0, idempotent=False),
        ).with_changes(**changes)

    @classmethod
    def for_name(cls, name: str) -> Policy:
        """The preset of the family that a dependency's name begins with, or plain defaults."""
        family = name.partition(".")[0]
        preset = getattr(cls, family) if family in FAMILIES else cls
        policy: Policy = preset()
        return policy

    @property
    def circuit(self) -> BreakerPolicy:
        """The breaker's part as its circuit takes it: a probe's lease outlasts its attempt."""
        attempt = self.timeout.attempt
        if self.breaker.probe_lease is not None or attempt is None:
            return self.breaker
        return _with_lease(self.breaker, min(attempt + _MARGIN, _DAY))

    def with_changes(self, **changes: Unpack[Changes]) -> Self:
        """A copy with whole parts, or single fields by their shorthands, changed.

        Raises:
            PolicyError: A name is unknown or a value out of bounds.
        """
        parts: dict[str, Any] = {}
        for name in sorted(changes, key=_SHORTHANDS.__contains__):  # whole parts first
            value: Any = changes[name]  # type: ignore[literal-required]
            if isinstance(value, RetryPolicy) and value.idempotent is None:
                value = value.knowing(idempotent=self.retry.idempotent)
            part, attribute = _SHORTHANDS.get(name, (name, ""))
            if part not in PARTS:
                known = ", ".join([*PARTS, *_SHORTHANDS])
                raise PolicyError(f"A policy has no {name!r}; it has {known}")
            before = parts.get(part, getattr(self, part))
            parts[part] = replace(before, **{attribute: value}) if attribute else value
        return replace(self, **parts)


@lru_cache(maxsize=64)  # equal policies are one, however many dependencies have them
def _with_lease(breaker: BreakerPolicy, seconds: float) -> BreakerPolicy:
    return replace(breaker, probe_lease=seconds)


PARTS: dict[str, type[_Checked]] = {
    "breaker": BreakerPolicy,
    "retry": RetryPolicy,
    "limit": LimitPolicy,
    "timeout": TimeoutPolicy,
    "concurrency": ConcurrencyPolicy,
    "stream": StreamPolicy,
}


def check_policy(policy: object, name: str) -> None:
    """Let a whole policy through, and none of what is easily taken for one.

    Raises:
        PolicyError: It is something else.
    """
    if isinstance(policy, Policy):
        return
    part = next((part for part, kind in PARTS.items() if isinstance(policy, kind)), None)
    write = f"Policy({part}=...) around it" if part else "such as Policy.llm(attempts=4)"
    kind = policy.__name__ if isinstance(policy, type) else type(policy).__name__
    raise PolicyError(f"The policy of {name!r} must be a Policy, not {kind}: write {write}")
