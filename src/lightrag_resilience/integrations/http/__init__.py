"""What the two httpx transports have in common."""
