"""Combinations of guarded calls: fallbacks, hedging, stale answers, waiting for recovery."""
