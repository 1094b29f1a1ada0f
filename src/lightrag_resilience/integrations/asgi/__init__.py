"""Draining behind any ASGI server; see `Draining`."""

from .draining import Draining

__all__ = ["Draining"]
