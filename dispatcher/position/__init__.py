"""How far everything is finished, and keeping that in MongoDB."""
