"""A provider to test against, and time that tests need not wait for."""

try:
    from .simulator import SeenCall, Simulator
except ModuleNotFoundError as error:
    if error.name != "aiohttp":
        raise
    raise ImportError(
        "The provider simulator needs aiohttp: pip install 'lightrag-resilience[testing]'",
        name="aiohttp",
    ) from error

from .faults import Fault
from .virtual_time import VirtualTimeLoop

__all__ = ["Fault", "SeenCall", "Simulator", "VirtualTimeLoop"]
