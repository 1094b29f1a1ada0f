"""Documents that an outage or a killed process left behind are resumed without human action."""
