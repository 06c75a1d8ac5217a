"""Repeats transactions that conflict with other writes, and limits the concurrent transactions of a receiver."""

import random
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, Final

from bson.codec_options import CodecOptions

from dispatcher.core.output.logs import log
from dispatcher.core.output.throttle import Throttle
from dispatcher.core.retry import Pause
from dispatcher.delivery.attempt import Attempt, Call, Target
from dispatcher.delivery.log import described
from dispatcher.delivery.transactions import is_conflict, is_transient
from dispatcher.pace.contention import Contention

# Seconds between two runs of a transaction after a conflict: the first pause, and the maximum.
_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.5


class Conflicts:
    """The step that repeats a transaction within its attempt, as long as the server reports a transient error.

    Each run may take the receiver's whole time limit, because the receiver did not cause the conflict. If a run
    fails after this time, counted from the start of the first run, it is not repeated.
    """

    def __init__(self, codec_options: CodecOptions[Any], pause: Pause) -> None:
        self._codec_options = codec_options
        self._pause = pause
        self._contention: dict[bytes, Contention] = {}
        self._throttle = Throttle()

    def around(self, target: Target) -> Target:
        """Put the step around the `call` of a transactional receiver."""
        if not target.terms.transactional:
            return target
        contention = self._contention.setdefault(target.receiver.ids[0], Contention())
        return replace(target, call=partial(self._repeat, target.call, contention))

    async def _repeat(self, call: Call, contention: Contention, attempt: Attempt) -> BaseException | None:
        began, seconds = monotonic(), _FIRST_PAUSE
        while True:
            async with contention.place() as place:
                error = await call(attempt)
                if error is None:
                    contention.committed()
                    return None
                if is_conflict(error):
                    contention.conflicted(place)
                    self._count(attempt, contention.limit)
            if not is_transient(error) or monotonic() - began >= attempt.target.terms.timeout:
                return error
            await self._pause(seconds * random.uniform(0.5, 1.0))
            seconds = min(_LONGEST_PAUSE, seconds * 2)
            attempt = attempt.renewed(self._codec_options)

    def _count(self, attempt: Attempt, limit: float) -> None:
        """Count a conflict. The log lines are throttled."""
        attempt.target.figures.conflicts += 1
        further = self._throttle.due(attempt.delivery.receiver)
        if further is not None:
            log.warning(
                "a transactional receiver conflicts with other writes; its transaction runs again",
                action="delivery.conflict",
                **described(attempt.delivery),
                at_once=max(1, int(limit)),
                further=further,
            )
