"""Counts the attempts that a rate allows. No I/O."""

import math
from typing import Final

# Tolerance for sums of fractions, in tokens.
_ROUNDING: Final = 1e-9


class TokenBucket:
    """Tokens that come in at a rate. Each attempt takes one.

    The bucket has room for the tokens of one second, or for one token if that is more. It is full when it gets its
    first rate. Later changes of the rate add no tokens. All times are seconds of one monotonic clock.

    Examples:
        >>> bucket = TokenBucket()
        >>> bucket.set_rate(2.0, now=0.0)
        >>> [bucket.take(now) for now in (0.0, 0.0, 0.0, 0.5)]
        [True, True, False, True]
    """

    def __init__(self) -> None:
        self._rate = self._tokens = self._at = 0.0
        self._is_new = True

    def set_rate(self, per_second: float, now: float) -> None:
        """Change the number of tokens that come in per second; 0 if none come in."""
        self._fill(now)
        self._rate = per_second
        self._tokens = self._burst if self._is_new else min(self._tokens, self._burst)
        self._is_new = self._is_new and not per_second

    @property
    def _burst(self) -> float:
        return max(1.0, self._rate)

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + self._rate * max(0.0, now - self._at))
        self._at = max(self._at, now)

    def take(self, now: float) -> bool:
        """Take a token. Returns False if there is none."""
        self._fill(now)
        if self._rate == 0 or 1 - self._tokens > _ROUNDING:
            return False
        self._tokens -= 1
        return True

    def seconds(self, count: int, now: float) -> float:
        """The seconds until this number of tokens can be taken, one after another; infinite without a rate."""
        self._fill(now)
        if self._rate == 0:
            return math.inf
        missing = count - self._tokens
        return missing / self._rate if missing > _ROUNDING else 0.0
