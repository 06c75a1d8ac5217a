"""Finds the position that belongs to a token, in one partition of a topic."""

from contextlib import suppress
from typing import Final

from dispatcher.core.resume_tokens import token_time
from dispatcher.kafka.acceptance import BEGINNING, LogPosition, resume
from dispatcher.kafka.foreign import opened
from dispatcher.kafka.log import OutOfRange
from dispatcher.kafka.looks import Look
from dispatcher.kafka.record_log import RecordLog

CLOCKS: Final = 60
"""Seconds by which the clocks of the broker and of the server may differ."""

SEARCHED: Final = 1_000
"""Maximum number of records in one read."""

# The factor by which each attempt goes further back than the attempt before.
_FURTHER: Final = 1_000


async def find_position(log: RecordLog, look: Look, token: str) -> LogPosition | None:
    """The position of a token; None if the log begins after the token.

    Tokens rise within a term. If one record of a term is not after the token, the earlier records of this term
    are not after the token either. So the reader may skip this record and all these earlier ones. But records of
    a replaced relay may lie between those of its successor, and the reader must refuse the records of the
    replaced relay. So the position gets the highest term of the records that are not after the token, and the
    highest number in this term.

    Raises:
        TopicError: a record does not come from a relay.
    """
    relay = resume(BEGINNING, look.relay, look.beginning)
    if token >= relay.token:
        return relay._replace(token=token)
    found = await log.offset_at(float(token_time(token).time - CLOCKS))
    found = relay.offset if found < 0 else min(found, relay.offset)
    back = 1
    while True:
        begin = max(found - back, look.beginning)
        is_first = begin == look.beginning
        position = await _scan(log, begin, relay, token, is_first=is_first)
        if position is not None or is_first:
            return position
        back *= _FURTHER


async def _scan(
    log: RecordLog, begin: int, relay: LogPosition, token: str, *, is_first: bool
) -> LogPosition | None:
    """The position of a token: at the first record after the token.

    Args:
        is_first: whether the log has no records before `begin`.

    Returns:
        None if `begin` is not 0, and all records that were read are after the token. Also None if a
        record before `begin` may have a higher term than the records that were read.
    """
    base, offset = BEGINNING if begin == 0 else None, begin
    await log.seek(begin)
    try:
        while offset < relay.offset:
            for record in await log.read(SEARCHED):
                offset = record[0] + 1
                if offset > relay.offset:
                    break
                envelope, found = opened(log.name, record)
                if found > token:
                    began_before = base is not None and envelope.term > base.term and envelope.number > 0
                    if base is None or (began_before and not is_first):
                        return None
                    return base._replace(offset=record[0], token=token)
                if base is None or (envelope.term, envelope.number) > base[1:3]:
                    base = LogPosition(offset, envelope.term, envelope.number, token)
    except OutOfRange:
        return None
    return None if base is None else relay._replace(token=token)


async def first_token(log: RecordLog, look: Look) -> str:
    """The token of the first record. Without records, the token of the relay's position."""
    with suppress(OutOfRange):
        await log.seek(look.beginning)
        if look.beginning < look.relay.offset and (records := await log.read(1)):
            return opened(log.name, records[0])[1]
    return look.relay.token
