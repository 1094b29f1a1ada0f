"""What a brownout costs its callers under each policy, simulated in virtual time."""
