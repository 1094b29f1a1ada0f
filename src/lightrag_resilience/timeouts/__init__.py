"""Timers of attempts and of the time between two items of a stream."""
