"""One owner of retries: LightRAG's own retries make one attempt inside a guarded call.

A function decorated with tenacity has its controller as ``.retry``. The controller's stop condition
is extended: inside a guarded call it stops after one attempt, elsewhere it is as before.
LightRAG's PostgreSQL client builds a controller for each call, and reads an attribute for the
number of attempts. So does the OpenSearch driver, which LightRAG configures to send each request up
to four times, deletions included.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import tenacity
from tenacity.stop import stop_base

from lightrag_resilience.calls.call_context import inside_guarded_call

from .compat import RETRYING_CLIENTS, RETRYING_MODULES

__all__ = ["make_inner_retries_yield", "restore_inner_retries"]

_Client = tuple[type, str, int]
Yielding = tuple[list[Any], list[_Client]]
"""The controllers and clients that one `make_inner_retries_yield` has extended."""


class _Yielding(stop_base):
    """Stops inside a guarded call after one attempt, else where the original would."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.users = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return inside_guarded_call() or bool(self.original(retry_state))


class _YieldingAttempts:
    """In place of an attribute: no retry inside a guarded call, else the value that was set."""

    def __init__(self, name: str, once: int) -> None:
        self.name = name
        self.once = once
        self.users = 0

    def __get__(self, instance: Any, _: Any = None) -> Any:
        if instance is None:
            return self
        return self.once if inside_guarded_call() else vars(instance)[self.name]

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self.name] = value


def make_inner_retries_yield() -> Yielding:
    """Extend the controllers of all functions and methods that are imported so far.

    Returns:
        What was extended, for `restore_inner_retries`.
    """
    controllers, clients = [*_controllers()], [*_clients()]
    for controller in controllers:
        if not isinstance(controller.stop, _Yielding):
            controller.stop = _Yielding(controller.stop)
        controller.stop.users += 1
    for client, name, once in clients:
        if name not in vars(client):
            setattr(client, name, _YieldingAttempts(name, once))
        vars(client)[name].users += 1
    return controllers, clients


def restore_inner_retries(extended: Yielding | None = None) -> None:
    """Undo one `make_inner_retries_yield`; the last undo restores the originals.

    Args:
        extended: What it returned; None is everything that is extended now. More modules may have
            been imported since.
    """
    controllers, clients = extended or ([*_controllers()], [*_clients()])
    for controller in controllers:
        if isinstance(stop := controller.stop, _Yielding):
            stop.users -= 1
            if stop.users <= 0:
                controller.stop = stop.original
    for client, name, _ in clients:
        attempts = vars(client).get(name)
        if isinstance(attempts, _YieldingAttempts):
            attempts.users -= 1
            if attempts.users <= 0:
                delattr(client, name)


def _clients() -> Iterator[_Client]:
    for module, cls, name, once in RETRYING_CLIENTS:
        client = getattr(sys.modules.get(module), cls, None)
        if isinstance(client, type):
            yield client, name, once


def _controllers() -> Iterator[Any]:
    found: dict[int, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(RETRYING_MODULES) and isinstance(module, ModuleType):
            for function in _functions_of(module):
                controller = getattr(function, "retry", None)
                if isinstance(controller, tenacity.BaseRetrying):
                    found[id(controller)] = controller
    return iter(found.values())


def _functions_of(module: ModuleType) -> Iterator[Any]:
    for member in list(vars(module).values()):
        if isinstance(member, type):
            yield from list(vars(member).values())
        else:
            yield member
            yield getattr(member, "func", None)  # an embedding function is an object around it
