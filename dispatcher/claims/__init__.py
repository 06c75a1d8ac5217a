"""Takes over the claimed deliveries that a writing process did not finish."""
