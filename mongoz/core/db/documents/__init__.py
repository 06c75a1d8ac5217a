"""Documented import paths of documents."""
