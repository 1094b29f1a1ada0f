"""The demo: LightRAG alone and a protected one go through the same troubles."""
