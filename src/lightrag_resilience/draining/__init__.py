"""How a process shuts down: signals, phases, work in flight, the journal."""
