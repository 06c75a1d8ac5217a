"""What mongoz and its dispatcher cost, as ratios: both sides of each are measured in one run, on one machine.

    cli.py              flags -> plan -> rows -> report
    plan.py             how much is measured
    setting.py          what every suite is given
    load.py             rows: how fast documents are loaded
    writes.py           rows: what single writes cost
    signals.py          rows: what sending a signal costs
    backlog.py          row: how fast a backlog is delivered
    latency.py          rows: how long a write takes to its receiver
    start.py            row: how long a daemon takes to its first delivery
    four.py             row: four dispatchers against one
    memory.py           rows: the daemon's memory over a long backlog
    growth.py           how cost grows, as plots: `make bench ARGS=growth`
    busy.py             measuring an application of a certain shape
    turns.py            sides that take turns
    workers.py          the processes of these sides
    peers.py            the environments of other ODMs and signals; peers.txt has the versions
    contestants.py      the processes of the dispatcher's rows: the daemon, the bare loop; and the writer
    workloads/          what runs inside all those processes
    figures.py          samples, ratios, targets; pure
    machine.py          where it was measured
    report.py           the table and the JSON

    guard.py            instructions instead of seconds, against the records in guard.json: `make guard`

Run it with `make bench`, or `python -m benchmarks --help`.
"""
