"""Between instances and the database: rows, and the writes of single documents and of many."""
