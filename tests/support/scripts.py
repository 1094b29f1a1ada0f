"""Runs a script in an interpreter of its own, for what a test cannot do inside this one."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["output_of"]


def output_of(script: str, *options: str) -> tuple[str, str]:
    """What a script prints, and what it complains about."""
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, *options, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.stdout, ran.stderr
