"""A server with users of different rights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightrag_resilience.testing.redis_server import RedisServer
from support.redis_clients import (
    RIGHTS,
    admin,
)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """With a password, a user of few rights, one of none, and a socket."""
    path = tmp_path_factory.mktemp("redis") / "socket"
    with RedisServer("--requirepass", "se:cr et", "--unixsocket", str(path)) as server:
        with admin(server, password="se:cr et") as client:  # noqa: S106
            client.execute_command("ACL SETUSER", "worker", "on", ">pw", *RIGHTS)
            client.execute_command("ACL SETUSER", "powerless", "on", ">pw", "-@all", "+hello")
        yield server


@pytest.fixture
def address(secured: RedisServer) -> str:
    return f"127.0.0.1:{secured.port}"
