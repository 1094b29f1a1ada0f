"""Whether a caller of a dependency is served now: decided here, and shown by all faces alike.

The status page, `status`, `doctor`, the log, the metrics and the alerts take it from here. It is
judged by all attempts that failed, by status and class, and by the breaker; well is only what a
caller would find well. No clock, no I/O: numbers in, a verdict out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .circuit.outcomes import OTHER, OutcomeCounts, short
from .text import is_by_hand, symptom_of

__all__ = ["LOOKS", "Health", "advice_for", "health_of", "level_of"]

LOOKS: Final = ("down", "failing", "tried", "isolated", "paused", "uneasy", "works", "unwatched")
"""All that can be said of a dependency in one word, the worst first."""
_LEVELS: Final = {"works": 0, "unwatched": 0, "uneasy": 1, "paused": 1}
_ADVICE: Final = {
    "400": "look at what is sent, as it finds the requests wrong",
    "401": "check its key",
    "402": "check its plan, as there is no credit left",
    "403": "check what its key may do",
    "404": "check its address and the name of its model",
    "408": "look whether it is overloaded, or give it more time",
    "413": "look at what is sent, as it is too long",
    "422": "look at what is sent, as it finds the requests wrong",
    "429": "send it less, see LIMIT__RPM, or have it grant more",
    "429 of a used-up quota": "check its plan, as the quota is used up",
}
_BY_CLASS: Final = (
    (("timeout",), "look whether it is overloaded, or give it more time"),
    (("auth", "permission", "password", "credential"), "check its key or password"),
    (("connect", "dns", "gaierror", "ssl", "certificate"), "check its address and the network"),
    (("notfound", "validation", "badrequest"), "check its address, model and what is sent"),
)


@dataclass(frozen=True, slots=True)
class Health:
    """How a dependency is for who calls it now.

    Attributes:
        condition: One of `LOOKS`.
        sentence: What is wrong, as a sentence without its end; empty where nothing is.
        brief: The same without numbers, which change with every call.
        advice: What to do, as such a sentence; empty where there is nothing to do.
    """

    condition: str
    sentence: str = ""
    advice: str = ""
    brief: str = ""

    @property
    def is_well(self) -> bool:
        """Whether a caller would agree that all is well, or nothing watches it."""
        return self.condition in {"works", "unwatched"}

    def __str__(self) -> str:
        return _with(self.sentence, self.advice)

    @property
    def headline(self) -> str:
        """What is wrong and what to do, without numbers."""
        return _with(self.brief, self.advice)


def health_of(  # noqa: PLR0911, PLR0913 - one for each look; all but one by name
    name: str,
    *,
    state: str = "closed",
    mode: str = "enforce",
    reason: str = "",
    tally: OutcomeCounts | None = None,
    alone: int = 0,
    standstill: float = 0.0,
) -> Health:
    """How a dependency is.

    Args:
        name: Its name.
        state: Where its circuit stands: ``closed``, ``open`` or ``half-open``.
        mode: The mode of its breaker.
        reason: Why its circuit stands there.
        tally: How all attempts ended lately; None where none failed.
        alone: Workers that refuse it by themselves.
        standstill: Seconds for which it asked not to be called.
    """
    if state == "open":
        by_hand = mode == "forced-open" or is_by_hand(reason)
        if by_hand:
            return Health("isolated", f"{name} is kept off, {reason}")
        return Health("down", f"{name} is down, {reason}", advice_for(symptom_of(reason)))
    if state == "half-open":
        return Health("tried", f"{name} is being tried, {reason}", advice_for(symptom_of(reason)))
    if mode == "disabled":
        return Health("unwatched")
    tally = tally or OutcomeCounts()
    look = tally.condition
    if look == "failing":
        return _of_calls(name, look, tally)
    if standstill:
        return Health("paused", f"{name} asked for a pause")
    if look == "uneasy":
        return _of_calls(name, look, tally)
    if alone:
        told = f"{name} is refused by {alone} of the workers by themselves"
        return Health("uneasy", told, "look at the network of those workers")
    return Health("works")


def level_of(look: str) -> int:
    """For metrics: 0 where callers are served, 1 where some are not, 2 where hardly any is."""
    return _LEVELS.get(look, 2)


def _of_calls(name: str, look: str, tally: OutcomeCounts) -> Health:
    cause = _main_cause(tally)
    many, others = tally.causes.get(cause, 0), tally.failed - tally.causes.get(cause, 0)
    share = "some" if look == "uneasy" else "all" if tally.failed == tally.calls else "most"
    works = f"{name} works, but" if look == "uneasy" else name
    if cause.startswith("HTTP "):
        answers = f"answers {cause.removeprefix('HTTP ')} to"
        told = f"{name} {answers} {many} of {tally.calls} calls"
        told = f"{told}, and {others} more failed" if others else told
        return Health(look, told, advice_for(cause), f"{works} {answers} {share} calls")
    with_what = f" with {cause}" if cause and cause != OTHER else ""
    told = f"{name} fails in {tally.failed} of {tally.calls} calls"
    told += f", most{with_what}" if others and with_what else with_what
    return Health(look, told, advice_for(cause), f"{works} fails in {share} calls{with_what}")


def _main_cause(tally: OutcomeCounts) -> str:
    """What most attempts failed by; of two as frequent ones the last that was seen."""
    last = short(tally.last)
    return max(tally.causes, key=lambda cause: (tally.causes[cause], cause == last), default="")


def _with(sentence: str, advice: str) -> str:
    return f"{sentence}: {advice}" if advice else sentence


def advice_for(symptom: str) -> str:
    """What to do about a failure that looked so; empty where nothing is known."""
    cause = short(symptom)
    if not cause.startswith("HTTP "):
        name = cause.lower()
        found = (told for words, told in _BY_CLASS if any(word in name for word in words))
        return next(found, "")
    status = cause.removeprefix("HTTP ")
    if status in _ADVICE:
        return _ADVICE[status]
    if status.startswith("5"):
        return "look at its own status page or log"
    return "look at what is sent, and where to"
