"""What became of a write: refused by the server, or of unknown outcome."""
