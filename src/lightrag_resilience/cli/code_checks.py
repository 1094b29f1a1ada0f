"""Finds nested retries in an application, by inspecting the members of a module."""

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

_IMPORT_TIMEOUT = 60.0  # seconds
_MOST_DECORATORS = 20  # decorators around one function
_SDKS = ("openai", "anthropic")


class CodeError(Exception):
    """A module cannot be examined; the message says why."""


def examine_code(module: str) -> list[Finding]:
    """Run `examine_module` in a child process, which the import may end or block.

    What the module prints goes to stderr.

    Raises:
        CodeError: It cannot be imported, ends its process, or takes more than 60 s.
    """
    command = [sys.executable, "-m", __name__, module]
    try:
        ran = subprocess.run(command, stdout=subprocess.PIPE, timeout=_IMPORT_TIMEOUT, check=False)  # noqa: S603 - this interpreter, and the user's own module
    except subprocess.TimeoutExpired:
        raise CodeError(
            f"{module} was not imported within {_IMPORT_TIMEOUT:g} s: {_BELOW_MAIN}"
        ) from None
    try:
        result: dict[str, Any] = json.loads(ran.stdout)
    except ValueError:
        code = f"signal {-ran.returncode}" if ran.returncode < 0 else f"exit code {ran.returncode}"
        raise CodeError(
            f"{module} ended its process when it was imported, by {code}: {_BELOW_MAIN}"
        ) from None
    if problem := result.get("problem"):
        raise CodeError(problem)
    return [Finding(**{**each, "level": Level(each["level"])}) for each in result["findings"]]


_BELOW_MAIN = "put code that runs below `if __name__ == '__main__':`"


def _result_of(name: str) -> dict[str, Any]:
    """The findings in a module, or a problem, as `examine_code` reads them."""
    try:
        return {
            "findings": [asdict(each) for each in examine_module(importlib.import_module(name))]
        }
    except SystemExit as error:
        return {"problem": f"{name} calls sys.exit({error.code!r}) when imported: {_BELOW_MAIN}"}
    except BaseException as error:  # noqa: BLE001 - foreign code may raise anything
        why = "".join(traceback.format_exception_only(error)).strip()
        return {"problem": f"{name} cannot be imported: {why}"}


def examine_module(module: ModuleType) -> list[Finding]:
    """Find guarded functions and SDK clients that retry a second time.

    It sees tenacity's decorators and module-level clients of openai and anthropic, not what a
    function creates when it is called.
    """
    return [
        Finding(Level.WARNING, f"{module.__name__}.{name}", problem, advice)
        for name, member in list(vars(module).items())
        for problem, advice in [*_around(member), *_inside(member)]
    ]


def _around(member: Any) -> Iterator[tuple[str, str]]:
    """Find tenacity's decorators above and below the guard of a function."""
    guard: str | None = None
    above = False
    for layer, below in pairwise([*_layers(member), None]):
        if _own(layer, below, "__resilience_name__"):
            guard = vars(layer)["__resilience_name__"]
            if above:
                yield (
                    (
                        f"tenacity retries when the guard {guard!r} has given up, so attempts "
                        "multiply, and rejected calls are repeated"
                    ),
                    "remove that decorator: the guard retries, by RETRY__ATTEMPTS",
                )
            above = False
        elif isinstance(_own(layer, below, "retry"), tenacity.BaseRetrying):
            above = True
            if guard is not None:
                yield (
                    (
                        f"tenacity retries inside the guard {guard!r}, so attempts multiply, "
                        "and the breaker sees one failure of many"
                    ),
                    "remove that decorator, or set RETRY__ATTEMPTS to 1 for this dependency",
                )
                return


def _own(layer: Any, below: Any, name: str) -> Any:
    """A decorator's own attribute: `functools.wraps` also copies those of the function below."""
    value = vars(layer).get(name)
    return None if below is not None and vars(below).get(name) is value else value


def _layers(member: Any) -> Iterator[Any]:
    """A function and those it wraps, from the outside in."""
    for _ in range(_MOST_DECORATORS):
        if not callable(member) or not hasattr(member, "__dict__") or isinstance(member, type):
            return
        yield member
        member = vars(member).get("__wrapped__")


def _inside(member: Any) -> Iterator[tuple[str, str]]:
    sdk = type(member).__module__.partition(".")[0]
    retries = getattr(member, "max_retries", 0) if sdk in _SDKS else 0
    if isinstance(retries, int) and retries > 0 and not _is_disabled(sdk):
        yield (
            f"this client of {sdk} makes up to {retries + 1} attempts of each call",
            f"create it with max_retries=0, or call disable_sdk_retries({sdk}), as `protect` does",
        )


def _is_disabled(sdk: str) -> bool:
    """Whether `disable_sdk_retries` has patched the SDK."""
    options = getattr(sys.modules.get(f"{sdk}._models"), "FinalRequestOptions", None)
    return hasattr(getattr(options, "get_max_retries", None), "__resilience_users__")


if __name__ == "__main__":  # pragma: no cover - tests run it as a process
    answer = os.dup(1)
    os.dup2(2, 1)  # stdout of the module goes to stderr
    sys.path.insert(0, "")  # also with PYTHONSAFEPATH
    os.write(answer, json.dumps(_result_of(sys.argv[1])).encode())
    os._exit(0)  # the module may have started threads
