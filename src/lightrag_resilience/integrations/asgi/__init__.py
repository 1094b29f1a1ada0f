"""DrainMiddleware behind any ASGI server; see `DrainMiddleware`."""

from .draining import DrainMiddleware

__all__ = ["DrainMiddleware"]
