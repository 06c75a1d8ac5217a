"""The outcome of a write: refused by the server, or unknown since the answer got lost."""
