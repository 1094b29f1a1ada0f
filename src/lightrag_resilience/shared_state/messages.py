"""Data that is sent to Redis and read from it. All that is read is checked: anyone may write it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field, replace
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
_MAX_BYTES = 16_384  # of anything that is parsed
_MAX_TEXT_BYTES = 4 * LONGEST_TEXT  # UTF-8 takes up to four bytes a character
_MAX_DIGITS = 16  # of `_MAX_WHOLE`
_VARIABLE = re.compile(r"RESILIENCE_[A-Z0-9_]{1,189}")
_MAX_CAUSE = 120  # characters
_MAX_CAUSES = 4 * (MOST_CAUSES + 1)  # the slices of a window may have different ones
_MAX_DIVERGED = 20  # names
_MAX_COOLDOWN = 86_400  # seconds
_MAX_OVERRIDES = 1000
_MAX_OPENS = 1_000_000
_REPLY = 8  # parts of a script's reply
_MAX_WHOLE = 2**53  # Lua's numbers are exact below it
_CENTURY = 100 * 365 * 86_400_000
"""Milliseconds that a published version may be ahead of this clock: a version begins as the time
and grows more slowly. The scripts accept twice that, so that an accepted version can still grow."""


class WireError(ValueError):
    """A malformed reply, message or value: this library cannot have written it."""


class Keys:
    """The keys of one breaker. The braces keep both in one cluster slot, as a script needs."""

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
        """The hash of outcomes, probe leases and batch numbers."""
        return f"{self.prefix}cb:{{{quote(self.name)}}}:w"

    @property
    def channel(self) -> str:
        """The channel on which changes of state are published."""
        return f"{self.prefix}cb:ev:{quote(self.name)}"

    @staticmethod
    def every_state(prefix: str) -> str:
        """The pattern of the state keys of all breakers."""
        return f"{prefix}cb:{{*}}:s"

    @staticmethod
    def name_in_state(key: bytes, prefix: str) -> str:
        """The name of the breaker that a state key belongs to."""
        name = key.decode("utf-8", "replace").removeprefix(f"{prefix}cb:{{").removesuffix("}:s")
        return unquote(name)

    @staticmethod
    def name_in_channel(channel: bytes, prefix: str) -> str:
        """The name of the breaker that a channel belongs to."""
        return unquote(channel.decode("utf-8", "replace").removeprefix(f"{prefix}cb:ev:"))


@dataclass(frozen=True, slots=True)
class Presence:
    """A worker as its heartbeat describes it.

    Attributes:
        host: The name of its machine.
        pid: Its process id there.
        diverged: Breakers that it holds open or half-open by its own decision.
    """

    host: str
    pid: int
    diverged: tuple[str, ...] = ()

    @staticmethod
    def key(prefix: str, worker: str) -> str:
        """The key of a worker; with ``*`` the pattern of all."""
        return f"{prefix}worker:{worker}"

    def as_json(self) -> str:
        """The stored form."""
        return json.dumps([self.host, self.pid, *self.diverged[:_MAX_DIVERGED]])

    @classmethod
    def parse(cls, stored: object) -> Presence:
        """Parse the stored form.

        Raises:
            WireError: It is malformed.
        """
        try:
            host, pid, *diverged = json.loads(_text(stored))
        except (ValueError, TypeError, RecursionError):
            raise WireError("a malformed worker") from None
        if type(pid) is not int or not 0 <= pid < _MAX_WHOLE:
            raise WireError("a worker with an impossible process id")
        if not all(isinstance(text, str) for text in (host, *diverged)):
            raise WireError("a malformed worker")
        names = tuple(_shown(name) for name in diverged[:_MAX_DIVERGED])
        return cls(_shown(host), pid, names)


@dataclass(slots=True)
class Report:
    """Outcomes since the last report.

    Attributes:
        batch: Its number; the script counts each number once.
        calls: Calls with a verdict.
        failed: How many failed.
        slow: How many were slow.
        tripped: Why the worker opened by itself; empty if it did not.
        verdicts: For each probe its token and ``ok``; or ``met``, milliseconds until the next
            probe and the answer, if it was answered but not served; or why it failed.
        causes: Failures by cause, also those without a verdict.
        last: The last failure.
    """

    batch: int
    calls: int = 0
    failed: int = 0
    slow: int = 0
    tripped: str = ""
    verdicts: tuple[tuple[str, str], ...] = ()
    causes: dict[str, int] = field(default_factory=dict)
    last: str = ""

    def record_failure(self, symptom: str) -> None:
        """Count a failure by its cause."""
        cause = short(symptom)
        if cause not in self.causes and len(self.causes) >= MOST_CAUSES:
            cause = OTHER
        self.causes[cause] = self.causes.get(cause, 0) + 1
        self.last = symptom


@dataclass(frozen=True, slots=True)
class Announcement:
    """The state of a breaker in the cluster.

    Attributes:
        state: Closed, open or half-open.
        version: Grows with each change.
        remaining: Seconds until an open breaker may be probed.
        opens: Breaks in a row without a recovery.
        reason: Why it changed to this state, as a clause.
        outage: Seconds since the outage began; 0 where it has just begun, or is over.
    """

    state: State
    version: int
    remaining: float
    opens: int
    reason: str
    outage: float = 0.0

    @classmethod
    def parse(cls, message: object) -> Announcement:
        """Parse a published message.

        Raises:
            WireError: It is malformed.
        """
        if not isinstance(message, bytes):
            raise WireError("a message that is no text")
        parts = message.split(b" ", 4)
        if len(parts) != 5:  # noqa: PLR2004
            raise WireError("a malformed message")
        announcement = _announcement(*parts)
        # Accepted, it would make this worker ignore all real changes.
        if announcement.version > time.time() * 1000 + _CENTURY:
            raise WireError("a version far ahead of the clock")
        return announcement


@dataclass(frozen=True, slots=True)
class Override:
    """A variable's value that replaces that of the environment in all workers.

    Attributes:
        value: As in the environment.
        reason: The author and the reason.
    """

    value: str
    reason: str

    @staticmethod
    def key(prefix: str) -> str:
        """The key of the hash of all overrides, by variable."""
        return f"{prefix}overrides"

    def as_json(self) -> str:
        """The stored form."""
        return json.dumps([self.value, self.reason])

    @classmethod
    def parse(cls, stored: object) -> Override:
        """Parse the stored form.

        Raises:
            WireError: It is malformed.
        """
        try:
            value, reason = json.loads(_text(stored))
        except (ValueError, TypeError, RecursionError):
            raise WireError("a malformed override") from None
        if not isinstance(value, str) or not isinstance(reason, str):
            raise WireError("a malformed override")
        return cls(_shown(value), _shown(reason))


@dataclass(frozen=True, slots=True)
class StoredOverrides:
    """The content of the hash of overrides.

    Attributes:
        valid: By variable.
        odd: Names of malformed fields, printable and cut.
    """

    valid: dict[str, Override]
    odd: tuple[str, ...] = ()

    @classmethod
    def parse(cls, stored: object) -> StoredOverrides:
        """Parse the hash; a malformed field does not hide the others.

        Raises:
            WireError: It is no hash, or has more than 1000 fields.
        """
        if not isinstance(stored, dict) or len(stored) > _MAX_OVERRIDES:
            raise WireError("malformed overrides")
        valid, odd = {}, []
        for variable, value in sorted(stored.items()):
            name = _clipped_text(variable)
            is_variable = len(name) == len(variable) and _VARIABLE.fullmatch(name)
            override = _override(value) if is_variable else None
            if override is None:
                odd.append(name)
            else:
                valid[name] = override
        return cls(valid, tuple(odd))


def _override(stored: object) -> Override | None:
    try:
        return Override.parse(stored)
    except WireError:
        return None


@dataclass(frozen=True, slots=True)
class CooldownMessage:
    """A cool-down in seconds that a provider asked one worker for, and that all workers keep."""

    seconds: float

    def as_text(self) -> str:
        """The published form."""
        return f"wait {round(self.seconds * 1000)}"

    @classmethod
    def parse(cls, message: object) -> CooldownMessage | None:
        """Parse a published message; None if it is of another kind.

        Raises:
            WireError: It is malformed.
        """
        if not isinstance(message, bytes) or not message.startswith(b"wait "):
            return None
        seconds = _whole(message[5:]) / 1000.0
        if seconds > _MAX_COOLDOWN:
            raise WireError("a cool-down of days")
        return cls(seconds)


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of a breaker script.

    Attributes:
        now: The state in the cluster.
        found: How the script found the state: ``held``, ``missing``, ``corrupt``, or ``behind`` the
            version that the worker knows.
        extra: Milliseconds of a probe's lease; negative if it was rejected.
    """

    now: Announcement
    found: str
    extra: int

    @classmethod
    def parse(cls, answer: object) -> Reply:
        """Parse a script's answer.

        Raises:
            WireError: It is malformed.
        """
        if not isinstance(answer, list) or len(answer) != _REPLY:
            raise WireError("a malformed answer")
        *state, found, extra, outage = answer
        marker = _text(found)
        if marker not in _FOUND:
            raise WireError("an answer with an unknown marker")
        now = replace(_announcement(*state), outage=_whole(outage) / 1000.0)
        return cls(now, marker, _signed(extra))


