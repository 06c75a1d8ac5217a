"""Documented import paths; the code lives in the packages beside this one."""
