"""Circuit breakers, retries, limits and timeouts for LightRAG's external calls.

>>> @resilient("llm.openai")
... async def complete(prompt: str) -> str: ...
"""

from typing import TYPE_CHECKING, Any

from ._elsewhere import another_may_help
from ._extras import install
from ._version import __version__
from .breakers import State
from .decorators import resilient
from .errors import (
    AllFailedError,
    AttemptTimeoutError,
    CallRejected,
    CircuitOpenError,
    DeadlineExceededError,
    DependencyError,
    PolicyError,
    QueueFullError,
    RateLimitedError,
    ResilienceError,
    SettingsError,
    ShuttingDownError,
    TruncatedStreamError,
    UnsupportedCallError,
)
from .failures import Failure, FailureKind, classify_as
from .fallback import Answered, answered, with_fallbacks
from .gathering import gathered
from .guard import Guard
from .hedging import hedged
from .policy import (
    BreakerPolicy,
    ConcurrencyPolicy,
    LimitPolicy,
    Policy,
    RetryPolicy,
    StreamPolicy,
    TimeoutPolicy,
)
from .priority import Priority, priority
from .registry import Guards, guard, guards
from .stale import StaleCache

if TYPE_CHECKING:
    from .integrations.lightrag import QueryFailedError, protect, unprotect

__all__ = [
    "AllFailedError",
    "Answered",
    "AttemptTimeoutError",
    "BreakerPolicy",
    "CallRejected",
    "CircuitOpenError",
    "ConcurrencyPolicy",
    "DeadlineExceededError",
    "DependencyError",
    "Failure",
    "FailureKind",
    "Guard",
    "Guards",
    "LimitPolicy",
    "Policy",
    "PolicyError",
    "Priority",
    "QueryFailedError",
    "QueueFullError",
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
    "another_may_help",
    "answered",
    "classify_as",
    "gathered",
    "guard",
    "guards",
    "hedged",
    "priority",
    "protect",
    "resilient",
    "unprotect",
    "with_fallbacks",
]


def __getattr__(name: str) -> Any:
    """What needs LightRAG is imported when it is first asked for."""
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
