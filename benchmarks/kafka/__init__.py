"""Rows about dispatchers that read from Kafka, measured on an Apache Kafka in KRaft mode.

suite.py       starts the broker, and runs the measurements
stage.py       the servers of a run, and the processes around them
topic.py       how many records a topic has
server_cpu.py  row: processor time of mongod, Kafka against a change stream
relay.py       rows: the relay against a bare loop that publishes
latency.py     row: the time that Kafka adds between a write and its receiver
computing.py   rows: two processes against one, with a receiver that computes
commands.py    row: the commands that many members with many partitions send to MongoDB
memory.py      rows: the memory of a relay and of a worker over a long run
"""
