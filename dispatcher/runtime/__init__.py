"""The daemon: assembles the pipeline of each partition, and runs the process."""
