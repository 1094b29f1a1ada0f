"""A child that was forked while another thread held a lock makes calls like its parent."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

from lightrag_resilience._forks import _renewed, renew_in_children
from support.scripts import output_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

FORKED = """
import asyncio, os, signal, threading, time, warnings
from lightrag_resilience.registry import Guards
from lightrag_resilience.settings import load_settings

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
    signal.alarm(50)  # who waits for a lock that nobody gives back
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
def test_no_lock_of_the_parent_is_waited_for(held: str) -> None:
    assert output_of(FORKED.replace("HELD", held)) == (
        "child 0 closed\n",
        "Circuit 'llm' is open in the child\n",
    )


def test_what_is_gone_is_not_renewed() -> None:
    class Part:
        def renew_after_fork(self) -> None: ...

    part = Part()
    renew_in_children(part)
    assert part in _renewed
    seen = weakref.ref(part)
    del part
    gc.collect()
    assert seen() is None
