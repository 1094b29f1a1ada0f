"""The Lua scripts, as the files beside this one have them. Each is the common part and its own."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

__all__ = ["NAMES", "digest", "source"]

NAMES = ("report", "admit", "release", "snapshot", "steer", "describe")


@cache
def source(name: str) -> str:
    """The text of a script."""
    folder = resources.files("lightrag_resilience.shared") / "lua"
    return "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("common", name))


@cache
def digest(name: str) -> str:
    """The SHA-1 by which Redis knows a script."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()
