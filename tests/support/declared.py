"""All declared settings, and the bounds of those that are numbers."""

from __future__ import annotations

from types import NoneType
from typing import Any, NamedTuple, get_args

from annotated_types import Ge, Gt, Le

from lightrag_resilience.config.dependency_names import DEFAULT
from lightrag_resilience.config.policies import PARTS
from lightrag_resilience.config.process_settings import ProcessSettings
from lightrag_resilience.config.validation import Setting, settings_of
from lightrag_resilience.config.variables import PROCESS_VARIABLES, variable


class Bounds(NamedTuple):
    low: float
    high: float
    is_closed: bool
    is_whole: bool

    def include(self, value: float) -> bool:
        above = self.low <= value if self.is_closed else self.low < value
        return above and value <= self.high


def bounds_of(hint: Any) -> Bounds | None:
    """The bounds of a number; None for any other type."""
    options = get_args(hint)
    if NoneType in options:
        return bounds_of(options[0])
    match options:
        case (number, (Ge() | Gt()) as low, Le(le=high)) if number in (int, float):
            is_closed = isinstance(low, Ge)
            lowest: Any = low.ge if isinstance(low, Ge) else low.gt
            top: Any = high
            return Bounds(lowest, top, is_closed, number is int)
    return None


POLICY_FIELDS: list[tuple[Any, Setting]] = [
    (policy, each) for policy in PARTS.values() for each in settings_of(policy).values()
]
VARIABLES: dict[str, Setting] = {
    name: settings_of(ProcessSettings)[key] for name, key in PROCESS_VARIABLES.items()
} | {
    variable(DEFAULT, part, name): each
    for part, policy in PARTS.items()
    for name, each in settings_of(policy).items()
}
