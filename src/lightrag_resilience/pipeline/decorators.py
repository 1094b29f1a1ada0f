"""`resilient`: put a guard around a function and keep what the function is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from lightrag_resilience.config.dependency_names import check_name
from lightrag_resilience.config.policies import Policy, check_policy
from lightrag_resilience.errors import UnsupportedCallError
from lightrag_resilience.runtime.background_loop import refuse_green_threads
from lightrag_resilience.runtime.callables import (
    Kind,
    as_coroutine_function,
    kind_of,
    must_be_function,
    name_of,
    pass_for,
)
from lightrag_resilience.streams.guarded_stream import generator_function

from .guard import Guard
from .recovery_probe import Probe
from .registry import Guards, resolve_guards

__all__ = ["resilient"]

P = ParamSpec("P")
R = TypeVar("R")


def resilient(
    name: str,
    policy: Policy | None = None,
    *,
    probe: Probe | None = None,
    registry: Guards | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Call a function through the guard of a dependency.

    Coroutine functions, async generators, functions annotated to return an awaitable or an async
    iterator, their wrappers (`functools.wraps`), and sync functions keep their kind. A sync
    function runs in a thread of its own while its caller waits, and may not be called on an event
    loop, which it would block. ``@asynccontextmanager`` goes above this decorator.

    Args:
        name: The dependency; the same name is the same guard.
        policy: What to do, where the family's defaults do not fit.
        probe: Sent in the background while the circuit is open; see `Guard.set_probe`.
        registry: The registry of guards; that of the process by default.

    Raises:
        CallRejected: On a call: it was not sent.
        AttemptTimeoutError: On a call: the last attempt took too long.
        DeadlineExceededError: On a call: all attempts together took too long.
        UnsupportedCallError: The decorated object is no function, a sync generator function, or
            makes a context manager; on a call: a sync function is called on a loop or returns a
            lazy iterator, or gevent has replaced threads.
        SettingsError: On the first call: a ``RESILIENCE_*`` variable is wrong.
        PolicyError: The name or the policy is invalid; on the first call: the guard exists with
            another policy.
    """
    if callable(name):
        raise UnsupportedCallError(
            f"@resilient needs the name of a dependency: write @resilient('llm.openai') above "
            f"{name_of(name)}"
        )
    check_name(name)
    if policy is not None:
        check_policy(policy, name)
    owner = resolve_guards(registry)
    resets = owner.resets

    def find() -> Guard:
        guard = owner.get(name, policy)
        if policy is not None and resets != owner.resets:
            owner.declared[name] = policy
        if probe is not None:
            guard.set_probe(probe)
        return guard

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        must_be_function(
            function,
            f"@resilient({name!r}) needs a function",
            "; put it below @staticmethod, @classmethod and the like",
        )
        if isinstance(function, type):
            raise UnsupportedCallError(
                f"@resilient({name!r}) needs a function, not the class {name_of(function)}: "
                "decorate its methods"
            )
        match kind_of(function):
            case Kind.COROUTINE:
                wrapper: Any = _coroutine(as_coroutine_function(function), find)
            case Kind.SYNC:
                wrapper = _sync(function, find, owner)
            case _:
                wrapper = _stream(function, find)
        pass_for(wrapper, function)
        vars(wrapper)["__resilience_name__"] = name
        return cast("Callable[P, R]", wrapper)

    return decorate


def _coroutine(function: Callable[..., Any], find: Callable[[], Guard]) -> Callable[..., Any]:
    guard: (
        Guard | _UnresolvedGuard
    )  # not its method: tracing changes the class of a guard, see `Guard`

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        return await guard.run(function, args, kwargs)

    def found(it: Guard) -> None:
        nonlocal guard
        guard = it

    guard = _UnresolvedGuard(find, found)
    return guarded


class _UnresolvedGuard:
    """Takes the place of the guard until the first call, which reads the settings."""

    def __init__(self, find: Callable[[], Guard], found: Callable[[Guard], None]) -> None:
        self._find = find
        self._found = found

    async def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        guard = self._find()
        self._found(guard)
        return await guard.run(function, args, kwargs)


def _stream(function: Callable[..., Any], find: Callable[[], Guard]) -> Callable[..., Any]:
    begin = as_coroutine_function(function)
    return generator_function(lambda args, kwargs: find().run(begin, args, kwargs))


def _sync(
    function: Callable[..., Any], find: Callable[[], Guard], owner: Guards
) -> Callable[..., Any]:
    begin = as_coroutine_function(function, in_shared_threads=False)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return owner.threads.run(find().run(begin, args, kwargs))
        refuse_green_threads()  # there, other greenlets of a loop's thread seem to run on it
        name = name_of(function)
        raise UnsupportedCallError(
            f"{name} is a sync function and would block the event loop: "
            f"use 'await guard(…).call({name}, …)', or call it from a thread; "
            "if it returns an awaitable, annotate it so"
        )

    return guarded
