"""What goes to Redis and what comes back, as plain data. Nothing that comes back is trusted."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from lightrag_resilience.circuit.outcomes import MOST_CAUSES, OTHER, OutcomeCounts, short
from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.config.policies import BreakerPolicy
from lightrag_resilience.text import LONGEST_OPEN, LONGEST_TEXT, printable

__all__ = [
    "LETTERS",
    "Announcement",
    "CooldownMessage",
    "Description",
    "Keys",
    "Override",
    "Presence",
    "Reply",
    "Report",
    "StoredOverrides",
    "WireError",
    "policy_as_json",
]

_STATES = {"C": State.CLOSED, "O": State.OPEN, "H": State.HALF_OPEN}
LETTERS = {state: letter for letter, state in _STATES.items()}
_FOUND = frozenset({"held", "missing", "corrupt", "behind"})
_LARGEST = 16_384  # bytes of anything that is parsed
_LARGEST_TEXT = 4 * LONGEST_TEXT  # bytes of a text of which the beginning suffices
_DIGITS = 16  # of the largest whole number
_VARIABLE = re.compile(r"RESILIENCE_[A-Z0-9_]{1,189}")
_LONGEST_CAUSE = 120  # characters
_MOST_CAUSES = 4 * (MOST_CAUSES + 1)  # of slices in which others were frequent
_MOST_ALONE = 20  # breakers
_LONGEST_COOLING = 86_400  # seconds
_MOST_OVERRIDES = 1000
_MOST_BREAKS = 1_000_000  # in a row
_MOST = 2**53
_CENTURY = 100 * 365 * 86_400_000
"""Milliseconds by which clocks may differ, of a version that is announced: it begins as the time,
and grows by changes, which come more slowly than milliseconds. A state in Redis may have twice
that, so that what was announced has room to grow."""


class WireError(ValueError):
    """A reply or a message that this library cannot have sent."""


class Keys:
    """The names under which one breaker is kept; the braces keep both in one cluster slot."""

    __slots__ = ("name", "prefix")

    def __init__(self, prefix: str, name: str) -> None:
        self.prefix = prefix
        self.name = name

    @property
    def state(self) -> str:
        """The hash of the state."""
        return f"{self.prefix}cb:{{{quote(self.name)}}}:s"

    @property
    def window(self) -> str:
        """The hash of the outcomes, leases and batch numbers."""
        return f"{self.prefix}cb:{{{quote(self.name)}}}:w"

    @property
    def channel(self) -> str:
        """Where changes of state are published."""
        return f"{self.prefix}cb:ev:{quote(self.name)}"

    @staticmethod
    def every_state(prefix: str) -> str:
        """The pattern of all state hashes."""
        return f"{prefix}cb:{{*}}:s"

    @staticmethod
    def name_in_state(key: bytes, prefix: str) -> str:
        """Whose state a hash is."""
        name = key.decode("utf-8", "replace").removeprefix(f"{prefix}cb:{{").removesuffix("}:s")
        return unquote(name)

    @staticmethod
    def name_in_channel(channel: bytes, prefix: str) -> str:
        """Whose changes a channel announces."""
        return unquote(channel.decode("utf-8", "replace").removeprefix(f"{prefix}cb:ev:"))


@dataclass(frozen=True, slots=True)
class Presence:
    """A worker, as it shows itself to people.

    Attributes:
        host: Its machine's name.
        pid: Its process id there.
        alone: Breakers that it holds open by itself.
    """

    host: str
    pid: int
    alone: tuple[str, ...] = ()

    @staticmethod
    def key(prefix: str, worker: str) -> str:
        """Where a worker's presence is kept; ``*`` for the pattern of all."""
        return f"{prefix}worker:{worker}"

    def as_json(self) -> str:
        """As it is kept."""
        return json.dumps([self.host, self.pid, *self.alone[:_MOST_ALONE]])

    @classmethod
    def parse(cls, kept: object) -> Presence:
        """Read what is kept.

        Raises:
            WireError: It is not ours.
        """
        try:
            host, pid, *alone = json.loads(_text(kept))
        except (ValueError, TypeError, RecursionError):
            raise WireError("a worker of another shape") from None
        if type(pid) is not int or not 0 <= pid < _MOST:
            raise WireError("a worker with a process that cannot be")
        if not all(isinstance(text, str) for text in (host, *alone)):
            raise WireError("a worker of another shape")
        names = tuple(_shown(name) for name in alone[:_MOST_ALONE])
        return cls(_shown(host), pid, names)


