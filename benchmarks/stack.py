"""What a stack is: a way to protect a function, and what it promises to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = ["TRANSIENT", "Call", "Setup", "Stack"]

Call = Callable[[int], Awaitable[int]]

# Every stack retries these and counts them as failures, and does neither for a ValueError.
TRANSIENT = (ConnectionError, TimeoutError)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What differs between a measurement and a check.

    Attributes:
        timeout: Seconds an attempt may take; `Policy.llm` gives as many.
        max_concurrent: Calls at once, where a stack limits them.
        open_for: Seconds an open breaker refuses: longer than any measurement.
    """

    timeout: float = 120.0
    max_concurrent: int = 100_000
    open_for: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A way to protect a function. `protect` is called on a running loop, as some peers need it.

    Attributes:
        name: How it is called in the tables.
        protect: Puts a stack with a state of its own around a function.
        refusal: What its open breaker raises; None where it has no breaker.
        timeout: What a call raises in the end when its attempts take too long; None where it
            bounds no attempt.
        retries: Whether it calls again after a transient error.
        has_bulkhead: Whether it limits how many calls are under way.
        counts_all_errors: Whether its breaker counts a ValueError, too: it has no exception path
            that could be compared.
        imports: What it imports, as after the word ``import``; empty where another row says it.
        window: Calls that its breaker remembers: so many are made before its memory is weighed.
        is_weighed: Whether its memory is; where its breakers poll Redis for ever it is not.
        close: Ends what runs beside it.
    """

    name: str
    protect: Callable[[Call, Setup], Call]
    refusal: type[Exception] | None
    timeout: type[Exception] | None
    retries: bool = True
    has_bulkhead: bool = False
    counts_all_errors: bool = False
    imports: str = ""
    window: int = 1
    is_weighed: bool = True
    close: Callable[[], None] = lambda: None
