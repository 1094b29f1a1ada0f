"""The guard that joins all policies, the registry of guards, and the decorator."""
