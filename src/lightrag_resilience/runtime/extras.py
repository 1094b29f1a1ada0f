"""How to install an extra that is missing. Nothing is imported here."""

__all__ = ["install"]


def install(extra: str) -> str:
    """How to install an extra of this library, as the end of a sentence."""
    return f"in a clone of the repository, pip install '.[{extra}]'"
