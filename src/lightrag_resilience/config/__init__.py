"""Policies and settings, and the environment variables that set them."""
