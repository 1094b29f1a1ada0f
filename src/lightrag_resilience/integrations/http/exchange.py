"""One HTTP request under a guard, the same for httpx and httpx2: `library` is either module.

An answer with an error status is a failure for the guard, and still an answer for the client: the
last one is returned, not raised.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

from lightrag_resilience.calls.call_context import current_call, inside_guarded_call
from lightrag_resilience.errors import AttemptTimeoutError, DeadlineExceededError
from lightrag_resilience.limits.provider_limits import lower_limits_from_headers
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.telemetry.correlation import send_along

from .bodies import Source, guarded_body, parsed, read_ahead

__all__ = ["send"]

_FIRST_ERROR = 400
_TOO_MANY = 429
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # says RFC 9110
_KEYS = ("idempotency-key", "x-idempotency-key")
_PHASES = ("connect", "read", "write", "pool")


async def send(library: Any, transport: Any, guard: Guard, request: Any) -> Any:
    """Send a request through `transport`, as often as the guard says.

    Raises:
        CallRejected: It was not sent: circuit open, rate limit used up, or queue full.
        library.ReadTimeout: The guard's own time was up.
        library.RequestError: What the last attempt raised.
    """
    send_along(request)
    around = current_call.get()
    if around is not None and around.is_within(guard):
        return await transport.handle_async_request(request)
    # The body of a one-shot iterator is gone after the first attempt.
    has_bytes = isinstance(request.stream, library.ByteStream)
    # A limit on tokens looks at what a call is given.
    asked = await _asked(request) if has_bytes and guard.policy.limit.tpm else {}
    exchange = _Exchange(library, transport, guard, request)
    try:
        once = inside_guarded_call() or not has_bytes
        known = guard.policy.retry.idempotent is not None
        idempotent = None if known else _is_idempotent(request)
        stream = await guard.run(exchange.attempt, (), asked, once=once, idempotent=idempotent)
    except library.HTTPStatusError as error:
        if error is not exchange.error:
            raise
        return exchange.response
    except (AttemptTimeoutError, DeadlineExceededError) as error:
        raise library.ReadTimeout(str(error), request=request) from error
    except BaseException:
        await exchange.let_go()
        raise
    response = exchange.response
    if stream is not None:
        response.stream = guarded_body(library, stream, exchange.source)
    return response


class _Exchange:
    """The attempts to get one request answered, and the answer to the last of them.

    Attributes:
        response: What came last.
        source: The body of a response that is no error.
        error: Why `response` is a failure.
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
        """Send it once; what the guard calls. The result is a stream of the body's chunks."""
        await self.let_go()
        self.response = response = await self._answer()
        if response.status_code >= _FIRST_ERROR:
            self.error = await self._read_error(response)
            raise self.error
        if response.is_closed:  # made whole in memory, as a MockTransport does
            return None
        self.source = Source(response)
        return self.source

    async def let_go(self) -> None:
        """Close the answer to the attempt before, whose body may still hold a connection."""
        failed, self.error = self.error, None
        if failed is not None:
            # A close that fails must not take the place of what is raised, a cancellation least.
            with contextlib.suppress(Exception):
                await self.response.stream.aclose()

    async def _answer(self) -> Any:
        """The response, asked for within the time that the guard leaves."""
        request, library = self._request, self._library
        call: Any = current_call.get()
        asked = request.extensions
        limits = asked.get("timeout") or {}
        left = call.due - self._guard.clock() if call.loop_state.timer is not None else math.inf
        within = {phase: _shorter(limits.get(phase), left) for phase in _PHASES}
        request.extensions = {**asked, "timeout": within}
        try:
            response = await self._transport.handle_async_request(request)
        except library.TimeoutException as error:
            if left < math.inf and self._guard.clock() >= call.due:
                # The time was the guard's, not the transport's own.
                raise self._guard.timeout_error(call, error) from error
            raise
        finally:
            request.extensions = asked
        # It goes for each chunk of the body as well, for which the guard has another time.
        within["read"] = limits.get("read")
        lower_limits_from_headers(self._guard, response.headers, request)
        return response

    async def _read_error(self, response: Any) -> Exception:
        """The failure that an error status is, with what its body says about quotas."""
        library = self._library
        if response.is_closed:
            read = response.content
        else:
            read, response.stream = await read_ahead(library, Source(response))
        error: Exception = library.HTTPStatusError(
            f"HTTP {response.status_code}", request=self._request, response=response
        )
        if response.status_code == _TOO_MANY:
            encoding = response.headers.get("content-encoding", "")
            vars(error)["body"] = parsed(read, "" if response.is_closed else encoding)
        return error


def _is_idempotent(request: Any) -> bool:
    """Whether a request may be carried out twice, as its method or a key of its own says."""
    return request.method in _IDEMPOTENT or any(key in request.headers for key in _KEYS)


async def _asked(request: Any) -> dict[str, Any]:
    """The object in a JSON request, which holds the words and the bound of the answer."""
    body = parsed(await request.aread(), "")
    return body if isinstance(body, dict) else {}


def _shorter(limit: float | None, left: float) -> float | None:
    """The smaller of a client's limit, where it has one, and the seconds that are left."""
    shortest = left if limit is None else min(limit, left)
    return None if shortest == math.inf else shortest
