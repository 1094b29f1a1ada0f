"""Addresses of a Redis."""

from __future__ import annotations

from typing import Any

import pytest

from lightrag_resilience.config.redis_url import problem_with_address
from lightrag_resilience.redis_client.client import (
    make_client,
)
from support.redis_clients import (
    SECRET,
)

pytestmark = pytest.mark.anyio


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
def test_an_unusable_address_is_described_in_a_clause_that_shows_no_secret(
    url: str, clause: str
) -> None:
    clause_shown = problem_with_address(url)
    assert clause_shown is not None
    assert clause in clause_shown
    assert "secret" not in clause_shown
    assert len(clause_shown) <= 150
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
