"""Tests of this folder wait in virtual time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lightrag_resilience import (
    Guards,
    with_fallbacks,
)
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import Event
from support.virtual_time import anyio_backend


@pytest.fixture
def owner() -> Iterator[Guards]:
    made = Guards(settings=load_settings({}), clock=lambda: asyncio.get_running_loop().time())
    yield made
    made.close()


@pytest.fixture
def published(owner: Guards) -> list[Event]:
    events: list[Event] = []
    owner.events.subscribe(events.append)
    return events


@pytest.fixture
def chain(owner: Guards) -> Callable[..., Any]:
    return functools.partial(with_fallbacks, registry=owner)


__all__ = ["anyio_backend"]
