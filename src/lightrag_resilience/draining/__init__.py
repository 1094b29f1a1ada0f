"""How a process ends: signals, phases, what is in flight, the journal."""
