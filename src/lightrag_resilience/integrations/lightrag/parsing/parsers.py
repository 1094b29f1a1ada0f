"""Guarded parsers, which LightRAG makes in place of its own while it parses a protected batch.

LightRAG imports a parser's class from the module that its table names. For a guarded one that is
this module, whose `__getattr__` makes the class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx

from lightrag_resilience.config.endpoint_names import Endpoint
from lightrag_resilience.failures.classifier import is_recognized
from lightrag_resilience.integrations.lightrag.compat import (
    DOWNLOAD,
    EXTERNAL_PARSERS,
    PARSER_CLIENTS,
    PARSER_HTTP,
    PARSER_SPECS,
    calls_service,
    clear_folder,
    configured_parsers,
)
from lightrag_resilience.integrations.lightrag.work.context import current_work
from lightrag_resilience.integrations.lightrag.work.nested_calls import call_with_nested
from lightrag_resilience.integrations.method_patching import replace_methods
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.recovery_probe import Probe
from lightrag_resilience.pipeline.registry import Guards

from .requests import GuardedHttpx, Parse, health_probe

__all__ = ["Parsers"]

_FAMILY = "parser"


class Parsers:
    """The parsers of one LightRAG: guards ``parser.mineru``, ``parser.docling`` and so on.

    Args:
        registry: The guards.
        on_guard: Called with the guard of each parser that is used.
        set_probe: Sets what looks for the recovery of a parser.
    """

    def __init__(
        self,
        registry: Guards,
        on_guard: Callable[[Guard], None],
        set_probe: Callable[[Guard, Probe], None],
    ) -> None:
        self._registry = registry
        self._on_guard = on_guard
        self._set_probe = set_probe
        self._guards: dict[str, Guard] = {}
        self._probed: dict[str, httpx.URL] = {}
        self._replaced: set[str] = set()
        self._undo = contextlib.ExitStack()

    def working(self, original: Callable[..., Awaitable[None]]) -> Callable[..., Any]:
        """LightRAG's worker that parses documents, with guarded parsers."""
        return functools.wraps(original)(functools.partial(self._work, original))

    async def _work(self, original: Callable[..., Awaitable[None]], *given: Any) -> None:
        """Parse queued documents, by guarded parsers."""
        batch = given[-1]
        setattr(batch, PARSER_SPECS, _guarded_specs(getattr(batch, PARSER_SPECS)))
        token = _current.set(self)
        try:
            await original(*given)
        finally:
            _current.reset(token)

    def begin(self) -> None:
        """Make the guards of the parsers that are configured: operators see them from the start."""
        for engine in configured_parsers():
            self.guard_of(engine)

    def guard_of(self, engine: str) -> Guard:
        """The guard of a parser. LightRAG gives a parser all the time that it takes."""
        guard = self._guards.get(engine)
        if guard is None:
            endpoint = Endpoint.at(_FAMILY, engine, None, None)
            self._guards[engine] = guard = self._registry.get_endpoint(endpoint, math.inf)
            self._on_guard(guard)
        return guard

    def parse_by(self, engine: str) -> Parse:
        """A document that a parser is given."""
        guard = self.guard_of(engine)
        if engine in PARSER_CLIENTS and engine not in self._replaced:
            self._replaced.add(engine)
            client = importlib.import_module(PARSER_CLIENTS[engine])
            self._undo.callback(replace_methods([client], PARSER_HTTP, _guarded_httpx))
        work = current_work.get()
        patience = None if work is None else work.patience
        return Parse(guard, patience, functools.partial(self._probe_beside, guard))

    def _probe_beside(self, guard: Guard, upload: httpx.URL) -> None:
        if self._probed.get(guard.name) != upload:
            self._probed[guard.name] = upload
            if (probe := health_probe(upload)) is not None:
                self._set_probe(guard, probe)

    def end(self) -> None:
        """Restore what LightRAG's clients of parsers use."""
        self._undo.close()


_current: ContextVar[Parsers | None] = ContextVar("lightrag_resilience_parsers", default=None)


def _guarded_httpx(_: Any) -> GuardedHttpx:
    return GuardedHttpx()


# ---------------------------------------------------------------------- parsers' classes


def _guarded_specs(specs: Mapping[str, Any]) -> dict[str, Any]:
    return {engine: _guarded_spec(spec) for engine, spec in specs.items()}


def _guarded_spec(spec: Any) -> Any:
    if spec.impl.startswith(__name__) or not calls_service(spec):
        return spec
    return dataclasses.replace(spec, impl=f"{__name__}:{spec.impl}")


def __getattr__(name: str) -> Any:
    module, colon, cls = name.partition(":")
    if not colon:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _guarded_class(getattr(importlib.import_module(module), cls))


@functools.cache
def _guarded_class(cls: type) -> type:
    """The subclass of a parser's class whose instances are guarded in a protected batch."""
    if hasattr(cls, DOWNLOAD):  # a file whose result is in the cache needs no parser
        name, method = DOWNLOAD, _into_empty(getattr(cls, DOWNLOAD))
    else:
        name, method = "parse", cls.parse  # type: ignore[attr-defined]
    by_requests = cls.__module__.startswith(EXTERNAL_PARSERS)
    guarded = (_by_requests if by_requests else _as_a_whole)(method)
    same = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {name: guarded, **same})


def _into_empty(download: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A download without what an attempt before it has left."""

    @functools.wraps(download)
    async def into_empty(self: Any, folder: Path, *args: Any, **kwargs: Any) -> None:
        clear_folder(folder)
        await download(self, folder, *args, **kwargs)

    return into_empty


def _by_requests(download: Callable[..., Awaitable[None]]) -> Callable[..., Any]:
    """A download whose requests are guarded one by one."""

    @functools.wraps(download)
    async def guarded(self: Any, *args: Any, **kwargs: Any) -> None:
        parsers = _current.get()
        if parsers is None:
            await download(self, *args, **kwargs)
        else:
            parse = parsers.parse_by(self.engine_name)
            await parse.run(functools.partial(download, self, *args, **kwargs))

    return guarded


def _as_a_whole(method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """A method of a parser of a plugin, whose requests are not known."""

    @functools.wraps(method)
    async def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        parsers = _current.get()
        if parsers is None:
            return await method(self, *args, **kwargs)
        guard = parsers.guard_of(self.engine_name)
        return await call_with_nested(
            guard,
            lambda: method(self, *args, **kwargs),
            idempotent=None,
            # Most of these are about the document, which no wait mends.
            is_foreign=lambda error: not is_recognized(error),
        )

    return guarded
