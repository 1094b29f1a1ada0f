"""One guarded call: its context, its attempts, and the events of them."""
