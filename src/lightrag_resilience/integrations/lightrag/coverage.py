"""What of LightRAG is guarded, and what is not because a release lacks a private name."""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import CodeType
from typing import Any, NamedTuple

import lightrag

from lightrag_resilience.errors import UnsupportedCallError

from .compat import PRIVATE_NAMES, RAG, PrivateName

__all__ = ["TO_DO", "Cover", "Coverage", "Seam", "compatibility_page"]

_log = logging.getLogger("lightrag_resilience")

_TESTED = "1.5.7"  # the latest release whose names were compared
_SERVER = "server."
TO_DO = (
    "install another release of LightRAG (docs/compatibility.md says what each leaves unguarded) "
    "or a later lightrag_resilience"
)
_HINT = f"To do: {TO_DO}; `lightrag-resilience doctor --lightrag` lists every seam"


class Cover(enum.StrEnum):
    """Whether a seam of LightRAG is guarded, the worst first."""

    UNGUARDED = "unguarded"
    UNKNOWN = "unknown"
    GUARDED = "guarded"


@dataclass(frozen=True, slots=True)
class Seam:
    """A place where LightRAG calls something that may fail, or where it is stopped.

    Attributes:
        name: Such as ``llm.query`` or ``pipeline.drain``.
        cover: Whether it is guarded.
        reason: Why it is not, and what follows; empty if it is.
    """

    name: str
    cover: Cover
    reason: str = ""


class _Lack(NamedTuple):
    """Why seams are not guarded; without a name that is missing, the loss says it all."""

    seams: tuple[str, ...]
    cover: Cover
    name: str
    loss: str


class Coverage:
    """Which seams of a LightRAG are guarded.

    Args:
        rag: Its class.
        version: Its version; that of the installed LightRAG by default.
    """

    def __init__(self, rag: type | None = None, version: str | None = None) -> None:
        self._rag = lightrag.LightRAG if rag is None else rag
        self.version = lightrag.__version__ if version is None else version
        now = _numbers(self.version)
        names = [name for name in PRIVATE_NAMES if _applies(name, now)]
        seams = dict.fromkeys(seam for name in names for seam in name.seams)
        groups = [*dict.fromkeys(map(_group, seams))]
        self._seams = dict.fromkeys(sorted(seams, key=lambda seam: groups.index(_group(seam))))
        self._lacks: list[_Lack] = []
        finder = _Finder(self._rag)
        for name in names:
            if not (is_there := finder.has(name)):
                cover = Cover.UNKNOWN if is_there is None else Cover.UNGUARDED
                self._lacks.append(_Lack(name.seams, cover, str(name), name.loss))

    def __contains__(self, seam: str) -> bool:
        """Whether this LightRAG has such a seam."""
        return seam in self._seams

    def is_guarded(self, seam: str) -> bool:
        """Whether nothing is known to be missing that guards a seam."""
        return not any(seam in it.seams and it.cover is Cover.UNGUARDED for it in self._lacks)

    def add(self, seam: str, cover: Cover, reason: str) -> None:
        """Add why a seam is not guarded, or not certainly, although no name is missing."""
        self._seams.setdefault(seam)
        self._lacks.append(_Lack((seam,), cover, "", reason))

    def seams(self) -> Iterator[Seam]:
        """All seams, with what is missing."""
        for seam in self._seams:
            found = [lack for lack in self._lacks if seam in lack.seams]
            covers = {Cover.GUARDED, *(lack.cover for lack in found)}
            worst = next(it for it in Cover if it in covers)
            yield Seam(seam, worst, "; ".join(_reasons(found)))

    def report(self, *, of_server: bool | None = False, strict: bool = False) -> None:
        """Log once in this process what is not guarded.

        Args:
            of_server: Whether to report the seams of LightRAG's server, or all others; None: all.
            strict: Whether to raise instead.

        Raises:
            UnsupportedCallError: Something is not guarded, and `strict` is true.
        """
        missing = [
            lack
            for lack in self._lacks
            if lack.cover is Cover.UNGUARDED
            and of_server in {None, lack.seams[0].startswith(_SERVER)}
        ]
        if not missing:
            return
        text = f"LightRAG {self.version} is not guarded everywhere: " + "; ".join(
            f"{', '.join(seams)}: {reason}"
            for seams in dict.fromkeys(lack.seams for lack in missing)
            for reason in _reasons([lack for lack in missing if lack.seams == seams])
        )
        if strict:
            raise UnsupportedCallError(f"{text}. RESILIENCE_STRICT is true. {_HINT}")
        _warn_once(f"{text}. {_HINT}")


@functools.cache  # log it once, however many LightRAGs are protected
def _warn_once(text: str) -> None:
    _log.warning("%s", text)


def _group(seam: str) -> str:
    return seam.partition(".")[0]


