"""Clients of real servers: one, a replicated one with a Sentinel, a cluster, one that has TLS."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import ClusterError, RedisError

from lightrag_resilience import BreakerPolicy, LimitPolicy, State
from lightrag_resilience.config.redis_url import places_in, problem_with_address
from lightrag_resilience.redis_client.client import (
    lost_connections,
    make_client,
    needed_rights,
    subscriptions,
)
from lightrag_resilience.redis_client.error_text import what_is_wrong
from lightrag_resilience.redis_client.health_check import check_up
from lightrag_resilience.shared_state.messages import (
    Cooling,
    Keys,
    Presence,
    Report,
    policy_as_json,
)
from lightrag_resilience.shared_state.reservations import Demand
from lightrag_resilience.shared_state.script_runner import Store, Subject
from lightrag_resilience.shared_state.shared_rate_limiter import SharedLimit
from lightrag_resilience.testing.redis_server import RedisServer

pytestmark = pytest.mark.anyio
POLICY = policy_as_json(BreakerPolicy(min_calls=1, failure_rate=0.5))
RIGHTS = needed_rights("lr:").split()
AT_ONCE = ("--repl-diskless-sync-delay", "0")  # a new replica waits for no others
SECRET = "se:cr%20et"  # noqa: S105 - as it stands in an address


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Any]:
    client = make_client(url)
    try:
        yield client
    finally:
        await client.aclose()


class Unused:
    connected = True

    def book(self, limit: SharedLimit) -> None: ...
    def cool_down(self, name: str, seconds: float) -> None: ...


async def every_script(client: Any, prefix: str = "lr:", name: str = "llm") -> None:
    """All that a worker and the command line do."""
    store, subject = Store(client, "worker"), Subject(prefix, name, POLICY)
    known = await store.report(subject, Report(1, calls=4, failed=1))
    subject.version = known.now.version
    opened = await store.report(subject, Report(2, calls=4, failed=4, slow=1, tripped="at all"))
    assert opened.now.state is State.OPEN
    await store.steer(subject, State.HALF_OPEN, "by hand")
    assert (await store.admit(subject, "token")).extra > 0
    await store.release(subject, "token")
    assert (await store.describe(subject)).probes == 0
    assert [reply.found for reply in await store.snapshots([subject, subject])] == ["held"] * 2
    await store.show(prefix, Presence("host", 1), 60.0)
    await store.tell(subject.channel, lambda: Cooling(1.0))
    with contextlib.suppress(ClusterError):  # their slots may be on a node that is away
        assert await store.count_workers(prefix, 60.0) == 1
        limit = SharedLimit(name, LimitPolicy(rpm=60), prefix, Unused(), clock=lambda: 0.0)
        assert (await store.book(limit, Demand(1, (1, 0), (1, 0), (0, 0)))).taken[0] == 1
    found = [key async for key in client.scan_iter(match=Keys.every_state(prefix))]
    assert subject.state.encode() in found
    assert await client.get(Presence.key(prefix, "worker"))


async def hears_a_steer(client: Any, other: Any, name: str = "llm") -> None:
    """What one client does, another hears."""
    subject = Subject("lr:", name, POLICY)
    async with subscriptions(client) as pubsub:
        await pubsub.subscribe(subject.channel)
        await pubsub.get_message(timeout=0.25)  # the subscription stands
        await Store(other, "other").steer(subject, State.OPEN, "by hand", open_for=9.0)
        for _ in range(4):  # what was published before may come late, at another node
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=2.0)
            assert message is not None
            assert message["channel"] == subject.channel.encode()
            if message["data"].startswith(b"O "):
                return
    raise AssertionError("it was not heard")


async def wrong(url: str) -> str:
    async with client_of(url) as client:
        with pytest.raises(RedisError) as caught:
            await client.ping()
    told = what_is_wrong(caught.value)
    assert len(told) <= 150
    assert "secret" not in told
    return told


def until(works: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not works():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def admin(server: RedisServer, **options: Any) -> Any:
    return redis.Redis(port=server.port, decode_responses=True, **options)


# ---------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://host:6379/0",
        "REDIS://host",
        "rediss://u:secret@host/0",
        "redis://:p%40ss%2Fword@[::1]:6380/2",
        "redis://host?db=3",
        "rediss://host?ssl_ca_certs=/ca.pem&ssl_check_hostname=no&ssl_cert_reqs=none",
        "unix:///run/redis.sock",
        "unix://user:secret@/run/redis.sock?db=1",
        "redis+sentinel://h1:1,h2:2/service",
        "redis+sentinel://u:secret@h1,[::1]:2/service/3?sentinel_password=x",
        "rediss+sentinel://h1:1/service?ssl_ca_certs=/ca.pem",
        "redis+cluster://h1:1,h2:2",
        "rediss+cluster://u:secret@h1:1,h2:2/0?ssl_cert_reqs=optional",
    ],
)
def test_a_usable_address_has_no_problem(url: str) -> None:
    assert problem_with_address(url) is None
    make_client(url)


@pytest.mark.parametrize(
    ("url", "clause"),
    [
        ("", "must begin with redis://"),
        ("secret", "must begin with redis://"),
        ("host:6379", "must begin with redis://"),
        ("http://:secret@host", "must begin with redis://"),
        ("redis://", "has no host"),
        ("redis://:secret@", "has no host"),
        ("redis://:6379", "has no host"),
        ("redis+cluster://a:1,", "has no host"),
        ("redis://:secret@host:port", "a port that is none"),
        ("redis://host:0", "a port that is none"),
        ("redis://host:65536", "a port that is none"),
        ("redis://host:1:2", "a port that is none"),
        ("redis://a,b", "several hosts"),
        ("redis://host/secret", "a database that is no number"),
        ("redis://host?db=-1", "a database that is no number"),
        ("redis://:sec/secret@host", "percent-encoded"),
        ("redis://:sec?secret=1@host", "percent-encoded"),
        ("redis://:sec#secret@host", "percent-encoded"),
        ("unix://", "no path"),
        ("unix://run/redis.sock", "no path"),
        ("redis+sentinel://host:1", "no service name"),
        ("redis+sentinel://host:1/", "no service name"),
        ("redis+sentinel://host:1/service/x", "a database that is no number"),
        ("redis+cluster://host:1/1", "only database 0"),
        ("redis://host?socket_timeout=60", "an option socket_timeout that is not known"),
        ("redis://host?secret@", "percent-encoded"),
        ("redis://host?sec-secret=1", "an option that is not known"),
        ("redis://host?ssl_ca_certs=/ca.pem", "ssl_ca_certs, which only rediss:// takes"),
        ("rediss://host?ssl_check_hostname=secret", "neither true nor false"),
        ("rediss://host?ssl_cert_reqs=secret", "not none, optional or required"),
        ("redis+cluster://host?db=1", "an option db that is not known"),
    ],
)
def test_an_unusable_address_is_told_in_a_clause_that_shows_no_secret(
    url: str, clause: str
) -> None:
    told = problem_with_address(url)
    assert told is not None
    assert clause in told
    assert "secret" not in told
    assert len(told) <= 150
    with pytest.raises(ValueError, match=r"^(must begin|has) "):
        make_client(url)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "rediss+cluster"])
def test_an_address_sets_what_it_says_and_the_limits_are_ours(scheme: str) -> None:
    service = "/service" if "sentinel" in scheme else ""
    client: Any = make_client(f"{scheme}://u%3A:{SECRET}@127.0.0.1:7000{service}")
    if "cluster" in scheme:
        options = client.get_connection_kwargs()
    else:
        options = client.connection_pool.connection_kwargs
        assert client.connection_pool.max_connections == 8
    assert (options["username"], options["password"]) == ("u:", "se:cr et")
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (1.0, 1.0)
    assert options.get("ssl_check_hostname", False) is scheme.startswith("rediss")


# ---------------------------------------------------------------------- one server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """With a password, a user of few rights, one of none, and a socket."""
    path = tmp_path_factory.mktemp("redis") / "socket"
    with RedisServer("--requirepass", "se:cr et", "--unixsocket", str(path)) as server:
        with admin(server, password="se:cr et") as client:  # noqa: S106
            client.execute_command("ACL SETUSER", "worker", "on", ">pw", *RIGHTS)
            client.execute_command("ACL SETUSER", "nobody", "on", ">pw", "-@all", "+hello")
        yield server


@pytest.fixture
def place(server: RedisServer) -> str:
    return f"127.0.0.1:{server.port}"


async def test_a_client_with_a_password_can_do_everything(place: str) -> None:
    async with (
        client_of(f"redis://:{SECRET}@{place}/1") as client,
        client_of(f"redis://default:{SECRET}@{place}/1") as other,
    ):
        await every_script(client)
        await hears_a_steer(client, other)


@pytest.mark.redis
async def test_a_unix_socket_serves_as_well(server: RedisServer) -> None:
    with admin(server, password="se:cr et") as client:  # noqa: S106
        path = client.config_get("unixsocket")["unixsocket"]
    async with client_of(f"unix://:{SECRET}@{path}?db=2") as client:
        await every_script(client)
    assert await wrong(f"unix://{path}.not") == "there is no socket of this path"


@pytest.mark.redis
async def test_a_path_that_is_no_socket_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, clause in {
        tmp_path / "none": "there is no socket of this path",
        tmp_path / "none" / "deeper": "there is no socket of this path",
        tmp_path / "file" / "deeper": "there is no socket of this path",
        tmp_path / "file": "nothing listens at this socket",
        tmp_path: "nothing listens at this socket",
        tmp_path / ("x" * 120): "the path of its socket is too long",
    }.items():
        assert await wrong(f"unix://{path}") == clause
    with_tls = await wrong("rediss://127.0.0.1:1?ssl_ca_certs=/none.pem")
    assert with_tls in {
        "a file that an ssl_ option names cannot be read",
        "nothing answers at this address",
    }


async def test_a_server_that_is_no_sentinel_is_told(place: str) -> None:
    told = await wrong(f"redis+sentinel://{place}/service?sentinel_password={SECRET}")
    assert told == "this is no Sentinel: see redis://"


def test_where_redis_is_stands_beside_what_is_wrong_without_a_secret() -> None:
    error = ConnectionRefusedError("Connection refused")
    for url, places in {
        "redis://user:secret@redis:6380/1": "redis:6380",
        "rediss://:secret@[::1]": "::1:6379",
        "unix://:secret@/run/redis.sock": "/run/redis.sock",
        "redis+sentinel://:secret@a,b:2/service?sentinel_password=secret": "a:26379, b:2",
        "redis+cluster://:secret@a:1,b:2": "a:1, b:2",
    }.items():
        assert places_in(url) == places
        told = what_is_wrong(error, places)
        assert told == f"nothing answers at {places}"
    assert places_in("redis://:secret@") == ""
    assert len(what_is_wrong(error, "host:6379, " * 100)) < 260


@pytest.mark.redis
async def test_the_needed_rights_suffice(server: RedisServer, place: str) -> None:
    with admin(server, password="se:cr et") as boss:  # noqa: S106
        boss.acl_log_reset()
        async with client_of(f"redis://worker:pw@{place}/3") as client:
            await every_script(client)
            await hears_a_steer(client, client)
        assert boss.acl_log() == []


async def test_the_needed_rights_are_no_more_than_needed(place: str) -> None:
    async with client_of(f"redis://worker:pw@{place}") as client:
        for words in ("GET other", "KEYS *", "FLUSHALL", "CONFIG GET *", "PUBLISH other 1"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                await client.execute_command(*words.split())


async def test_a_client_connects_when_first_used_and_says_who_it_is(server: RedisServer) -> None:
    with admin(server, password="se:cr et") as boss:  # noqa: S106
        async with client_of(f"redis://:{SECRET}@127.0.0.1:{server.port}") as client:
            assert "lightrag-resilience" not in str(boss.client_list())
            await client.ping()
            assert "lightrag-resilience" in str(boss.client_list())
        until(lambda: "lightrag-resilience" not in str(boss.client_list()))


# ---------------------------------------------------------------------- what is wrong


async def test_a_refused_password_or_user_is_told(place: str) -> None:
    assert await wrong(f"redis://:secret@{place}") == "the user or the password is refused"
    assert await wrong(f"redis://secret:{SECRET}@{place}") == "the user or the password is refused"
    assert await wrong(f"redis://{place}") == "it asks for a password"


async def test_missing_rights_are_told(place: str) -> None:
    assert await wrong(f"redis://nobody:pw@{place}") == "this user may not run client|setname"
    async with client_of(f"redis://worker:pw@{place}") as client:
        with pytest.raises(RedisError) as caught:
            await every_script(client, prefix="not:")
        assert what_is_wrong(caught.value) == "this user may not use these keys"
        with pytest.raises(RedisError) as caught:
            await client.publish("not", "1")
        assert what_is_wrong(caught.value) == "this user may not use these channels"


async def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert await wrong(f"redis://:secret@127.0.0.1:{port}") == "nothing answers at this address"
    assert await wrong("redis://:secret@no.such.host.invalid") == "its host is not known"


async def test_a_server_that_does_not_answer_is_told_soon() -> None:
    with RedisServer() as hung:
        async with client_of(hung.url) as client:
            await client.ping()
            hung.pause()
            began = time.monotonic()
            with pytest.raises(RedisError) as caught:
                await client.ping()
            assert time.monotonic() - began < 5.0
        assert what_is_wrong(caught.value) == "no answer within 1 s"
        assert await wrong(hung.url) == "no answer within 1 s"


async def test_a_server_that_takes_no_writes_is_told() -> None:
    with RedisServer("--maxmemory", "2mb", "--databases", "1") as full, admin(full) as boss:
        async with client_of(full.url) as client:
            boss.config_set("maxmemory", "1")
            with pytest.raises(RedisError) as caught:
                await every_script(client)
            assert what_is_wrong(caught.value) == "its memory is full"
            boss.config_set("maxmemory", "0")
            boss.replicaof("127.0.0.1", "1")
            with pytest.raises(RedisError) as caught:
                await every_script(client)
            assert what_is_wrong(caught.value) == "this is a replica that takes no writes"
        assert "no database" in await wrong(full.url[:-1] + "7")
        assert "no cluster" in await wrong(full.url.replace("redis:", "redis+cluster:")[:-2])


@pytest.mark.parametrize(
    ("error", "clause"),
    [
        (redis.exceptions.BusyLoadingError("Redis is loading the dataset"), "loading"),
        (redis.exceptions.ClusterDownError("The cluster is down"), "the cluster is down"),
        (redis.exceptions.ResponseError("MISCONF Redis is configured to save"), "its disk"),
        (redis.exceptions.ConnectionError("max number of clients reached"), "as many clients"),
        (redis.exceptions.ResponseError("unknown command `HELLO`, with args"), "Redis 6.2"),
        (redis.exceptions.ResponseError("x script: y, on @user_script:1."), "a script fails"),
        (TimeoutError(), "no answer"),
        (ssl.SSLCertVerificationError("CERTIFICATE_VERIFY_FAILED: secret"), "not trusted"),
        (ValueError("secret"), "an error of kind ValueError"),
        (asyncio.CancelledError(), "an error of kind CancelledError"),
    ],
)
def test_any_error_has_its_clause(error: BaseException, clause: str) -> None:
    assert clause in what_is_wrong(error)
    assert "secret" not in what_is_wrong(error)


def test_the_error_that_led_to_an_error_counts() -> None:
    outer = redis.exceptions.ConnectionError("secret")
    outer.__cause__ = socket.gaierror(-2, "Name or service not known")
    assert what_is_wrong(outer) == "its host is not known"


# ---------------------------------------------------------------------- Sentinel


@pytest.fixture
def replicated() -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A master, its replica, and a Sentinel that changes their places soon; all have passwords."""
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
async def test_a_client_follows_the_sentinels_to_a_new_master(
    replicated: tuple[RedisServer, RedisServer, RedisServer],
) -> None:
    master, replica, sentinel = replicated
    port, query = sentinel.port, "sentinel_password=watch"
    async with client_of(
        f"redis+sentinel://:{SECRET}@127.0.0.1:1,127.0.0.1:{port}/main/2?{query}"
    ) as client:
        await every_script(client)
        await hears_a_steer(client, client)
        master.kill()
        began = time.monotonic()
        while True:
            with contextlib.suppress(RedisError):
                await every_script(client, name="after")
                break
            assert time.monotonic() - began < 10.0
            await asyncio.sleep(0.05)
        await hears_a_steer(client, client)
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


