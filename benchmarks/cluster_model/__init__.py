"""What many workers ask of one Redis: measured with up to 200, reckoned for 10 000.

``python -m benchmarks.cluster_model [--workers 10 50 100 200] [--seconds 4] [--json FILE]``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .costs import measure_costs
from .model import capacity
from .real import measure_real
from .simulation import simulate

__all__ = ["measure"]

_LARGE = (100, 500, 1000, 5000, 10_000)
_BREAKERS = (1, 10, 100)


def measure(workers: Sequence[int], seconds: float, commands: int) -> dict[str, Any]:
    """Measure so many workers each, and reckon and simulate larger clusters from that.

    Args:
        workers: The sizes of real clusters, ascending.
        seconds: For each measurement of them.
        commands: Of each connection, to find out what one costs the server.
    """
    costs = measure_costs(commands)
    measured = [measure_real(number, seconds) for number in workers]
    own_part = measured[0].trip.p50
    return {
        "costs": asdict(costs),
        "measured": [asdict(one) for one in measured],
        "capacity": [asdict(capacity(costs, breakers)) for breakers in _BREAKERS],
        "simulated": [
            asdict(simulate(number, costs, own_part, busy=busy))
            for number in _LARGE
            for busy in (False, True)
        ],
    }
