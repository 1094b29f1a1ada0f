"""Queries and ingest of a LightRAG: their context, events, errors and drain."""
