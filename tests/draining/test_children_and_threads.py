"""Children are waited for and ended, threads are named, and forks begin anew."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.in_flight import has_ended
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.draining.supervisor import supervisor
from lightrag_resilience.draining.termination import end_all
from lightrag_resilience.shutdown import Coordinator
from support.scripts import output_of

pytestmark = pytest.mark.anyio

STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); "


def coordinator(guards: Guards | None = None, **changes: Any) -> Coordinator:
    guards = guards or Guards(settings=load_settings({}))
    times = {"timeout": 1.5, "cancel_grace": 0.5, "close_timeout": 0.5}
    return Coordinator(registry=guards, handle_signals=False, **(times | changes))


async def program(script: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=-1)


async def test_a_child_is_waited_for() -> None:
    async with coordinator(timeout=60.0) as made:
        child = made.track_process(await program("import time; time.sleep(0.3); print('end')"))
        report = await made.drain()
    assert (report.drained, report.abandoned) == (1, ())
    assert child.returncode == 0


async def in_asyncio() -> Any:
    child = await program(STUBBORN + "time.sleep(60)")
    assert child.stdout is not None
    await child.stdout.readline()
    return child


async def in_subprocess() -> Any:
    script = STUBBORN + "time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)  # noqa: ASYNC220, S603 - our own interpreter
    assert child.stdout is not None
    await asyncio.to_thread(child.stdout.readline)
    return child


async def in_multiprocessing() -> Any:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    return child


@pytest.mark.parametrize("begin", [in_asyncio, in_subprocess, in_multiprocessing])
async def test_a_child_that_goes_on_is_recorded_and_killed(
    begin: Callable[[], Any], tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    async with coordinator(journal=journal.path) as made:
        child = made.track_process(await begin(), "converter")
        report = await made.drain()
    assert [(each.name, each.kind) for each in report.abandoned] == [("converter", "child")]
    assert list(journal.read()) == list(report.abandoned)
    ends = time.monotonic() + 20
    while not has_ended(child):
        assert time.monotonic() < ends
        await asyncio.sleep(0.02)


async def test_a_child_that_was_closed_has_ended() -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    child.start()
    async with coordinator() as made:
        made.track_process(child, "converter")
        await asyncio.to_thread(child.join, 20)
        child.close()
        made.begin("the test")
        report = await made.drain()
    assert report.abandoned == ()


async def test_a_child_that_is_closed_while_the_drain_ends_it_blocks_nothing() -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    child.start()
    await asyncio.to_thread(child.join, 20)
    child.close()
    assert await end_all((), [child], lambda _: True) == []


async def test_a_child_is_named_after_its_pid() -> None:
    async with coordinator(cancel_grace=20.0, timeout=20.5) as made:
        child = made.track_process(await program("import time; time.sleep(60)"))
        report = await made.drain()
    assert [each.name for each in report.abandoned] == [f"child {child.pid}"]
    assert sys.platform == "win32" or child.returncode == -signal.SIGTERM  # asked, not killed


def test_a_child_is_killed_and_recorded_when_the_loop_ends_during_a_drain(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        """Ends while a drain lasts; asyncio.run then cancels everything at once."""
        made = await coordinator(journal=tmp_path / "journal", timeout=60.0).__aenter__()
        made.track_process(child, "converter")
        made.begin("the test")
        await asyncio.sleep(0.05)

    script = "import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", script])  # noqa: S603 - our own interpreter
    asyncio.run(main())
    assert child.wait(20) != 0
    assert [each.name for each in Journal(tmp_path / "journal").read()] == ["converter"]


async def test_a_function_that_goes_on_in_its_thread_is_reported() -> None:
    guards = Guards(settings=load_settings({}))
    begun, goes_on = threading.Event(), threading.Event()

    def convert() -> None:
        begun.set()
        goes_on.wait(60)

    async with coordinator(guards) as made:
        call = made.track(asyncio.create_task(guards.get("converter").call(convert)))
        assert await asyncio.to_thread(begun.wait, 20)
        report = await made.drain()
        assert call.cancelled()
    goes_on.set()
    assert [name.rpartition(".")[2] for name in report.stuck] == ["convert"]
    assert report.stuck[0].startswith("thread of ")


async def test_a_function_that_ends_in_time_is_not_reported() -> None:
    guards = Guards(settings=load_settings({}))
    begun, goes_on = threading.Event(), threading.Event()

    def convert() -> None:
        begun.set()
        goes_on.wait(60)

    async def end_later() -> None:
        await asyncio.sleep(1.0)  # cancelled after 0.5
        goes_on.set()

    async with coordinator(guards, timeout=22.5, cancel_grace=20.0, close_timeout=2.0) as made:
        made.track(asyncio.create_task(guards.get("converter").call(convert)))
        assert await asyncio.to_thread(begun.wait, 20)
        report, _ = await asyncio.gather(made.drain(), end_later())
    assert report.stuck == ()
    assert len(report.abandoned) == 1


HUNG = """
import asyncio, os, signal, sys, threading, time
from lightrag_resilience import Guards, Policy
from lightrag_resilience.shutdown import Coordinator
from lightrag_resilience.config.settings import load_settings

