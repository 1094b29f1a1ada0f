"""Which tests are unit tests: those that start no process and listen on no port.

`is_unit` reads it from the code: of a test, its fixtures and parameters, and the functions and
classes of ``tests/`` that these use. What the code does not show, running does: in a unit test a
new process, a fork or a port is an error.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from .paths import ROOT

STARTERS = frozenset(  # names of modules, classes and functions that start a process or a server
    {
        *("subprocess", "multiprocessing", "create_subprocess_exec", "create_subprocess_shell"),
        *("fork", "forkpty", "posix_spawn", "Popen", "ProcessPoolExecutor"),
        *("start_server", "create_server", "start_unix_server", "TCPServer", "HTTPServer", "bind"),
        *("RedisServer", "PostgresServer", "Simulator", "TcpProxy", "CommandedProcess"),
        "Forked",
    }
)
MARKS = ("lightrag", "processes")  # of tests that are none, whatever their code shows
TESTS = str(ROOT / "tests")


def is_unit(item: pytest.Item) -> bool:
    """Whether a test starts no process and listens on no port, as far as its code shows."""
    if not isinstance(item, pytest.Function) or any(map(item.get_closest_marker, MARKS)):
        return False
    fixtures = [
        each.func for found in item._fixtureinfo.name2fixturedefs.values() for each in found
    ]
    callspec = getattr(item, "callspec", None)
    parameters = list(callspec.params.values()) if callspec else []
    hypothesis = getattr(item.obj, "hypothesis", None)
    test = hypothesis.inner_test if hypothesis else item.obj
    return not any(_starts(each) for each in (test, *fixtures, *parameters) if _is_code(each))


def _is_code(thing: object) -> bool:
    """Whether it is a function or class of the tests."""
    if not isinstance(thing, type | types.FunctionType | types.MethodType):
        return False
    module = sys.modules.get(thing.__module__)
    return (getattr(module, "__file__", None) or "").startswith(TESTS)


@functools.cache
def _starts(thing: Any) -> bool:
    seen, left = set(), [thing]
    while left:
        each = left.pop()
        if each in seen:
            continue
        seen.add(each)
        left += filter(_is_code, [getattr(each, "__wrapped__", None), *_defaults(each)])
        for names, namespace in _names(each):
            if not STARTERS.isdisjoint(names):
                return True
            left += [namespace[name] for name in names if _is_code(namespace.get(name))]
    return False


def _defaults(thing: Any) -> list[Any]:
    """The defaults of a function's arguments."""
    named: dict[str, Any] = getattr(thing, "__kwdefaults__", None) or {}
    return [*(getattr(thing, "__defaults__", None) or ()), *named.values()]


def _names(thing: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The names that a function, or each method of a class, uses; and those of its module."""
    if isinstance(thing, type):
        members = [*vars(thing).values(), *filter(_is_code, thing.__bases__)]
        members = [getattr(each, "fget", getattr(each, "__func__", each)) for each in members]
        for member in members:
            if isinstance(member, type | types.FunctionType):
                yield from _names(member)
        return
    function = getattr(thing, "__func__", thing)
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield code.co_names, function.__globals__
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]


def no_processes(patch: pytest.MonkeyPatch) -> None:
    """Make an error of what a unit test does not do."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("A unit test starts no process and no server: mark it with `processes`")

    for name in ("subprocess.Popen.__init__", "socket.socket.bind", "os.fork"):
        patch.setattr(name, refuse, raising=name != "os.fork")