@dataclass(frozen=True, slots=True)
class Description:
    """A breaker of the cluster, for operators.

    Attributes:
        now: The state in the cluster.
        found: As in `Reply`.
        calls: Calls in the cluster's window.
        failed: How many failed.
        slow: How many were slow.
        workers: Workers that reported in the window.
        probes: Probes under way.
        since: Seconds since the outage began or ended; None if unknown.
        tally: The outcomes of all calls of all workers in that window.
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
        """Whether it is closed and its calls succeed."""
        return self.now.state is State.CLOSED and self.tally.condition == "healthy"

    @classmethod
    def parse(cls, answer: object) -> Description:
        """Parse the script's answer.

        Raises:
            WireError: It is malformed.
        """
        if not isinstance(answer, list) or len(answer) != _REPLY + 9:
            raise WireError("a malformed answer")
        reply, (*counts, since, causes, run, last) = Reply.parse(answer[:_REPLY]), answer[_REPLY:]
        calls, failed, slow, workers, probes = map(_whole, counts)
        began = None if since == b"" else _whole(since) / 1000.0
        tally = _tally(calls, failed, causes, run, last)
        return cls(reply.now, reply.found, calls, failed, slow, workers, probes, began, tally)


def _announcement(state: Any, ver: Any, remaining: Any, opens: Any, why: Any) -> Announcement:
    letter = _text(state)
    if letter not in _STATES:
        raise WireError("an unknown state")
    left = min(_whole(remaining) / 1000.0, LONGEST_OPEN)
    breaks = min(_whole(opens), _MAX_OPENS)  # leaves room to count on
    return Announcement(_STATES[letter], _whole(ver), left, breaks, _clipped_text(why))


def _tally(calls: int, failed: int, causes: object, run: object, last: object) -> OutcomeCounts:
    """The outcomes of all calls: those that the breaker counts, and failures that it does not."""
    if not isinstance(causes, list) or len(causes) > 2 * _MAX_CAUSES or len(causes) % 2:
        raise WireError("malformed failures")
    names, numbers = map(_clipped_text, causes[::2]), map(_whole, causes[1::2])
    seen = {name[:_MAX_CAUSE]: number for name, number in zip(names, numbers, strict=True)}
    all_failed = max(sum(seen.values()), failed)
    uncounted = all_failed - failed
    shown = _clipped_text(last)[:_MAX_CAUSE]
    return OutcomeCounts(calls + uncounted, all_failed, seen, _whole(run), shown, uncounted)


def _text(value: object) -> str:
    if not isinstance(value, bytes) or len(value) > _MAX_BYTES:
        raise WireError("something that is no text, or too long")
    return printable(value.decode("utf-8", "replace"))


def _clipped_text(value: object) -> str:
    """The beginning of a name or a reason of any length."""
    return _shown(_text(value[:_MAX_TEXT_BYTES] if isinstance(value, bytes) else value))


def _shown(text: str) -> str:
    return printable(text, LONGEST_TEXT)


def _whole(value: object) -> int:
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > _MAX_DIGITS:
        raise WireError("something that is no whole number")
    if (number := int(value)) >= _MAX_WHOLE:
        raise WireError("a whole number that is too large")
    return number


def _signed(value: object) -> int:
    if isinstance(value, bytes) and value.startswith(b"-"):
        return -_whole(value[1:])
    return _whole(value)


@lru_cache(maxsize=64)
def policy_as_json(policy: BreakerPolicy, *, is_probed: bool = False) -> str:
    """The part of a policy that the scripts need; times in milliseconds."""
    breaks = policy.breaks(is_probed=is_probed)
    return json.dumps(
        {
            "evidence": policy.decides_by_evidence,
            "failure_rate": policy.failure_rate or False,
            "slow_rate": policy.slow_rate,
            "min_calls": policy.min_calls,
            "window_ms": round(policy.window_seconds * 1000),
            "first_ms": round(breaks.first * 1000),
            "open_ms": round(breaks.base * 1000),
            "growth": breaks.growth,
            "max_ms": round(breaks.longest * 1000),
            "probes": policy.probes,
            "lease_ms": round(policy.lease * 1000),
            "quorum": policy.quorum,
        }
    )