# ---------------------------------------------------------------------- a cluster

RANGES = ((0, 5460), (5461, 10922), (10923, 16383))


@contextlib.contextmanager
def cluster() -> Iterator[list[RedisServer]]:
    """Three nodes with a third of the slots each, and one that is the replica of the first."""
    enabled = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    options = (*enabled, "--cluster-node-timeout", "1000", *AT_ONCE)
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(RedisServer(*options)) for _ in range(4)]
        bosses = [stack.enter_context(admin(node)) for node in nodes]
        for number, boss in enumerate(bosses):
            boss.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            boss.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
            boss.execute_command(
                "ACL SETUSER", "worker", "on", ">pw", *needed_rights("lr:").split()
            )
        for boss, (first, last) in zip(bosses, RANGES, strict=False):
            boss.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        until(lambda: all(len(boss.cluster("nodes")) == 4 for boss in bosses))
        bosses[3].execute_command("CLUSTER REPLICATE", bosses[0].execute_command("CLUSTER MYID"))
        until(lambda: bosses[3].info("replication")["master_link_status"] == "up")
        until(lambda: all(boss.cluster("info")["cluster_state"] == "ok" for boss in bosses))
        until(lambda: all("slave" in str(boss.cluster("nodes")) for boss in bosses))
        yield nodes


