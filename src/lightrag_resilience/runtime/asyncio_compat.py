"""What of asyncio is private or differs between Pythons. No other module touches such parts.

A contract test for each fails on the Python that removes it.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["current_task", "is_runner_interrupt", "running_loop"]

if sys.version_info >= (3, 12):
    from asyncio import current_task
else:  # Python 3.11 has it in Python only, at four times the cost of the dictionary behind it
    current_task: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None] = vars(
        asyncio.tasks
    )["_current_tasks"].get

running_loop: Callable[[], asyncio.AbstractEventLoop | None] = asyncio._get_running_loop  # noqa: SLF001
"""The event loop that runs in this thread, or None; `get_running_loop` raises for none."""


def is_runner_interrupt(handler: object) -> bool:
    """Whether a signal handler is the one of `asyncio.Runner` for Ctrl-C."""
    function = handler.func if isinstance(handler, functools.partial) else handler
    return getattr(function, "__qualname__", "") == "Runner._on_sigint"
