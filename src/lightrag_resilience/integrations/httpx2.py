"""A guard at the wire of httpx2: give `ResilientTransport` to any SDK that takes a client."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from lightrag_resilience.runtime.extras import install

try:
    import httpx2
except ModuleNotFoundError as error:  # pragma: no cover - tests/test_wheel.py runs it apart
    message = f"This transport needs {error.name}: {install('httpx2')}"
    raise ModuleNotFoundError(message, name=error.name) from error

from lightrag_resilience.config.policies import Policy
from lightrag_resilience.integrations.http.exchange import send
from lightrag_resilience.integrations.http.host_guards import GuardsOfHosts
from lightrag_resilience.pipeline.registry import Guards

__all__ = ["ResilientTransport"]


class ResilientTransport(httpx2.AsyncBaseTransport):
    """Sends requests through a guard for each host, or through the one that is named.

    The last answer is returned whatever its status; what was not sent raises a `CallRejected`,
    which no SDK retries. The SDK's own retries are to be turned off. The verdict falls at the end
    of a response's body. A request inside a call of the same guard passes straight through; inside
    another guard's call, or with a body that cannot be sent again, it is tried once. Where
    the policy does not say whether calls are idempotent, as that of a plain host name does not,
    the method does: a POST or PATCH without an ``Idempotency-Key`` is not sent again where it may
    have been carried out.

    Args:
        transport: What sends; a new `httpx2.AsyncHTTPTransport` by default. It is closed with this.
        name: Of the one guard for all requests, such as ``llm.openai``, or a function from request
            to name. By default guards are called after hosts: ``http.api.openai.com``, with the
            port where it is not the scheme's own: ``http.localhost-11434``.
        policy: What to do, where the name's defaults do not fit.
        registry: The guards to use; those of the process by default.
        max_hosts: Hosts, or names from a function, that get a guard of their own in the registry;
            all further ones share ``http.other``.
    """

    def __init__(
        self,
        transport: httpx2.AsyncBaseTransport | None = None,
        *,
        name: str | Callable[[httpx2.Request], str] | None = None,
        policy: Policy | None = None,
        registry: Guards | None = None,
        max_hosts: int = 32,
    ) -> None:
        self._transport = transport or httpx2.AsyncHTTPTransport()
        self._guards = GuardsOfHosts(name, policy, registry, max_hosts)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request under its guard.

        Raises:
            CallRejected: It was not sent: circuit open, rate limit used up, or queue full.
            httpx2.ReadTimeout: The guard's attempt timeout or deadline has passed.
            httpx2.RequestError: What the last attempt raised.
        """
        guard = self._guards.guard_for(request)
        response: httpx2.Response = await send(httpx2, self._transport, guard, request)
        return response

    async def aclose(self) -> None:
        """Close the transport that sends."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc_value, traceback)