def a_name_on(number: int) -> str:
    """Of a breaker that the node of this number keeps."""
    first, last = RANGES[number]
    names = (f"name{count}" for count in range(1000))
    return next(name for name in names if first <= redis.crc.key_slot(name.encode()) <= last)


NAMES = [a_name_on(number) for number in range(3)]


def address_of(nodes: list[RedisServer], user: str = "worker:pw@") -> str:
    places = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return f"redis+cluster://{user}{places}"


async def look(client: Any, name: str) -> Any:
    return (await Store(client, "looker").snapshot(Subject("lr:", name, POLICY))).now


async def test_a_cluster_serves_as_well_until_nodes_die_and_then_the_others_do() -> None:
    with cluster() as nodes, contextlib.ExitStack() as stack:
        bosses = [stack.enter_context(admin(node)) for node in nodes]
        some, every = address_of(nodes[:2]), address_of(nodes)
        async with client_of(some) as client, client_of(every) as other:
            for name in NAMES:
                await every_script(client, name=name)
                await hears_a_steer(client, other, name)
            found = [key async for key in client.scan_iter(match=Keys.every_state("lr:"))]
            assert len(found) == 3
            assert [boss.acl_log() for boss in bosses] == [[]] * 4
            assert [is_bad for is_bad, _, _ in await check_up(client, "lr:")] == [False]  # INFO

            # a replica that never saw a script takes over
            bosses[3].execute_command("CLUSTER FAILOVER TAKEOVER")
            nodes[0].kill()
            until(lambda: bosses[3].info("replication")["role"] == "master")
            deadline = time.monotonic() + 5.0
            while True:
                with contextlib.suppress(RedisError):
                    assert (await look(client, NAMES[0])).state is State.OPEN
                    break
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            await every_script(client, name=NAMES[0])

            # a node dies, and nobody takes its place
            nodes[1].kill()
            outcomes: list[Any] = []
            for _ in range(5):
                outcomes = await asyncio.gather(
                    *(look(client, name) for name in NAMES), return_exceptions=True
                )
            assert isinstance(outcomes[1], RedisError), outcomes
            assert all(outcomes[number].version for number in (0, 2)), outcomes
            for boss in (bosses[2], bosses[3]):
                boss.script_flush()
            for usable in (client, make_client(address_of(nodes))):
                assert (await look(usable, NAMES[0])).version
                assert (await look(usable, NAMES[2])).version
                for _ in range(4):
                    await hears_a_steer(usable, usable, NAMES[2])
                with pytest.raises(RedisError) as caught:
                    await look(usable, NAMES[1])
                assert what_is_wrong(caught.value) == "nothing answers at this address"
            await usable.aclose()
        # although the last command failed
        until(lambda: "lightrag-resilience" not in str(bosses[2].client_list()), 2.0)


