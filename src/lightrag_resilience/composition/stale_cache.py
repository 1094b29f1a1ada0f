"""A cache of answers for outages, bounded by age and number, in this process only."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from inspect import iscoroutinefunction
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt, Le

from lightrag_resilience.config.validation import problem_with
from lightrag_resilience.errors import PolicyError, UnsupportedCallError
from lightrag_resilience.runtime.process_state import ProcessLock

__all__ = ["OldAnswer", "StaleCache"]

_Age = Annotated[float, Gt(0), Le(2_592_000)]
_Entries = Annotated[int, Ge(1), Le(1_000_000)]


class OldAnswer(NamedTuple):
    """An answer to the same call, its source, and its age in seconds."""

    value: Any
    source: str
    age: float


class StaleCache:
    """Keeps the answers of chains, separately for each; evicts the least recently used.

    Answers are deep copies, so that a caller cannot change what is kept.

    Args:
        max_age: Seconds after which an answer is no longer returned.
        max_entries: Answers to keep.
        key: Gets the arguments of a call and returns what its answer depends on, such as
            ``lambda prompt, **_: prompt``. Calls with equal keys get each other's answers: leave
            out nothing that matters, such as the tenant. Without it all arguments are the key,
            and must be hashable.
        clock: Monotonic seconds.

    Raises:
        PolicyError: A number is out of bounds.
        UnsupportedCallError: `key` is no plain function.
    """

    def __init__(
        self,
        *,
        max_age: float,
        max_entries: int = 1000,
        key: Callable[..., Hashable] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value, hint in (
            ("max_age", max_age, _Age),
            ("max_entries", max_entries, _Entries),
        ):
            if problem := problem_with(value, hint):
                raise PolicyError(f"StaleCache.{name} {problem}")
        if key is not None and (not callable(key) or iscoroutinefunction(key)):
            raise UnsupportedCallError(
                "StaleCache: key must be a plain function of a call's arguments"
            )
        self.max_age = max_age
        self.max_entries = max_entries
        self._key = key
        self._clock = clock
        self._entries: OrderedDict[Hashable, tuple[Any, str, float]] = OrderedDict()
        self._lock = ProcessLock()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Remove all answers."""
        with self._lock:
            self._entries.clear()

    def forget(self, key: Hashable) -> None:
        """Remove the answer with this key."""
        with self._lock:
            self._entries.pop(key, None)

    def key_of(self, owner: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """The key of a call of `owner`.

        Raises:
            UnsupportedCallError: It cannot be hashed.
        """
        if self._key is not None:
            found = self._key(*args, **kwargs)
            _must_be_hashable(found, "the result of a StaleCache's key function")
            return owner, found
        named = sorted(kwargs.items())
        for argument, value in [*enumerate(args, 1), *named]:
            _must_be_hashable(value, f"argument {argument!r} of a call with a StaleCache")
        # 1, 1.0 and True are equal, but as arguments they may have different answers.
        return owner, args, tuple(named), _types((args, tuple(named)))

    def remember(self, key: Hashable, source: str, value: Any) -> None:
        """Keep an answer; one that cannot be copied, such as a stream, is not kept."""
        try:
            kept = copy.deepcopy(value)
        except Exception:  # noqa: BLE001 - the caller has its answer already
            return
        with self._lock:
            self._entries[key] = (kept, source, self._clock())
            self._entries.move_to_end(key)
            if len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)

    def recall(self, key: Hashable) -> OldAnswer | None:
        """The last answer to the same call; None without one, or if it is too old."""
        with self._lock:
            if key not in self._entries:
                return None
            value, source, since = self._entries[key]
            age = self._clock() - since
            if age > self.max_age:
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
        # Outside the lock: copying a large answer must not delay other threads.
        return OldAnswer(copy.deepcopy(value), source, age)


def _types(value: object) -> object:
    """The types of a value and of all values in it."""
    if isinstance(value, tuple):
        return type(value), *map(_types, value)
    if isinstance(value, frozenset):
        return type(value), frozenset((each, _types(each)) for each in value)
    return type(value)


def _must_be_hashable(value: object, what: str) -> None:
    try:
        hash(value)
    except TypeError:
        raise UnsupportedCallError(
            f"{what[0].upper()}{what[1:]} must be hashable, not a {type(value).__name__}; "
            "give StaleCache(key=…) a function that returns what the answer depends on"
        ) from None
