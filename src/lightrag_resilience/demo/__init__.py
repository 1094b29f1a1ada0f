"""Two real LightRAG instances beside each other, one of them protected, through trouble."""
