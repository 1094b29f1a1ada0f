"""Tasks, threads, forks and kinds of callables, for all rooms above. No policy in here."""
