"""Counts the tokens of LightRAG's calls: for the limit of their guard, a query or a document."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from lightrag_resilience.calls.call_context import Call, current_call
from lightrag_resilience.calls.token_account import current_account
from lightrag_resilience.integrations.lightrag.compat import TRACKER
from lightrag_resilience.limits.token_usage import estimate_tokens, used_tokens
from lightrag_resilience.pipeline.guard import Guard

__all__ = ["metered"]


class _Tracker:
    """Stands for LightRAG's `TokenTracker` in one attempt, and for the one its caller has given."""

    def __init__(self, call: Call, given: Any) -> None:
        self._call = call
        self._given = given

    def add_usage(self, token_counts: Any) -> None:
        """Take note of what the provider says that a request has used."""
        if (used := used_tokens(token_counts)) is not None:
            self._call.reported_tokens = (self._call.reported_tokens or 0) + used
        if self._given is not None:
            self._given.add_usage(token_counts)


def metered(
    function: Callable[..., Any], guard: Guard, *, takes_tracker: bool
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """A function that calls a provider, for the attempts of its guard.

    Args:
        function: Calls the provider, with the arguments of the attempt.
        guard: Its guard.
        takes_tracker: Whether the function takes a `token_tracker`, as LightRAG's bindings do.
    """

    async def attempt(*args: Any, **kwargs: Any) -> Any:
        call = current_call.get()
        if call is not None and (guard.events.counts_tokens or guard.policy.limit.tpm):
            call.reported_tokens = None
            if (account := current_account.get()) is not None:
                call.account = account
            if not call.sent_tokens:  # no limit has made an estimate
                call.tokens = 0, estimate_tokens(args, kwargs, guard.count_tokens)[0]
            if takes_tracker:
                kwargs[TRACKER] = _Tracker(call, kwargs.get(TRACKER))
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    return attempt
