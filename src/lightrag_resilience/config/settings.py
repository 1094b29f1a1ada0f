"""Environment variables become policies. No other module reads the environment."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SecretStr,
    StringConstraints,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from lightrag_resilience.errors import PolicyError, SettingsError
from lightrag_resilience.text import LONGEST_TEXT, as_count, printable

from .allowed_hosts import is_host_pattern
from .policies import FAMILIES, PARTS, Policy, Wait
from .redis_url import problem_with_address
from .validation import describe, field_hints
from .variables import (
    DEFAULT,
    PLAIN,
    PREFIX,
    is_misspelt,
    is_of_a_service,
    is_token,
    nearest,
    section_of,
    variable,
)

__all__ = ["Settings", "has_prometheus_folder", "lightrag_timeouts", "load_settings"]

_log = logging.getLogger("lightrag_resilience")

_LONGEST_SHOWN = 60  # characters
_LONGEST_GUESSED = 100  # characters of a name; a longer one is no slip of the pen
_MOST_SUGGESTIONS = 10  # in one error: each takes milliseconds
_REDIS_URL = f"{PREFIX}REDIS_URL"
_STATUS_TOKEN = f"{PREFIX}STATUS_TOKEN"
_LIGHTRAG_TIMEOUTS = {
    "llm": ("LLM_TIMEOUT", 240.0),
    "embedding": ("EMBEDDING_TIMEOUT", 30.0),
    "rerank": ("RERANK_TIMEOUT", 30.0),
}
_PLAIN_NAMES = frozenset(plain.name for plain in PLAIN)

Section = Mapping[str, Mapping[str, Any]]
"""For each part of a policy, the fields that are set and their values."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says.

    Attributes:
        redis_url: Where breaker state is shared, or None.
        redis_prefix: What all keys there begin with.
        ingest_patience: Seconds that a protected LightRAG's ingest waits for a dependency.
        degrade: Whether a protected LightRAG answers with what is still there.
        stale_answers: Seconds for which it may give an old answer then.
        recovery: Whether a protected LightRAG resumes what an outage left behind.
        recovery_attempts: How often it tries a failed document again.
        recovery_delay: Seconds before it does; they double with each time.
        shutdown_timeout: Seconds from being told to stop to the end.
        shutdown_cancel_grace: Of these, for what is cancelled to end.
        shutdown_close_timeout: Of these, for clients to be closed.
        shutdown_journal: The file for what was given up, or None.
        status: Whether a protected LightRAG's server has the status page.
        status_token: What lets those who have it steer breakers there, or None.
        status_hosts: Names under which that page answers, beside private ones.
        metrics: Whether a server made by `serve` has ``/metrics``.
        sections: For each dependency that variables name, what they set.
        given: Names of those above that variables set.
    """

    redis_url: SecretStr | None = None
    redis_prefix: str = "lr:"
    ingest_patience: float = 600.0
    degrade: bool = False
    stale_answers: float = 0.0
    recovery: bool = True
    recovery_attempts: int = 5
    recovery_delay: float = 5.0
    shutdown_timeout: float = 25.0
    shutdown_cancel_grace: float = 2.0
    shutdown_close_timeout: float = 5.0
    shutdown_journal: str | None = None
    status: bool = False
    status_token: SecretStr | None = None
    status_hosts: tuple[str, ...] | None = None
    metrics: bool = False
    sections: Mapping[str, Section] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    _policies: dict[Policy, Policy] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Equal policies are one and the same: ten thousand dependencies need no copy each."""

    def policy_for(self, name: str, base: Policy | None = None) -> Policy:
        """The policy of a dependency: `base`, or its family's preset, changed by the variables.

        Raises:
            SettingsError: The variables, each right, contradict each other or `base`.
        """
        parts = name.split(".")
        prefixes = [section_of(".".join(parts[:end])) for end in range(1, len(parts) + 1)]
        problems: list[str] = []
        policy = self._layer(base or Policy.for_name(name), [DEFAULT, *prefixes], problems)
        if problems:
            raise SettingsError(*problems)
        return self._policies.setdefault(policy, policy)

    def sources_for(self, name: str) -> dict[tuple[str, str], str]:
        """For each part and field of a dependency's policy that a variable sets, the variable."""
        parts = name.split(".")
        sections = [section_of(".".join(parts[:end])) for end in range(1, len(parts) + 1)]
        return {
            (part, key): variable(section, part, key)
            for section in [DEFAULT, *sections]
            for part, values in self.sections.get(section, {}).items()
            for key in values
        }

    def with_overrides(self, variables: Mapping[str, str]) -> Settings:
        """These settings, where some variables of policies have other values.

        Raises:
            SettingsError: Some are wrong, unknown, or cannot be changed while a process runs.
        """
        return self._laid_under(_sections_of(variables))

    def with_valid(
        self, variables: Mapping[str, str]
    ) -> tuple[Settings, frozenset[str], list[str]]:
        """These settings under variables that others wrote, as far as these make sense.

        What is wrong by itself is left out; where the rest contradicts itself or these settings,
        all of it is. No name is compared with those there are: for many that takes too long.

        Returns:
            The settings, the variables that hold there, and what is wrong with the others.
        """
        right = {name.upper(): value for name, value in variables.items()}
        told: list[str] = []
        sections, problems = _judged(right, suggest=False)
        while wrong := {name for name, _ in problems} & right.keys():
            right = {name: value for name, value in right.items() if name not in wrong}
            told += (problem for _, problem in problems)
            sections, problems = _judged(right, suggest=False)
        try:
            return self._laid_under(sections), frozenset(right), told
        except SettingsError as error:
            return self, frozenset(), [*told, *error.problems]

    def _laid_under(self, sections: Mapping[str, Section]) -> Settings:
        changed = replace(self, sections=_laid_over(self.sections, sections))
        if problems := sorted(set(changed.contradictions())):
            raise SettingsError(*problems)
        return changed

    def contradictions(self) -> Iterator[str]:
        """A sentence for each pair of variables that cannot both hold."""
        for section in {DEFAULT, *map(str.upper, FAMILIES), *self.sections}:
            words = section.split("_")
            prefixes = ["_".join(words[:end]) for end in range(1, len(words) + 1)]
            problems: list[str] = []
            self._layer(Policy.for_name(words[0].lower()), [DEFAULT, *prefixes], problems)
            yield from problems

    def _layer(self, policy: Policy, names: list[str], problems: list[str]) -> Policy:
        """Lay sections over a policy, the last on top."""
        for part in PARTS:
            changes: dict[str, Any] = {}
            origin: dict[str, str] = {}
            for name in names:
                for key, value in self.sections.get(name, {}).get(part, {}).items():
                    changes[key] = value
                    origin[key] = variable(name, part, key)
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
        environ: Where they stand; the process's environment by default.

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
        _tell_of_services(*sorted(foreign))
    variables = _read({name: found[name] for name in found.keys() - foreign})
    settings = Settings(
        redis_url=variables.redis_url,
        redis_prefix=variables.redis_prefix,
        ingest_patience=variables.ingest_patience,
        degrade=variables.degrade,
        stale_answers=variables.stale_answers,
        recovery=variables.recovery,
        recovery_attempts=variables.recovery_attempts,
        recovery_delay=variables.recovery_delay,
        shutdown_timeout=variables.shutdown_timeout,
        shutdown_cancel_grace=variables.shutdown_cancel_grace,
        shutdown_close_timeout=variables.shutdown_close_timeout,
        shutdown_journal=variables.shutdown_journal,
        status=variables.status,
        status_token=variables.status_token,
        status_hosts=variables.status_hosts,
        metrics=variables.metrics,
        sections=variables.model_dump(exclude_unset=True)["sections"],
        given=frozenset(variables.model_fields_set - {"sections"}),
    )
    if problems := sorted(set(settings.contradictions())):
        raise SettingsError(*problems)
    return settings


