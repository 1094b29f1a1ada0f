"""Classification of errors: their kind, whether to retry, and when."""
