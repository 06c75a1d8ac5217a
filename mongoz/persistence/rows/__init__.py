"""Rows of the database and instances of models: validation, hydration, comparison and copies."""
