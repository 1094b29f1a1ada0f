"""Signals are heard beside whoever hears them already."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lightrag_resilience import Guards
from lightrag_resilience._host import host
from lightrag_resilience._signals import Ears, signals_to_hear
from lightrag_resilience.settings import load_settings
from lightrag_resilience.shutdown import Coordinator

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


def test_a_server_that_sets_its_handler_late_is_heard_beside_too() -> None:
    theirs: list[int] = []

    def late(number: int, _: Any) -> None:
        theirs.append(number)

    ours: list[str] = []
    ears = Ears([SIGNAL], ours.append)
    with ears:
        signal.signal(SIGNAL, late)
        ears.listen()
        ears.listen()  # changes nothing
        signal.raise_signal(SIGNAL)
        assert (ours, theirs) == (["SIGTERM"], [SIGNAL])
    assert signal.getsignal(SIGNAL) is late


def test_a_handler_that_was_set_since_stays() -> None:
    def late(number: int, _: Any) -> None: ...

    with Ears([SIGNAL], lambda _: None):
        signal.signal(SIGNAL, late)
    assert signal.getsignal(SIGNAL) is late


@pytest.mark.skipif(not hasattr(signal, "SIGQUIT"), reason="Windows has none")
def test_the_fast_stop_is_heard_only_where_a_server_hears_it() -> None:
    before = signal.getsignal(signal.SIGQUIT)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    assert signal.SIGQUIT not in signals_to_hear()
    signal.signal(signal.SIGQUIT, lambda *_: None)
    assert signal.SIGQUIT in signals_to_hear()
    signal.signal(signal.SIGQUIT, before)


@pytest.mark.skipif(not hasattr(signal, "SIGQUIT"), reason="Windows has none")
def test_the_fast_stop_waits_for_nothing_and_a_repeated_stop_is_none() -> None:
    async def main(*signals: signal.Signals, repeats: bool = False) -> bool:
        """Whether a coordinator is in a hurry after these."""
        host.repeats = repeats
        guards = Guards(settings=load_settings({}))
        async with Coordinator(registry=guards) as coordinator:
            for number in signals:
                signal.raise_signal(number)
            await asyncio.wait_for(coordinator.stopping.wait(), 20)
            await asyncio.sleep(0)
            return coordinator._drain.is_hurried

    before = signal.getsignal(signal.SIGQUIT)
    signal.signal(signal.SIGQUIT, lambda *_: None)
    try:
        assert asyncio.run(main(signal.SIGQUIT))
        assert not asyncio.run(main(SIGNAL))
        assert asyncio.run(main(SIGNAL, SIGNAL))
        assert not asyncio.run(main(SIGNAL, SIGNAL, repeats=True))
        assert asyncio.run(main(SIGNAL, signal.SIGQUIT, repeats=True))
    finally:
        host.repeats = False
        signal.signal(signal.SIGQUIT, before)
