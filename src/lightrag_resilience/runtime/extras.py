"""How to install what an import did not find. Nothing is imported here."""

__all__ = ["install"]


def install(extra: str) -> str:
    """What to do for an extra of this library, as the end of a sentence."""
    return f"in a clone of the repository, pip install '.[{extra}]'"
