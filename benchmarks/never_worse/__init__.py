"""A LightRAG that is protected beside one that is not: it must never be the worse for it."""