@dataclass(slots=True)
class Report:
    """Outcomes since the last report.

    Attributes:
        batch: Its number; a number that came already is not counted again.
        calls: Calls with a verdict.
        failed: How many failed.
        slow: How many were slow.
        tripped: Why the worker opened by itself; empty if it did not.
        verdicts: Probes' tokens, and for each ``ok``; or ``met``, milliseconds until the next is
            due, and what it met where it was answered and not served; or why it was no recovery.
        causes: What all failures looked like, also those without a verdict, and how many did.
        last: What the last of them looked like.
    """

    batch: int
    calls: int = 0
    failed: int = 0
    slow: int = 0
    tripped: str = ""
    verdicts: tuple[tuple[str, str], ...] = ()
    causes: dict[str, int] = field(default_factory=dict)
    last: str = ""

    def note(self, symptom: str) -> None:
        """A call failed so."""
        cause = short(symptom)
        if cause not in self.causes and len(self.causes) >= MOST_CAUSES:
            cause = OTHER
        self.causes[cause] = self.causes.get(cause, 0) + 1
        self.last = symptom


@dataclass(frozen=True, slots=True)
class Announcement:
    """A state of the cluster.

    Attributes:
        state: Where the breaker stands.
        version: Grows with each change.
        remaining: Seconds until an open breaker may be tried.
        opens: Breaks in a row with no recovery between.
        reason: Why it came to this, as a clause.
    """

    state: State
    version: int
    remaining: float
    opens: int
    reason: str

    @classmethod
    def parse(cls, message: object) -> Announcement:
        """Read a published message.

        Raises:
            WireError: It is not ours.
        """
        if not isinstance(message, bytes):
            raise WireError("a message that is no text")
        parts = message.split(b" ", 4)
        if len(parts) != 5:  # noqa: PLR2004
            raise WireError("a message of another shape")
        there = _announcement(*parts)
        if there.version > time.time() * 1000 + _CENTURY:
            raise WireError("a version that no clock makes")
        return there


@dataclass(frozen=True, slots=True)
class Override:
    """Another value for a variable, in all workers.

    Attributes:
        value: As it would stand in the environment.
        reason: Who gave it, and why.
    """

    value: str
    reason: str

    @staticmethod
    def key(prefix: str) -> str:
        """The hash of all of them, by variable."""
        return f"{prefix}overrides"

    def as_json(self) -> str:
        """As it is kept."""
        return json.dumps([self.value, self.reason])

    @classmethod
    def parse(cls, kept: object) -> Override:
        """Read what is kept.

        Raises:
            WireError: It is not ours.
        """
        try:
            value, reason = json.loads(_text(kept))
        except (ValueError, TypeError, RecursionError):
            raise WireError("an override of another shape") from None
        if not isinstance(value, str) or not isinstance(reason, str):
            raise WireError("an override of another shape")
        return cls(_shown(value), _shown(reason))


@dataclass(frozen=True, slots=True)
class StoredOverrides:
    """What the hash of all overrides holds.

    Attributes:
        valid: By variable.
        odd: Names of further fields, which `set` did not write; printable, and cut.
    """

    valid: dict[str, Override]
    odd: tuple[str, ...] = ()

    @classmethod
    def parse(cls, kept: object) -> StoredOverrides:
        """Read the hash: a field that `set` cannot have written hides no other.

        Raises:
            WireError: It is no hash, or larger than 1000 variables.
        """
        if not isinstance(kept, dict) or len(kept) > _MOST_OVERRIDES:
            raise WireError("overrides of another shape")
        valid, odd = {}, []
        for variable, value in sorted(kept.items()):
            name = _beginning_of(variable)
            is_variable = len(name) == len(variable) and _VARIABLE.fullmatch(name)
            override = _override(value) if is_variable else None
            if override is None:
                odd.append(name)
            else:
                valid[name] = override
        return cls(valid, tuple(odd))


def _override(kept: object) -> Override | None:
    try:
        return Override.parse(kept)
    except WireError:
        return None


