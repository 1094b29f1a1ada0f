"""The decisions of a circuit breaker and the outcomes behind them. No clock and no I/O."""
