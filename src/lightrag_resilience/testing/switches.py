"""Guards as a test wants them: new, without waits, off, or of a dependency that is down.

Each switch is a context manager for the guards of a registry, by default that of the process, also
for functions that were decorated before. It works through the class of the guards, which
`Guards.trace` changes as well: without a switch a call has nothing to check.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from lightrag_resilience.config.policies import (
    BreakerPolicy,
    Policy,
    RetryPolicy,
    StreamPolicy,
    TimeoutPolicy,
)
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards, resolve_guards

from .fast_time import FastLimiter, FastTime

__all__ = ["open_circuit", "outage", "resilience_fast", "resilience_fresh", "resilience_off"]

_OFF = Policy(
    breaker=BreakerPolicy(mode="disabled"),
    retry=RetryPolicy(attempts=1, budget=0),
    timeout=TimeoutPolicy(attempt=None, total=None),
    stream=StreamPolicy(finish_marker=False),
)


@contextmanager
def resilience_fresh(registry: Guards | None = None) -> Iterator[Guards]:
    """Guards as in a new process: closed, nothing counted, variables not yet read; and after it."""
    owner = resolve_guards(registry)
    owner.reset()
    try:
        yield owner
    finally:
        owner.reset()


@contextmanager
def resilience_fast(registry: Guards | None = None) -> Iterator[FastTime]:
    """Fresh guards that decide as ever, but wait for backoff, limits and recovery in no time.

    The seconds of a wait pass at once for all guards. ``advance(60.0)`` of the result lets more
    pass, such as the break of an open circuit. Timeouts of attempts need their real time.
    """
    owner = resolve_guards(registry)
    clock, sleep, time = owner.clock, owner.sleep, FastTime(owner.clock)
    with _class_of_guards(owner, _FastGuard, time=time):
        owner.reset(clock=time.now, sleep=time.sleep)
        try:
            yield time
        finally:
            owner.reset(clock=clock, sleep=sleep)


@contextmanager
def resilience_off(registry: Guards | None = None) -> Iterator[None]:
    """Guards that let calls through: no retry, breaker, limit, timeout or judge of results."""
    owner = resolve_guards(registry)
    with _class_of_guards(owner, _OffGuard), resilience_fresh(owner):
        yield


@contextmanager
def outage(
    name: str,
    error: Callable[[], Exception] | None = None,
    *,
    registry: Guards | None = None,
) -> Iterator[None]:
    """Fail each call of a dependency as if it were down: retried, counted and published.

    The function itself is not called. Circuits open and close as they do in production; with
    `resilience_fast` no real time passes between the attempts.

    Args:
        name: The dependency; a family, such as ``llm``, stands for all of its dependencies.
        error: Makes what each attempt raises, such as ``TimeoutError``; by default a refused
            connection.
        registry: The registry of guards; that of the process by default.
    """
    owner = resolve_guards(registry)
    make = error or (lambda: ConnectionRefusedError(f"{name} is down, as a test demands"))

    async def fail(*_: Any, **__: Any) -> Any:
        raise make()

    others = getattr(owner.guard_class, "failing", {})
    with _class_of_guards(owner, _DownGuard, failing={**others, name: fail}):
        yield


@contextmanager
def open_circuit(
    name: str, *, retry_after: float = 30.0, registry: Guards | None = None
) -> Iterator[None]:
    """Hold the circuit of a dependency open: each call is rejected with a `CircuitOpenError`.

    Args:
        name: The dependency.
        retry_after: Seconds for which it is open, which the error names.
        registry: The registry of guards; that of the process by default.
    """
    breaker = resolve_guards(registry).get(name).breaker
    breaker.open("by a test", open_for=retry_after)
    try:
        yield
    finally:
        breaker.close("by a test")


@contextmanager
def _class_of_guards(owner: Guards, cls: type[Guard], **attributes: Any) -> Iterator[None]:
    """Give all guards a class on top of their present one, which may be that of tracing."""
    before = owner.guard_class
    bases = (before,) if issubclass(before, cls) else (cls, before)
    if before is Guard:
        bases = (cls,)
    owner.trace(owner.tracing, type(cls.__name__, bases, {"__slots__": (), **attributes}))
    try:
        yield
    finally:
        owner.trace(owner.tracing, before)


class _FastGuard(Guard):
    __slots__ = ()
    time: ClassVar[FastTime]

    def __init__(self, name: str, policy: Policy, **parts: Any) -> None:
        parts["limit"] = FastLimiter(name, policy.limit, self.time)
        super().__init__(name, policy, **parts)

    async def wait_for_recovery(self, seconds: float) -> None:
        await self.pause(seconds)


class _OffGuard(Guard):
    __slots__ = ()

    def __init__(self, name: str, policy: Policy, **parts: Any) -> None:
        super().__init__(name, _OFF, **parts)
        self.update_policy(policy)  # also of the breaker, which is made before

    def update_policy(self, policy: Policy, reason: str = "by hand") -> None:
        del policy
        super().update_policy(_OFF, reason)

    def cool_down(self, seconds: float) -> None:
        del seconds

    async def run(self, function: Any, args: Any, kwargs: Any, **how: Any) -> Any:
        how["once"] = True  # else the error has a note that there is no further attempt
        return await super().run(function, args, kwargs, **how)


class _DownGuard(Guard):
    __slots__ = ()
    failing: ClassVar[Mapping[str, Callable[..., Coroutine[Any, Any, Any]]]]

    @property
    def _fail(self) -> Callable[..., Coroutine[Any, Any, Any]] | None:
        name = f"{self.name}."
        found = (fail for down, fail in self.failing.items() if name.startswith(f"{down}."))
        return next(found, None)

    async def run(self, function: Any, args: Any, kwargs: Any, **how: Any) -> Any:
        return await super().run(self._fail or function, args, kwargs, **how)

    async def send_probe(self, probe: Any, admission: Any, seconds: float) -> Exception | None:
        return await super().send_probe(self._fail or probe, admission, seconds)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if (fail := self._fail) is not None:
            try:
                await fail()
            except Exception as error:
                await self.__aexit__(type(error), error, error.__traceback__)
                raise
        return self
