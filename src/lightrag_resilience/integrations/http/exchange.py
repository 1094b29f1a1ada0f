"""One HTTP request under a guard, for httpx and httpx2: `library` is either module.

A response with an error status is a failure for the guard, but a response for the client: the last
one is returned, not raised.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

from lightrag_resilience.calls.call_context import current_call, inside_guarded_call
from lightrag_resilience.errors import AttemptTimeoutError, DeadlineExceededError
from lightrag_resilience.failures.results import verdict_on
from lightrag_resilience.limits.provider_limits import lower_limits_from_headers
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.telemetry.correlation import send_along

from .bodies import Source, guarded_body, parsed, read_ahead

__all__ = ["send"]

_FIRST_ERROR = 400
_TOO_MANY_REQUESTS = 429
_IDEMPOTENT = frozenset(
    {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}
)  # RFC 9110, section 9.2.2
_KEYS = ("idempotency-key", "x-idempotency-key")
_PHASES = ("connect", "read", "write", "pool")


async def send(library: Any, transport: Any, guard: Guard, request: Any) -> Any:
    """Send a request through `transport`, with the guard's retries.

    Raises:
        CallRejected: It was not sent: circuit open, rate limit used up, or queue full.
        library.ReadTimeout: The guard's attempt timeout or deadline has passed.
        library.RequestError: What the last attempt raised.
    """
    send_along(request)
    outer = current_call.get()
    if outer is not None and outer.is_within(guard):
        return await transport.handle_async_request(request)
    # Any other body is an iterator, which cannot be sent a second time.
    has_bytes = isinstance(request.stream, library.ByteStream)
    # A token limit estimates tokens from the keyword arguments of a call.
    arguments = await _json_object(request) if has_bytes and guard.policy.limit.tpm else {}
    exchange = _Exchange(library, transport, guard, request)
    try:
        once = inside_guarded_call() or not has_bytes
        known = guard.policy.retry.idempotent is not None
        idempotent = None if known else _is_idempotent(request)
        stream = await guard.run(exchange.attempt, (), arguments, once=once, idempotent=idempotent)
    except library.HTTPStatusError as error:
        if error is not exchange.error:
            raise
        return exchange.response
    except (AttemptTimeoutError, DeadlineExceededError) as error:
        raise library.ReadTimeout(str(error), request=request) from error
    except BaseException:
        await exchange.close_failed()
        raise
    response = exchange.response
    if stream is not response:
        response.stream = guarded_body(library, stream, exchange.source)
    return response


class _Exchange:
    """The attempts at one request, and the last response.

    Attributes:
        response: The last response.
        source: Its body, if its status is not an error.
        error: The failure that it is, if its status is an error.
    """

    def __init__(self, library: Any, transport: Any, guard: Guard, request: Any) -> None:
        self.response: Any = None
        self.source: Any = None
        self.error: Exception | None = None
        self._library = library
        self._transport = transport
        self._guard = guard
        self._request = request

    async def attempt(self, /, **_: Any) -> Any:
        """The function that the guard calls: send the request once. Returns the body's chunks.

        A judge of results gets the response before its body is read.
        """
        await self.close_failed()
        self.response = response = await self._send()
        if response.status_code >= _FIRST_ERROR:
            self.error = await self._read_error(response)
            raise self.error
        if response.is_closed:  # it has its whole body in memory, as from a MockTransport
            return response
        judge = self._guard.policy.result
        if judge is not None and (error := verdict_on(response, judge, self._guard.name)):
            self.error = error
            raise error
        self.source = Source(response)
        return self.source

    async def close_failed(self) -> None:
        """Close the previous failed response, whose body may still hold a connection."""
        failed, self.error = self.error, None
        if failed is not None:
            # An error of the close must not replace what is being raised, such as a cancellation.
            with contextlib.suppress(Exception):
                await self.response.stream.aclose()

    async def _send(self) -> Any:
        """The response, within the time that the guard leaves for it."""
        request, library = self._request, self._library
        call: Any = current_call.get()
        extensions = request.extensions
        limits = extensions.get("timeout") or {}
        left = call.due - self._guard.clock() if call.timer is not None else math.inf
        timeouts = {phase: _shorter(limits.get(phase), left) for phase in _PHASES}
        request.extensions = {**extensions, "timeout": timeouts}
        try:
            response = await self._transport.handle_async_request(request)
        except library.TimeoutException as error:
            if left < math.inf and self._guard.clock() >= call.due:
                # It was the guard's time limit that the transport applied, not the client's.
                raise self._guard.timeout_error(call, error) from error
            raise
        finally:
            request.extensions = extensions
        # The transport applies "read" to each chunk of the body too, where the guard's idle
        # timeout holds: restore the client's own limit.
        timeouts["read"] = limits.get("read")
        lower_limits_from_headers(self._guard, response.headers, request)
        return response

    async def _read_error(self, response: Any) -> Exception:
        """The failure for an error status; a 429 has its parsed body, which names quotas."""
        library = self._library
        if response.is_closed:
            read = response.content
        else:
            read, response.stream = await read_ahead(library, Source(response))
        error: Exception = library.HTTPStatusError(
            f"HTTP {response.status_code}", request=self._request, response=response
        )
        if response.status_code == _TOO_MANY_REQUESTS:
            encoding = response.headers.get("content-encoding", "")
            vars(error)["body"] = parsed(read, "" if response.is_closed else encoding)
        return error


def _is_idempotent(request: Any) -> bool:
    """Whether a request may be sent twice, by its method or its idempotency key."""
    return request.method in _IDEMPOTENT or any(key in request.headers for key in _KEYS)


async def _json_object(request: Any) -> dict[str, Any]:
    """The object in a JSON request: its messages and its bound on the answer's tokens."""
    body = parsed(await request.aread(), "")
    return body if isinstance(body, dict) else {}


def _shorter(limit: float | None, left: float) -> float | None:
    """The smaller of the client's limit, if it has one, and the seconds left."""
    shortest = left if limit is None else min(limit, left)
    return None if shortest == math.inf else shortest
