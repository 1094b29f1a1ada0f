"""Runs a script in an interpreter of its own, for what a test cannot do inside this one."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["output_of", "run_script"]


def run_script(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, however it ends."""
    return subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, *options, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def output_of(script: str, *options: str) -> tuple[str, str]:
    """What a script prints, and what it complains about."""
    ran = run_script(script, *options)
    return ran.stdout, ran.stderr
