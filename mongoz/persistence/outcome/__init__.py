"""The outcome of a write: refused by the server, or unknown because the answer got lost."""
