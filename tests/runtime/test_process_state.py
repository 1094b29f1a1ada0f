"""What a process has once: it is made anew, and a forked child waits for no lock of its parent."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

from lightrag_resilience import FailureKind, classify_as, guards
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.runtime.process_state import ProcessState, process
from support.scripts import output_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

FORKED = """
import asyncio, os, signal, threading, time, warnings
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.config.settings import load_settings

warnings.simplefilter("ignore", DeprecationWarning)  # of forking while threads run
inside, go_on = threading.Event(), threading.Event()
holder = None

def clock():  # it is read while the lock is held
    if threading.current_thread() is holder:
        inside.set()
        go_on.wait(60)
    return time.monotonic()

registry = Guards(settings=load_settings({}), clock=clock)
guard = registry.get("llm")

async def answer():
    return "answered"

def call():
    return asyncio.run(registry.get("embedding").call(answer))

holder = threading.Thread(target=HELD)
holder.start()
assert inside.wait(60)
pid = os.fork()
if pid == 0:
    signal.alarm(50)  # ends a wait for a lock that is never released
    try:
        guard.breaker.open("in the child")
        assert guard.breaker.state.value == "open"
        assert call() == "answered"
        assert registry.threads.run(answer()) == "answered"
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(pid, 0)
go_on.set()
holder.join()
assert call() == "answered"
registry.close()
print("child", os.waitstatus_to_exitcode(status), guard.breaker.state.value)
"""


@pytest.mark.parametrize(
    "held",
    [
        pytest.param("guard.breaker.snapshot", id="of a breaker"),
        pytest.param("registry.get, args=('rerank',)", id="of the registry"),
    ],
)
def test_a_child_waits_for_no_lock_of_its_parent(held: str) -> None:
    assert output_of(FORKED.replace("HELD", held)) == (
        "child 0 closed\n",
        "Circuit 'llm' is open in the child\n",
    )


INSIDE = """
import asyncio, os, signal
from lightrag_resilience import AttemptTimeoutError, ConcurrencyPolicy, Guard, Policy
from lightrag_resilience import RetryPolicy, TimeoutPolicy
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.config.settings import load_settings

bulkhead = ConcurrencyPolicy(max_concurrent=2)
times, once = TimeoutPolicy(attempt=0.05), RetryPolicy(attempts=1)
policy = Policy(timeout=times, retry=once, concurrency=bulkhead)
guard = GUARD

async def answer():
    return "answered"

async def hang():
    await asyncio.Event().wait()

async def ends_in_time():
    try:
        await guard.call(hang)
    except AttemptTimeoutError:
        return await guard.call(answer)

async def fork():  # what multiprocessing does, called on a loop
    assert await guard.call(answer) == "answered"
    busy = asyncio.create_task(guard.call(hang))
    await asyncio.sleep(0)
    assert guard.occupancy.in_use == 1
    pid = os.fork()
    if pid == 0:
        signal.alarm(50)
        try:
            assert guard.occupancy.in_use == 0
            assert asyncio.run(ends_in_time()) == "answered"
            assert (guard.occupancy.limit, guard.occupancy.in_use) == (2, 0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    busy.cancel()
    print("child", os.waitstatus_to_exitcode(status), await ends_in_time())

asyncio.run(fork())
"""


@pytest.mark.parametrize(
    "guard",
    [
        pytest.param("Guards(settings=load_settings({})).get('x', policy)", id="of a registry"),
        pytest.param("Guard('x', policy)", id="by itself"),
    ],
)
def test_a_child_forked_on_a_running_loop_has_a_loop_of_its_own(guard: str) -> None:
    assert output_of(INSIDE.replace("GUARD", guard)) == ("child 0 answered\n", "")


LOCKED = """
import os, signal, threading, warnings
from lightrag_resilience.failures.classifier import _Rules
from lightrag_resilience.composition.stale_cache import StaleCache
from lightrag_resilience.telemetry.fast_histogram import FastHistogram
from lightrag_resilience.integrations.method_patching import replace_methods
from lightrag_resilience.integrations.status.outage_history import OutageHistory
from lightrag_resilience.integrations.method_patching import _PatchLock
from lightrag_resilience.runtime.process_state import process

warnings.simplefilter("ignore", DeprecationWarning)  # of forking while threads run
cache, tally, record = StaleCache(max_age=60.0), FastHistogram([1.0]), OutageHistory()
locks = [cache._lock, tally._flushing, record._lock, *(process[_Rules], process[_PatchLock])]
held, go_on = threading.Event(), threading.Event()

def hold():
    for lock in locks:
        lock.acquire()
    held.set()
    go_on.wait(60)
    for lock in locks:
        lock.release()

holder = threading.Thread(target=hold)
holder.start()
assert held.wait(60)
pid = os.fork()
if pid == 0:
    signal.alarm(50)  # ends a wait for a lock that is never released
    cache.clear()
    tally.observe(0.5)
    assert tally.read()[1] == 0.5
    record.outage("llm", 0.0, "open", "by hand")
    for lock in locks:
        with lock:
            assert not lock.acquire(wait=False)
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert [lock.acquire(wait=False) for lock in locks] == [False] * len(locks)
go_on.set()
holder.join()
cache.clear()
print("child", os.waitstatus_to_exitcode(status))
"""


def test_a_child_waits_for_no_lock_of_a_shared_cache() -> None:
    assert output_of(LOCKED)[0] == "child 0\n"


def test_a_deleted_object_is_not_reset() -> None:
    class Part:
        def reset_after_fork(self) -> None: ...

    part, state = Part(), ProcessState()
    state.reset_in_children(part)
    assert part in state._resettable
    seen = weakref.ref(part)
    del part
    gc.collect()
    assert seen() is None


def test_a_cleared_process_has_new_guards_and_no_registered_verdicts() -> None:
    class MineError(Exception):
        pass

    before = guards()
    classify_as(MineError, FailureKind.TRANSIENT)
    assert classify(MineError()).kind is FailureKind.TRANSIENT
    assert guards() is before
    process.clear()
    assert guards() is not before
    assert classify(MineError()).kind is FailureKind.UNKNOWN_OUTCOME


FORKED_IN_A_THREAD = """
import os, threading, warnings
from lightrag_resilience import guard, guards
from lightrag_resilience.runtime.callables import names_of_threads

warnings.simplefilter("ignore", DeprecationWarning)  # of forking while threads run
inside, go_on = threading.Event(), threading.Event()

def work():
    inside.set()
    go_on.wait(60)

async def answer():
    return await guard("llm").call(work)

caller = threading.Thread(target=guards().threads.run, args=(answer(),))
caller.start()
assert inside.wait(60)
pid = os.fork()
if pid == 0:
    os._exit(len(names_of_threads()))
_, status = os.waitpid(pid, 0)
print("child", os.waitstatus_to_exitcode(status), names_of_threads())
go_on.set()
caller.join()
guards().close()
"""


def test_a_child_does_not_wait_for_sync_functions_of_its_parent() -> None:
    assert output_of(FORKED_IN_A_THREAD)[0] == "child 0 ['thread of work']\n"
