"""The background loop: begun when needed, shared by threads, ended on request, new after a fork."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from lightrag_resilience.runtime.background_loop import BackgroundLoop
from support.scripts import output_of

WAIT = 10.0  # seconds, a bound that is never reached
THREADS = 16
NAME = "lightrag-resilience"
role = ContextVar("role", default="none")


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    made = BackgroundLoop()
    yield made
    made.close()


async def loop_and_thread() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    return asyncio.get_running_loop(), threading.current_thread()


def ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == NAME}


def test_no_thread_starts_before_the_first_use(loop: BackgroundLoop) -> None:
    before = ours()
    assert (loop._loop, loop._thread) == (None, None)
    _, thread = loop.run(loop_and_thread())
    assert ours() - before == {thread}


def test_all_uses_share_one_loop_in_one_daemon_thread(loop: BackgroundLoop) -> None:
    first, thread = loop.run(loop_and_thread())
    assert loop.run(loop_and_thread()) == (first, thread)
    assert (thread.daemon, thread.name) == (True, NAME)
    assert thread is not threading.current_thread()


def test_two_background_loops_have_two_threads(loop: BackgroundLoop) -> None:
    other = BackgroundLoop()
    try:
        assert other.run(loop_and_thread())[0] is not loop.run(loop_and_thread())[0]
    finally:
        other.close()


def test_a_coroutine_sees_the_context_of_its_caller(loop: BackgroundLoop) -> None:
    async def seen() -> str:
        before = role.get()
        role.set("callee")
        return before

    token = role.set("caller")
    try:
        assert (loop.run(seen()), role.get()) == ("caller", "caller")
    finally:
        role.reset(token)


def test_an_error_of_a_coroutine_is_raised(loop: BackgroundLoop) -> None:
    original = LookupError("of the coroutine")

    async def fail() -> None:
        raise original

    with pytest.raises(LookupError) as caught:
        loop.run(fail())
    assert caught.value is original
    assert loop.run(loop_and_thread())


def test_threads_that_start_it_at_once_share_one_loop(loop: BackgroundLoop) -> None:
    barrier = threading.Barrier(THREADS)
    meeting: list[None] = []

    async def meet() -> asyncio.AbstractEventLoop:
        meeting.append(None)
        while len(meeting) < THREADS:  # noqa: ASYNC110 - all run on this loop
            await asyncio.sleep(0)
        return asyncio.get_running_loop()

    def enter() -> asyncio.AbstractEventLoop:
        barrier.wait(WAIT)
        return loop.run(meet())

    before = ours()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        outcomes = [pool.submit(enter) for _ in range(THREADS)]
        found = {outcome.result(WAIT) for outcome in outcomes}
    assert len(found) == 1
    assert len(ours() - before) == 1


def test_closing_ends_the_thread_and_the_loop(loop: BackgroundLoop) -> None:
    running, thread = loop.run(loop_and_thread())
    loop.close()
    assert not thread.is_alive()
    assert running.is_closed()


def test_closing_twice_or_before_any_use_does_nothing(loop: BackgroundLoop) -> None:
    loop.close()
    loop.run(loop_and_thread())
    loop.close()
    loop.close()


def test_a_closed_loop_starts_again(loop: BackgroundLoop) -> None:
    first, thread = loop.run(loop_and_thread())
    loop.close()
    second, other_thread = loop.run(loop_and_thread())
    assert second is not first
    assert other_thread is not thread
    assert loop.run(loop_and_thread()) == (second, other_thread)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("body", ["assert answer() == 'child'", "threads.close()"])
def test_the_loop_starts_again_after_a_fork(body: str) -> None:
    script = f"""
import os, sys, warnings
from lightrag_resilience.runtime.background_loop import BackgroundLoop

warnings.simplefilter("ignore", DeprecationWarning)  # of forking while threads run
threads = BackgroundLoop()
role = "parent"

def answer():
    async def say():
        return role
    return threads.run(say())

assert answer() == "parent"
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    role = "child"
    try:
        {body}
        assert answer() == "child"
    except BaseException:
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert answer() == "parent"
threads.close()
print("child", os.waitstatus_to_exitcode(status))
"""
    assert output_of(script) == ("child 0\n", "")


def test_closing_ends_the_waits_of_other_threads(loop: BackgroundLoop) -> None:
    running = threading.Event()

    async def wait() -> None:
        running.set()
        await asyncio.Event().wait()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(loop.run, wait())
        assert running.wait(WAIT)
        loop.close()
        with pytest.raises(concurrent.futures.CancelledError):
            outcome.result(WAIT)


def test_closing_while_threads_start_calls_leaves_none_waiting(loop: BackgroundLoop) -> None:
    async def brief() -> int:
        await asyncio.sleep(0)
        return 1

    def use() -> int:
        try:
            return loop.run(brief())
        except concurrent.futures.CancelledError:
            return 0

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        outcomes = [pool.submit(use) for _ in range(200)]
        for _ in range(20):
            loop.close()
        assert {outcome.result(WAIT) for outcome in outcomes} <= {0, 1}


GREEN = """
from gevent import monkey
monkey.patch_all({arguments})
import gevent
from lightrag_resilience import UnsupportedCallError, resilient, with_fallbacks

@resilient("llm.sync")
def ask(word: str) -> str:
    return word

def report() -> None:
    for function in (ask, with_fallbacks(ask), ask):
        try:
            print(function("a"))
        except UnsupportedCallError as error:
            print(str(error).partition(",")[0])

report()
gevent.spawn(report).join()
"""


@pytest.mark.parametrize("arguments", ["", "thread=False"])
def test_greenlets_in_place_of_threads_are_refused_by_name(arguments: str) -> None:
    pytest.importorskip("gevent")
    output, errors = output_of(GREEN.format(arguments=arguments))
    sentence = "gevent has replaced threads and sockets in this process"
    assert (output.splitlines(), errors) == ([sentence] * 6, "")
