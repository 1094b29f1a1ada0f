"""The Lua scripts, as the files beside this one have them. Those of breakers share a part."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

__all__ = ["NAMES", "digest", "source"]

_OF_BREAKERS = (
    "record_outcomes",
    "acquire_probe",
    "release_probe",
    "renew_probe",
    "read_state",
    "force_state",
    "describe",
)
NAMES = (*_OF_BREAKERS, "lease", "reserve_turns", "heartbeat")


@cache
def source(name: str) -> str:
    """The text of a script."""
    folder = resources.files(__name__.rpartition(".")[0]) / "lua"
    parts = ("common", name) if name in _OF_BREAKERS else (name,)
    return "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in parts)


@cache
def digest(name: str) -> str:
    """The SHA-1 by which Redis knows a script."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()
