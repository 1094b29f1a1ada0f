"""A guard at the wire of httpx: give `ResilientTransport` to any SDK that takes a client."""

from __future__ import annotations

from typing import Any, ClassVar

import httpx

from lightrag_resilience.integrations.http.transport import GuardedTransport

__all__ = ["ResilientTransport"]


class ResilientTransport(
    GuardedTransport[httpx.AsyncBaseTransport, httpx.Request, httpx.Response],
    httpx.AsyncBaseTransport,
):
    """`GuardedTransport` for httpx; its arguments and errors are described there."""

    library: ClassVar[Any] = httpx
