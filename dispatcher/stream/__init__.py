"""Reads changes from the server: the change stream, decoding, stamps, delete markers, images."""