def hang():
    os.kill(os.getpid(), {signal})
    time.sleep({seconds})
    print("ended by itself")

async def main():
    guards = Guards(settings=load_settings({{}}))
    async with Coordinator(registry=guards, timeout=1.5, cancel_grace=0.2, close_timeout=0.2):
        call = asyncio.create_task(guards.get("x", Policy()).call(hang))
        await asyncio.wait({{call}})

asyncio.run(main())
print("end of the program", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_function_that_hangs_in_a_thread_does_not_keep_a_stopping_process(
    number: signal.Signals,
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HUNG.format(signal=int(number), seconds=600)), stdout=-1, stderr=-1
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert out.split(b"\n")[0] == b"end of the program"
    assert process.returncode == 1
    assert b"Exit with threads that do not end: thread of hang" in err


async def test_a_process_exits_normally_if_its_thread_ends_before_the_deadline() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HUNG.format(signal=int(signal.SIGTERM), seconds=1.0)),
        stdout=-1,
        stderr=-1,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert b"end of the program" in out
    assert process.returncode == 0


# ---------------------------------------------------------------------- forks and other threads

FORK = """
import asyncio, os, signal, sys
from lightrag_resilience import guard, guards
from lightrag_resilience.shutdown import Coordinator

async def in_the_child():
    async with Coordinator() as own:
        print("new", own.is_draining, await guard("llm").call(asyncio.sleep, 0, "answer"))

async def main():
    async with Coordinator(timeout=200) as coordinator:
        call = asyncio.create_task(guard("llm").call(asyncio.sleep, 100))
        await asyncio.sleep(0.1)
        coordinator.request("the test")
        await asyncio.sleep(0.1)
        assert coordinator.is_draining and guards().gate.is_closed
        child = os.fork()
        if not child:
            print("child", coordinator.is_draining, guards().gate.is_closed,
                  len(guards().gate.running), signal.getsignal(signal.SIGTERM).name,
                  signal.getsignal(signal.SIGINT).__name__)
            asyncio._set_running_loop(None)
            asyncio.run(in_the_child())
            sys.stdout.flush()
            os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        print("parent", coordinator.is_draining, len(guards().gate.running), flush=True)
        call.cancel()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_child_drains_nothing_and_can_be_terminated() -> None:
    out, _ = output_of(FORK)
    assert out.splitlines() == [
        "child False False 0 SIG_DFL default_int_handler",
        "new False answer",
        "parent True 1",
    ]


async def test_a_forked_child_resets_drain_gate_and_signal_handlers() -> None:
    """The same in this process, where it can be measured."""
    guards = Guards(settings=load_settings({}))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    made = Coordinator(registry=guards, timeout=30.0)
    await made.__aenter__()
    call = asyncio.create_task(guards.get("llm").call(asyncio.sleep, 60))
    await asyncio.sleep(0.05)
    made.begin("the test")
    guards.gate._pid = 0
    wakes = signal.set_wakeup_fd(-1)
    supervisor().reset_after_fork()
    signal.set_wakeup_fd(wakes)
    assert not made.is_draining
    assert (guards.gate.is_closed, guards.gate.running, dict(guards.coordinators)) == (
        False,
        {},
        {},
    )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])
    call.cancel()
    await asyncio.wait({call})


async def test_a_call_of_another_event_loop_is_cancelled_too() -> None:
    guards = Guards(settings=load_settings({}))
    begun, ended = threading.Event(), threading.Event()

    async def slow() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    thread = threading.Thread(target=lambda: asyncio.run(suppressed(guards.get("llm").call(slow))))
    thread.start()
    assert await asyncio.to_thread(begun.wait, 20)
    async with coordinator(guards, timeout=20.5, cancel_grace=20.0) as made:
        report = await made.drain()
    assert [each.name for each in report.abandoned] == ["llm"]
    assert ended.is_set()
    thread.join(20)


async def suppressed(work: Any) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await work


async def test_work_is_cancelled_although_the_journal_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    async with coordinator(journal=tmp_path / "file" / "journal") as made:
        task = made.track(asyncio.create_task(asyncio.sleep(60)))
        supervisor().record_all_abandoned("the test")
        await made.drain()
    assert task.cancelled()
    assert "cannot be written: " in caplog.text


def test_outside_the_main_thread_only_the_end_of_the_block_begins_a_drain() -> None:
    reports = []

    async def main() -> None:
        made = Coordinator(registry=Guards(settings=load_settings({})))
        async with made:
            task = made.track(asyncio.create_task(asyncio.sleep(0.2)))
        reports.append((await made.drain(), task.done()))

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join(30)
    ((report, was_done),) = reports
    assert was_done
    assert report.drained == 1
