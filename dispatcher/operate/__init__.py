"""What operators ask for and see: check, setup, status, pauses, dead letters, metrics."""
