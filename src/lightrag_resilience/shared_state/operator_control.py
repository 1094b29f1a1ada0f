"""What operators do to breakers of the cluster, however they ask for it."""

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
"""What talking to Redis may raise."""
_LONGEST_REASON = 120  # characters


class UnknownBreakerError(LookupError):
    """No worker has reported a breaker of this name lately; `known` are those that were."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(name)
        self.name = name
        self.known = known


def trouble_with_redis(settings: Settings, error: BaseException) -> str:
    """What is wrong with the Redis of the settings, and where that is, as a clause for people."""
    address = settings.redis_url
    return describe_redis_error(
        error, "" if address is None else redis_location(address.get_secret_value())
    )


@contextlib.asynccontextmanager
async def open_cluster(
    settings: Settings, policy_of: Callable[[str], BreakerPolicy] | None = None
) -> AsyncIterator[ClusterView]:
    """The breakers of all workers, over a connection that lasts as long as the block.

    Args:
        settings: With the address of Redis.
        policy_of: The policy of a breaker, where code says more than the settings.
    """
    assert settings.redis_url is not None  # noqa: S101 - who calls this has looked
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
    """Change the state of a breaker in all workers, so that a slip of the pen changes nothing.

    Args:
        cluster: The workers.
        name: The breaker.
        state: Its new state.
        reason: Why, for those who wonder; see `with_author`.
        open_for: Seconds; None opens it for as long as its policy says.
        new: Whether it may be one that no worker has reported.

    Raises:
        UnknownBreakerError: No worker has reported it.
        RedisError: Redis cannot be used.
    """
    if not new and name not in (known := (await cluster.discover()).breakers):
        raise UnknownBreakerError(name, known)
    return await cluster.force_state(name, state, reason, open_for=open_for)


def with_author(reason: str, who: str, *, isolates: bool = False) -> str:
    """The reason of a change by hand as all workers show it, with who made it.

    Args:
        reason: Why, for those who wonder.
        who: The person or the page.
        isolates: Whether nothing probes it for a time; see `health.is_isolation`.
    """
    clean, who = printable(reason), who + ISOLATED * isolates
    return f"by {who}: {clean[:_LONGEST_REASON]}" if clean.strip() else f"by {who}"
