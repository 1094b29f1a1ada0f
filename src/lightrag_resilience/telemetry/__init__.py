"""What goes out of a process for people to see: metrics, traces, logs, correlation."""
