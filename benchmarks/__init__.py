"""What mongoz and its dispatcher cost, as ratios: both sides of each are measured in one run, on one machine.

    cli.py              flags -> plan -> rows -> report
    plan.py             how much is measured
    backlog.py          row: how fast a backlog is delivered
    latency.py          rows: how long a write takes to its receiver
    contestants.py      the processes that are measured: the daemon, the bare loop; and the writer
    workloads/          what runs inside those processes
    figures.py          samples, ratios, targets; pure
    machine.py          where it was measured
    report.py           the table and the JSON

Run it with `make bench`, or `python -m benchmarks --help`.
"""
