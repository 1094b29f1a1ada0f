"""Inside guarded calls of the OpenAI and Anthropic SDKs: no retries, no silently cut streams.

The limits that a provider names in its answers are followed. Each function changes a method that
all clients of an SDK share. `protect` calls them for the SDKs that are imported by then; if you
decorate functions, call those that you need once for each SDK in use::

    undo = disable_sdk_retries(openai, anthropic)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import reduce
from types import ModuleType
from typing import Any

from lightrag_resilience.calls.call_context import guarded_call, inside_guarded_call
from lightrag_resilience.errors import TruncatedStreamError, UnsupportedCallError
from lightrag_resilience.limits.provider_limits import lower_limits_from_headers
from lightrag_resilience.streams.finish_markers import (
    FinishMarker,
    finish_marker_for,
    incomplete_error,
)

from .method_patching import replace_methods

__all__ = ["detect_truncated_streams", "disable_sdk_retries", "follow_rate_limits"]


def disable_sdk_retries(*sdks: ModuleType) -> Callable[[], None]:
    """Inside a guarded call let SDKs try once; elsewhere they retry as configured.

    Otherwise 4 attempts of a guard with 3 of an SDK are 12 requests.

    Args:
        sdks: The packages `openai` or `anthropic`.

    Returns:
        A function that undoes it; after the last one the original is restored.

    Raises:
        UnsupportedCallError: A module is no such SDK.
    """
    return _replace(sdks, "_models.FinalRequestOptions.get_max_retries", _without_retries)


def detect_truncated_streams(*sdks: ModuleType) -> Callable[[], None]:
    """Inside a guarded call let an SDK's stream raise if it ends without its finish marker.

    It raises a `TruncatedStreamError`, where the SDK alone ends as if the stream were complete. A
    guard around the SDK detects that without this; one around a function that makes text of the
    chunks, as LightRAG's bindings do, does not.

    It takes, returns and raises what `disable_sdk_retries` does, and changes async clients only.
    """
    return _replace(sdks, "AsyncStream.__stream__", _raising_if_truncated)


def follow_rate_limits(*sdks: ModuleType) -> Callable[[], None]:
    """Inside a guarded call apply the rate limits that each answer of an SDK names to the guard.

    A guard sees the headers of an error, so without this a limit that a 429 has lowered would not
    rise again. It changes only guards with a limit, up to the configured one.

    It takes, returns and raises what `disable_sdk_retries` does, and changes async clients only.
    """
    return _replace(sdks, "_base_client.AsyncAPIClient._process_response", _following)


def _replace(sdks: Sequence[Any], path: str, make: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace a method in each SDK; the path names it there, with its module and class."""
    *outer, method = path.split(".")
    classes = [reduce(lambda it, name: getattr(it, name, None), outer, sdk) for sdk in sdks]
    for sdk, cls in zip(sdks, classes, strict=True):
        if not callable(getattr(cls, method, None)):
            name = getattr(sdk, "__name__", type(sdk).__name__)
            raise UnsupportedCallError(
                f"This takes the packages openai or anthropic, and {name!r} has no {path}"
            )
    return replace_methods(classes, method, make)


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
        call, response = guarded_call(), given.get("response")
        if call is not None and response is not None:
            request = getattr(response, "request", None)
            lower_limits_from_headers(call.guard, getattr(response, "headers", None), request)
        return await method(self, **given)

    return process_response


def _name_of_guard() -> str | None:
    """The innermost guard, if it expects finish markers; None lets the SDK's stream just end."""
    call = guarded_call()
    return call.name if call and call.guard.policy.stream.finish_marker else None
