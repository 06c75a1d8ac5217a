"""Deliveries that are kept in the database: parked deliveries and dead letters."""
