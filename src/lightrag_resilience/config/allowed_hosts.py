"""The hosts under which the status page answers, so that no other site can read it.

A web site can let its own name resolve to an address in a visitor's network (DNS rebinding), and
then read what answers there as its own. The request's ``Host`` gives that away.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable

__all__ = ["hosts_in", "is_allowed_host", "is_host_pattern"]

_LONGEST = 253  # characters, by RFC 1035
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.ASCII | re.IGNORECASE)
# No site on the internet can have a name of these: RFC 6761 and 6762, and ICANN's .internal.
_PRIVATE = ("localhost", "local", "internal", "test")


def hosts_in(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """The hosts that a request names, without their ports; more than one is not a valid request."""
    texts = [value.decode("latin-1") for name, value in headers if name.lower() == b"host"]
    return [re.sub(r":\d{0,5}$", "", text, flags=re.ASCII).lower() for text in texts]


def is_allowed_host(host: str, allowed: Collection[str] = ()) -> bool:
    """Whether a host is an address, a name that only a private network knows, or allowed.

    Args:
        host: In small letters, without a port.
        allowed: Names, ``*.example.com`` for all below one, or ``*`` for any.
    """
    if "*" in allowed or _is_address(host):
        return True
    if len(host) > _LONGEST or not _NAME.fullmatch(host):
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
    """Whether it can stand among the allowed ones."""
    name = text.removeprefix("*.")
    return text == "*" or (len(text) <= _LONGEST and _NAME.fullmatch(name) is not None)


def _is_address(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
