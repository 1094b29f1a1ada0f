"""Turns booked in Redis for one worker: what it asks for, what it gets, and what it holds of them.

A turn is one request, or one token. They are leased in small lots, so that not every call needs a
round trip; each has its own time from which it may be used.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from .messages import WireError

__all__ = ["Reservation", "ReservationRequest", "ReservedTurns"]

_IDLE = 0.25  # seconds that a turn may be used later than booked; then it is given back
_DECIMAL = re.compile(rb"-?[0-9]{1,15}(?:\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """What to ask for.

    Attributes:
        callers: How many callers wait for it.
        needed: Requests and tokens without which none of them can go.
        wanted: Requests and tokens with those for the next callers.
        given_back: Requests and tokens that were booked and not used; negative if more were used.
        owed: Seconds until the requests and the tokens of all workers are paid for, as far as this
            one knows: what Redis, back again, may have missed or forgotten.
        waiting: Requests and tokens, counted in `given_back`, of those who wait to go alone.
        returns: How often Redis had come back when this was asked for.
    """

    callers: int
    needed: tuple[int, int]
    wanted: tuple[int, int]
    given_back: tuple[int, int]
    owed: tuple[float, float] = (0.0, 0.0)
    waiting: tuple[int, int] = (0, 0)
    returns: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """What the script answers.

    Attributes:
        found: ``held``, or ``corrupt`` where what was there was not ours.
        wait: Seconds until what is needed would have its turn.
        workers: Workers that booked in the last minute.
        starts: For requests and tokens, seconds until the turn before the first.
        taken: How many of each were booked.
    """

    found: str
    wait: float
    workers: int
    starts: tuple[float, float]
    taken: tuple[int, int]

    @classmethod
    def parse(cls, answer: object) -> Reservation:
        """Read the script's answer.

        Raises:
            WireError: It is none that our script gives.
        """
        if not isinstance(answer, list) or len(answer) != 7:  # noqa: PLR2004
            raise WireError("a booking of another shape")
        found, away, workers, *lines = answer
        if found not in {b"held", b"corrupt"} or not isinstance(workers, int) or workers < 1:
            raise WireError("a booking of another kind")
        start, taken, token_start, tokens_taken = (_decimal(value) for value in lines)
        return cls(
            found.decode(),
            _decimal(away) / 1000,
            workers,
            (start / 1000, token_start / 1000),
            (int(taken), int(tokens_taken)),
        )


def _decimal(value: object) -> float:
    if not isinstance(value, bytes) or not _DECIMAL.fullmatch(value):
        raise WireError("something that is no number")
    return float(value)


class _Lot:
    """Turns in a row: turn n may be used from `start` + n * `each`, never before `floor`."""

    __slots__ = ("each", "floor", "left", "start")

    def __init__(self, start: float, each: float, left: int, floor: float) -> None:
        self.start = start
        self.each = each
        self.left = left
        self.floor = floor

    def ready(self, turns: int) -> float:
        return max(self.start + turns * self.each, self.floor)

    def take(self, turns: int) -> float:
        ready = self.ready(turns)
        self.start += turns * self.each
        self.left -= turns
        return ready


class ReservedTurns:
    """Turns of one kind that this worker holds, the first to be used first. Times are monotonic.

    Attributes:
        total: How many.
    """

    __slots__ = ("_lots", "total")

    def __init__(self) -> None:
        self._lots: deque[_Lot] = deque()
        self.total = 0

    def add(self, start: float, each: float, turns: int, now: float) -> None:
        """Turns that follow `start`, `each` seconds apart."""
        if turns > 0:
            self._lots.append(_Lot(start, each, turns, now))
            self.total += turns

    def put_back(self, ready: float, turns: int) -> None:
        """Turns that were taken and not used."""
        if turns > 0:
            self._lots.appendleft(_Lot(ready, 0.0, turns, ready))
            self.total += turns

    def take(self, turns: int, now: float) -> float:
        """Take so many, which must be there; seconds at which the last may be used."""
        ready = now
        self.total -= turns
        while turns > 0:
            lot = self._lots[0]
            some = min(turns, lot.left)
            ready = max(ready, lot.take(some))
            turns -= some
            if not lot.left:
                self._lots.popleft()
        return ready

    def expire(self, now: float) -> int:
        """Give up what should have been used by now; how many that are."""
        dropped = 0
        while self._lots and self._lots[0].ready(self._lots[0].left) < now - _IDLE:
            dropped += self._lots.popleft().left
        self.total -= dropped
        return dropped
