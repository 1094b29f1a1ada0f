"""The text and the digest of each Lua script in ``lua/``."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

__all__ = ["NAMES", "digest", "source"]

_BREAKER_SCRIPTS = (
    "record_outcomes",
    "acquire_probe",
    "release_probe",
    "renew_probe",
    "read_state",
    "force_state",
    "describe",
)
NAMES = (*_BREAKER_SCRIPTS, "lease", "reserve_turns", "heartbeat")


@cache
def source(name: str) -> str:
    """The text of a script; that of a breaker's script begins with ``common.lua``."""
    folder = resources.files(__name__.rpartition(".")[0]) / "lua"
    parts = ("common", name) if name in _BREAKER_SCRIPTS else (name,)
    return "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in parts)


@cache
def digest(name: str) -> str:
    """The SHA-1 by which EVALSHA names a script."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()
