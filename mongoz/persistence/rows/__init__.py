"""Rows of the database and instances of models: one made from the other, and compared."""
