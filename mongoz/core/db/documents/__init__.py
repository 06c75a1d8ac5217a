"""Public import paths of documents."""
