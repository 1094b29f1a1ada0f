"""Which endpoint a function of a LightRAG calls: provider, host and model, as far as known."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lightrag.utils import EmbeddingFunc

from lightrag_resilience.config.endpoint_names import Endpoint
from lightrag_resilience.config.process_environment import address_of_binding

from .compat import binding_of

__all__ = ["PROVIDER", "endpoint_of"]

PROVIDER = "__resilience_provider__"
"""An attribute of a function: the provider that it calls, by the name of LightRAG's binding."""
_ADDRESSES = ("base_url", "host", "endpoint_url")
"""The arguments that hold an address, in LightRAG's own functions."""
_URL = re.compile(r"https?://\S+$")


def endpoint_of(
    family: str,
    function: Any,
    metadata: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Endpoint:
    """The endpoint of a function.

    Args:
        family: ``llm``, ``embedding`` or ``rerank``.
        function: What calls the provider.
        metadata: What LightRAG says of its role, if it has one.
        arguments: What LightRAG adds to its arguments.
    """
    inner, bound = _inner(function), {}
    if isinstance(function, functools.partial):
        bound = {"model": next(iter(function.args), None), **function.keywords}
    bound.update(arguments or {})
    if hasattr(inner, "__resilience_chain__"):
        # It has its first function's name and module, but must not share its guard.
        return Endpoint(family)
    said, mentioned = metadata or {}, _mentioned_by(inner)
    binding = str(
        said.get("binding")
        or getattr(inner, PROVIDER, None)
        or binding_of(inner)
        or _only(map(binding_of, mentioned))
        or ""
    )
    written = _only(it for it in mentioned if isinstance(it, str) and _URL.match(it))
    addresses = (
        said.get("host"),
        *map(bound.get, _ADDRESSES),
        written,
        address_of_binding(binding),
    )
    address = next((each for each in addresses if each and isinstance(each, str)), "")
    model = said.get("model") or bound.get("model")
    return Endpoint.at(family, binding, address, model)


def _mentioned_by(function: Any) -> list[Any]:
    """What the code of a user's function mentions: constants, outer variables and globals.

    It calls one of LightRAG's functions, mostly, and often names the address.
    """
    try:
        function = inspect.unwrap(function)
        function = getattr(function, "__func__", function)
        if not inspect.isfunction(function):
            return []
        outer = inspect.getclosurevars(function)
    except ValueError:  # an outer variable has no value yet, or wrappers are a circle
        return []
    named = (*outer.nonlocals.values(), *outer.globals.values())
    functions = (it.func if isinstance(it, EmbeddingFunc) else it for it in named)
    mentioned = (*function.__code__.co_consts, *functions)
    return [it for it in mentioned if isinstance(it, str) or inspect.isfunction(it)]


def _only(found: Iterable[Any]) -> Any:
    """The one value that is there; None where there are several, or none."""
    different = {it for it in found if it}
    return different.pop() if len(different) == 1 else None


def _inner(function: Any) -> Any:
    """The function inside of partials."""
    while isinstance(function, functools.partial):
        function = function.func
    return function
