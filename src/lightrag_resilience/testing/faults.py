"""What shall go wrong with a simulated provider: which calls, when, and how."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, TypeAdapter

__all__ = ["INVALID", "Fault", "InvalidAnswer", "Script"]

InvalidAnswer = Literal[
    "html_200",
    "empty_200",
    "choices_null",
    "truncated_json",
    "nan",
    "zeros",
    "short_batch",
    "wrong_dimension",
    "bad_rank",
]
INVALID: frozenset[str] = frozenset(get_args(InvalidAnswer))
_Disturbance = Literal[
    "status", "hang", "reset", "slow", "truncate", "stall", "end_early", "error_event"
]
_ACTIONS = INVALID.union(get_args(_Disturbance))

_DRAW_BYTES = 8
_DRAWS = 256.0**_DRAW_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to fail. Make one with the class methods, such as `status` or `hang`.

    Attributes:
        action: What happens to a call that the fault hits.
        share: Which part of the calls it hits.
        path: Only calls whose path holds this text, such as ``embeddings``; empty for all.
        start: Seconds from the script's beginning at which the fault begins.
        end: Seconds at which it ends.
        code: HTTP status of the answer, for ``status``.
        retry_after: What the answer's Retry-After header says, in seconds; None leaves it out.
        seconds: How much later the answer comes, for ``slow``.
        pieces: How many pieces of an answer, such as a stream's events, come before it fails, for
            ``truncate``, ``stall``, ``end_early`` and ``error_event``.
        word: Code and type of the error, for ``status`` and ``error_event``; empty for the usual.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    action: _Disturbance | InvalidAnswer
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    path: str = ""
    start: Annotated[float, Ge(0)] = 0.0
    end: Annotated[float, Gt(0)] = math.inf
    code: Annotated[int, Ge(400), Le(599)] = 500
    retry_after: Annotated[float, Ge(0)] | None = None
    seconds: Annotated[float, Ge(0)] = 1.0
    pieces: Annotated[int, Ge(0)] = 2
    word: str = ""

    def __post_init__(self) -> None:
        # By hand, for a sentence without pydantic's words: a misspelt kind would do nothing.
        if self.action not in _ACTIONS:
            known = ", ".join(sorted(_ACTIONS))
            raise ValueError(f"there is no fault {self.action!r}; there are {known}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share!r}, but must be above 0 and at most 1")
        if not 400 <= self.code < 600:  # noqa: PLR2004 - HTTP
            raise ValueError(f"code is {self.code!r}, but must be a status from 400 to 599")

    @classmethod
    def status(cls, code: int, *, retry_after: float | None = None, **where: Any) -> Self:
        """Answer with an HTTP status of 400 to 599; `where` is share, path, start and end."""
        return cls(action="status", code=code, retry_after=retry_after, **where)

    @classmethod
    def throttle(cls, retry_after: float | None = None, **where: Any) -> Self:
        """Answer 429, and say how many seconds to wait."""
        return cls.status(429, retry_after=retry_after, **where)

    @classmethod
    def no_quota(cls, **where: Any) -> Self:
        """Answer 429 as OpenAI does where the account's quota is used up: waiting does not help."""
        return cls(action="status", code=429, word="insufficient_quota", **where)

    @classmethod
    def hang(cls, **where: Any) -> Self:
        """Take the call and never answer."""
        return cls(action="hang", **where)

    @classmethod
    def reset(cls, **where: Any) -> Self:
        """Take the call and reset the connection."""
        return cls(action="reset", **where)

    @classmethod
    def slow(cls, seconds: float, **where: Any) -> Self:
        """Answer, but so many seconds later."""
        return cls(action="slow", seconds=seconds, **where)

    @classmethod
    def truncate(cls, pieces: int = 2, **where: Any) -> Self:
        """Begin to answer, and lose the connection after so many pieces."""
        return cls(action="truncate", pieces=pieces, **where)

    @classmethod
    def stall(cls, pieces: int = 2, **where: Any) -> Self:
        """Begin to answer, and send nothing more after so many pieces."""
        return cls(action="stall", pieces=pieces, **where)

    @classmethod
    def end_early(cls, pieces: int = 2, **where: Any) -> Self:
        """Begin to answer, and end after so many pieces as if that were all."""
        return cls(action="end_early", pieces=pieces, **where)

    @classmethod
    def error_event(cls, word: str = "server_error", pieces: int = 2, **where: Any) -> Self:
        """Begin to answer, and after so many pieces send an error and end: for streams."""
        return cls(action="error_event", word=word, pieces=pieces, **where)

    @classmethod
    def invalid(cls, kind: InvalidAnswer, **where: Any) -> Self:
        """Answer 200 with what is no answer; calls that cannot be answered so are as usual.

        ``html_200``: a gateway's page; ``empty_200``: no body; ``choices_null``: a completion
        without choices; ``truncated_json``: a completion whose text ends in the middle; ``nan``,
        ``zeros``, ``short_batch`` and ``wrong_dimension``: such vectors; ``bad_rank``: ranks of
        documents that were not sent.
        """
        return cls(action=kind, **where)

    @classmethod
    def from_json(cls, text: str | bytes) -> list[Self]:
        """Faults from a JSON list of objects with the attributes' names.

        Raises:
            ValueError: Something in it is unknown, missing or out of bounds.
        """
        faults: list[Self] = _adapter(cls).validate_json(text)
        return faults


def _adapter(cls: type[Fault]) -> TypeAdapter[Any]:
    return TypeAdapter(list[cls])  # type: ignore[valid-type]


class Script:
    """The faults in force. The same seed fails the same calls, in whichever order they come.

    The draw for a share takes what is asked and how often it was asked before, not the order.

    Args:
        seed: Another seed, other calls.
        faults: The first that hits a call is the one that happens.
    """

    def __init__(self, seed: int, faults: Sequence[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self._seed = seed
        self._asked: Counter[bytes] = Counter()

    def reset(self) -> None:
        """Forget what was asked before."""
        self._asked.clear()

    def fault_for(self, path: str, body: bytes, at: float) -> Fault | None:
        """What happens to a call that comes `at` seconds from the beginning, or None."""
        digest = hashlib.blake2b(body, digest_size=_DRAW_BYTES, person=path.encode()[-16:]).digest()
        asked = self._asked[digest]
        self._asked[digest] += 1
        for index, fault in enumerate(self.faults):
            if (
                fault.path in path
                and fault.start <= at < fault.end
                and self._draw(index, digest, asked) < fault.share
            ):
                return fault
        return None

    def _draw(self, index: int, digest: bytes, asked: int) -> float:
        ticket = f"{self._seed}/{index}/{asked}/".encode() + digest
        drawn = hashlib.blake2b(ticket, digest_size=_DRAW_BYTES).digest()
        return int.from_bytes(drawn) / _DRAWS
