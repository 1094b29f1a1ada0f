"""What an error means: its kind, whether it may be repeated, and when."""
