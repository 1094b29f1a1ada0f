"""Metrics, traces, logs and correlation."""
