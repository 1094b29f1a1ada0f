"""Guards whose policy judges results. Others do not even check whether one does."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from lightrag_resilience.calls.attempts import Attempts
from lightrag_resilience.calls.call_context import Call
from lightrag_resilience.failures.results import verdict_on
from lightrag_resilience.streams.guarded_stream import GuardedStream
from lightrag_resilience.timeouts.attempt_timer import Timer

__all__ = ["Judging", "judging"]

_NONE: Any = object()


class Judging(Attempts):
    """A guard's class on top of which results are judged before their attempt is settled."""

    __slots__ = ()

    def settle_success(
        self, call: Call, duration: float | None = None, answer: object = _NONE
    ) -> None:
        """As that of the guard, where the result is judged a success.

        Raises:
            InvalidResultError: It is a failure; the attempt is settled as one.
        """
        # Streams are judged as they are read; at their end comes the duration, with their usage.
        is_result = duration is None and answer is not _NONE
        if is_result and (judge := call.loop_state.policy.result) is not None:
            try:
                error = verdict_on(answer, judge, self.name)
            except BaseException:  # Ctrl-C in the judge: its call must not keep its permit
                self.settle_without_verdict(call)
                raise
            if error is not None:
                self.settle_error(call, error)
                raise error
        super().settle_success(call, duration, None if answer is _NONE else answer)

    async def _opened(self, call: Call, source: Any, timer: Timer | None) -> GuardedStream[Any]:
        stream, policy = GuardedStream[Any](self, source), call.loop_state.policy
        if policy.stream_item is not None or policy.stream_end is not None:
            stream.judge_items(policy.stream_item, policy.stream_end)
        return await stream.open(call, timer)


def judging(cls: Any) -> Any:
    """The same class of guards, with verdicts on results."""
    return cls if issubclass(cls, Judging) else _judging(cls)


@lru_cache(maxsize=8)  # the classes of guards are few; tracing makes more
def _judging(cls: Any) -> Any:
    return type(f"Judging{cls.__name__}", (Judging, cls), {"__slots__": ()})
