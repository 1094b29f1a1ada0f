"""One owner of retries: the SDKs of OpenAI and Anthropic yield while a guard owns the call."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from lightrag_resilience._call import owned_by_a_guard
from lightrag_resilience.errors import UnsupportedCallError

__all__ = ["yield_retries"]

_lock = threading.Lock()


def yield_retries(*sdks: ModuleType) -> Callable[[], None]:
    """Inside a guarded call let SDKs try once, and as often as they are told elsewhere.

    Else a guard's 4 attempts with an SDK's 3 are 12 requests. `protect` does this for the SDKs that
    are imported by then; where functions are decorated, do it once for each SDK in use::

        yield_retries(openai, anthropic)

    Args:
        sdks: The packages `openai` or `anthropic`; both ask in one method how often to try, whose
            class is the same for all their clients.

    Returns:
        A function that takes it back; the last one to be called brings the original back.

    Raises:
        UnsupportedCallError: A module is no such SDK.
    """
    options = [_options_of(sdk) for sdk in sdks]
    with _lock:
        for each in options:
            _begin(each)
    is_done = False

    def take_back() -> None:
        nonlocal is_done
        with _lock:
            for each in () if is_done else options:
                _end(each)
            is_done = True

    return take_back


def _options_of(sdk: ModuleType) -> Any:
    options = getattr(getattr(sdk, "_models", None), "FinalRequestOptions", None)
    if not callable(getattr(options, "get_max_retries", None)):
        name = getattr(sdk, "__name__", type(sdk).__name__)
        raise UnsupportedCallError(
            f"yield_retries() takes the packages openai or anthropic, not {name!r}: "
            "turn its own retries off, or its guard's"
        )
    return options


def _begin(options: Any) -> None:
    if "__resilience_users__" not in vars(options.get_max_retries):
        options.get_max_retries = _yielding(options.get_max_retries)
    vars(options.get_max_retries)["__resilience_users__"] += 1


def _yielding(method: Callable[[Any, int], int]) -> Callable[[Any, int], int]:
    @functools.wraps(method)
    def get_max_retries(self: Any, max_retries: int) -> int:
        return 0 if owned_by_a_guard() else method(self, max_retries)

    vars(get_max_retries)["__resilience_users__"] = 0
    return get_max_retries


def _end(options: Any) -> None:
    method = options.get_max_retries
    users = vars(method).get("__resilience_users__")
    if users is not None:
        vars(method)["__resilience_users__"] = users - 1
        if users <= 1:
            options.get_max_retries = method.__wrapped__
