"""Who may go now: rate limits, the bulkhead with its queue, cool-downs, priority."""
