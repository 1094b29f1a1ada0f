"""``python -m lightrag_resilience`` is the ``lightrag-resilience`` command."""

from .cli import main

if __name__ == "__main__":
    main()
