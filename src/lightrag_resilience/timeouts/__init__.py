"""Timers of attempts, and of the gaps between the items of a stream."""
