"""Gathers the deliveries of batch receivers from the lanes and the database, and makes many in one call."""
