"""Replays and backfills: deliver past changes, or existing documents, to chosen receivers."""
