"""One guarded call: its context, its attempts and their events."""
