"""Clients of a replicated server with Sentinels, of a cluster, and of a server with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import RedisError

from lightrag_resilience import State
from lightrag_resilience.redis_client.client import (
    make_client,
    subscriptions,
)
from lightrag_resilience.redis_client.error_text import describe_redis_error
from lightrag_resilience.redis_client.health_check import check_redis
from lightrag_resilience.shared_state.messages import (
    Keys,
)
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.testing.redis_server import RedisServer
from support.ports import free_port
from support.redis_clients import (
    AT_ONCE,
    POLICY,
    RANGES,
    SECRET,
    admin,
    client_of,
    cluster,
    every_script,
    receives_a_forced_state,
    until,
    wrong,
)

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- Sentinel


@pytest.fixture
def replicated() -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A master, its replica, and a Sentinel with short timeouts; all have passwords."""
    secret = ("--requirepass", "se:cr et", "--masterauth", "se:cr et", *AT_ONCE)
    with (
        RedisServer(*secret) as master,
        RedisServer(*secret, "--replicaof", "127.0.0.1", str(master.port)) as replica,
        RedisServer("--sentinel", "--requirepass", "watch") as sentinel,
        admin(sentinel, password="watch") as boss,  # noqa: S106
    ):
        boss.sentinel_monitor("main", "127.0.0.1", master.port, 1)
        for option, value in (
            ("auth-pass", "se:cr et"),
            ("down-after-milliseconds", 500),
            ("failover-timeout", 2000),
        ):
            boss.sentinel_set("main", option, value)
        until(
            lambda: any(one["master-link-status"] == "ok" for one in boss.sentinel_slaves("main"))
        )
        yield master, replica, sentinel


@pytest.mark.redis
async def test_a_sentinel_client_follows_a_failover(
    replicated: tuple[RedisServer, RedisServer, RedisServer],
) -> None:
    master, replica, sentinel = replicated
    port, query = sentinel.port, "sentinel_password=watch"
    async with client_of(
        f"redis+sentinel://:{SECRET}@127.0.0.1:1,127.0.0.1:{port}/main/2?{query}"
    ) as client:
        await every_script(client)
        await receives_a_forced_state(client, client)
        master.kill()
        began = time.monotonic()
        while True:
            with contextlib.suppress(RedisError):
                await every_script(client, name="after")
                break
            assert time.monotonic() - began < 30.0
            await asyncio.sleep(0.05)
        await receives_a_forced_state(client, client)
        assert (await client.info("server"))["tcp_port"] == replica.port
    for asked in client.connection_pool.sentinel_manager.sentinels:
        assert not any(one.is_connected for one in asked.connection_pool._available_connections)
    at = f"redis+sentinel://:{SECRET}@127.0.0.1:{port}"
    assert "no Sentinel that answers knows a master" in await wrong(f"{at}/other?{query}")
    assert await wrong(f"{at}/main?sentinel_password=secret") == (
        "the Sentinels refuse sentinel_password"
    )
    sentinel.kill()
    assert "no Sentinel that answers" in await wrong(f"{at}/main?{query}")


def name_on(number: int) -> str:
    """Of a breaker that the node of this number holds_probe."""
    first, last = RANGES[number]
    names = (f"name{count}" for count in range(1000))
    return next(name for name in names if first <= redis.crc.key_slot(name.encode()) <= last)


NAMES = [name_on(number) for number in range(3)]


def address_of(nodes: list[RedisServer], user: str = "worker:pw@") -> str:
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return f"redis+cluster://{user}{hosts}"


async def state_of(client: Any, name: str) -> Any:
    return (await ScriptRunner(client, "reader").read_state(BreakerRef("lr:", name, POLICY))).now


async def test_a_cluster_client_survives_a_failover_and_a_lost_node() -> None:
    with cluster() as nodes, contextlib.ExitStack() as stack:
        bosses = [stack.enter_context(admin(node)) for node in nodes]
        some, every = address_of(nodes[:2]), address_of(nodes)
        async with client_of(some) as client, client_of(every) as other:
            for name in NAMES:
                await every_script(client, name=name)
                await receives_a_forced_state(client, other, name)
            found = [key async for key in client.scan_iter(match=Keys.every_state("lr:"))]
            assert len(found) == 3
            assert [boss.acl_log() for boss in bosses] == [[]] * 4
            assert [is_bad for is_bad, _, _ in await check_redis(client, "lr:")] == [False]  # INFO

            # a replica that never saw a script takes over
            bosses[3].execute_command("CLUSTER FAILOVER TAKEOVER")
            nodes[0].kill()
            until(lambda: bosses[3].info("replication")["role"] == "master")
            deadline = time.monotonic() + 5.0
            while True:
                with contextlib.suppress(RedisError):
                    assert (await state_of(client, NAMES[0])).state is State.OPEN
                    break
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            await every_script(client, name=NAMES[0])

            # a node dies, and no replica replaces it
            nodes[1].kill()
            outcomes: list[Any] = []
            for _ in range(5):
                outcomes = await asyncio.gather(
                    *(state_of(client, name) for name in NAMES), return_exceptions=True
                )
            assert isinstance(outcomes[1], RedisError), outcomes
            assert all(outcomes[number].version for number in (0, 2)), outcomes
            for boss in (bosses[2], bosses[3]):
                boss.script_flush()
            for usable in (client, make_client(address_of(nodes))):
                assert (await state_of(usable, NAMES[0])).version
                assert (await state_of(usable, NAMES[2])).version
                for _ in range(4):
                    await receives_a_forced_state(usable, usable, NAMES[2])
                with pytest.raises(RedisError) as caught:
                    await state_of(usable, NAMES[1])
                assert describe_redis_error(caught.value) == "nothing answers at this address"
            await usable.aclose()
        # although the last command failed
        until(lambda: "lightrag-resilience" not in str(bosses[2].client_list()), 2.0)


