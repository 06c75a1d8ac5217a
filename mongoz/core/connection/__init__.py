"""Documented import paths of the database layer."""
