"""The sides of the rows about the ODM and its signals, one module each, run by `worker.py` in their own processes.

A module has `prepare(url)`, which returns its operations by name. An operation gets a number, does its work this
number of times, and returns the time.

Modules of peers run in another interpreter, without mongoz and its dependencies. They import only `people` and
`timing` of our code.
"""
