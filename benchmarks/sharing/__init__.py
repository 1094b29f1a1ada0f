"""What it costs to share breakers through Redis, how fast, and how well it works without Redis."""