@dataclass(frozen=True, slots=True)
class CooldownMessage:
    """A provider asked one worker to wait, and so all of them: for so many seconds."""

    seconds: float

    def as_text(self) -> str:
        """As it is published."""
        return f"wait {round(self.seconds * 1000)}"

    @classmethod
    def parse(cls, message: object) -> CooldownMessage | None:
        """Read a published message; None where it is of another kind.

        Raises:
            WireError: It is not ours.
        """
        if not isinstance(message, bytes) or not message.startswith(b"wait "):
            return None
        seconds = _whole(message[5:]) / 1000.0
        if seconds > _LONGEST_COOLING:
            raise WireError("a wait of days")
        return cls(seconds)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a script answers.

    Attributes:
        now: The state of the cluster.
        found: How the state was found: ``held``, ``missing``, ``corrupt``, or ``behind`` what the
            worker knows.
        extra: Milliseconds of a granted lease, or a script's own code.
    """

    now: Announcement
    found: str
    extra: int

    @classmethod
    def parse(cls, answer: object) -> Reply:
        """Read a script's answer.

        Raises:
            WireError: It is none that our scripts give.
        """
        if not isinstance(answer, list) or len(answer) != 7:  # noqa: PLR2004
            raise WireError("an answer of another shape")
        *state, found, extra = answer
        how = _text(found)
        if how not in _FOUND:
            raise WireError("an answer of another kind")
        return cls(_announcement(*state), how, _signed(extra))


@dataclass(frozen=True, slots=True)
class Description:
    """A breaker of the cluster, for people.

    Attributes:
        now: The state of the cluster.
        found: As in `Reply`.
        calls: Calls in the cluster's window.
        failed: How many failed.
        slow: How many were slow.
        workers: Workers that reported them.
        probes: Probes under way.
        since: Seconds since it broke, or was well again; None where that is unknown.
        tally: How all calls of all workers ended in that window.
    """

    now: Announcement
    found: str
    calls: int
    failed: int
    slow: int
    workers: int
    probes: int
    since: float | None
    tally: OutcomeCounts = field(default_factory=OutcomeCounts)

    @property
    def is_well(self) -> bool:
        """Whether it is closed, and calls do not fail besides."""
        return self.now.state is State.CLOSED and self.tally.condition == "healthy"

    @classmethod
    def parse(cls, answer: object) -> Description:
        """Read the answer of the script.

        Raises:
            WireError: It is none that our script gives.
        """
        if not isinstance(answer, list) or len(answer) != 16:  # noqa: PLR2004
            raise WireError("an answer of another shape")
        reply = Reply.parse(answer[:7])
        since = None if answer[12] == b"" else _whole(answer[12]) / 1000.0
        calls, failed, slow, workers, probes = map(_whole, answer[7:12])
        tally = _tally(calls, failed, *answer[13:])
        return cls(reply.now, reply.found, calls, failed, slow, workers, probes, since, tally)


def _announcement(state: Any, ver: Any, remaining: Any, opens: Any, why: Any) -> Announcement:
    letter = _text(state)
    if letter not in _STATES:
        raise WireError("a state that does not exist")
    left = min(_whole(remaining) / 1000.0, LONGEST_OPEN)
    breaks = min(_whole(opens), _MOST_BREAKS)  # there is room to count on
    return Announcement(_STATES[letter], _whole(ver), left, breaks, _beginning_of(why))


def _tally(calls: int, failed: int, causes: object, run: object, last: object) -> OutcomeCounts:
    """How all calls ended: those with a verdict, and besides them those that no breaker counts."""
    if not isinstance(causes, list) or len(causes) > 2 * _MOST_CAUSES or len(causes) % 2:
        raise WireError("failures of another shape")
    names, numbers = map(_beginning_of, causes[::2]), map(_whole, causes[1::2])
    seen = {name[:_LONGEST_CAUSE]: number for name, number in zip(names, numbers, strict=True)}
    all_failed = max(sum(seen.values()), failed)
    uncounted = all_failed - failed
    shown = _beginning_of(last)[:_LONGEST_CAUSE]
    return OutcomeCounts(calls + uncounted, all_failed, seen, _whole(run), shown, uncounted)


def _text(value: object) -> str:
    if not isinstance(value, bytes) or len(value) > _LARGEST:
        raise WireError("something that is no text, or too long a one")
    return printable(value.decode("utf-8", "replace"))


def _beginning_of(value: object) -> str:
    """Of a name or a reason, however long it is."""
    return _shown(_text(value[:_LARGEST_TEXT] if isinstance(value, bytes) else value))


def _shown(text: str) -> str:
    return printable(text, LONGEST_TEXT)


def _whole(value: object) -> int:
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > _DIGITS:
        raise WireError("something that is no whole number")
    if (number := int(value)) >= _MOST:
        raise WireError("a whole number that is too large")
    return number


def _signed(value: object) -> int:
    if isinstance(value, bytes) and value.startswith(b"-"):
        return -_whole(value[1:])
    return _whole(value)


@lru_cache(maxsize=64)
def policy_as_json(policy: BreakerPolicy) -> str:
    """What the scripts need of a policy; times in milliseconds."""
    return json.dumps(
        {
            "failure_rate": policy.failure_rate,
            "slow_rate": policy.slow_rate,
            "min_calls": policy.min_calls,
            "window_ms": round(policy.window_seconds * 1000),
            "open_ms": round(policy.open_for * 1000),
            "growth": policy.open_growth,
            "max_ms": round(policy.max_open_for * 1000),
            "probes": policy.probes,
            "lease_ms": round(policy.lease * 1000),
            "quorum": policy.quorum,
        }
    )
