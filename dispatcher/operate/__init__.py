"""Commands and views for operators: check, setup, status, pauses, dead letters, metrics."""
