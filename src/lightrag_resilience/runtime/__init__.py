"""What all else stands on: tasks, threads, forks, kinds of callables. No policy in here."""
