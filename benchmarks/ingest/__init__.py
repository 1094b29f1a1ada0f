"""What becomes of documents in outages of their provider, with `protect` and without."""
