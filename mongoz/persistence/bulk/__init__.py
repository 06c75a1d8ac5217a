"""Writes of many documents: selected, in batches, each with its receivers."""
