"""Inside guarded calls of the OpenAI and Anthropic SDKs: no retries, no silently cut streams.

The limits that a provider names in its answers are followed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from types import ModuleType
from typing import Any

from lightrag_resilience.calls.call_context import Call, current_call, inside_guarded_call
from lightrag_resilience.errors import TruncatedStreamError, UnsupportedCallError
from lightrag_resilience.limits.provider_limits import lower_limits_from_headers
from lightrag_resilience.streams.finish_markers import (
    FinishMarker,
    finish_marker_for,
    incomplete_error,
)

from .method_patching import replace_methods

__all__ = ["detect_truncated_streams", "disable_sdk_retries", "follow_rate_limits"]

_RESPONSE = "_process_response"


def disable_sdk_retries(*sdks: ModuleType) -> Callable[[], None]:
    """Inside a guarded call let SDKs try once; elsewhere they retry as configured.

    Otherwise 4 attempts of a guard with 3 of an SDK are 12 requests. `protect` does this for the
    SDKs that are imported by then; if you decorate functions, do it once for each SDK in use::

        disable_sdk_retries(openai, anthropic)

    Args:
        sdks: The packages `openai` or `anthropic`. All clients of each share the patched method.

    Returns:
        A function that undoes it; after the last one the original is restored.

    Raises:
        UnsupportedCallError: A module is no such SDK.
    """
    options = [_options_of(sdk) for sdk in sdks]
    return replace_methods(options, "get_max_retries", _without_retries)


def detect_truncated_streams(*sdks: ModuleType) -> Callable[[], None]:
    """Inside a guarded call let an SDK's stream raise if it ends without its finish marker.

    It raises a `TruncatedStreamError`, where the SDK alone ends as if the stream were complete. A
    guard around the SDK detects that without this; one around a function that makes text of the
    chunks, as LightRAG's bindings do, does not. `protect` does this for the SDKs that are imported
    by then; if you decorate functions, do it once for each SDK in use::

        detect_truncated_streams(openai, anthropic)

    Args:
        sdks: The packages `openai` or `anthropic`; async clients only.

    Returns:
        A function that undoes it; after the last one the original is restored.

    Raises:
        UnsupportedCallError: A module is no such SDK.
    """
    return replace_methods([_stream_of(sdk) for sdk in sdks], "__stream__", _raising_if_truncated)


def follow_rate_limits(*sdks: ModuleType) -> Callable[[], None]:
    """Inside a guarded call apply the rate limits that each answer of an SDK names to the guard.

    A guard sees the headers of an error, so without this a limit that a 429 has lowered would not
    rise again. It changes only guards with a limit, up to the configured one. `protect` does this
    for the SDKs that are imported by then; if you decorate functions, do it once for each in use::

        follow_rate_limits(openai, anthropic)

    Args:
        sdks: The packages `openai` or `anthropic`; async clients only.

    Returns:
        A function that undoes it; after the last one the original is restored.

    Raises:
        UnsupportedCallError: A module is no such SDK.
    """
    return replace_methods([_client_of(sdk) for sdk in sdks], _RESPONSE, _following)


def _client_of(sdk: ModuleType) -> Any:
    client = getattr(getattr(sdk, "_base_client", None), "AsyncAPIClient", None)
    if not callable(getattr(client, _RESPONSE, None)):
        name = _name_of(sdk)
        raise UnsupportedCallError(
            f"follow_rate_limits() takes the packages openai or anthropic, not {name!r}"
        )
    return client


def _options_of(sdk: ModuleType) -> Any:
    options = getattr(getattr(sdk, "_models", None), "FinalRequestOptions", None)
    if not callable(getattr(options, "get_max_retries", None)):
        name = _name_of(sdk)
        raise UnsupportedCallError(
            f"disable_sdk_retries() takes the packages openai or anthropic, not {name!r}: "
            "turn its own retries off, or its guard's"
        )
    return options


def _stream_of(sdk: ModuleType) -> Any:
    stream = getattr(sdk, "AsyncStream", None)
    if not callable(getattr(stream, "__stream__", None)):
        name = _name_of(sdk)
        raise UnsupportedCallError(
            f"detect_truncated_streams() takes the packages openai or anthropic, not {name!r}"
        )
    return stream


def _name_of(sdk: Any) -> str:
    return str(getattr(sdk, "__name__", type(sdk).__name__))


def _without_retries(method: Callable[..., Any]) -> Callable[..., Any]:
    def get_max_retries(self: Any, max_retries: int) -> int:
        return 0 if inside_guarded_call() else method(self, max_retries)

    return get_max_retries


def _raising_if_truncated(method: Callable[..., Any]) -> Callable[..., Any]:
    async def stream(self: Any) -> AsyncIterator[Any]:
        finish: FinishMarker | None = None
        is_first = True
        async with aclosing(method(self)) as chunks:
            async for chunk in chunks:
                if is_first:
                    finish, is_first = finish_marker_for(chunk), False
                elif finish is not None:
                    finish.record(chunk)
                yield chunk
        name = _name_of_guard()
        if name is None:
            return
        if is_first:
            raise TruncatedStreamError(name, None, "before its first item")
        if finish is not None and (error := incomplete_error(name, finish)) is not None:
            raise error

    return stream


def _following(method: Callable[..., Any]) -> Callable[..., Any]:
    async def process_response(self: Any, **given: Any) -> Any:
        call, response = _guarded_call(), given.get("response")
        if call is not None and response is not None:
            request = getattr(response, "request", None)
            lower_limits_from_headers(call.guard, getattr(response, "headers", None), request)
        return await method(self, **given)

    return process_response


def _guarded_call() -> Call | None:
    """The innermost call that is under way."""
    call = current_call.get()
    while call is not None and call.guard is None:
        call = call.parent
    return call


def _name_of_guard() -> str | None:
    """The innermost guard, if it expects finish markers; None lets the SDK's stream just end."""
    call = _guarded_call()
    expects_marker = call is not None and call.guard.policy.stream.finish_marker
    return call.name if call is not None and expects_marker else None
