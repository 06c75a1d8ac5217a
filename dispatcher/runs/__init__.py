"""Replay and backfill."""
