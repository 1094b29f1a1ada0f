"""Guarded streams: reading them, and knowing whether they are whole."""
