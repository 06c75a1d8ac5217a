"""Public import paths of fields, documents and querysets."""
