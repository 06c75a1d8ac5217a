"""Ends the reading of a source at a token."""

from collections.abc import AsyncGenerator
from itertools import takewhile
from typing import Final

from dispatcher.core.events import EventBatch
from dispatcher.core.resume_tokens import token_of, token_time

# Number of empty batches in a row after which the reading ends, if their tokens have the end time of the range.
# One batch is not enough: its token sorts before the tokens of changes at the end time, so such changes can still
# come. Before the server sends the second batch, it looks again for changes after the token of the first batch.
_SURELY_EMPTY: Final = 2


async def until(batches: AsyncGenerator[EventBatch], end: str) -> AsyncGenerator[EventBatch]:
    """Yield batches as long as they may contain changes up to a token. Later changes are left out.

    Args:
        batches: the batches of a source. The caller closes them.
        end: a token, or another text that sorts among tokens, for example a result of `time_after`. No yielded
            batch has a later token.
    """
    time, empty = token_time(end), 0
    async for batch in batches:
        if batch.token <= end and token_time(batch.token) < time:  # the usual case
            yield batch
            continue
        empty = 0 if batch.events else empty + 1
        ended = batch.token >= end or empty >= _SURELY_EMPTY
        if batch.token > end:
            events = [*takewhile(lambda event: token_of(event["_id"]) <= end, batch.events)]
            yield batch._replace(events=events, token=end)
        else:
            yield batch
        if ended:
            return
