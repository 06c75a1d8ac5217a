"""The sides of the rows about the ODM and its signals, one module each, run by `worker.py` in their own processes.

A module has `prepare(url)`, which makes everything ready and returns the operations that can be measured, by
name. An operation is given a number and does the work that often; what it returns is the time that this took.

Those of the peers are run by another interpreter, which has neither mongoz nor what it needs: of our code they
import `people` and `timing` only.
"""
