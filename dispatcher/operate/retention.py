"""Dead letters are not kept for ever: those that nobody wanted for a long time are forgotten."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from pymongo.errors import PyMongoError

from dispatcher.core.error_text import text_of
from dispatcher.core.output.logs import Stats, get_logger
from dispatcher.core.state import Group
from dispatcher.operate.dead_letters import Wanted, drop, ids_of

__all__ = ["forget_old_letters"]

log = get_logger()

# Seconds between two looks.
_BETWEEN: Final = 3_600.0


async def forget_old_letters(group: Group, *, days: float, stats: Stats) -> None:
    """Remove old letters now and every hour, for ever. What fails is done the next time; any process may do it.

    Args:
        group: of dispatchers, with the database of its state.
        days: that letters are kept after their last attempt; 0 for ever.
        stats: knows by how much the server's clock differs from ours.
    """
    while days:
        before = datetime.now(UTC) + timedelta(seconds=stats.clock_offset) - timedelta(days=days)
        try:
            old = await ids_of(group, Wanted(until=before))
            gone = (await drop(group, old)).dropped
        except PyMongoError as error:
            log.info(
                "old dead letters could not be removed", action="dead_letter.not_expired", error=text_of(error)
            )
        else:
            if gone:
                log.info(
                    "old dead letters are forgotten", action="dead_letter.expired", count=len(gone), days=days
                )
        await asyncio.sleep(_BETWEEN)
