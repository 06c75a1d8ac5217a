"""What every suite is given."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import Peers
from benchmarks.plan import Plan

__all__ = ["Setting"]


@dataclass(frozen=True, slots=True)
class Setting:
    """A run.

    Attributes:
        url: of a server that nobody else uses.
        plan: how much is measured.
        peers: their environment; None to leave their rows out.
        say: told about the progress.
    """

    url: str
    plan: Plan
    peers: Peers | None
    say: Callable[[str], None]
