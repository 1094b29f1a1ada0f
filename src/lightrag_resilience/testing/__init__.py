"""A provider to test against, and time that tests need not wait for."""

from lightrag_resilience.runtime.extras import install

try:
    from .simulator import SeenCall, Simulator
except ModuleNotFoundError as error:
    if error.name != "aiohttp":
        raise
    raise ImportError(
        f"The provider simulator needs aiohttp: {install('testing')}",
        name="aiohttp",
    ) from error

from .faults import Fault
from .virtual_time import VirtualTimeLoop

__all__ = ["Fault", "SeenCall", "Simulator", "VirtualTimeLoop"]
