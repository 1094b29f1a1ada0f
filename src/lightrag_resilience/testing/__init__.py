"""A provider to test against, and time that tests need not wait for."""

from typing import TYPE_CHECKING, Any

from lightrag_resilience.runtime.extras import install

from .virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from .faults import Fault
    from .simulator import SeenCall, Simulator

__all__ = ["Fault", "SeenCall", "Simulator", "VirtualTimeLoop"]


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
