"""Names of dependencies that are endpoints: as short as is distinct, and never changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlsplit

from .dependency_names import section_of

__all__ = ["Endpoint", "EndpointNames", "host_part"]

_LONGEST = 60  # characters of a part
_MOST = 100  # endpoints of one binding with names of their own
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a function calls.

    Attributes:
        family: ``llm``, ``embedding``, ``rerank`` or ``parser``.
        binding: The provider, by the name of LightRAG's binding; "" if it is unknown.
        host: The host; "" if it is unknown.
        port: Its port; None for that of the scheme.
        model: The model; "" if it is unknown.
    """

    family: str
    binding: str = ""
    host: str = ""
    port: int | None = None
    model: str = ""

    @classmethod
    def at(cls, family: str, binding: str, address: object, model: object) -> Endpoint:
        """An endpoint by its address, of which nothing but host and port is kept."""
        host, port = _host_and_port(address if isinstance(address, str) else "")
        return cls(family, _part(binding), host, port, model if isinstance(model, str) else "")


class EndpointNames:
    """The names of all endpoints that a process calls.

    A name is family and binding (``llm.openai``). Where several endpoints have those, it has the
    host as well, the port if the host is the same, and the model if the address is:
    ``llm.openai.gpu1``, ``llm.openai.gpu1-8001``, ``llm.openai.gpt-4o``. What is known together is
    named together; a later endpoint gets a name that is not in use, and the others keep theirs.
    """

    def __init__(self) -> None:
        self._names: dict[Endpoint, str] = {}

    def add(self, *endpoints: Endpoint) -> None:
        """Name endpoints that were not known yet."""
        new = [each for each in dict.fromkeys(endpoints) if each not in self._names]
        known = [*self._names, *new]
        for each in new:
            others = [it for it in known if it != each and _kind(it) == _kind(each)]
            if len(others) < _MOST:
                self._names[each] = self._new_name(each, others)

    def name_of(self, endpoint: Endpoint) -> str:
        """The name of an endpoint; beyond the bound ``llm.openai.other``, for all together."""
        self.add(endpoint)
        return self._names.get(endpoint) or _name(endpoint, ["other"])

    def _new_name(self, endpoint: Endpoint, others: list[Endpoint]) -> str:
        taken = set(map(section_of, self._names.values()))  # two names would share variables
        names = (_name(endpoint, parts) for parts in _parts(endpoint, others))
        return next(name for name in names if section_of(name) not in taken)


def host_part(host: str, port: int | None) -> str:
    """A host as part of a name: its dots stay, its port follows after a hyphen."""
    text = re.sub(r"[^a-z0-9.]+", "-", host.lower())
    text = _bounded(re.sub(r"\.[.-]*", ".", text).strip(".-"), host)
    return text if port is None else f"{text}-{port}"


def _kind(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.family, endpoint.binding


def _name(endpoint: Endpoint, parts: list[str]) -> str:
    return ".".join((*filter(None, _kind(endpoint)), *parts))


def _parts(endpoint: Endpoint, others: list[Endpoint]) -> Iterator[list[str]]:
    """What may follow a binding in the name of an endpoint, the shortest first."""
    address = endpoint.host, endpoint.port
    addresses = {(it.host, it.port) for it in others} - {address}
    has_port = any(host == endpoint.host for host, _ in addresses)
    has_model = any((it.host, it.port) == address for it in others)
    host = [host_part(endpoint.host, None)] if endpoint.host else []
    whole = [host_part(*address)] if endpoint.host else []
    model = [_part(endpoint.model)] if endpoint.model else []
    yield [*(whole if has_port else host if addresses else ()), *(model if has_model else ())]
    yield from (host, whole, model, [*host, *model], [*whole, *model])
    yield [*whole, *model, _digest(repr(endpoint))]


def _part(text: str) -> str:
    """A text as one part of a name. A dot would make it inherit from what stands before it."""
    return _bounded(re.sub(r"[^A-Za-z0-9_:-]+", "-", text).strip("-"), text) if text else ""


def _bounded(part: str, text: str) -> str:
    """A part that is neither empty nor too long to be read."""
    if len(part) <= _LONGEST:
        return part or "unknown"
    return f"{part[:_LONGEST].rstrip('.-')}-{_digest(text)}"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "replace")).hexdigest()[:6]


def _host_and_port(address: str) -> tuple[str, int | None]:
    try:
        url = urlsplit(address if "://" in address else f"//{address}")
        host, port = url.hostname or "", url.port
    except ValueError:  # no address at all
        return "", None
    return host.rstrip("."), None if port == _PORTS.get(url.scheme) else port
