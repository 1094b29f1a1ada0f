"""The one place that states the version."""

__version__ = "0.1.0"
"""The version of this package, such as ``0.1.0``."""
