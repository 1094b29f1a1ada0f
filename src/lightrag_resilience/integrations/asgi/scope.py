"""What a request's ASGI scope says, read in one way by all our middleware."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

__all__ = ["route_path"]


def route_path(scope: MutableMapping[str, Any]) -> str:
    """The path that the application routes by: without the ``root_path`` it is mounted at.

    ASGI puts ``root_path`` in front of ``path``, for ``uvicorn --root-path`` as for a ``Mount``.
    Some servers leave it out of ``path``, which then is the route's already.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    below = path.removeprefix(root)
    if below and not below.startswith("/"):  # another path that only begins alike: /ragout
        return path
    return "/" + below.lstrip("/")
