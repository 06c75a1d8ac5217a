"""Public import paths; the code is in the other packages of mongoz."""
