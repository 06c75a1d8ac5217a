"""Public import paths of querysets."""
