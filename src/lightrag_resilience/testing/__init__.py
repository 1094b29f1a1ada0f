"""Guards as tests want them, a provider to test against, and time that need not be waited for."""

from typing import TYPE_CHECKING, Any

from lightrag_resilience.runtime.extras import install

from .fast_time import FastTime
from .recorder import Recorder
from .switches import open_circuit, outage, resilience_fast, resilience_fresh, resilience_off
from .virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from .faults import Fault
    from .simulator import SeenCall, Simulator

__all__ = [
    "FastTime",
    "Fault",
    "Recorder",
    "SeenCall",
    "Simulator",
    "VirtualTimeLoop",
    "open_circuit",
    "outage",
    "resilience_fast",
    "resilience_fresh",
    "resilience_off",
]


def __getattr__(name: str) -> Any:
    """Import the simulator on first use: servers and workers do without its aiohttp."""
    if name not in {"Fault", "SeenCall", "Simulator"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import simulator  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ImportError(
            f"The provider simulator needs aiohttp: {install('testing')}",
            name="aiohttp",
        ) from error
    return getattr(simulator, name)
