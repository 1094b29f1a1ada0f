"""Which guard a request belongs to: one for each host, and not one more than asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from annotated_types import Ge, Le

from lightrag_resilience.config.dependency_names import check_name
from lightrag_resilience.config.policies import Policy, check_policy
from lightrag_resilience.config.validation import problem_with
from lightrag_resilience.errors import PolicyError
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards, resolve_guards

__all__ = ["OTHER", "GuardsOfHosts", "name_of_host"]

OTHER = "http.other"
_Hosts = Annotated[int, Ge(0), Le(100_000)]
_log = logging.getLogger("lightrag_resilience")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9.]+")

# All transports of a registry share its bound: a crawler makes a client for each site.
_named_in: WeakKeyDictionary[Guards, set[str]] = WeakKeyDictionary()


def name_of_host(url: Any) -> str:
    """``http.api.openai.com``; a port that is not the scheme's own is another server."""
    host = _NOT_IN_NAMES.sub("-", url.raw_host.decode("ascii", "replace")).strip(".-")
    port = "" if url.port is None else f"-{url.port}"
    return f"http.{host or 'unknown'}{port}"


class GuardsOfHosts:
    """Finds the guard of a request.

    Args:
        name: Of the one guard for all, or what names a request; None names guards after hosts.
        policy: What to do, where the defaults do not fit.
        registry: The guards to use; those of the process by default.
        max_hosts: Names that may get a guard; the requests of further ones share ``http.other``.
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
        """The guard of a request, made on first use."""
        name = self._name
        if not isinstance(name, str):
            name = self._within_bound(name_of_host(request.url) if name is None else name(request))
        # What comes last is shared by transports of any policy.
        return self._registry.get(name, None if name == OTHER else self._policy)

    def _within_bound(self, name: str) -> str:
        """A guard forgets nothing, so none is dropped for another: what comes later must share."""
        named = _named_in.setdefault(self._registry, set())
        if name in named:
            return name
        if len(named) < self._max_hosts:
            named.add(name)
            return name
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "More than %d hosts were called: %r and all later ones share the guard %r; "
                "raise max_hosts of ResilientTransport, or give it a name",
                self._max_hosts, name, OTHER,
            )  # fmt: skip
        return OTHER