@functools.cache
def _tell_of_services(*names: str) -> None:
    """Say it once: settings are loaded in several places."""
    _log.debug("Not settings, but set for a service of that name: %s", ", ".join(names))


def lightrag_timeouts(environ: Mapping[str, str] | None = None) -> dict[str, float]:
    """Seconds of LightRAG's own timeouts, for each family that has one; as LightRAG reads them."""
    source = os.environ if environ is None else environ
    timeouts = {}
    for family, (name, default) in _LIGHTRAG_TIMEOUTS.items():
        seconds = as_count(source.get(name, ""))
        timeouts[family] = default if seconds is None else float(seconds)
    return timeouts


def has_prometheus_folder(environ: Mapping[str, str] | None = None) -> bool:
    """Whether processes share their metrics through files of prometheus_client."""
    source = os.environ if environ is None else environ
    return bool(source.get("PROMETHEUS_MULTIPROC_DIR"))


def _read(found: Mapping[str, str]) -> _Variables:
    try:
        return _Variables(found)
    except ValidationError as error:
        raise _as_one(_problems(error, found, suggest=True)) from None


def _sections_of(variables: Mapping[str, str]) -> Mapping[str, Section]:
    """What variables of policies set, while a process runs."""
    found = {name.upper(): value for name, value in variables.items()}
    sections, problems = _judged(found, suggest=True)
    if problems:
        raise _as_one(problems)
    return sections


