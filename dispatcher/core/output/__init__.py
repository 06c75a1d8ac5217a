"""Logs, standard streams, and text that is safe to show."""
