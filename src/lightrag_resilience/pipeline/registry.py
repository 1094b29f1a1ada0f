"""One guard for each named dependency of this process, made when it is first needed."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from lightrag_resilience.breakers import Breaker
from lightrag_resilience.config.dependency_names import check_name
from lightrag_resilience.config.policies import Policy, check_policy
from lightrag_resilience.draining.gate import DrainGate
from lightrag_resilience.errors import PolicyError, SettingsError, UnsupportedCallError
from lightrag_resilience.events import Events
from lightrag_resilience.retry import single_worker
from lightrag_resilience.runtime.background_loop import BackgroundLoop
from lightrag_resilience.runtime.fork_safety import reset_in_children
from lightrag_resilience.timeouts.loop_timers import LoopTimersRegistry

from .guard import Guard

if TYPE_CHECKING:
    from lightrag_resilience.config.settings import Settings
    from lightrag_resilience.shared_state.connection_status import ConnectionStatus
    from lightrag_resilience.shared_state.messages import Override
    from lightrag_resilience.shared_state.synchronizer import Synchronizer

__all__ = ["Guards", "Tracing", "guard", "guards", "resolve_guards"]

_log = logging.getLogger("lightrag_resilience")

_REASONS = 3  # of changes, in a line of the log
_TOLD = 5  # problems, in a line of the log


class Query(Protocol):
    """A query that is seen."""

    def current(self) -> AbstractContextManager[None]:
        """What is called in this block is called by it."""
        ...

    def end(self, error: BaseException | None = None, outcome: str | None = None) -> None:
        """It is over."""


class Tracing(Protocol):
    """What sees queries of a LightRAG that is protected by these guards."""

    def begin_query(self, workspace: str) -> Query:
        """A query begins."""
        ...


class Guards:
    """The guards of a process. The same name is the same guard.

    Args:
        settings: What the environment says; None reads it when the first guard is made.
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
        self.loop_timers = LoopTimersRegistry(clock)
        self.tracing: Tracing | None = None
        self.coordinators: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()
        self.threads = BackgroundLoop()
        self._settings = settings
        self._effective: Settings | None = None
        self._clock = clock
        self._sleep = sleep
        self._guards: dict[str, Guard] = {}
        self._lock = threading.RLock()
        self._breakers_lock = threading.RLock()
        self._sync: Synchronizer | None = None
        self._guard_class: type[Guard] = Guard

    @property
    def settings(self) -> Settings:
        """What the environment said when it was first asked.

        Raises:
            SettingsError: A ``RESILIENCE_*`` variable is wrong.
        """
        with self._lock:
            if self._settings is None:
                # pydantic-settings takes longer to import than all the rest.
                from lightrag_resilience.config.settings import load_settings  # noqa: PLC0415

                self._settings = load_settings()
            return self._settings

    def get(self, name: str, policy: Policy | None = None) -> Guard:
        """The guard of `name`; a policy given in code is the ground that variables change.

        Raises:
            PolicyError: The guard exists with another policy; or the name or the policy is none.
            SettingsError: A ``RESILIENCE_*`` variable is wrong.
        """
        with self._lock:
            guard = self._guards.get(name) if isinstance(name, str) else None
            if policy is not None:
                check_policy(policy, name)
            if guard is None:
                check_name(name)
                reset_in_children(self)
                guard = self._guards[name] = self._make(name, policy)
            elif policy is not None and policy != guard.base:
                raise PolicyError(
                    f"The guard {name!r} exists with another policy; give the policy once, "
                    "where the guard is used first"
                )
            return guard

    @property
    def effective(self) -> Settings:
        """The settings under what was overridden.

        Raises:
            SettingsError: A ``RESILIENCE_*`` variable is wrong.
        """
        return self._effective or self.settings

    def find(self, name: str) -> Guard | None:
        """The guard of `name`, where one was made."""
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
                clock=self._clock,
                lock=self._breakers_lock,
            )
        return self._guard_class(
            name,
            effective,
            base=policy,
            events=self.events,
            breaker=breaker,
            limit=sync.limit(name, effective.limit) if sync else None,
            workers=sync.workers if sync else single_worker,
            clock=self._clock,
            sleep=self._sleep,
            gate=self.gate,
            homes=self.loop_timers,
        )

    def _synchronizer(self) -> Synchronizer | None:
        """What shares breakers through Redis, where an address is given."""
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
                clock=self._clock,
            )
        return self._sync

    def override(self, variables: Mapping[str, str], reason: str = "by hand") -> None:
        """Go on as if variables of policies had other values; earlier overrides end.

        Calls under way end by the policy they began with.

        Args:
            variables: For the variables of policies, such as ``RESILIENCE_LLM__LIMIT__RPM``, the
                text of their values.
            reason: Why, for those who wonder.

        Raises:
            SettingsError: Some are wrong; nothing is changed then.
        """
        changed = self.settings.with_overrides(variables)
        with self._lock:
            policies = {it.name: changed.policy_for(it.name, it.base) for it in self}
            self._go_by(changed, policies, reason)

    def _override(self, overrides: Mapping[str, Override]) -> None:
        """What an operator changed for all workers, as far as it makes sense.

        A guard whose policy of code it contradicts keeps the policy that it has.
        """
        values = {name: override.value for name, override in overrides.items()}
        reasons = sorted({override.reason for override in overrides.values()})[:_REASONS]
        changed, _, problems = self.settings.with_valid(values)
        with self._lock:
            policies = {}
            for guard in self:
                try:
                    policies[guard.name] = changed.policy_for(guard.name, guard.base)
                except SettingsError as error:
                    policies[guard.name] = guard.policy
                    problems += error.problems
            self._go_by(changed, policies, "; ".join(reasons) or "as the variables say")
        if problems:
            more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
            _log.error("Overrides in Redis are ignored: %s%s", "; ".join(problems[:_TOLD]), more)

    def _go_by(self, settings: Settings, policies: Mapping[str, Policy], reason: str) -> None:
        """Take over other settings and the policies that follow; under the lock."""
        self._effective = settings
        for guard in self:
            if (policy := policies[guard.name]) != guard.policy:
                _log.warning("The policy of %r is changed: %s", guard.name, reason)
                guard.update_policy(policy, reason)

    def _policy_for(self, name: str, base: Policy | None) -> Policy:
        """The policy of a guard to come; overrides that contradict what code says are ignored.

        Raises:
            SettingsError: The environment's variables contradict it.
        """
        if self._effective is not None:
            try:
                return self._effective.policy_for(name, base)
            except SettingsError as error:
                _log.error("Overrides of %r are ignored: %s", name, "; ".join(error.problems))
        return self.settings.policy_for(name, base)

    def trace(self, tracing: Tracing | None, guard_class: type[Guard]) -> None:
        """Let all guards, those to come included, be of a class that sees their calls.

        Nothing is asked on the way of a call: a guard that nobody traces knows nothing of it.
        """
        with self._lock:
            self.tracing = tracing
            self._guard_class = guard_class
            for guard in self._guards.values():
                guard.__class__ = guard_class

    @property
    def link(self) -> ConnectionStatus | None:
        """How it stands with Redis; None where nothing is shared yet."""
        return self._sync.link if self._sync is not None else None

    def close(self) -> None:
        """End the threads behind sync functions and shared breakers; later use begins anew."""
        self.threads.close()
        if self._sync is not None:
            self._sync.close()

    def reset_after_fork(self) -> None:
        """In a child process: who held a lock may be a thread of the parent's."""
        self._lock = threading.RLock()
        self._breakers_lock = threading.RLock()
        if self._sync is None:  # it renews what it shares
            for guard in self._guards.values():
                guard.breaker.take_lock(self._breakers_lock)

    def __iter__(self) -> Iterator[Guard]:
        """All guards made so far, by name."""
        with self._lock:
            return iter([self._guards[name] for name in sorted(self._guards)])


_process_guards = Guards()


def guards() -> Guards:
    """The guards of this process."""
    return _process_guards


def resolve_guards(registry: Guards | None) -> Guards:
    """The guards that were given, or else those of this process.

    Raises:
        UnsupportedCallError: Something else was given.
    """
    if registry is None:
        return _process_guards
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
        policy: What to do, where the defaults do not fit. ``RESILIENCE_*`` variables win over it.

    Raises:
        PolicyError: The guard exists with another policy; or the name or the policy is none.
        SettingsError: A ``RESILIENCE_*`` variable is wrong.
    """
    return _process_guards.get(name, policy)
