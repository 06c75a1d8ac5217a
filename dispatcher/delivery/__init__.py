"""Delivers changes to receivers: routes, order, attempts, failures."""
