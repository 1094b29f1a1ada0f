"""The status page: what is broken, since when, and what is done about it; see `StatusPage`."""

from .page import StatusPage

__all__ = ["StatusPage"]
