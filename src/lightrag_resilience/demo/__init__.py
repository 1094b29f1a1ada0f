"""The demo: a protected and an unprotected LightRAG go through the same outages."""
