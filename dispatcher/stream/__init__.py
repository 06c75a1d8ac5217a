"""From the server to changes: the change stream, decoding, stamps, delete markers, images."""
