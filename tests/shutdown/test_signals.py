"""Signals are heard beside whoever hears them already."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lightrag_resilience._signals import Ears, signals_to_hear

SIGNAL = signal.SIGTERM


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = signal.getsignal(SIGNAL), signal.getsignal(signal.SIGINT)
    yield
    signal.signal(SIGNAL, before[0])
    signal.signal(signal.SIGINT, before[1])


def test_a_servers_own_handler_is_called_too_and_back_afterwards() -> None:
    theirs: list[int] = []

    def handler(number: int, _: Any) -> None:
        theirs.append(number)

    signal.signal(SIGNAL, handler)
    ours: list[str] = []
    with Ears([SIGNAL], ours.append) as hears:
        assert hears
        signal.raise_signal(SIGNAL)
        signal.raise_signal(SIGNAL)
    assert (ours, theirs) == (["SIGTERM"] * 2, [SIGNAL] * 2)
    assert signal.getsignal(SIGNAL) is handler


def test_without_a_handler_the_process_is_not_ended() -> None:
    signal.signal(SIGNAL, signal.SIG_DFL)
    ours: list[str] = []
    with Ears([SIGNAL], ours.append):
        signal.raise_signal(SIGNAL)
    assert ours == ["SIGTERM"]
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL


def test_ctrl_c_breaks_off_only_the_second_time() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ours: list[str] = []
    with Ears([signal.SIGINT], ours.append):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert ours == ["SIGINT", "SIGINT"]


def test_asyncios_own_ctrl_c_waits_for_the_second_time_too() -> None:
    async def main() -> list[str]:
        ours: list[str] = []
        handler = signal.getsignal(signal.SIGINT)
        assert isinstance(handler, functools.partial)
        with Ears([signal.SIGINT], ours.append):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0.01)
        return ours

    assert asyncio.run(main()) == ["SIGINT"]


def test_another_thread_hears_nothing() -> None:
    heard: list[bool] = []

    def elsewhere() -> None:
        with Ears([SIGNAL], lambda _: None) as hears:
            heard.append(hears)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [False]


def test_those_that_end_a_process_are_heard() -> None:
    assert {signal.SIGTERM, signal.SIGINT} <= set(signals_to_hear())
