"""The hosts under which the status page answers, so that no web site can read it.

A web site can make its own name resolve to an address in a visitor's network (DNS rebinding). The
browser then lets it read the answers of that address. The ``Host`` of such a request is the site's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable

__all__ = ["hosts_in", "is_allowed_host", "is_host_pattern"]

_LONGEST_HOST = 253  # characters, by RFC 1035
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.ASCII | re.IGNORECASE)
# Public DNS has no names below these (RFC 6761, RFC 6762, ICANN's .internal), so none can rebind.
_PRIVATE = ("localhost", "local", "internal", "test")


def hosts_in(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """The hosts of a request, without ports; a request with more than one is invalid."""
    texts = [value.decode("latin-1") for name, value in headers if name.lower() == b"host"]
    return [re.sub(r":\d{0,5}$", "", text, flags=re.ASCII).lower() for text in texts]


def is_allowed_host(host: str, allowed: Collection[str] = ()) -> bool:
    """Whether a host is an IP address, a name of private networks, or allowed.

    Args:
        host: In small letters, without a port.
        allowed: Names, ``*.example.com`` for all below one, or ``*`` for any.
    """
    if "*" in allowed or _is_address(host):
        return True
    if len(host) > _LONGEST_HOST or not _NAME.fullmatch(host):
        return False
    host = host.rstrip(".")
    _, dot, top = host.rpartition(".")
    if not dot or top in _PRIVATE:
        return True
    return any(
        host.endswith(each[1:].lower()) if each.startswith("*.") else host == each.lower()
        for each in allowed
    )


def is_host_pattern(text: str) -> bool:
    """Whether a text is a host name, ``*.example.com``, or ``*``."""
    name = text.removeprefix("*.")
    return text == "*" or (len(text) <= _LONGEST_HOST and _NAME.fullmatch(name) is not None)


def _is_address(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
