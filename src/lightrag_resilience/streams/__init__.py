"""Guarded streams: their items, their time, and whether they are complete."""
