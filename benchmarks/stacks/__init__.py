"""The stacks that can be measured here. A peer that is not installed is left out."""

from __future__ import annotations

import importlib
from typing import Literal

from benchmarks.stack import Stack

__all__ = ["find_stacks"]

_OWN = ("bare", "ours", "composed")
_EXTRAS = ("with_prometheus", "with_everything")
_PEERS = (
    "with_hyx",
    "with_pyresilience",
    "with_stamina",
    "with_interlock",
    "with_redis",
    "with_baldur",
)
_NAMES = {"plain": _OWN, "ours": (*_OWN, *_EXTRAS), "all": (*_OWN, *_EXTRAS, *_PEERS)}

Which = Literal["plain", "ours", "all"]


def find_stacks(which: Which = "all") -> tuple[list[Stack], list[str]]:
    """The stacks in the order of the tables, and the names of modules that are missing.

    Args:
        which: ``all``; ``ours`` leaves peers out, ``plain`` what needs an extra or a server, too.
    """
    stacks: list[Stack] = []
    missing: list[str] = []
    for name in _NAMES[which]:
        try:
            module = importlib.import_module(f"{__name__}.{name}")
        except ImportError as error:
            if name in _OWN:
                raise
            missing.append(str(error.name))
        else:
            stacks += module.STACKS
    return stacks, missing
