"""Gathers deliveries to batch receivers from the lanes and the database, and makes many of them in one call."""
