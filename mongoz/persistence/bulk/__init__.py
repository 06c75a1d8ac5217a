"""Writes of many documents, in batches, each document with its receivers."""
