"""Logs and standard streams."""
