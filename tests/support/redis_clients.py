"""Clients of real servers, and a run of every script."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
from redis.exceptions import ClusterError, RedisError

from lightrag_resilience import BreakerPolicy, LimitPolicy, State
from lightrag_resilience.redis_client.client import (
    make_client,
    needed_rights,
    subscriptions,
)
from lightrag_resilience.redis_client.error_text import describe_redis_error
from lightrag_resilience.shared_state.messages import (
    CooldownMessage,
    Keys,
    Presence,
    Report,
    policy_as_json,
)
from lightrag_resilience.shared_state.reservations import ReservationRequest
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.shared_state.shared_rate_limiter import SharedRateLimiter
from lightrag_resilience.testing.redis_server import RedisServer

POLICY = policy_as_json(BreakerPolicy(min_calls=1, failure_rate=0.5))
RIGHTS = needed_rights("lr:").split()
AT_ONCE = ("--repl-diskless-sync-delay", "0")  # a new replica waits for no others
SECRET = "se:cr%20et"  # noqa: S105 - as in an address


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Any]:
    client = make_client(url)
    try:
        yield client
    finally:
        await client.aclose()


class Unused:
    connected = True

    def reserve(self, limit: SharedRateLimiter) -> None: ...
    def cool_down(self, name: str, seconds: float) -> None: ...


async def every_script(client: Any, prefix: str = "lr:", name: str = "llm") -> None:
    """Send every command that workers and the command line send."""
    runner, ref = ScriptRunner(client, "worker"), BreakerRef(prefix, name, POLICY)
    known = await runner.report(ref, Report(1, calls=4, failed=1))
    ref.version = known.now.version
    opened = await runner.report(ref, Report(2, calls=4, failed=4, slow=1, tripped="at all"))
    assert opened.now.state is State.OPEN
    await runner.force_state(ref, State.HALF_OPEN, "by hand")
    assert (await runner.acquire_probe(ref, "token")).extra > 0
    await runner.release_probe(ref, "token")
    assert (await runner.describe(ref)).probes == 0
    assert [reply.found for reply in await runner.read_states([ref, ref])] == ["held"] * 2
    await runner.heartbeat(prefix, Presence("host", 1), 60.0)
    await runner.publish(ref.channel, lambda: CooldownMessage(1.0))
    with contextlib.suppress(ClusterError):  # their slots may be on a node that is unavailable
        assert await runner.count_workers(prefix, 60.0) == 1
        limit = SharedRateLimiter(name, LimitPolicy(rpm=60), prefix, Unused(), clock=lambda: 0.0)
        assert (await runner.reserve(limit, ReservationRequest(1, (1, 0), (1, 0), (0, 0)))).taken[
            0
        ] == 1
    found = [key async for key in client.scan_iter(match=Keys.every_state(prefix))]
    assert ref.state.encode() in found
    assert await client.get(Presence.key(prefix, "worker"))


async def receives_a_forced_state(client: Any, other: Any, name: str = "llm") -> None:
    """A state that one client forces reaches another."""
    ref = BreakerRef("lr:", name, POLICY)
    async with subscriptions(client) as pubsub:
        await pubsub.subscribe(ref.channel)
        await pubsub.get_message(timeout=0.25)  # the confirmation
        await ScriptRunner(other, "other").force_state(ref, State.OPEN, "by hand", open_for=9.0)
        for _ in range(4):  # what was published before may come late, at another node
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=2.0)
            assert message is not None
            assert message["channel"] == ref.channel.encode()
            if message["data"].startswith(b"O "):
                return
    raise AssertionError("no message came")


async def wrong(url: str) -> str:
    """The description of the error that a client of this address raises."""
    async with client_of(url) as client:
        with pytest.raises(RedisError) as caught:
            await client.ping()
    text = describe_redis_error(caught.value)
    assert len(text) <= 150
    assert "secret" not in text
    return text


def until(is_done: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def admin(server: RedisServer, **options: Any) -> Any:
    return redis.Redis(port=server.port, decode_responses=True, **options)


# ---------------------------------------------------------------------- a cluster

RANGES = ((0, 5460), (5461, 10922), (10923, 16383))


@contextlib.contextmanager
def cluster() -> Iterator[list[RedisServer]]:
    """Three nodes with a third of the slots each, and one that is the replica of the first."""
    enabled = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    options = (*enabled, "--cluster-node-timeout", "1000", *AT_ONCE)
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(RedisServer(*options)) for _ in range(4)]
        admins = [stack.enter_context(admin(node)) for node in nodes]
        for number, boss in enumerate(admins):
            boss.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            boss.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
            boss.execute_command(
                "ACL SETUSER", "worker", "on", ">pw", *needed_rights("lr:").split()
            )
        for boss, (first, last) in zip(admins, RANGES, strict=False):
            boss.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        until(lambda: all(len(boss.cluster("nodes")) == 4 for boss in admins))
        admins[3].execute_command("CLUSTER REPLICATE", admins[0].execute_command("CLUSTER MYID"))
        until(lambda: admins[3].info("replication")["master_link_status"] == "up")
        until(lambda: all(boss.cluster("info")["cluster_state"] == "ok" for boss in admins))
        until(lambda: all("slave" in str(boss.cluster("nodes")) for boss in admins))
        yield nodes
