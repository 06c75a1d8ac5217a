"""Several processes on one machine: `--processes`.

supervisor.py   starts the processes, and decides what happens when a process ends
child.py        one process: started, watched, started again
lifeline.py     the same process from the inside: its role, and its end when the supervisor ends
front.py        one HTTP address for all processes
asking.py       one HTTP request to a process
"""
