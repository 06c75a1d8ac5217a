"""Writes of many documents, in batches. The receivers run for each document."""
