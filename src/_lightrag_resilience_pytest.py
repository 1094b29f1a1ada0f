"""The pytest plugin of lightrag_resilience: `lightrag_resilience.testing` as fixtures.

It is outside of the package, which pytest would else import at each start. So a run without these
fixtures pays nothing for them, and the package is imported under the measurement of coverage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lightrag_resilience import Guards
    from lightrag_resilience.testing import FastTime, Recorder, Simulator

_MODES = ("fresh", "fast", "off")


@pytest.fixture
def resilience_fresh() -> Iterator[Guards]:
    """Guards as in a new process: closed, nothing counted, variables not yet read."""
    from lightrag_resilience import testing

    with testing.resilience_fresh() as guards:
        yield guards


@pytest.fixture
def resilience_fast() -> Iterator[FastTime]:
    """Fresh guards that wait for backoff, limits and recovery in no time; it can `advance`."""
    from lightrag_resilience import testing

    with testing.resilience_fast() as time:
        yield time


@pytest.fixture
def resilience_off() -> Iterator[None]:
    """Guards that let calls through: no retry, breaker, limit or timeout."""
    from lightrag_resilience import testing

    with testing.resilience_off():
        yield


@pytest.fixture
def outage() -> Any:
    """Let the calls of a dependency fail as if it were down, in a ``with`` block."""
    from lightrag_resilience import testing

    return testing.outage


@pytest.fixture
def open_circuit() -> Any:
    """Let the calls of a dependency be rejected, in a ``with`` block."""
    from lightrag_resilience import testing

    return testing.open_circuit


@pytest.fixture
def recorded() -> Iterator[Recorder]:
    """Attempts, waits, rejections and changes of state, as in ``recorded.attempts(name)``."""
    from lightrag_resilience import testing

    with testing.Recorder() as recorder:
        yield recorder


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A provider of the OpenAI kind at ``simulator.base_url``, which fails on command."""
    from lightrag_resilience import testing

    with testing.Simulator(seed=1) as provider:
        yield provider


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option ``resilience`` of pytest's configuration."""
    parser.addini("resilience", f"Guards of every test: {', '.join(_MODES)}; empty: as they are")


def pytest_configure(config: pytest.Config) -> None:
    """Give every test the fixture that the configuration names."""
    mode = config.getini("resilience")
    if not mode:
        return
    if mode not in _MODES:
        raise pytest.UsageError(f"resilience is {mode!r}, not one of {', '.join(_MODES)}")
    config.pluginmanager.register(_EveryTest(f"resilience_{mode}"), "resilience of every test")


class _EveryTest:
    def __init__(self, fixture: str) -> None:
        self._fixture = fixture

    @pytest.fixture(autouse=True)
    def _resilience_of_every_test(self, request: pytest.FixtureRequest) -> None:
        request.getfixturevalue(self._fixture)
