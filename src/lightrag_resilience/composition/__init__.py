"""What is built of several guarded calls: fallbacks, hedging, old answers, waiting."""
