"""The state of a circuit breaker and the outcomes it is decided by. No clock and no I/O."""
