"""Services that parse documents for LightRAG: MinerU, Docling, and those of parser plugins."""
