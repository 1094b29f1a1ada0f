"""One guard for each named dependency of this process, made when it is first needed."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from lightrag_resilience.breakers import Breaker
from lightrag_resilience.config.dependency_names import check_name
from lightrag_resilience.config.endpoint_names import Endpoint, EndpointNames
from lightrag_resilience.config.policies import Policy, TimeoutPolicy, check_policy
from lightrag_resilience.draining.gate import DrainGate
from lightrag_resilience.errors import PolicyError, SettingsError, UnsupportedCallError
from lightrag_resilience.events import Events
from lightrag_resilience.retry import single_worker
from lightrag_resilience.runtime.background_loop import BackgroundLoop
from lightrag_resilience.runtime.process_state import process
from lightrag_resilience.timeouts.loop_timers import LoopTimersRegistry

from .guard import Guard
from .reset_guard import ResetGuard, made_anew, retire

if TYPE_CHECKING:
    from lightrag_resilience.config.settings import Settings
    from lightrag_resilience.shared_state.connection_status import ConnectionStatus
    from lightrag_resilience.shared_state.messages import Override
    from lightrag_resilience.shared_state.synchronizer import Synchronizer

__all__ = ["Guards", "QueryTracing", "guard", "guards", "resolve_guards"]

_log = logging.getLogger("lightrag_resilience")

_MAX_REASONS = 3  # of changed policies, in one log message
_MAX_PROBLEMS = 5  # of overrides, in one log message


class Query(Protocol):
    """A traced query."""

    def current(self) -> AbstractContextManager[None]:
        """Trace calls made in this block as part of the query."""
        ...

    def end(self, error: BaseException | None = None, outcome: str | None = None) -> None:
        """End the query."""


class QueryTracing(Protocol):
    """Traces the queries of a LightRAG that these guards protect."""

    def begin_query(self, workspace: str) -> Query:
        """Begin the trace of a query."""
        ...


class Guards:
    """The guards of a process. The same name is the same guard.

    Args:
        settings: The settings; None reads the environment when the first guard is made.
        clock: Monotonic seconds.
        sleep: Waits so many seconds between attempts.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.events = Events()
        self.gate = DrainGate()
        self.tracing: QueryTracing | None = None
        self.coordinators: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()
        self.host_guards: set[str] = set()  # names of guards that are named after hosts
        self.threads = BackgroundLoop()
        self.resets = 0
        """How often `reset` was called."""
        self.declared: dict[str, Policy] = {}
        """Policies of functions that were decorated before a reset and called after it."""
        self._given_settings = self._settings = settings
        self._effective: Settings | None = None
        self.clock = clock
        self.sleep = sleep
        self.loop_timers = LoopTimersRegistry(clock)
        self._guards: dict[str, Guard] = {}
        self._reset_guards: dict[str, Guard] = {}
        self._endpoints = EndpointNames()
        self._given: dict[str, float] = {}
        """Seconds that LightRAG gives the calls of a dependency; the most if there are several."""
        self._lock = threading.RLock()
        self._breakers_lock = threading.RLock()
        self._sync: Synchronizer | None = None
        self.guard_class: type[Guard] = Guard

    @property
    def settings(self) -> Settings:
        """The settings, from the environment as it was when they were first read.

        Raises:
            SettingsError: A ``RESILIENCE_*`` variable is wrong.
        """
        with self._lock:
            if self._settings is None:
                # pydantic takes longer to import than the rest of the package.
                from lightrag_resilience.config.settings import load_settings  # noqa: PLC0415

                self._settings = load_settings()
            return self._settings

    def get(self, name: str, policy: Policy | None = None) -> Guard:
        """The guard of `name`, made on first use; variables override a policy given in code.

        Raises:
            PolicyError: The guard exists with another policy, or the name or the policy is invalid.
            SettingsError: A ``RESILIENCE_*`` variable is wrong.
        """
        guard = self._guards.get(name) if isinstance(name, str) else None
        if guard is not None and policy is None:
            return guard
        with self._lock:
            guard = self._guards.get(name) if isinstance(name, str) else None
            if policy is not None:
                check_policy(policy, name)
            if guard is None:
                check_name(name)
                process.reset_in_children(self)
                policy = policy or self.declared.get(name)
                guard = self._guards[name] = self._make(name, policy)
            elif policy is not None and policy != guard.base:
                if guard.base is not None:
                    raise PolicyError(
                        f"The guard {name!r} exists with another policy; give the policy once, "
                        "or always the same"
                    )
                guard.base = policy
                guard.update_policy(self._policy_for(name, policy), "as its function says")
            return guard

    def reset(
        self,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        """Begin again, as between two tests: closed circuits, nothing counted, no overrides.

        Each guard is made anew when it is next used, under the variables of then. Whatever holds a
        guard keeps it: decorated functions, a protected LightRAG. Their policies, listeners,
        tracing and probes stay. Calls in flight are not waited for; those of sync functions are
        cancelled.

        Args:
            clock: Monotonic seconds from now on; None leaves the clock as it is.
            sleep: Waits so many seconds between attempts from now on; None leaves it as it is.
        """
        self.close()
        with self._lock:
            cls = type("ResetGuard", (ResetGuard,), {"__slots__": (), "make_anew": self._remake})
            for guard in self._guards.values():
                retire(guard, cls)
            self._reset_guards |= self._guards
            self._guards = {}
            self._sync = self._effective = None
            self._settings = self._given_settings
            self.resets += 1
            self.clock, self.sleep = clock or self.clock, sleep or self.sleep
            self.loop_timers = LoopTimersRegistry(self.clock)
            self.host_guards.clear()
            self.gate.clear()

    def _remake(self, guard: Guard) -> None:
        """Make a guard anew that was reset, for a caller that holds it."""
        with self._lock:
            if self._reset_guards.get(guard.name) is guard:
                self._guards[guard.name] = self._make(guard.name, guard.base)

    def get_endpoint(
        self, endpoint: Endpoint, seconds: float, beside: Iterable[Endpoint] = ()
    ) -> Guard:
        """The guard of an endpoint, for calls that LightRAG gives so many seconds.

        Its times follow from the most that callers give. Nothing changes where a policy was given
        in code; variables decide in any case.

        Args:
            endpoint: What is called.
            seconds: The time that LightRAG gives an attempt; infinity for no limit.
            beside: Endpoints from which its name must differ, this one among them or not.

        Raises:
            SettingsError: A ``RESILIENCE_*`` variable is wrong.
        """
        with self._lock:
            self._endpoints.add(*beside, endpoint)
            name = self._endpoints.name_of(endpoint)
            known = self._given.get(name)
            if known is None and (guard := self._guards.get(name)) is not None:
                known = guard.policy.timeout.attempt or math.inf  # others use it already
            self._given[name] = seconds if known is None else max(seconds, known)
            guard = self.get(name)
            if (policy := self._policy_for(name, guard.base)) != guard.policy:
                guard.update_policy(policy, "for a caller with more time")
            return guard

    def times_for(self, guard: Guard, seconds: float) -> TimeoutPolicy:
        """The times of a guard's calls that LightRAG gives so many seconds."""
        if guard.base is not None or seconds >= self._given[guard.name]:
            return guard.policy.timeout
        return self.effective.policy_for(guard.name, given=seconds).timeout

    @property
    def effective(self) -> Settings:
        """The settings with the overrides in force.

        Raises:
            SettingsError: A ``RESILIENCE_*`` variable is wrong.
        """
        return self._effective or self.settings

    def find(self, name: str) -> Guard | None:
        """The guard of `name`; None if it was never used."""
        return self._guards.get(name)

    def _make(self, name: str, policy: Policy | None) -> Guard:
        effective = self._policy_for(name, policy)
        sync = self._synchronizer()
        if sync is not None:
            breaker: Breaker = sync.breaker(name, effective.effective_breaker, self.events)
        else:
            breaker = Breaker(
                name,
                effective.effective_breaker,
                events=self.events,
                clock=self.clock,
                lock=self._breakers_lock,
            )
        reset, make = self._reset_guards.pop(name, None), self.guard_class
        return (make if reset is None else functools.partial(made_anew, reset, make))(
            name,
            effective,
            base=policy,
            events=self.events,
            breaker=breaker,
            limit=sync.limit(name, effective.limit) if sync else None,
            workers=sync.workers if sync else single_worker,
            clock=self.clock,
            sleep=self.sleep,
            gate=self.gate,
            loop_timers=self.loop_timers,
        )

    def _synchronizer(self) -> Synchronizer | None:
        """The synchronizer that shares breakers through Redis; None without an address."""
        address = self.settings.redis_url
        if address is None:
            if not self._guards:
                _log.info(
                    "Breakers are this process's own: RESILIENCE_REDIS_URL, through which all "
                    "workers share them, is not set"
                )
        elif self._sync is None:
            from lightrag_resilience.shared_state.synchronizer import Synchronizer  # noqa: PLC0415 - not needed in one process

            self._sync = Synchronizer(
                address.get_secret_value(),
                self.settings.redis_prefix,
                override=self._override,
                clock=self.clock,
            )
        return self._sync

    def override(self, variables: Mapping[str, str], reason: str = "by hand") -> None:
        """Override variables of policies in this process; earlier overrides end.

        Calls under way keep the policy they began with.

        Args:
            variables: Names of variables, such as ``RESILIENCE_LLM__LIMIT__RPM``, and their values
                as text.
            reason: Why, for the log.

        Raises:
            SettingsError: Some are wrong; nothing is changed then.
        """
        changed = self.settings.with_overrides(variables)
        with self._lock:
            policies = {
                it.name: changed.policy_for(it.name, it.base, given=self._given.get(it.name))
                for it in self
            }
            self._apply(changed, policies, reason)

    def _override(self, overrides: Mapping[str, Override]) -> None:
        """Apply what an operator overrode for all workers, except for invalid values.

        A guard keeps its policy where the overrides contradict the policy given in code.
        """
        values = {name: override.value for name, override in overrides.items()}
        reasons = sorted({override.reason for override in overrides.values()})[:_MAX_REASONS]
        changed, _, problems = self.settings.with_valid(values)
        with self._lock:
            policies = {}
            for guard in self:
                try:
                    given = self._given.get(guard.name)
                    policies[guard.name] = changed.policy_for(guard.name, guard.base, given=given)
                except SettingsError as error:
                    policies[guard.name] = guard.policy
                    problems += error.problems
            self._apply(changed, policies, "; ".join(reasons) or "as the variables say")
        if problems:
            left = len(problems) - _MAX_PROBLEMS
            more = f"; and {left} more" if left > 0 else ""
            shown = "; ".join(problems[:_MAX_PROBLEMS])
            _log.error("Overrides in Redis are ignored: %s%s", shown, more)

    def _apply(self, settings: Settings, policies: Mapping[str, Policy], reason: str) -> None:
        """Replace the effective settings and each policy they change; the caller holds the lock."""
        self._effective = settings
        for guard in self:
            if (policy := policies[guard.name]) != guard.policy:
                _log.warning("The policy of %r is changed: %s", guard.name, reason)
                guard.update_policy(policy, reason)

    def _policy_for(self, name: str, base: Policy | None) -> Policy:
        """The policy of a new guard; overrides that contradict the one given in code are ignored.

        Raises:
            SettingsError: The environment's variables contradict it.
        """
        given = self._given.get(name)
        if self._effective is not None:
            try:
                return self._effective.policy_for(name, base, given=given)
            except SettingsError as error:
                _log.error("Overrides of %r are ignored: %s", name, "; ".join(error.problems))
        return self.settings.policy_for(name, base, given=given)

    def trace(self, tracing: QueryTracing | None, guard_class: type[Guard]) -> None:
        """Change the class of all guards, present and new; `Guard` says what that means.

        Args:
            tracing: Traces queries; None ends the tracing.
            guard_class: The class of all guards from now on; `Guard` itself without tracing.
        """
        with self._lock:
            self.tracing = tracing
            self.guard_class = guard_class
            for guard in self._guards.values():
                guard.take_class(guard_class)

    @property
    def link(self) -> ConnectionStatus | None:
        """The status of the connection to Redis; None where nothing is shared yet."""
        return self._sync.link if self._sync is not None else None

    def close(self) -> None:
        """End the threads behind sync functions and shared breakers; later use starts new ones."""
        self.threads.close()
        if self._sync is not None:
            self._sync.close()

    def reset_after_fork(self) -> None:
        """Replace the locks in a child process: a thread of the parent may hold them for ever."""
        self._lock = threading.RLock()
        self._breakers_lock = threading.RLock()
        if self._sync is None:  # a synchronizer resets the shared breakers itself
            for guard in self._guards.values():
                guard.breaker.take_lock(self._breakers_lock)

    def __iter__(self) -> Iterator[Guard]:
        """All guards made so far, by name."""
        with self._lock:
            return iter([self._guards[name] for name in sorted(self._guards)])


def guards() -> Guards:
    """The guards of this process."""
    return process[Guards]


def resolve_guards(registry: Guards | None) -> Guards:
    """The registry that was given, or else that of this process.

    Raises:
        UnsupportedCallError: It is no `Guards`.
    """
    if registry is None:
        return guards()
    if not isinstance(registry, Guards):
        raise UnsupportedCallError(f"registry takes Guards(), not a {type(registry).__name__}")
    return registry


def guard(name: str, policy: Policy | None = None) -> Guard:
    """The guard of one dependency in this process, made on first use.

    ``async with guard("llm.openai"):`` guards a block with all but retry, and
    ``await guard("llm.openai").call(function, …)`` a single call with everything.

    Args:
        name: The dependency; its first part is the family whose defaults it gets: ``llm``,
            ``embedding``, ``rerank``, ``storage``.
        policy: What to do, where the defaults do not fit. ``RESILIENCE_*`` variables override it.

    Raises:
        PolicyError: The guard exists with another policy, or the name or the policy is invalid.
        SettingsError: A ``RESILIENCE_*`` variable is wrong.
    """
    return process[Guards].get(name, policy)
