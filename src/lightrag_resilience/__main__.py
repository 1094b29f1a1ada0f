"""The ``lightrag-resilience`` command, also as ``python -m lightrag_resilience``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; Ctrl-C ends it without a traceback, even during its import."""
    try:
        from .cli.app import main as run  # noqa: PLC0415 - slow: Ctrl-C may come meanwhile

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
