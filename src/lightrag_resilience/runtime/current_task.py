"""The task that a loop runs, by the shortest way: it is asked for on the way of each call."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["current_task"]

if sys.version_info >= (3, 12):
    from asyncio import current_task
else:  # written in Python there, which takes four times as long as what it looks up
    current_task: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None] = vars(
        asyncio.tasks
    )["_current_tasks"].get
