"""The cost of mongoz and its dispatcher, as ratios. Both sides of a ratio are measured in one run on one machine.

    cli.py              flags -> plan -> rows -> report
    plan.py             the size of a run
    setting.py          the arguments of each suite
    load.py             rows: loading documents
    writes.py           rows: single writes
    signals.py          rows: sending a signal
    backlog.py          rows: delivering a backlog
    latency.py          rows: the time from a write to its receiver
    start.py            rows: the time from the start of a daemon to its first delivery; the cost of commands
    four.py             row: four dispatchers against one
    shared.py           row: transactional receivers that write shared documents
    memory.py           rows: the daemon's memory after its start, and during a long backlog
    claims.py           rows: the cost of claims, for a process that writes much and for the dispatcher
    batch.py            rows: batch receivers against single deliveries
    limits.py           rows: a receiver with a limit beside one without
    kafka/              rows: dispatchers that read from Kafka
    growth.py           growth of cost, as plots: `make bench ARGS=growth`
    busy.py             measures an application of a given shape
    turns.py            sides that take turns
    workers.py          the processes of these sides
    peers.py            the environments of other ODMs and signals; peers.txt has the versions
    contestants.py      the processes of the dispatcher's rows: the daemon, the bare loop and the writer
    processes.py        processor time and memory of other processes
    workloads/          the code inside all these processes
    figures.py          samples, ratios, targets; pure
    machine.py          the machine
    report.py           the table and the JSON
    pages.py            the pages in docs/benchmarks, with plots by plots.py

    guard.py            counts instructions instead of seconds, and compares them with guard.json: `make guard`

Run it with `make bench`, or `python -m benchmarks --help`.
"""
