"""One owner of retries: LightRAG's own tenacity loops yield while a guard owns the call.

A function decorated with tenacity carries its controller as ``.retry``. Its stop condition is
extended: inside a guarded call it stops after one attempt, elsewhere it does what it always did.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import tenacity
from tenacity.stop import stop_base

from lightrag_resilience._call import owned_by_a_guard

__all__ = ["make_inner_retries_yield", "restore_inner_retries"]

_MODULES = ("lightrag.llm.", "lightrag.rerank", "lightrag.kg.")


class _Yielding(stop_base):
    """Stops where a guard owns the call, else where the original would."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.users = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return owned_by_a_guard() or bool(self.original(retry_state))


def make_inner_retries_yield() -> None:
    """Extend the controllers of all provider functions that are imported by now."""
    for controller in _controllers():
        if not isinstance(controller.stop, _Yielding):
            controller.stop = _Yielding(controller.stop)
        controller.stop.users += 1


def restore_inner_retries() -> None:
    """Undo one `make_inner_retries_yield`; the last one brings the originals back."""
    for controller in _controllers():
        if isinstance(stop := controller.stop, _Yielding):
            stop.users -= 1
            if stop.users <= 0:
                controller.stop = stop.original


def _controllers() -> Iterator[Any]:
    found: dict[int, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(_MODULES) and isinstance(module, ModuleType):
            for member in list(vars(module).values()):
                # An embedding function is an object that holds the decorated one as `func`.
                for function in (member, getattr(member, "func", None)):
                    controller = getattr(function, "retry", None)
                    if isinstance(controller, tenacity.BaseRetrying):
                        found[id(controller)] = controller
    return iter(found.values())
