"""What a guarded call costs, beside the bare call, a hand-composed stack, and the peers."""
