"""The ``lightrag-resilience`` command, also as ``python -m lightrag_resilience``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run it; Ctrl-C ends it without a traceback, also while it is still being imported."""
    try:
        from .cli.app import main as run  # noqa: PLC0415 - it takes a while

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