def _judged(
    found: Mapping[str, str], *, suggest: bool
) -> tuple[Mapping[str, Section], list[tuple[str, str]]]:
    """What variables of policies set, or else some of them with what is wrong with each."""
    problems = [(name, f"{name} is read at the start only") for name in found.keys() & _PLAIN_NAMES]
    problems += [
        (name, f"{shown} is not known: the names of variables begin with {PREFIX}")
        for name in found
        if not name.startswith(PREFIX)
        for shown in [printable(name, LONGEST_TEXT)]
    ]
    if problems:
        return {}, problems
    try:
        return _Variables(found).model_dump(exclude_unset=True)["sections"], []
    except ValidationError as error:
        return {}, list(_problems(error, found, suggest=suggest))


def _as_one(problems: Iterable[tuple[str, str]]) -> SettingsError:
    return SettingsError(*sorted({problem for _, problem in problems}))


def _laid_over(below: Mapping[str, Section], above: Mapping[str, Section]) -> dict[str, Section]:
    """Each field of the sections above, and those below that they leave."""
    laid: dict[str, Section] = {**below}
    for name, section in above.items():
        parts = {**laid.get(name, {})}
        for part, values in section.items():
            parts[part] = {**parts.get(part, {}), **values}
        laid[name] = parts
    return laid


# ---------------------------------------------------------------------- what pydantic checks


def _reader(hint: Any) -> Callable[[str], str | None]:
    """How the text of a variable is prepared for its type."""
    has_none = NoneType in get_args(hint)
    has_words = get_origin(hint) is Literal

    def read(text: str | None) -> str | None:
        if text is None or (has_none and text.lower() == "none"):
            return None
        return text.lower() if has_words else text

    return read


def _model_of(policy: Any) -> type[BaseModel]:
    """A model with a policy's fields and bounds, none of them required."""
    types: dict[str, Any] = {
        name: (Annotated[hint, BeforeValidator(_reader(hint))], None)
        for name, hint in field_hints(policy).items()
    }
    return create_model(policy.__name__, __config__=ConfigDict(extra="forbid"), **types)


_PARTS: dict[str, Any] = {part: (_model_of(policy), None) for part, policy in PARTS.items()}
_Section = create_model("_Section", __config__=ConfigDict(extra="forbid"), **_PARTS)


def _redis_address(text: str) -> str:
    if problem := problem_with_address(text):
        raise ValueError(problem)
    return text


def _token(text: str) -> str:
    if not is_token(text):
        raise ValueError("a header could not carry it, or it is too short to be a secret")
    return text


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip() for host in text.split(","))
    if not all(map(is_host_pattern, hosts)):
        raise ValueError("not all are names of hosts")
    return hosts


T = TypeVar("T")
_OrNone = Annotated[T | None, BeforeValidator(_reader(str | None))]


