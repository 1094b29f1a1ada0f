"""The address of Redis, ``RESILIENCE_REDIS_URL``: its parts, and what is wrong with a bad one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

__all__ = ["Address", "problem_with_address", "read_address", "redis_location"]

_KINDS = {
    f"{scheme}{kind}": (kind.removeprefix("+"), scheme == "rediss")
    for scheme in ("redis", "rediss")
    for kind in ("", "+sentinel", "+cluster")
} | {"unix": ("unix", False)}
_BEGINNINGS = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+)(?::([0-9]{1,5}))?")
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of an address.

    Attributes:
        kind: ``sentinel``, ``cluster``, ``unix``, or empty for one server.
        hosts: Hosts and ports; none for a Unix socket.
        service: The name that the sentinels know; empty without sentinels.
        options: Arguments of redis-py's client.
    """

    kind: str
    hosts: list[tuple[str, int]]
    service: str
    options: dict[str, Any]

    @property
    def location(self) -> str:
        """Hosts with their ports, or the path of a socket; nothing secret."""
        if not self.hosts:
            return str(self.options.get("unix_socket_path", ""))
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)


def problem_with_address(url: str) -> str | None:
    """Why an address cannot be used, as a clause that shows nothing secret; None if it can."""
    try:
        read_address(url)
    except ValueError as problem:
        return str(problem)
    return None


def redis_location(url: str) -> str:
    """Hosts or path of an address, without anything secret; empty if the address is wrong."""
    try:
        return read_address(url).location
    except ValueError:
        return ""


def read_address(url: str) -> Address:
    """Split an address into its parts.

    Raises:
        ValueError: The address is wrong. The text shows nothing secret.
    """
    scheme, found, rest = url.partition("://")
    if not found or scheme.lower() not in _KINDS:
        raise ValueError(f"must begin with {_BEGINNINGS}")
    kind, is_safe = _KINDS[scheme.lower()]
    server, _, query = rest.partition("?")
    head, _, path = server.partition("/")
    if "#" in url or (kind != "unix" and "@" in path + query):
        raise ValueError("has a #, ?, / or @ that must be percent-encoded, as %2F for /")
    credentials, _, names = head.rpartition("@")
    words = dict(zip(("username", "password"), credentials.split(":", 1), strict=False))
    options: dict[str, Any] = {name: unquote(word) for name, word in words.items() if word}
    service, hosts = "", []
    if kind == "unix":
        if names or not path:
            raise ValueError("has no path of a socket, as in unix:///run/redis.sock")
        options["unix_socket_path"] = "/" + unquote(path)
    else:
        hosts = _hosts(kind, names)
        if kind == "sentinel":
            service, _, path = path.partition("/")
            if not service:
                raise ValueError("has no service name, as in redis+sentinel://host:26379/NAME")
        if path.strip("/"):
            options["db"] = _database(path.strip("/"))
    options |= {"ssl": True, "ssl_check_hostname": True} if is_safe else {}
    options |= _options(query, _OPTIONS[kind] | (_TLS if is_safe else {}))
    if kind == "cluster" and options.pop("db", 0):
        raise ValueError("has a database, but a cluster has only database 0")
    return Address(kind, hosts, unquote(service), options)


def _hosts(kind: str, text: str) -> list[tuple[str, int]]:
    hosts = text.split(",")
    if kind == "" and len(hosts) > 1:
        raise ValueError("has several hosts, which only redis+sentinel:// and redis+cluster:// do")
    return [_host(host, 26379 if kind == "sentinel" else 6379) for host in hosts]


def _host(text: str, usual_port: int) -> tuple[str, int]:
    if not text or text.startswith(":"):
        raise ValueError("has no host")
    found = _HOST.fullmatch(text)
    if not found or not 0 < int(found[2] or usual_port) < 2**16:
        raise ValueError("has a host or a port that is none, as in redis://host:6379")
    return unquote(found[1]).strip("[]"), int(found[2] or usual_port)


def _options(query: str, known: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    options = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            shown = f" {name}" if re.fullmatch("[a-z_]{1,40}", name) else ""
            only = ", which only rediss:// takes" if name in _TLS else " that is not known"
            raise ValueError(f"has an option{shown}{only}")
        options[name] = known[name](text)
    return options


def _database(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text):
        raise ValueError("has a database that is no number, as in redis://host:6379/0")
    return int(text)


def _truth(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError("has an ssl_check_hostname that is neither true nor false")
    return _BOOLEANS[text.lower()]


def _requirement(text: str) -> str:
    if text not in {"none", "optional", "required"}:
        raise ValueError("has an ssl_cert_reqs that is not none, optional or required")
    return text


_TLS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"), str),
    "ssl_check_hostname": _truth,
    "ssl_cert_reqs": _requirement,
}
_OPTIONS: dict[str, dict[str, Callable[[str], Any]]] = {
    "": {"db": _database},
    "unix": {"db": _database, "password": str},
    "sentinel": {"db": _database, "sentinel_username": str, "sentinel_password": str},
    "cluster": {},
}
