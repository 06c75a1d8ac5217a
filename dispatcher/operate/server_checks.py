"""Checks of the deployment, for dispatchers and relays alike."""

from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

from dispatcher.core.clients import Clients
from dispatcher.core.oplog import MOST_SKEW, Oplog, clock_offset
from dispatcher.core.state import State
from dispatcher.core.stats import duration
from dispatcher.operate.findings import Finding
from dispatcher.operate.privileges import Right, missing

# The first version that can send a large change event in parts.
_SPLITS_EVENTS: Final = (6, 0, 9)

HEADROOM: Final = 3_600.0
"""Minimum seconds of headroom: with less, an operator has no time to react."""


class ServerChecks(NamedTuple):
    """Checks of the server.

    Attributes:
        role: the command that prints the least rights.
    """

    state: State
    clients: Clients
    role: str

    async def version(self) -> Finding:
        """The version of the server."""
        version = str((await self.state.client.admin.command("buildInfo"))["version"])
        numbers = tuple(int(part) for part in version.partition("-")[0].split("."))
        text = f"MongoDB {version} at {self.clients.address}"
        if numbers < _SPLITS_EVENTS:
            return Finding(
                "warning",
                "server",
                f"{text} can't split a change event of more than 16 MB",
                "Upgrade to 6.0.9 or later if a document and its images together can exceed 16 MB.",
            )
        return Finding("ok", "server", text)

    async def rights(self, needed: Sequence[Right], useful: Sequence[Right]) -> AsyncIterator[Finding]:
        """The rights of the user."""
        lacking = await missing(self.state.client, needed)
        remedy = f"Grant it, or create the role that `{self.role}` prints."
        for right in lacking:
            yield Finding("error", "rights", f"The user lacks {right}", remedy)
        if not lacking:
            yield Finding("ok", "rights", "The user has all required privileges")
        for right in await missing(self.state.client, useful):
            yield Finding("warning", "rights", f"The user lacks {right}", remedy)

    async def clock(self) -> Finding:
        """The clock of the server."""
        offset = await clock_offset(self.state.client)
        text = f"The clock of the server is {abs(offset):.3f} s {'ahead of' if offset > 0 else 'behind'} this one"
        if abs(offset) > MOST_SKEW:
            return Finding("warning", "clock", text, "Synchronize both clocks with NTP.")
        return Finding("ok", "clock", text)


def of_oplog(oplog: Oplog) -> Finding:
    """How far the oplog reaches back."""
    window = oplog.window + oplog.spare
    text = f"It holds the last {duration(oplog.window)}"
    if oplog.spare:
        text += f". It is not full, and will hold about {duration(window)} at this rate"
    if window < HEADROOM:
        return Finding(
            "warning",
            "oplog",
            f"{text}: if no process reads changes for longer than that, changes are lost",
            "Enlarge it with replSetResizeOplog.",
        )
    return Finding("ok", "oplog", text)


def of_position(oplog: Oplog, position: float, process: str) -> Finding:
    """How long the oplog will reach back to a position.

    Args:
        position: its cluster time, in seconds since 1970.
        process: the process that would move the position, for the remedy.
    """
    headroom, age = oplog.headroom(position), oplog.ends - position
    if headroom <= 0:
        return Finding(
            "error",
            "position",
            f"The oplog begins {duration(-headroom)} after the position: the changes in between are lost",
            f"See --on-history-lost in `dispatcher {process} --help`.",
        )
    text = f"It is {duration(age)} old, and the oplog holds it for another {duration(headroom)}"
    if headroom < max(HEADROOM, 2 * age):
        what = "a dispatcher" if process == "run" else "a relay"
        remedy = f"Run {what} now, and enlarge the oplog with replSetResizeOplog."
        return Finding("warning", "position", f"{text}: the oplog is too short for the lag", remedy)
    return Finding("ok", "position", text)
