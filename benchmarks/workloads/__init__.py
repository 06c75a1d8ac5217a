"""The code inside the measured processes."""
