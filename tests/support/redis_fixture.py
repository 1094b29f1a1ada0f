"""Each test has a Redis of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightrag_resilience.testing.redis_server import RedisServer


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server
