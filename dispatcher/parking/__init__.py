"""Deliveries that wait, durably: parked deliveries and dead letters."""
