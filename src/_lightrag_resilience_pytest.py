"""The pytest plugin of lightrag_resilience: `lightrag_resilience.testing` as fixtures.

It is outside of the package, which pytest would else import at each start. So a run without these
fixtures pays nothing for them, and the package is imported under the measurement of coverage.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

_MODES = ("fresh", "fast", "off")


def _block(sentence: str, fixture: str, name: str = "", **options: Any) -> Any:
    """A fixture that is a ``with`` block of the package around its test."""

    def made() -> Iterator[Any]:
        with _public(name or fixture)(**options) as entered:
            yield entered

    made.__doc__ = sentence
    return pytest.fixture(name=fixture)(made)


def _public(name: str) -> Any:
    return getattr(import_module("lightrag_resilience.testing"), name)


_fresh = _block("Guards as in a new process, in this test alone.", "resilience_fresh")
_fast = _block("Fresh guards that wait in no time; it can `advance`.", "resilience_fast")
_off = _block("Fresh guards that let calls through.", "resilience_off")
_recorded = _block("Attempts, rejections, transitions and waits.", "recorded", "Recorder")
_simulator = _block("A provider that fails on command.", "simulator", "Simulator", seed=1)


@pytest.fixture
def outage() -> Any:
    """Let the calls of a dependency fail as if it were down, in a ``with`` block."""
    return _public("outage")


@pytest.fixture
def open_circuit() -> Any:
    """Let the calls of a dependency be rejected, in a ``with`` block."""
    return _public("open_circuit")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option ``resilience`` of pytest's configuration."""
    parser.addini("resilience", f"Guards of every test: {', '.join(_MODES)}; empty: as they are")


def pytest_configure(config: pytest.Config) -> None:
    """Give every test the fixture that the configuration names."""
    if mode := config.getini("resilience"):
        if mode not in _MODES:
            raise pytest.UsageError(f"resilience is {mode!r}, not one of {', '.join(_MODES)}")
        config.pluginmanager.register(_EveryTest(f"resilience_{mode}"), "resilience of every test")


class _EveryTest:
    def __init__(self, fixture: str) -> None:
        self._fixture = fixture

    @pytest.fixture(autouse=True)
    def _resilience_of_every_test(self, request: pytest.FixtureRequest) -> None:
        request.getfixturevalue(self._fixture)