async def test_a_cluster_without_all_its_slots_serves_those_it_has() -> None:
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    with RedisServer(*options) as node, admin(node) as boss:
        boss.execute_command("CLUSTER ADDSLOTSRANGE", *RANGES[0])
        until(lambda: boss.cluster("info")["cluster_state"] == "ok")
        async with client_of(address_of([node], "")) as client:
            await every_script(client, name=NAMES[0])
            with pytest.raises(RedisError) as caught:
                await look(client, NAMES[1])
            assert what_is_wrong(caught.value) == "the cluster is down, or a part of it"
            assert (await look(client, NAMES[0])).version


def port_of(pubsub: Any) -> int:
    return int(pubsub.connection.port)


async def test_subscriptions_in_a_cluster_end_with_their_node_and_begin_anew_at_another() -> None:
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


async def test_a_server_with_tls_is_trusted_by_its_certificate_or_not_at_all(
    server_with_tls: str,
    certificate: tuple[Path, Path],
) -> None:
    own, key = map(str, certificate)
    files = ("--tls-cert-file", own, "--tls-key-file", key, "--tls-ca-cert-file", own)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with RedisServer("--tls-port", str(port), *files, binary=server_with_tls) as server:
        trusting, with_own = f"ssl_ca_certs={own}", f"ssl_certfile={own}&ssl_keyfile={key}"
        async with client_of(f"rediss://127.0.0.1:{port}?{trusting}&{with_own}") as client:
            await every_script(client)
            await hears_a_steer(client, client)
        told = await wrong(f"rediss://127.0.0.1:{port}?{with_own}")
        assert told == "its certificate is not trusted: see ssl_ca_certs"
        told = await wrong(f"rediss://localhost:{port}?{trusting}&{with_own}")
        assert told == "its certificate is for another host"
        assert "a certificate" in await wrong(f"rediss://127.0.0.1:{port}?{trusting}")
        assert "names cannot be read" in await wrong(f"rediss://127.0.0.1:{port}?{trusting}.not")
        assert "does it want TLS" in await wrong(f"redis://127.0.0.1:{port}")
        assert "TLS right?" in await wrong(f"rediss://127.0.0.1:{server.port}?{trusting}")


def test_what_writing_to_a_lost_connection_raises_is_a_lost_connection() -> None:
    with pytest.raises(redis.ConnectionError, match="lost"), lost_connections():
        raise AttributeError("'NoneType' object has no attribute '_add_writer'")
