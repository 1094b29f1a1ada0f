"""LightRAG's own server, protected."""
