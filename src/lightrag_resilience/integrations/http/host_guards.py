"""The guard of a request: one for each host, up to a bound."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any

from annotated_types import Ge, Le

from lightrag_resilience.config.dependency_names import check_name
from lightrag_resilience.config.endpoint_names import host_part
from lightrag_resilience.config.policies import Policy, check_policy
from lightrag_resilience.config.validation import problem_with
from lightrag_resilience.errors import PolicyError
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards, resolve_guards

__all__ = ["OTHER", "HostGuards", "guard_name_for"]

OTHER = "http.other"
_Hosts = Annotated[int, Ge(0), Le(100_000)]
_log = logging.getLogger("lightrag_resilience")


def guard_name_for(url: Any) -> str:
    """``http.api.openai.com``; with the port if it is not the scheme's own."""
    return f"http.{host_part(url.raw_host.decode('ascii', 'replace'), url.port)}"


class HostGuards:
    """Finds the guard of a request.

    Args:
        name: The name of one guard for all requests, or a function from request to name; None names
            guards after hosts.
        policy: The policy, if the defaults do not fit.
        registry: The guards to use; those of the process by default.
        max_hosts: Names that get a guard of their own; all others share ``http.other``.

    Raises:
        PolicyError: An argument is wrong.
    """

    def __init__(
        self,
        name: str | Callable[[Any], str] | None,
        policy: Policy | None,
        registry: Guards | None,
        max_hosts: int,
    ) -> None:
        if isinstance(name, str) or not (name is None or callable(name)):
            check_name(name)
        if policy is not None:
            check_policy(policy, name if isinstance(name, str) else "http.*")
        if problem := problem_with(max_hosts, _Hosts):
            raise PolicyError(f"ResilientTransport: max_hosts {problem}")
        self._name = name
        self._policy = policy
        self._registry = resolve_guards(registry)
        self._max_hosts = max_hosts
        self._has_warned = False

    def guard_for(self, request: Any) -> Guard:
        """The guard of a request, created on first use."""
        name = self._name
        if not isinstance(name, str):
            name = self._within_bound(
                guard_name_for(request.url) if name is None else name(request)
            )
        # The shared guard takes no policy: transports of different policies share it.
        return self._registry.get(name, None if name == OTHER else self._policy)

    def _within_bound(self, name: str) -> str:
        """The name itself, or `OTHER` beyond the bound: a guard has state, so none is dropped."""
        # All transports share one bound, since a crawler makes a client for each site.
        names = self._registry.host_guards
        if name in names:
            return name
        if len(names) < self._max_hosts:
            names.add(name)
            return name
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "More than %d hosts were called: %r and all later ones share the guard %r; "
                "raise max_hosts of ResilientTransport, or give it a name",
                self._max_hosts, name, OTHER,
            )  # fmt: skip
        return OTHER
