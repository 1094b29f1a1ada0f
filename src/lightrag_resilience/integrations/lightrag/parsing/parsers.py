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

from lightrag_resilience.composition.wait_for_recovery import Patience
from lightrag_resilience.config.endpoint_names import Endpoint
from lightrag_resilience.errors import CallRejected, ShuttingDownError
from lightrag_resilience.failures.classifier import FailureKind, classify, is_recognized
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

from .degraded import DegradedDocuments
from .requests import GuardedHttpx, Parse, health_probe

__all__ = ["Parsers"]

_FAMILY = "parser"


class Parsers:
    """The parsers of one LightRAG: guards ``parser.mineru``, ``parser.docling`` and so on.

    Args:
        registry: The guards.
        on_guard: Called with the guard of each parser that is used.
        set_probe: Sets what looks for the recovery of a parser.
        degraded: Reads documents whose parser is down; None: they wait for it.
    """

    def __init__(
        self,
        registry: Guards,
        on_guard: Callable[[Guard], None],
        set_probe: Callable[[Guard, Probe], None],
        degraded: DegradedDocuments | None = None,
    ) -> None:
        self.degraded = degraded
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

    def is_down(self, engine: str, error: Exception) -> bool:
        """Whether an error of a document is the outage of its parser."""
        if isinstance(error, ShuttingDownError) or self.guard_of(engine).breaker.outage is None:
            return False
        return isinstance(error, CallRejected) or classify(error).kind is not FailureKind.FATAL

    def parse_by(self, engine: str) -> Parse:
        """A document that a parser is given."""
        guard = self.guard_of(engine)
        if engine in PARSER_CLIENTS and engine not in self._replaced:
            self._replaced.add(engine)
            client = importlib.import_module(PARSER_CLIENTS[engine])
            self._undo.callback(replace_methods([client], PARSER_HTTP, _guarded_httpx))
        work = current_work.get()
        patience = None if work is None else work.patience
        if (max_outage := _max_outage.get()) is not None:
            patience = Patience(self._registry.settings.ingest_patience, max_outage=max_outage)
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
_max_outage: ContextVar[float | None] = ContextVar("lightrag_resilience_max_outage", default=None)
"""Seconds for which the parser of a document may be down that need not wait longer for it."""


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
    same = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    if not cls.__module__.startswith(EXTERNAL_PARSERS):
        return type(cls.__name__, (cls,), {name: _as_a_whole(method), **same})
    parse = _degradable(cls.parse)  # type: ignore[attr-defined]
    return type(cls.__name__, (cls,), {name: _by_requests(method), "parse": parse, **same})


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


def _degradable(parse: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """A method of a parser that leaves to LightRAG's own one what need not wait longer for it."""

    @functools.wraps(parse)
    async def degradable(self: Any, context: Any) -> Any:
        parsers = _current.get()
        degraded = None if parsers is None else parsers.degraded
        parser = None if degraded is None else degraded.parser_of(context)
        if parsers is None or degraded is None or parser is None:
            return await parse(self, context)
        token = _max_outage.set(degraded.after)
        try:
            return await parse(self, context)
        except Exception as error:
            if not parsers.is_down(self.engine_name, error):
                raise
        finally:
            _max_outage.reset(token)
        result = await degraded.parse(context, self.engine_name, parser)
        return await parse(self, context) if result is None else result

    return degradable


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
