"""Fixtures of all tests: servers, and the client of a simulated provider."""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator

import coverage
import openai
import pytest
from hypothesis import HealthCheck, settings

from lightrag_resilience.runtime.process_state import process
from lightrag_resilience.testing import Simulator
from lightrag_resilience.testing.redis_server import RedisServer
from support.slow_files import seconds_by_file
from support.unit_tests import is_unit, no_processes

# A busy machine is slow, and that is no mistake of what is tested.
settings.register_profile(
    "patient",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are processors: with one more, these idled for a quarter of the time."""
    return min(os.cpu_count() or 1, 4) + 2


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Let a pause of the measurement be one in xdist's workers too.

    pytest-cov starts two there, and the first, whose data it drops, goes on when the second pauses.
    """
    unused = coverage.Coverage.current()
    if unused is not None and hasattr(session.config, "workerinput"):
        unused.stop()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what collection imports out of garbage collection: with it, each takes half a second.

    Every worker imports the same, and measured that takes three times as long: one measures it.
    """
    measured = coverage.Coverage.current()
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        measured = None
    gc.disable()
    if measured is not None:
        measured.stop()
    try:
        return (yield)
    finally:
        if measured is not None:
            measured.start()
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Find the unit tests. The longest files come first: one at the end is waited for."""
    for item in filter(is_unit, items):
        item.add_marker("unit")
    slow = Counter(item.path for item in items if item.get_closest_marker("unit") is None)
    seconds = seconds_by_file()
    items.sort(key=lambda item: (-seconds.get(item.path, 0), -slow[item.path]))


@pytest.fixture(autouse=True)
def _no_processes_in_unit_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("unit") is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        no_processes(patch)
        yield


@pytest.fixture(autouse=True)
def _new_process_state() -> None:
    """Each test begins as a new process does: no guards, no rules, no supervisor of another."""
    process.clear()


@pytest.fixture
def anyio_backend() -> str:
    """Not trio, which selenium brings along."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """What a server does to the loggers of this process ends with its test.

    pytest attaches its own handlers to a logger that does not propagate.
    """
    names = ("", "lightrag", "lightrag_resilience", "uvicorn.access", "uvicorn.error", "httpx")
    before = [
        (each, each.level, each.propagate, each.handlers[:], each.filters[:])
        for each in map(logging.getLogger, names)
    ]
    yield
    for logger, level, propagates, handlers, filters in before:
        logger.setLevel(level)
        logger.propagate, logger.filters = propagates, filters
        for handler in logger.handlers[:]:
            if handler not in handlers and not type(handler).__module__.startswith("_pytest"):
                logger.removeHandler(handler)


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    async with Simulator(seed=1) as simulator:
        yield simulator


@pytest.fixture
async def client(provider: Simulator) -> AsyncIterator[openai.AsyncOpenAI]:
    url = provider.base_url
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Redis for one test."""
    with RedisServer() as server:
        yield server
