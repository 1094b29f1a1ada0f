"""The transport of both httpx libraries, which differ in their classes alone."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from lightrag_resilience.config.policies import Policy
from lightrag_resilience.pipeline.registry import Guards

from .exchange import send
from .host_guards import HostGuards

__all__ = ["GuardedTransport"]

Transport = TypeVar("Transport")
Request = TypeVar("Request")
Response = TypeVar("Response")


class GuardedTransport(Generic[Transport, Request, Response]):
    """Sends requests through one guard for each host, or through a named one.

    The last response is returned whatever its status; a request that was not sent raises a
    `CallRejected`, which no SDK retries. Turn the SDK's own retries off. The outcome is recorded at
    the end of a response's body. A request inside a call of the same guard passes straight through;
    inside another guard's call, or with a body that cannot be sent again, it is tried once. If the
    policy does not say whether calls are idempotent, and that of a plain host name does not, the
    method does: a POST or PATCH without an ``Idempotency-Key`` is not sent again if it may have
    been carried out.

    Args:
        transport: Sends the requests, and is closed with this one; by default a new
            `AsyncHTTPTransport` of the library.
        name: The name of one guard for all requests, such as ``llm.openai``, or a function from
            request to name. By default guards are named after hosts: ``http.api.openai.com``, with
            the port if it is not the scheme's own: ``http.localhost-11434``.
        policy: The policy, if the defaults for the name do not fit.
        registry: The guards to use; those of the process by default.
        max_hosts: Hosts, or names from a function, that get a guard of their own in the registry;
            all others share ``http.other``.

    Raises:
        PolicyError: An argument is wrong.
    """

    library: ClassVar[Any]
    """The module httpx or httpx2."""

    def __init__(
        self,
        transport: Transport | None = None,
        *,
        name: str | Callable[[Request], str] | None = None,
        policy: Policy | None = None,
        registry: Guards | None = None,
        max_hosts: int = 32,
    ) -> None:
        self._transport: Any = transport or self.library.AsyncHTTPTransport()
        self._guards = HostGuards(name, policy, registry, max_hosts)

    async def handle_async_request(self, request: Request) -> Response:
        """Send a request under its guard.

        Raises:
            CallRejected: It was not sent: circuit open, rate limit used up, or queue full.
            library.ReadTimeout: The guard's attempt timeout or deadline has passed.
            library.RequestError: What the last attempt raised.
        """
        guard = self._guards.guard_for(request)
        response: Response = await send(self.library, self._transport, guard, request)
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
