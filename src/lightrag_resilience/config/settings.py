"""Settings: what environment variables set, and the policies that follow from it."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightrag_resilience.errors import PolicyError, SettingsError

from .dependency_names import DEFAULT, sections_for
from .env_parsing import SECTIONS, Problem, parse_overrides, parse_variables
from .policies import FAMILIES, PARTS, Policy
from .process_environment import lightrag_timeouts, timeout_variable
from .process_settings import ProcessSettings
from .variables import PREFIX, is_of_a_service, variable

__all__ = ["Settings", "load_settings"]

_log = logging.getLogger("lightrag_resilience")

Section = Mapping[str, Mapping[str, Any]]
"""For each part of a policy, the fields that are set and their values."""


@dataclass(frozen=True, slots=True)
class Settings(ProcessSettings):
    """What the environment sets, for the process and for each dependency.

    Attributes:
        overrides_by_section: For each dependency or family that variables name, what they set.
        explicitly_set: Names of the settings of the process that variables set.
        given_timeouts: Seconds of LightRAG's own timeouts that variables set, by family.
    """

    overrides_by_section: Mapping[str, Section] = field(default_factory=dict)
    explicitly_set: frozenset[str] = frozenset()
    given_timeouts: Mapping[str, float] = field(default_factory=dict)
    _policies: dict[Policy, Policy] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Equal policies are one object, so that ten thousand dependencies need no copy each."""

    def policy_for(
        self, name: str, base: Policy | None = None, *, given: float | None = None
    ) -> Policy:
        """The policy of a dependency: `base`, or its family's preset, changed by the variables.

        Args:
            name: The dependency.
            base: The policy given in code.
            given: Seconds that LightRAG gives its calls, which the preset's times follow; None
                takes them from LightRAG's variables.

        Raises:
            SettingsError: The variables, each right, contradict each other or `base`.
        """
        problems: list[str] = []
        base = base or self._preset(name, given)
        policy = self._overlay(base, sections_for(name), problems)
        if problems:
            raise SettingsError(*problems)
        return self._policies.setdefault(policy, policy)

    def _preset(self, name: str, given: float | None) -> Policy:
        preset = Policy.for_name(name)
        if given is None:
            given = self.given_timeouts.get(name.partition(".")[0])
        if given is None:
            return preset
        return replace(preset, timeout=preset.timeout.inheriting(given))

    def sources_for(self, name: str) -> dict[tuple[str, str], str]:
        """For each part and field of a dependency's policy that a variable sets, the variable."""
        family = name.partition(".")[0]
        times = ("attempt", "total") if family in self.given_timeouts else ()
        return {("timeout", key): timeout_variable(family) for key in times} | {
            (part, key): variable(section, part, key)
            for section in sections_for(name)
            for part, values in self.overrides_by_section.get(section, {}).items()
            for key in values
        }

    def without_effect_on(self, names: Iterable[str]) -> list[str]:
        """How variables begin that name a dependency, and none of these."""
        used = {DEFAULT, *map(str.upper, FAMILIES)}.union(*map(sections_for, names))
        return [
            f"{PREFIX}{section}__"
            for section in sorted(self.overrides_by_section)
            if section not in used
        ]

    def with_overrides(self, variables: Mapping[str, str]) -> Settings:
        """These settings, where some variables of policies have other values.

        Raises:
            SettingsError: Some are wrong, unknown, or cannot be changed while a process runs.
        """
        found = {name.upper(): value for name, value in variables.items()}
        sections, problems = parse_overrides(found, suggest=True)
        if problems:
            raise _error_of(problems)
        return self._merge(sections)

    def with_valid(
        self, variables: Mapping[str, str]
    ) -> tuple[Settings, frozenset[str], list[str]]:
        """These settings under variables from Redis, as far as those are valid.

        A variable that is wrong by itself is left out. If the others contradict each other or these
        settings, all are left out. Unknown names get no suggestion: for many that takes too long.

        Returns:
            The settings, the variables that are in force there, and what is wrong with the others.
        """
        right = {name.upper(): value for name, value in variables.items()}
        reported: list[str] = []
        sections, problems = parse_overrides(right, suggest=False)
        while wrong := {name for name, _ in problems} & right.keys():
            right = {name: value for name, value in right.items() if name not in wrong}
            reported += (problem for _, problem in problems)
            sections, problems = parse_overrides(right, suggest=False)
        try:
            return self._merge(sections), frozenset(right), reported
        except SettingsError as error:
            return self, frozenset(), [*reported, *error.problems]

    def _merge(self, sections: Mapping[str, Section]) -> Settings:
        merged = replace(
            self, overrides_by_section=_merge_sections(self.overrides_by_section, sections)
        )
        merged.check()
        return merged

    def check(self) -> None:
        """Check that no two variables contradict each other.

        Raises:
            SettingsError: Some do; it names every pair.
        """
        if problems := sorted(set(self._contradictions())):
            raise SettingsError(*problems)

    def _contradictions(self) -> Iterator[str]:
        for section in {DEFAULT, *map(str.upper, FAMILIES), *self.overrides_by_section}:
            words = section.split("_")
            prefixes = ["_".join(words[:end]) for end in range(1, len(words) + 1)]
            problems: list[str] = []
            self._overlay(Policy.for_name(words[0].lower()), [DEFAULT, *prefixes], problems)
            yield from problems

    def _overlay(self, policy: Policy, sections: list[str], problems: list[str]) -> Policy:
        """A policy changed by sections; the last one wins."""
        for part in PARTS:
            changes: dict[str, Any] = {}
            origin: dict[str, str] = {}
            for section in sections:
                for key, value in self.overrides_by_section.get(section, {}).get(part, {}).items():
                    changes[key] = value
                    origin[key] = variable(section, part, key)
            if part == "timeout" and (policy.timeout.attempt or 0) > (
                changes.get("total") or math.inf
            ):
                changes.setdefault("attempt", changes["total"])  # it is one of the call's attempts
            try:
                changed: Any = replace(getattr(policy, part), **changes)
            except PolicyError as error:
                involved = sorted(name for key, name in origin.items() if key in str(error))
                problems.append(f"{' and '.join(involved)}: {error}")
            else:
                policy = replace(policy, **{part: changed})
        return policy


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check all ``RESILIENCE_*`` variables.

    Args:
        environ: The variables; the process's environment by default.

    Raises:
        SettingsError: Some are wrong or unknown; it names all of them.
    """
    source = os.environ if environ is None else environ
    found = {
        name.upper(): value.strip()
        for name, value in source.items()
        if name.upper().startswith(PREFIX) and value.strip()
    }
    foreign = {name for name, value in found.items() if is_of_a_service(name, value)}
    if foreign:
        _log_of_services(*sorted(foreign))
    values, problems = parse_variables({name: found[name] for name in found.keys() - foreign})
    if problems:
        raise _error_of(problems)
    settings = Settings(
        **values,
        explicitly_set=frozenset(values.keys() - {SECTIONS}),
        given_timeouts=lightrag_timeouts(source),
    )
    settings.check()
    return settings


@functools.cache  # log it once, however often settings are loaded
def _log_of_services(*names: str) -> None:
    _log.debug("Not settings, but set for a service of that name: %s", ", ".join(names))


def _error_of(problems: Iterable[Problem]) -> SettingsError:
    return SettingsError(*sorted({problem for _, problem in problems}))


def _merge_sections(
    below: Mapping[str, Section], above: Mapping[str, Section]
) -> dict[str, Section]:
    """The fields of the sections above, and those below that they do not set."""
    merged: dict[str, Section] = {**below}
    for name, section in above.items():
        parts = {**merged.get(name, {})}
        for part, values in section.items():
            parts[part] = {**parts.get(part, {}), **values}
        merged[name] = parts
    return merged
