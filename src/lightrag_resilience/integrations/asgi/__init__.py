"""`DrainMiddleware`: graceful shutdown behind any ASGI server."""

from .draining import DrainMiddleware

__all__ = ["DrainMiddleware"]
