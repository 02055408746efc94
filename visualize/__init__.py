"""Pictures, tables and equations read off a graph."""
