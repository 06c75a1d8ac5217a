"""The arguments of each suite."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import Peers
from benchmarks.plan import Plan

__all__ = ["Setting"]


@dataclass(frozen=True, slots=True)
class Setting:
    """A run.

    Attributes:
        url: the URL of a server for this run only.
        plan: the size of the run.
        peers: the environments of the peers; None leaves out the rows against them.
        say: gets the progress.
    """

    url: str
    plan: Plan
    peers: Peers | None
    say: Callable[[str], None]
