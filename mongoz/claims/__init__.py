"""Claims: a process records which receivers it runs itself, so that a dispatcher can take them over."""
