"""Public import paths of the connection."""
