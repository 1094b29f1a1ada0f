"""The health of a dependency as its callers see it, for all places that show it.

The status page, `status`, `doctor`, the log, the metrics and the alerts take it from here. It
follows from all failed attempts, by status and class, and from the breaker. No clock, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .circuit.outcomes import OTHER, OutcomeCounts, short
from .text import counted, is_by_hand, symptom_of

__all__ = ["CONDITIONS", "Health", "advice_for", "health_of", "level_of"]

CONDITIONS: Final = (
    "down",
    "failing",
    "probing",
    "isolated",
    "paused",
    "degraded",
    "healthy",
    "unmonitored",
)
"""Every condition of a dependency, the worst first."""
_LEVELS: Final = {"healthy": 0, "unmonitored": 0, "degraded": 1, "paused": 1}
_ADVICE: Final = {
    "400": "check what is sent, as it finds the requests wrong",
    "401": "check its key",
    "402": "check its plan, as there is no credit left",
    "403": "check what its key may do",
    "404": "check its address and the name of its model",
    "408": "check whether it is overloaded, or give it more time",
    "413": "send it less at once, such as by a smaller EMBEDDING_BATCH_NUM",
    "422": "check what is sent, as it finds the requests wrong",
    "429": "send it less, see LIMIT__RPM, or have it grant more",
    "429 of a used-up quota": "check its plan, as the quota is used up",
}
_BY_CLASS: Final = (
    (("timeout",), "check whether it is overloaded, or give it more time"),
    (("auth", "permission", "password", "credential"), "check its key or password"),
    (("connect", "dns", "gaierror", "ssl", "certificate"), "check its address and the network"),
    (("invalidresult",), "check its address and model, and any proxy before it"),
    (("notfound", "validation", "badrequest"), "check its address, model and what is sent"),
)


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a dependency as its callers see it now.

    Attributes:
        condition: One of `CONDITIONS`.
        sentence: What is wrong, without a full stop; empty if nothing is.
        brief: The same without numbers, which change with each call.
        advice: What to do, without a full stop; empty if nothing is known.
    """

    condition: str
    sentence: str = ""
    advice: str = ""
    brief: str = ""

    @property
    def is_well(self) -> bool:
        """Whether callers are served, or the breaker is disabled and nothing is known."""
        return self.condition in {"healthy", "unmonitored"}

    def __str__(self) -> str:
        return _with(self.sentence, self.advice)

    @property
    def headline(self) -> str:
        """What is wrong and what to do, without numbers."""
        return _with(self.brief, self.advice)


def health_of(  # noqa: PLR0911, PLR0913 - one return for each condition; keyword arguments
    name: str,
    *,
    state: str = "closed",
    mode: str = "enforce",
    reason: str = "",
    tally: OutcomeCounts | None = None,
    diverged: int = 0,
    cooldown: float = 0.0,
) -> Health:
    """Decide the health of a dependency.

    Args:
        name: Its name.
        state: Of its circuit: ``closed``, ``open`` or ``half-open``.
        mode: The mode of its breaker.
        reason: Of the circuit's state.
        tally: How recent attempts ended; None if none failed.
        diverged: Workers whose own breaker is open while the shared one is closed.
        cooldown: Seconds left of its Retry-After.
    """
    if state == "open":
        by_hand = mode == "forced-open" or is_by_hand(reason)
        if by_hand:
            return Health("isolated", f"{name} is isolated, {reason}")
        return Health("down", f"{name} is down, {reason}", advice_for(symptom_of(reason)))
    if state == "half-open":
        return Health(
            "probing", f"{name} is being probed, {reason}", advice_for(symptom_of(reason))
        )
    if mode == "disabled":
        return Health("unmonitored")
    tally = tally or OutcomeCounts()
    condition = tally.condition
    if condition == "failing":
        return _of_calls(name, condition, tally)
    if cooldown:
        return Health("paused", f"{name} asked for a pause")
    if condition == "degraded":
        return _of_calls(name, condition, tally)
    if diverged:
        sentence = (
            f"{name} is rejected by {counted(diverged, 'worker')} with an open breaker of its own"
        )
        return Health("degraded", sentence, "check the network of those workers")
    return Health("healthy")


def level_of(condition: str) -> int:
    """The metric of a condition: 0 callers are served, 1 some are not, 2 hardly any is."""
    return _LEVELS.get(condition, 2)


def _of_calls(name: str, condition: str, tally: OutcomeCounts) -> Health:
    cause = _main_cause(tally)
    many, others = tally.causes.get(cause, 0), tally.failed - tally.causes.get(cause, 0)
    share = "some" if condition == "degraded" else "all" if tally.failed == tally.calls else "most"
    works = f"{name} works, but" if condition == "degraded" else name
    if cause.startswith("HTTP "):
        answers = f"answers {cause.removeprefix('HTTP ')} to"
        sentence = f"{name} {answers} {many} of {tally.calls} calls"
        sentence += f", and {others} more failed" if others else ""
        return Health(condition, sentence, advice_for(cause), f"{works} {answers} {share} calls")
    with_what = f" with {cause}" if cause and cause != OTHER else ""
    sentence = f"{name} fails in {tally.failed} of {tally.calls} calls"
    whole = f" with {tally.last}" if short(tally.last) == cause else with_what
    sentence += f", most{whole}" if others and with_what else whole
    return Health(
        condition, sentence, advice_for(cause), f"{works} fails in {share} calls{with_what}"
    )


def _main_cause(tally: OutcomeCounts) -> str:
    """The most frequent cause of failures; of equally frequent ones the latest."""
    last = short(tally.last)
    return max(tally.causes, key=lambda cause: (tally.causes[cause], cause == last), default="")


def _with(sentence: str, advice: str) -> str:
    return f"{sentence}: {advice}" if advice else sentence


def advice_for(symptom: str) -> str:
    """What to do about a failure with this symptom; empty if nothing is known."""
    cause = short(symptom)
    if not cause.startswith("HTTP "):
        name = cause.lower()
        found = (advice for words, advice in _BY_CLASS if any(word in name for word in words))
        return next(found, "")
    status = cause.removeprefix("HTTP ")
    if status in _ADVICE:
        return _ADVICE[status]
    if status.startswith("5"):
        return "check its own status page or log"
    return "check what is sent, and where to"
