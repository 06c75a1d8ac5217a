"""Gathers the deliveries of batch receivers, from the lanes and from the database. One call makes many of them."""
