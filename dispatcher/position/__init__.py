"""Positions: the token up to which everything is finished, tracked in memory and saved in MongoDB."""
