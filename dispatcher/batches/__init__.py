"""Deliveries of batch receivers: gathered from the lanes and from the database, and made many at a time."""
