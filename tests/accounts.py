"""The documents and the ledger of applications under test. `tests/ledger.py` sets their environment."""

import os
from pathlib import Path

import mongoz

database = os.environ["LEDGER_GROUP"]
registry = mongoz.Registry(os.environ["LEDGER_URL"], dispatched=database)
slowness = float(os.environ.get("LEDGER_SLOWNESS", "0"))
# The share of calls that take up to a second longer. Later calls may end before them. The saved position must not
# pass them.
stragglers = float(os.environ.get("LEDGER_STRAGGLERS", "0"))

_ledger = Path(os.environ["LEDGER_FILE"])


class Account(mongoz.Document):
    name: str = mongoz.String()
    n: int = mongoz.Integer()

    class Meta:
        registry = registry
        database = database


def record(line: str) -> None:
    """Adds a line to the ledger. The line survives a kill of the process."""
    with _ledger.open("a") as file:  # one small write is atomic
        file.write(f"{line}\n")
