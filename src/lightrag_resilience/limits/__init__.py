"""When a call may be sent: rate limits, the bulkhead and its queue, cool-downs, priority."""
