"""Lower levels of answers while a dependency is unavailable."""
