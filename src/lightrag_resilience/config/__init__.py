"""Policies and settings: what a guard does, and the environment that says so."""
