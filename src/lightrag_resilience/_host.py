"""What the manager of this process lets it do at its end; nobody by default."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Host", "host"]


@dataclass(slots=True)
class Host:
    """Who started this process, such as Gunicorn.

    Attributes:
        patience: Seconds between its signal and the moment by which everything must have ended;
            None where nobody says. Drains that would last longer are made shorter in proportion.
    """

    patience: float | None = None


host = Host()
