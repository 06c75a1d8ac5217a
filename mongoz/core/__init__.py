"""Public import paths; the code is in the packages beside this one."""
