"""Where the instructions of a guarded call go, by callgrind, which noise does not reach.

``python -m benchmarks.profile [--page]``, where valgrind is installed. What a call cannot do
without is measured by itself: the same step, ten thousand times more often in one run than in
another.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import page

__all__ = ["STEPS", "instructions"]

_FEW, _MORE = 1_000, 11_000
_PROGRAM = """
import asyncio, gc, time
from asyncio import get_running_loop
from threading import get_ident
from contextvars import ContextVar
from benchmarks.calls import answer
from benchmarks.stack import Setup
from benchmarks.stacks import ours
from lightrag_resilience.calls.call_context import Call
from lightrag_resilience.runtime.asyncio_compat import current_task
variable = ContextVar("variable", default=None)
async def main():
    loop, register, call = get_running_loop(), {{}}, Call()
    task = current_task(loop)
    guarded = ours.decorator(ours.make_registry())(answer, Setup())
    for _ in range(300):
        await guarded(1)
    gc.disable()
    for _ in range({times}):
        {step}
asyncio.run(main())
"""

STEPS = {
    "two coroutines around the function": "await answer(1); await answer(1)",
    "the context: which calls are around, and this one in it": (
        "variable.get(); variable.reset(variable.set(call))"
    ),
    "two registers: what a drain finds, what the timer ends": (
        "register[call] = None; register.pop(call, None);"
        "register[call] = None; register.pop(call, None)"
    ),
    "the task that the timer ends, and its cancellations": "current_task(loop); task.cancelling()",
    "what is known of the call: one object": "Call()",
    "the clock": "time.monotonic()",
    "the loop, which is the one that runs": "get_ident(); current_task(loop)",
}
"""What no guard of this kind can do without, as code."""


def instructions() -> dict[str, Any]:
    """Those of a whole call above the bare one, and those of each step by itself."""
    _run("pass", _FEW)  # compiles what is imported
    nothing = _of("pass")
    return {
        "whole": round(_of("await guarded(1)") - _of("await answer(1)")),
        "steps": {what: round(_of(step) - nothing) for what, step in STEPS.items()},
    }


def _of(step: str) -> float:
    return (_run(step, _MORE) - _run(step, _FEW)) / (_MORE - _FEW)


def _run(step: str, times: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        code = _PROGRAM.format(times=times, step=step)
        command = [*tool, sys.executable, "-c", code]
        environ = {"PYTHONHASHSEED": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)  # noqa: S603
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None  # noqa: S101 - callgrind always says so
    return int(found[1])


def main() -> None:
    """Measure, print, and write them into the page if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--page", action="store_true", help="write them into docs/, too")
    options = parser.parse_args()
    found = instructions()
    for what, count in {**found["steps"], "the whole": found["whole"]}.items():
        print(f"{count:8,} {what}")
    if options.page:
        page.add("profile", found)


if __name__ == "__main__":
    main()
