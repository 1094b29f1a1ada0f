"""Changes that an operator makes to breakers, for the command line and the status page."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from redis.exceptions import RedisError

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.config.policies import BreakerPolicy
from lightrag_resilience.config.redis_url import redis_location
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.redis_client.error_text import describe_redis_error
from lightrag_resilience.text import ISOLATED, printable

from .cluster_view import ClusterView
from .messages import Description, WireError

__all__ = [
    "REDIS_FAILURES",
    "UnknownBreakerError",
    "force_known_breaker",
    "open_cluster",
    "trouble_with_redis",
    "with_author",
]

REDIS_FAILURES = (RedisError, OSError, WireError)
"""The errors of a command to Redis."""
_MAX_REASON = 120  # characters


class UnknownBreakerError(LookupError):
    """No worker has recently reported a breaker of this name; `known` has the reported names."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(name)
        self.name = name
        self.known = known


def trouble_with_redis(settings: Settings, error: BaseException) -> str:
    """A clause that says what is wrong with the configured Redis, and its address."""
    address = settings.redis_url
    return describe_redis_error(
        error, "" if address is None else redis_location(address.get_secret_value())
    )


@contextlib.asynccontextmanager
async def open_cluster(
    settings: Settings, policy_of: Callable[[str], BreakerPolicy] | None = None
) -> AsyncIterator[ClusterView]:
    """The breakers of all workers, over a connection that is closed after the block.

    Args:
        settings: With a Redis URL.
        policy_of: The policy of a breaker, if code sets more than the settings do.
    """
    assert settings.redis_url is not None  # noqa: S101 - callers check it
    client = make_client(settings.redis_url.get_secret_value())
    policy = policy_of or (lambda name: settings.policy_for(name).effective_breaker)
    try:
        yield ClusterView(client, settings.redis_prefix, policy)
    finally:
        await client.aclose()


async def force_known_breaker(  # noqa: PLR0913 - two of them by name
    cluster: ClusterView,
    name: str,
    state: State,
    reason: str,
    *,
    open_for: float | None = None,
    new: bool = False,
) -> Description:
    """Force the state of a breaker in all workers; a mistyped name is an error.

    Args:
        cluster: All workers.
        name: The breaker.
        state: Its new state.
        reason: Shown to operators; see `with_author`.
        open_for: Seconds; None for as long as the policy says.
        new: Whether the breaker may be one that no worker has reported.

    Raises:
        UnknownBreakerError: No worker has reported it, and not `new`.
        RedisError: Redis cannot be used.
    """
    if not new and name not in (known := (await cluster.discover()).breakers):
        raise UnknownBreakerError(name, known)
    return await cluster.force_state(name, state, reason, open_for=open_for)


def with_author(reason: str, author: str, *, isolates: bool = False) -> str:
    """The reason of a forced state, with its author, as all workers show it.

    Args:
        reason: In the operator's words; may be empty.
        author: The person or the page.
        isolates: Whether probes are stopped for a time; see `health.is_isolation`.
    """
    clean, author = printable(reason), author + ISOLATED * isolates
    return f"by {author}: {clean[:_MAX_REASON]}" if clean.strip() else f"by {author}"
