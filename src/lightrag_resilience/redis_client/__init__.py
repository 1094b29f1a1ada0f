"""A client of Redis in all its forms, its scripts, and what is wrong with it in words."""
