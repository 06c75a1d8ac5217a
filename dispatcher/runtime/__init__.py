"""The daemon: puts the stages of a partition together, and runs the process."""
