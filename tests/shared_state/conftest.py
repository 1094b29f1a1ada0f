"""Registries that share a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.testing.redis_server import RedisServer


@pytest.fixture
def make(server: RedisServer) -> Iterator[Callable[..., Guards]]:
    """Make a registry; a variable is named by what follows ``RESILIENCE_LLM__``."""
    made: list[Guards] = []

    def registry(**variables: Any) -> Guards:
        environ = {
            "RESILIENCE_REDIS_URL": server.url,
            "RESILIENCE_LLM__RETRY__ATTEMPTS": "1",
            "RESILIENCE_LLM__BREAKER__CONSECUTIVE_FAILURES": "5",
            "RESILIENCE_LLM__LIMIT__MAX_WAIT": "60",
            **{f"RESILIENCE_LLM__{name}": str(value) for name, value in variables.items()},
        }
        made.append(Guards(settings=load_settings(environ)))
        return made[-1]

    yield registry
    for guards in made:
        guards.close()
