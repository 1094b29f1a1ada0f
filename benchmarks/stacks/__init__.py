"""The stacks that can be measured here. A peer that is not installed is left out."""

from __future__ import annotations

import importlib

from benchmarks.stack import Stack

__all__ = ["find_stacks"]

_OWN = ("bare", "ours", "composed")
_PEERS = ("with_prometheus", "with_hyx", "with_pyresilience", "with_stamina", "with_interlock")


def find_stacks(*, peers: bool = True) -> tuple[list[Stack], list[str]]:
    """The stacks in the order of the tables, and the names of modules that are missing."""
    stacks: list[Stack] = []
    missing: list[str] = []
    for name in _OWN + _PEERS * peers:
        try:
            module = importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if name in _OWN:
                raise
            missing.append(str(error.name))
        else:
            stacks += module.STACKS
    return stacks, missing
