"""Tests of this folder wait in virtual time."""

from support.virtual_time import anyio_backend

__all__ = ["anyio_backend"]
