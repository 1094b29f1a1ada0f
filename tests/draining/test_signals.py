"""The coordinator receives signals beside the handlers that were there before."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from lightrag_resilience import Guards, ShuttingDownError
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.signals import ONE_REQUEST, SignalListener, shutdown_signals
from lightrag_resilience.draining.supervisor import repeats_sigterm, supervisor
from lightrag_resilience.shutdown import Coordinator

SIGNAL = signal.SIGTERM


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = signal.getsignal(SIGNAL), signal.getsignal(signal.SIGINT)
    yield
    signal.signal(SIGNAL, before[0])
    signal.signal(signal.SIGINT, before[1])


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_servers_handler_is_called_too_and_restored_afterwards() -> None:
    theirs: list[int] = []

    def handler(number: int, _: Any) -> None:
        theirs.append(number)

    signal.signal(SIGNAL, handler)
    ours: list[str] = []
    clock = Clock()
    with SignalListener([SIGNAL], ours.append, clock) as is_listening:
        assert is_listening
        signal.raise_signal(SIGNAL)
        clock.now += ONE_REQUEST
        signal.raise_signal(SIGNAL)
    assert (ours, theirs) == (["SIGTERM"] * 2, [SIGNAL] * 2)
    assert signal.getsignal(SIGNAL) is handler


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_the_servers_handler_is_called_once_for_one_request(
    first: signal.Signals, second: signal.Signals
) -> None:
    theirs: list[int] = []

    def handler(number: int, _: Any) -> None:
        theirs.append(number)

    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)
    clock = Clock()
    with SignalListener([signal.SIGTERM, signal.SIGINT], lambda _: None, clock):
        signal.raise_signal(first)
        clock.now += 0.05
        signal.raise_signal(second)
        assert theirs == [first]
        clock.now += ONE_REQUEST
        signal.raise_signal(second)
    assert theirs == [first, second]


def test_handlers_of_two_owners_are_both_called_in_one_request() -> None:
    theirs: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: theirs.append("one"))
    signal.signal(signal.SIGINT, lambda *_: theirs.append("other"))
    with SignalListener([signal.SIGTERM, signal.SIGINT], lambda _: None, Clock()):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert theirs == ["one", "other"]


def test_a_signal_without_another_handler_does_not_end_the_process() -> None:
    signal.signal(SIGNAL, signal.SIG_DFL)
    ours: list[str] = []
    with SignalListener([SIGNAL], ours.append):
        signal.raise_signal(SIGNAL)
    assert ours == ["SIGTERM"]
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL


def test_ctrl_c_interrupts_only_the_second_time() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ours: list[str] = []
    clock = Clock()
    with SignalListener([signal.SIGINT], ours.append, clock):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # such as from the parent too
        clock.now += ONE_REQUEST
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert ours == ["SIGINT"] * 3


def test_asyncios_ctrl_c_interrupts_only_the_second_time() -> None:
    async def main() -> list[str]:
        ours: list[str] = []
        handler = signal.getsignal(signal.SIGINT)
        assert isinstance(handler, functools.partial)
        with SignalListener([signal.SIGINT], ours.append):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0.01)
        return ours

    assert asyncio.run(main()) == ["SIGINT"]


def test_outside_the_main_thread_no_handler_is_installed() -> None:
    listening: list[bool] = []

    def elsewhere() -> None:
        with SignalListener([SIGNAL], lambda _: None) as is_listening:
            listening.append(is_listening)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert listening == [False]


def test_the_stop_signals_are_handled() -> None:
    assert {signal.SIGTERM, signal.SIGINT} <= set(shutdown_signals())


def test_listen_again_wraps_a_handler_that_was_set_late() -> None:
    theirs: list[int] = []

    def late(number: int, _: Any) -> None:
        theirs.append(number)

    ours: list[str] = []
    ears = SignalListener([SIGNAL], ours.append)
    with ears:
        signal.signal(SIGNAL, late)
        ears.listen()
        ears.listen()  # changes nothing
        signal.raise_signal(SIGNAL)
        assert (ours, theirs) == (["SIGTERM"], [SIGNAL])
    assert signal.getsignal(SIGNAL) is late


def test_stop_keeps_a_handler_that_was_set_later() -> None:
    def late(number: int, _: Any) -> None: ...

    with SignalListener([SIGNAL], lambda _: None):
        signal.signal(SIGNAL, late)
    assert signal.getsignal(SIGNAL) is late


@pytest.mark.skipif(not hasattr(signal, "SIGQUIT"), reason="Windows has none")
def test_sigquit_is_handled_only_if_a_server_handles_it() -> None:
    before = signal.getsignal(signal.SIGQUIT)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    assert signal.SIGQUIT not in shutdown_signals()
    signal.signal(signal.SIGQUIT, lambda *_: None)
    assert signal.SIGQUIT in shutdown_signals()
    signal.signal(signal.SIGQUIT, before)


async def skips_waiting(*signals: tuple[float, signal.Signals]) -> bool:
    """Whether a coordinator gives up what is in flight after signals at these seconds."""
    guards = Guards(settings=load_settings({}))
    async with Coordinator(registry=guards, handle_signals=False) as coordinator:
        for at, number in signals:
            coordinator._drain._on_request(number.name, 100.0 + at, number.name == "SIGQUIT")
        assert coordinator.stopping.is_set()
        return coordinator._drain.phases.skips_waiting


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("signals", "repeats", "skips"),
    [
        ([(0, TERM)], False, False),
        ([(0, INT), (0.05, TERM)], False, False),
        ([(0, TERM), (0.05, INT)], False, False),
        ([(0, TERM), (0.2, TERM), (0.9, TERM)], False, False),
        ([(0, TERM), (1.1, TERM)], False, True),
        ([(0, INT), (1.1, INT)], False, True),
        ([(0, TERM), (0.5, TERM), (1.1, INT)], False, True),
        ([(0, TERM), (1.1, TERM), (5, TERM)], True, False),
        ([(0, INT), (5, TERM)], True, False),
        ([(0, TERM), (5, INT)], True, True),
    ],
)
def test_signals_within_a_second_are_one_request(
    monkeypatch: pytest.MonkeyPatch,
    signals: list[tuple[float, signal.Signals]],
    repeats: bool,  # noqa: FBT001
    skips: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(supervisor(), "repeats_sigterm", repeats)
    assert asyncio.run(skips_waiting(*signals)) is skips


@pytest.mark.skipif(not hasattr(signal, "SIGQUIT"), reason="Windows has none")
@pytest.mark.parametrize("repeats", [False, True])
def test_sigquit_skips_the_waiting(
    monkeypatch: pytest.MonkeyPatch,
    repeats: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(supervisor(), "repeats_sigterm", repeats)
    assert asyncio.run(skips_waiting((0, signal.SIGQUIT)))
    assert asyncio.run(skips_waiting((0, TERM), (0.05, signal.SIGQUIT)))


@pytest.mark.skipif(not hasattr(signal, "SIGQUIT"), reason="Windows has none")
def test_signals_begin_the_drain_and_sigquit_skips_the_waiting() -> None:
    async def main() -> bool:
        guards = Guards(settings=load_settings({}))
        async with Coordinator(registry=guards) as coordinator:
            working = asyncio.create_task(coordinator.run(asyncio.Event().wait()))
            await asyncio.sleep(0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                signal.raise_signal(number)
            await asyncio.wait_for(coordinator.stopping.wait(), 20)
            await asyncio.sleep(0)
            waits = not coordinator._drain.phases.skips_waiting and not working.done()
            signal.raise_signal(signal.SIGQUIT)
            with pytest.raises(ShuttingDownError):
                await asyncio.wait_for(working, 20)
            return waits

    before = signal.signal(signal.SIGQUIT, lambda *_: None)
    try:
        assert asyncio.run(main())
    finally:
        signal.signal(signal.SIGQUIT, before)


def test_a_multiprocessing_worker_expects_a_repeated_sigterm() -> None:
    assert not repeats_sigterm()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(repeats_sigterm).result(60)
