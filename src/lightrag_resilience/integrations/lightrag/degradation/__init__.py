"""Answers of a lower level while a dependency is down."""
