"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightrag_resilience.testing.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server