class _Variables(BaseSettings):
    model_config = ConfigDict(extra="forbid")  # type: ignore[assignment]

    redis_url: _OrNone[Annotated[SecretStr, BeforeValidator(_redis_address)]] = None
    redis_prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:._-]{1,64}$")] = "lr:"
    ingest_patience: Wait = 600.0
    degrade: bool = False
    stale_answers: Wait = 0.0
    recovery: bool = True
    recovery_attempts: Annotated[int, Ge(0), Le(100)] = 5
    recovery_delay: Wait = 5.0
    shutdown_timeout: Wait = 25.0
    shutdown_cancel_grace: Wait = 2.0
    shutdown_close_timeout: Wait = 5.0
    shutdown_journal: _OrNone[str] = None
    status: bool = False
    status_token: _OrNone[Annotated[SecretStr, BeforeValidator(_token)]] = None
    status_hosts: _OrNone[Annotated[tuple[str, ...], BeforeValidator(_hosts)]] = None
    metrics: bool = False
    sections: dict[str, _Section] = {}  # type: ignore[valid-type]

    def __init__(self, found: Mapping[str, str]) -> None:
        super().__init__(_found=found)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: Any,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del env_settings, dotenv_settings, file_secret_settings
        return (_Environment(settings_cls, init_settings.init_kwargs["_found"]),)


class _Environment(PydanticBaseSettingsSource):
    """Sorts variables by the two underscores in their names."""

    def __init__(self, settings_cls: type[BaseSettings], found: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._found = found

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # __call__ gives all fields at once

    def __call__(self) -> dict[str, Any]:
        tree: dict[str, Any] = {"sections": {}}
        for name, value in self._found.items():
            section, *rest = name.removeprefix(PREFIX).split("__")
            if len(rest) == 2 and name.isascii() and not is_misspelt(section):  # noqa: PLR2004 - part and field
                part, key = map(str.lower, rest)
                tree["sections"].setdefault(section, {}).setdefault(part, {})[key] = value
            elif name in _PLAIN_NAMES:
                tree[section.lower()] = value
            else:
                tree[name] = value
        return tree


# ---------------------------------------------------------------------- errors for people


def _problems(
    error: ValidationError, found: Mapping[str, str], *, suggest: bool
) -> Iterator[tuple[str, str]]:
    """Variables, and for each what is wrong with it."""
    suggestions = _MOST_SUGGESTIONS if suggest else 0
    for detail in error.errors():
        place = [str(step) for step in detail["loc"]]
        if place[0] == "sections":
            section, part, *field_of_part = place[1:]
            name = variable(section, part, field_of_part[0]) if field_of_part else ""
        else:
            name = place[0] if place[0].startswith(PREFIX) else PREFIX + place[0].upper()
        if detail["type"] == "extra_forbidden":
            # An unknown part stands for all the variables below it.
            for unknown in [name] if name else _below(place, found):
                yield unknown, _unknown(unknown, suggest=suggestions > 0)
                suggestions -= 1
        elif name == _REDIS_URL:  # it may hold a password
            yield name, f"{name} {problem_with_address(found[name])}"
        elif name == _STATUS_TOKEN:
            yield name, f"{name} must be {_allowed(name, place)}"
        else:
            yield name, f"{name} is {_shown(name, found)}, but must be {_allowed(name, place)}"


def _below(place: list[str], found: Mapping[str, str]) -> list[str]:
    start = variable(place[1], place[2], "")
    return [name for name in found if name.startswith(start)]


def _unknown(name: str, *, suggest: bool) -> str:
    meant = nearest(name) if suggest and len(name) <= _LONGEST_GUESSED else None
    return f"{printable(name, LONGEST_TEXT)} is not known" + (
        f"; did you mean {meant}?" if meant else ""
    )


def _shown(name: str, found: Mapping[str, str]) -> str:
    value = found[name]
    return repr(value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}…")


def _allowed(name: str, place: list[str]) -> str:
    for plain in PLAIN:
        if plain.name == name:
            return plain.allowed
    policy: Any = PARTS[place[2]]
    return describe(field_hints(policy)[place[3]])
