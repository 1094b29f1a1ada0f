"""Turns reserved in Redis for one worker: the request, the answer, and the turns held.

A turn is one request or one token, and may be used from its own time on. Turns are reserved in
small lots, so that most calls need no round trip.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from .messages import WireError

__all__ = ["PAID_LONG_AGO", "Reservation", "ReservationRequest", "ReservedTurns"]

PAID_LONG_AGO = -60.0, -60.0  # seconds for which requests, and tokens, have been paid for

_IDLE = 0.25  # seconds after its time that a turn is kept; then it is given back
_DECIMAL = re.compile(rb"-?[0-9]{1,15}(?:\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class ReservationRequest:
    """Arguments of the script ``reserve_turns``. Pairs are for requests and tokens.

    Attributes:
        callers: Callers that wait for the turns.
        needed: Turns that these callers need.
        wanted: Turns with those for the next callers.
        given_back: Turns that were reserved but not used; negative if more were used.
        owed: Seconds until all workers' turns are paid for, as far as this worker knows, negative
            where they have been for so long; Redis may have lost it in an outage.
        waiting: Turns, contained in `given_back`, of callers that wait in a local limiter.
        recoveries: Outages of Redis that had ended when this was made.
    """

    callers: int
    needed: tuple[int, int]
    wanted: tuple[int, int]
    given_back: tuple[int, int]
    owed: tuple[float, float] = PAID_LONG_AGO
    waiting: tuple[int, int] = (0, 0)
    recoveries: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """The answer of the script. Pairs are for requests and tokens.

    Attributes:
        found: ``held``, or ``corrupt`` if the key was malformed and is replaced.
        wait: Seconds until the needed turns are due.
        workers: Workers that reserved in the last minute.
        starts: Seconds until the turn before the first; may be negative.
        taken: Reserved turns; 0 if they are due too late.
    """

    found: str
    wait: float
    workers: int
    starts: tuple[float, float]
    taken: tuple[int, int]

    @classmethod
    def parse(cls, answer: object) -> Reservation:
        """Parse the script's answer.

        Raises:
            WireError: It is malformed.
        """
        if not isinstance(answer, list) or len(answer) != 7:  # noqa: PLR2004
            raise WireError("a malformed reservation")
        found, wait, workers, *turns = answer
        if found not in {b"held", b"corrupt"} or not isinstance(workers, int) or workers < 1:
            raise WireError("a reservation with an unknown marker")
        start, taken, token_start, tokens_taken = (_decimal(value) for value in turns)
        return cls(
            found.decode(),
            _decimal(wait) / 1000,
            workers,
            (start / 1000, token_start / 1000),
            (int(taken), int(tokens_taken)),
        )


def _decimal(value: object) -> float:
    if not isinstance(value, bytes) or not _DECIMAL.fullmatch(value):
        raise WireError("something that is no number")
    return float(value)


class _Lot:
    """Consecutive turns: turn n may be used from `start` + n * `each` on, not before `floor`."""

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
    """Turns of one kind that this worker holds, in the order of use. Times are monotonic.

    Attributes:
        total: Their number.
    """

    __slots__ = ("_lots", "total")

    def __init__(self) -> None:
        self._lots: deque[_Lot] = deque()
        self.total = 0

    def add(self, start: float, each: float, turns: int, now: float) -> None:
        """Add turns that follow `start`, `each` seconds apart."""
        if turns > 0:
            self._lots.append(_Lot(start, each, turns, now))
            self.total += turns

    def put_back(self, ready: float, turns: int) -> None:
        """Put back turns that were taken but not used."""
        if turns > 0:
            self._lots.appendleft(_Lot(ready, 0.0, turns, ready))
            self.total += turns

    def take(self, turns: int, now: float) -> float:
        """Take so many, at most `total`; the time from which the last may be used."""
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
        """Drop lots whose last turn was due `_IDLE` ago; the number of turns."""
        dropped = 0
        while self._lots and self._lots[0].ready(self._lots[0].left) < now - _IDLE:
            dropped += self._lots.popleft().left
        self.total -= dropped
        return dropped