async def test_a_cluster_with_missing_slots_serves_the_others() -> None:
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    with RedisServer(*options) as node, admin(node) as boss:
        boss.execute_command("CLUSTER ADDSLOTSRANGE", *RANGES[0])
        until(lambda: boss.cluster("info")["cluster_state"] == "ok")
        async with client_of(address_of([node], "")) as client:
            await every_script(client, name=NAMES[0])
            with pytest.raises(RedisError) as caught:
                await state_of(client, NAMES[1])
            assert describe_redis_error(caught.value) == "the cluster is down, or a part of it"
            assert (await state_of(client, NAMES[0])).version


def port_of(pubsub: Any) -> int:
    return int(pubsub.connection.port)


async def test_a_cluster_subscription_ends_with_its_node_and_can_be_opened_at_another() -> None:
    options = ("--cluster-enabled", "yes")
    with RedisServer(*options) as one, RedisServer(*options) as two:
        async with client_of(address_of([one, two], "")) as client:
            seen = set()
            for _ in range(20):
                async with subscriptions(client) as pubsub:
                    await pubsub.subscribe("lr:cb:ev:x")
                    seen.add(port_of(pubsub))
            assert seen == {one.port, two.port}
            async with subscriptions(client) as pubsub:
                await pubsub.subscribe("lr:cb:ev:x")
                await pubsub.get_message(timeout=0.25)
                used, left = (one, two) if port_of(pubsub) == one.port else (two, one)
                used.kill()
                with pytest.raises(RedisError):
                    await pubsub.get_message(timeout=0.25)
            for _ in range(5):
                async with subscriptions(client) as pubsub:
                    await pubsub.subscribe("lr:cb:ev:x")
                    assert port_of(pubsub) == left.port
            left.kill()
            with pytest.raises(RedisError):
                async with subscriptions(client):
                    pass


# ---------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl, to make a certificate")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=redis"
    name = ("-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run([openssl, *words.split(), *name, *files], check=True, capture_output=True)  # noqa: S603
    return certificate, key


@pytest.fixture(scope="module")
def server_with_tls() -> str:
    binary = shutil.which("redis-server")
    if binary is None or b"libssl" not in Path(binary).read_bytes():
        pytest.skip("needs a redis-server with TLS; apt-get install redis-server")
    return binary


async def test_a_tls_server_is_trusted_only_by_its_certificate(
    server_with_tls: str,
    certificate: tuple[Path, Path],
) -> None:
    own, key = map(str, certificate)
    files = ("--tls-cert-file", own, "--tls-key-file", key, "--tls-ca-cert-file", own)
    port = free_port()
    with RedisServer("--tls-port", str(port), *files, binary=server_with_tls) as server:
        trusting, with_own = f"ssl_ca_certs={own}", f"ssl_certfile={own}&ssl_keyfile={key}"
        async with client_of(f"rediss://127.0.0.1:{port}?{trusting}&{with_own}") as client:
            await every_script(client)
            await receives_a_forced_state(client, client)
        text = await wrong(f"rediss://127.0.0.1:{port}?{with_own}")
        assert text == "its certificate is not trusted: see ssl_ca_certs"
        text = await wrong(f"rediss://localhost:{port}?{trusting}&{with_own}")
        assert text == "its certificate is for another host"
        assert "a certificate" in await wrong(f"rediss://127.0.0.1:{port}?{trusting}")
        assert "names cannot be read" in await wrong(f"rediss://127.0.0.1:{port}?{trusting}.not")
        assert "does it want TLS" in await wrong(f"redis://127.0.0.1:{port}")
        assert "TLS right?" in await wrong(f"rediss://127.0.0.1:{server.port}?{trusting}")
