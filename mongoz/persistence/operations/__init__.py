"""Update operators: the fields that they change, the limits that they must keep, and their results."""
