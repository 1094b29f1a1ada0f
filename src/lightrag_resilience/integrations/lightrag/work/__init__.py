"""What LightRAG works on now: queries and ingest, and how each ended."""
