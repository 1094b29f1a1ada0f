"""Circuit breakers, retries, limits and timeouts for LightRAG's external calls.

Examples:
    >>> @resilient("llm.openai")
    ... async def complete(prompt: str) -> str: ...
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .breakers import State
from .calls.deadline import deadline
from .composition.collect import collected
from .composition.fallback import ChainAnswer, call_chain, with_fallbacks
from .composition.hedging import hedged
from .composition.stale_cache import StaleCache
from .config.policies import (
    BreakerPolicy,
    ConcurrencyPolicy,
    LimitPolicy,
    Policy,
    RetryPolicy,
    StreamPolicy,
    TimeoutPolicy,
)
from .errors import (
    AllFailedError,
    AttemptTimeoutError,
    BulkheadFullError,
    CallRejected,
    CallShedError,
    CircuitOpenError,
    DeadlineExceededError,
    DependencyError,
    InvalidResultError,
    PolicyError,
    RateLimitedError,
    ResilienceError,
    SettingsError,
    ShuttingDownError,
    TruncatedStreamError,
    UnsupportedCallError,
)
from .failures.classifier import classify_as
from .failures.failover import should_fall_back
from .limits.priority import Priority, priority
from .pipeline.decorators import resilient
from .pipeline.guard import Guard
from .pipeline.registry import Guards, guard, guards
from .runtime.extras import install
from .verdicts import Failure, FailureKind

if TYPE_CHECKING:
    from .integrations.lightrag import QueryFailedError, protect, unprotect

__all__ = [
    "AllFailedError",
    "AttemptTimeoutError",
    "BreakerPolicy",
    "BulkheadFullError",
    "CallRejected",
    "CallShedError",
    "ChainAnswer",
    "CircuitOpenError",
    "ConcurrencyPolicy",
    "DeadlineExceededError",
    "DependencyError",
    "Failure",
    "FailureKind",
    "Guard",
    "Guards",
    "InvalidResultError",
    "LimitPolicy",
    "Policy",
    "PolicyError",
    "Priority",
    "QueryFailedError",
    "RateLimitedError",
    "ResilienceError",
    "RetryPolicy",
    "SettingsError",
    "ShuttingDownError",
    "StaleCache",
    "State",
    "StreamPolicy",
    "TimeoutPolicy",
    "TruncatedStreamError",
    "UnsupportedCallError",
    "__version__",
    "call_chain",
    "classify_as",
    "collected",
    "deadline",
    "guard",
    "guards",
    "hedged",
    "priority",
    "protect",
    "resilient",
    "should_fall_back",
    "unprotect",
    "with_fallbacks",
]


def __getattr__(name: str) -> Any:
    """Import what needs LightRAG on first use."""
    if name not in {"QueryFailedError", "protect", "unprotect"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .integrations import lightrag  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lightrag":
            raise
        raise ImportError(
            f"{name} needs LightRAG 1.4.16 or later: {install('lightrag')}",
            name=error.name,
        ) from error
    return getattr(lightrag, name)