def _reasons(lacks: list[_Lack]) -> Iterator[str]:
    """What follows, and the missing names of which it does."""
    for cover, loss in dict.fromkeys((lack.cover, lack.loss) for lack in lacks):
        names = {it.name: None for it in lacks if it.name and (it.cover, it.loss) == (cover, loss)}
        named = ", ".join(names)
        if not named:
            yield loss
        elif cover is Cover.UNKNOWN:
            yield f"LightRAG's code cannot be read, to look for {named}"
        else:
            yield f"{loss}, as {named} {'is' if len(names) == 1 else 'are'} missing"


# ---------------------------------------------------------------------- looking for a name


def _applies(name: PrivateName, version: tuple[int, ...]) -> bool:
    """Whether a release has what a name guards."""
    is_over = bool(name.until) and version >= _numbers(name.until)
    return version >= _numbers(name.needed_from) and not is_over


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


class _Finder:
    """Looks for names in a LightRAG, and reads each file and each class once."""

    def __init__(self, rag: type) -> None:
        self._rag = rag
        self._read = functools.cache(_source_of)
        self._names_in = functools.cache(_names_in)

    def has(self, name: PrivateName) -> bool | None:
        """Whether the LightRAG has a name; None if its code cannot be read."""
        if name.is_text:
            text = self._read(name.holder)
            return None if text is None else name.name in text
        holder = self._rag if name.holder == RAG else _object(name.holder)
        if isinstance(holder, Mapping):
            return name.name in holder
        if not hasattr(holder, name.name) and name.name not in self._names_in(holder):
            return False
        if not name.parameters:
            return True
        return {*name.parameters} <= {*inspect.signature(getattr(holder, name.name)).parameters}


def _source_of(file: str) -> str | None:
    """The code of a module of LightRAG's, empty if there is none; None if none can be read."""
    for path in (file, "__init__.py"):
        try:
            data = pkgutil.get_data("lightrag", path)
        except OSError:
            continue
        if data is not None:
            return data.decode() if path == file else ""
    return None


def _object(path: str) -> Any:
    """A module of LightRAG's, or what one has; None if there is none."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(_object(module), name, None) if module else None


def _names_in(holder: Any) -> set[str]:
    """What the code of a function or of a class's methods names, and the fields of a class."""
    members, names = [holder], set()
    if inspect.isclass(holder):
        members = [each for base in holder.__mro__[:-1] for each in vars(base).values()]
        names = {*getattr(holder, "__dataclass_fields__", ())}
    plain = (getattr(each, "fget", None) or getattr(each, "__func__", each) for each in members)
    called = (inspect.unwrap(each) for each in plain if callable(each))
    left = [each.__code__ for each in called if inspect.isfunction(each)]
    while left:
        code = left.pop()
        names.update(code.co_names, code.co_varnames)
        names.update(it for it in code.co_consts if isinstance(it, str))
        left += (it for it in code.co_consts if isinstance(it, CodeType))
    return names


# ---------------------------------------------------------------------- the page

_PAGE = """\
# Compatibility with LightRAG

<!-- Written by `make docs` from the code. -->

LightRAG 1.4.16 or later, below 2; compared up to {tested}. What this package needs and LightRAG
does not document is listed here. Where a release lacks a name, its seam is not guarded, and nothing
else breaks: `protect` and `serve` log one warning that names it, `lightrag-resilience doctor
--lightrag` lists every seam, and with `RESILIENCE_STRICT=true` they refuse to start instead.

## Releases

| from | not guarded |
|---|---|
{releases}

## Names

| name | from | used to | without it | seams |
|---|---|---|---|---|
{names}
"""


def compatibility_page() -> str:
    """What each release leaves unguarded, and each private name, as a Markdown page."""
    texts = {
        it for name in PRIVATE_NAMES for it in (name.since, name.until, name.needed_from) if it
    }
    listed = [
        (version, ", ".join(_unguarded_in(version)) or "nothing")
        for version in sorted(texts, key=_numbers)
    ]
    return _PAGE.format(
        tested=_TESTED,
        releases="\n".join(
            f"| {version} | {seams} |"
            for (_, before), (version, seams) in pairwise([("", ""), *listed])
            if seams != before
        ),
        names="\n".join(map(_row, PRIVATE_NAMES)),
    )


def _unguarded_in(version: str) -> list[str]:
    now = _numbers(version)
    return list(
        dict.fromkeys(
            f"`{seam}`"
            for name in PRIVATE_NAMES
            for seam in name.seams
            if _applies(name, now) and now < _numbers(name.since)
        )
    )


def _row(name: PrivateName) -> str:
    shown = str(name) if name.is_text else f"`{name}`"
    releases = f"{name.since}, before {name.until}" if name.until else name.since
    seams = ", ".join(f"`{seam}`" for seam in name.seams)
    return f"| {shown} | {releases} | {name.purpose} | {name.loss} | {seams} |"
