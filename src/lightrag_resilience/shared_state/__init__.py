"""What all workers share through Redis: breakers, rate limits, overrides, leases."""
