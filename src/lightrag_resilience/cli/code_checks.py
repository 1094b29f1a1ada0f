"""Retries around retries in the code of an application: found by looking at what a module holds."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from types import ModuleType
from typing import Any

import tenacity

from .policy_checks import Finding, Level

__all__ = ["CodeError", "examine_code", "examine_module"]

_PATIENCE = 60.0  # seconds for a module to be imported
_DEEPEST = 20  # decorators around one function
_SDKS = ("openai", "anthropic")


class CodeError(Exception):
    """A module cannot be examined; it says why."""


def examine_code(module: str) -> list[Finding]:
    """As `examine_module`, for one that is imported in a process of its own.

    Whatever it does there, such as to end the process, is no end of this one. What it prints goes
    to stderr.

    Raises:
        CodeError: It cannot be imported, or ends its process, or takes more than 60 s.
    """
    command = [sys.executable, "-m", __name__, module]
    try:
        ran = subprocess.run(command, stdout=subprocess.PIPE, timeout=_PATIENCE, check=False)  # noqa: S603 - our own interpreter, and a module that is one's own
    except subprocess.TimeoutExpired:
        raise CodeError(
            f"{module} was not imported within {_PATIENCE:g} s: {_BELOW_MAIN}"
        ) from None
    try:
        told: dict[str, Any] = json.loads(ran.stdout)
    except ValueError:
        code = f"signal {-ran.returncode}" if ran.returncode < 0 else f"exit code {ran.returncode}"
        raise CodeError(
            f"{module} ended its process when it was imported, by {code}: {_BELOW_MAIN}"
        ) from None
    if problem := told.get("problem"):
        raise CodeError(problem)
    return [Finding(**{**each, "level": Level(each["level"])}) for each in told["findings"]]


_BELOW_MAIN = "put what runs below `if __name__ == '__main__':`"


def _told_of(name: str) -> dict[str, Any]:
    """The findings in a module, or why there are none, as `examine_code` reads them."""
    try:
        return {
            "findings": [asdict(each) for each in examine_module(importlib.import_module(name))]
        }
    except SystemExit as error:
        return {"problem": f"{name} calls sys.exit({error.code!r}) when imported: {_BELOW_MAIN}"}
    except BaseException as error:  # noqa: BLE001 - it is another's code, and may raise anything
        why = "".join(traceback.format_exception_only(error)).strip()
        return {"problem": f"{name} cannot be imported: {why}"}


def examine_module(module: ModuleType) -> list[Finding]:
    """Where a guarded function of a module, or a client in it, is retried twice over.

    Seen are tenacity's decorators, and the clients of openai and anthropic that a module holds; not
    what a function makes when it is called.
    """
    return [
        Finding(Level.WARNING, f"{module.__name__}.{name}", problem, advice)
        for name, member in list(vars(module).items())
        for problem, advice in [*_around(member), *_inside(member)]
    ]


def _around(member: Any) -> Iterator[tuple[str, str]]:
    """Loops of tenacity above and below the guard of a function."""
    guard: str | None = None
    above = False
    for layer, below in pairwise([*_layers(member), None]):
        if _own(layer, below, "__resilience_name__"):
            guard = vars(layer)["__resilience_name__"]
            if above:
                yield (
                    (
                        f"tenacity calls it again when the guard {guard!r} has given up, so that "
                        "attempts multiply, and what was refused is called again"
                    ),
                    "remove that decorator: the guard retries, by RETRY__ATTEMPTS",
                )
            above = False
        elif isinstance(_own(layer, below, "retry"), tenacity.BaseRetrying):
            above = True
            if guard is not None:
                yield (
                    (
                        f"it retries by itself inside the guard {guard!r}, so that attempts "
                        "multiply, and the breaker sees one failure of many"
                    ),
                    "remove that decorator, or set RETRY__ATTEMPTS to 1 for this dependency",
                )
                return


def _own(layer: Any, below: Any, name: str) -> Any:
    """An attribute of a decorator; `functools.wraps` gives it those of what it wraps, too."""
    value = vars(layer).get(name)
    return None if below is not None and vars(below).get(name) is value else value


def _layers(member: Any) -> Iterator[Any]:
    """A function, and what it wraps, from outside to inside."""
    for _ in range(_DEEPEST):
        if not callable(member) or not hasattr(member, "__dict__") or isinstance(member, type):
            return
        yield member
        member = vars(member).get("__wrapped__")


def _inside(member: Any) -> Iterator[tuple[str, str]]:
    sdk = type(member).__module__.partition(".")[0]
    retries = getattr(member, "max_retries", 0) if sdk in _SDKS else 0
    if isinstance(retries, int) and retries > 0 and not _yields(sdk):
        yield (
            f"this client of {sdk} makes {retries + 1} attempts of each call by itself",
            f"make it with max_retries=0, or call disable_sdk_retries({sdk}), as `protect` does",
        )


def _yields(sdk: str) -> bool:
    """Whether `disable_sdk_retries` was there."""
    options = getattr(sys.modules.get(f"{sdk}._models"), "FinalRequestOptions", None)
    return hasattr(getattr(options, "get_max_retries", None), "__resilience_users__")


if __name__ == "__main__":  # pragma: no cover - tests run it as a process
    answer = os.dup(1)
    os.dup2(2, 1)  # what the module prints
    sys.path.insert(0, "")  # also where Python is told to leave it out
    os.write(answer, json.dumps(_told_of(sys.argv[1])).encode())
    os._exit(0)  # whatever threads the module began
