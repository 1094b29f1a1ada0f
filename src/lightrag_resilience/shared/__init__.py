"""Breaker state shared by all workers through Redis."""
