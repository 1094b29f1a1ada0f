"""A guard at the wire of httpx2: give `ResilientTransport` to any SDK that takes a client."""

from __future__ import annotations

from typing import Any, ClassVar

from lightrag_resilience.runtime.extras import install

try:
    import httpx2
except ModuleNotFoundError as error:  # pragma: no cover - tests/test_wheel.py runs it apart
    message = f"This transport needs {error.name}: {install('httpx2')}"
    raise ModuleNotFoundError(message, name=error.name) from error

from lightrag_resilience.integrations.http.transport import GuardedTransport

__all__ = ["ResilientTransport"]


class ResilientTransport(
    GuardedTransport[httpx2.AsyncBaseTransport, httpx2.Request, httpx2.Response],
    httpx2.AsyncBaseTransport,
):
    """`GuardedTransport` for httpx2; its arguments and errors are described there."""

    library: ClassVar[Any] = httpx2
