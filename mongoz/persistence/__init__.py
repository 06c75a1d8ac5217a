"""Writes of documents: one or many, each with its signals and its origin stamp."""
